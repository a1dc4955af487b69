//! Whether this is still the process that a ring was opened in.
#![expect(unsafe_code, reason = "the C library is told whom to call after a fork")]

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many forks lie between this process and the one that loaded the library.
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The number of this process among its forebears. Costs a load, unlike asking for the process's id.
pub(crate) fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// From now on forks are counted.
pub(crate) fn watch() {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        // SAFETY: the function does nothing but add to an atomic number, and stays where it is,
        // since the library is never unloaded.
        let refused = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        assert!(refused == 0, "there is memory for one more function to call after a fork");
    });
}
