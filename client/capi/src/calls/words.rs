//! What went wrong, in words.
#![expect(unsafe_code, reason = "C calls these")]

use std::ffi::c_char;

use crate::failure;

/// What went wrong in this thread's last call that failed, and what to do about it. Never NULL. Good until the thread's next call
/// that fails, or that hands out a completion that failed.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_last_error() -> *const c_char {
    failure::last()
}

/// What an error means, in general; of either sign. Never NULL, and good for ever.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_strerror(error: i32) -> *const c_char {
    failure::meaning(error).as_ptr()
}

/// The library's version, such as "0.1.0". Good for ever.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_version() -> *const c_char {
    VERSION.as_ptr()
}

const VERSION: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes(),
) {
    Ok(version) => version,
    Err(_) => c"",
};
