//! Files that are read.
#![expect(unsafe_code, reason = "C calls these")]

use std::ffi::c_char;

use extent::wire::OpenMode;
use extent::{FileName, Generation};

use super::rings::{check_place, status};
use crate::abi::File;
use crate::core::Core;
use crate::failure::Outcome;
use crate::handle::{self, Ring};
use crate::options;

/// Opens a file, "silo/key", at a generation; 0 is the newest. What was opened stays as it is, whatever is written later.
/// Waits for the node.
///
/// # Errors
/// FOREBAY_NOT_FOUND, FOREBAY_STALE if that generation is gone, FOREBAY_DISCONNECTED, FOREBAY_INVALID. `*file` is 0 then.
///
/// # Safety
/// the file belongs to the ring, and is used with that one only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_file_open(
    ring: *mut Ring,
    name: *const c_char,
    generation: u64,
    file: *mut File,
) -> i32 {
    let open = |core: &mut Core| {
        // SAFETY: a pointer to a number of C's.
        unsafe { check_place(file) }?;
        // SAFETY: just checked.
        unsafe { file.write(0) };
        // SAFETY: C promises a string.
        let name: FileName = unsafe { options::text(name) }?.parse()?;
        core.opened.check_room()?;
        let mode = OpenMode::Read(Generation(generation));
        let opened = core.call(|session| session.submit_open(&name, mode))?.opened();
        let (handle, body) =
            opened.map_err(|error| error.while_doing(format_args!("opening {name}")))?;
        // SAFETY: checked above.
        unsafe { file.write(core.opened.insert(handle, Some(&body))) };
        Ok(())
    };
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, open) })
}

/// Closes a file. Does not wait for the node.
///
/// # Errors
/// FOREBAY_INVALID if it is not open in this ring; FOREBAY_BUSY if reads of it are under way: it is still open then.
///
/// # Safety
/// nothing more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_file_close(ring: *mut Ring, file: File) -> i32 {
    let close = |core: &mut Core| {
        core.opened.reader(file)?;
        let handle = core.opened.remove(file)?;
        core.close(handle);
        Ok(())
    };
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, close) })
}

/// Bytes of the file, as it was opened.
///
/// # Errors
/// FOREBAY_INVALID if it is not open in this ring.
///
/// # Safety
/// nothing more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_file_length(ring: *mut Ring, file: File, length: *mut u64) -> i32 {
    // SAFETY: as C promises.
    unsafe { tell(ring, length, |core| Ok(core.opened.reader(file)?.1)) }
}

/// The generation that was opened.
///
/// # Errors
/// FOREBAY_INVALID if it is not open in this ring.
///
/// # Safety
/// nothing more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_file_generation(
    ring: *mut Ring,
    file: File,
    generation: *mut u64,
) -> i32 {
    // SAFETY: as C promises.
    unsafe { tell(ring, generation, |core| Ok(core.opened.reader(file)?.2)) }
}

/// # Safety
/// The ring is one, or null; a number may be written to `place`, unless that is null.
unsafe fn tell(
    ring: *mut Ring,
    place: *mut u64,
    number: impl FnOnce(&mut Core) -> Outcome<u64>,
) -> i32 {
    let write = |core: &mut Core| {
        // SAFETY: as the caller promises.
        unsafe { check_place(place) }?;
        let number = number(core)?;
        // SAFETY: just checked.
        unsafe { place.write(number) };
        Ok(())
    };
    // SAFETY: as the caller promises.
    status(unsafe { handle::with(ring, write) })
}
