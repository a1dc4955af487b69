//! New generations of files.
#![expect(unsafe_code, reason = "C calls these")]

use std::ffi::{c_char, c_void};

use extent::FileName;
use extent::wire::OpenMode;

use super::reads::buffer;
use super::rings::{check_place, status};
use crate::abi::Writer;
use crate::clock;
use crate::core::Core;
use crate::handle::{self, Ring};
use crate::options;
use crate::transfer::{Flow, Transfer, Wanted};

/// Starts a new generation of a file, "silo/key", or a new file. Nobody sees it before forebay_commit. `expected_bytes`: a hint, 0
/// if it is not known. Waits for the node, as all calls on a writer do.
///
/// # Errors
/// FOREBAY_NOT_FOUND for a silo that there is not, FOREBAY_NO_SPACE, FOREBAY_DISCONNECTED, FOREBAY_INVALID. `*writer` is 0 then.
///
/// # Safety
/// the writer belongs to the ring, and is used with that one only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_create(
    ring: *mut Ring,
    name: *const c_char,
    expected_bytes: u64,
    writer: *mut Writer,
) -> i32 {
    let create = |core: &mut Core| {
        // SAFETY: a pointer to a number of C's.
        unsafe { check_place(writer) }?;
        // SAFETY: just checked.
        unsafe { writer.write(0) };
        // SAFETY: C promises a string.
        let name: FileName = unsafe { options::text(name) }?.parse()?;
        core.opened.check_room()?;
        let mode = OpenMode::Write(expected_bytes);
        let opened = core.call(|session| session.submit_open(&name, mode))?.opened();
        let (handle, _) =
            opened.map_err(|error| error.while_doing(format_args!("creating {name}")))?;
        // SAFETY: checked above.
        unsafe { writer.write(core.opened.insert(handle, None)) };
        Ok(())
    };
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, create) })
}

/// Writes `length` bytes to `offset` of the new generation. From memory from forebay_alloc the node takes them itself; others
/// are copied once.
///
/// # Errors
/// FOREBAY_INVALID, FOREBAY_NO_SPACE, FOREBAY_MEMORY_LOST, FOREBAY_DISCONNECTED: the generation is lost with its connection.
///
/// # Safety
/// the buffer has so many bytes, and nobody writes to them meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_write(
    ring: *mut Ring,
    writer: Writer,
    bytes: *const c_void,
    length: u64,
    offset: u64,
) -> i32 {
    let write = |core: &mut Core| {
        let handle = core.opened.writer(writer)?;
        // Never written to: `Flow::Write` only reads from it.
        let (buffer, length, place) = buffer(core, bytes.cast_mut(), length, offset)?;
        core.write(Transfer::new(Wanted {
            flow: Flow::Write,
            file: writer,
            handle,
            offset,
            buffer,
            length,
            place,
            user_data: 0,
            begun: clock::now(),
        }))
    };
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, write) })
}

/// Makes the new generation durable and visible, whole, at this length in bytes; bytes that were never written are zero. The
/// writer is closed, whatever comes of it. `generation`: where its number goes, or NULL.
///
/// # Errors
/// What the node answers. After FOREBAY_DISCONNECTED it is not known whether it was committed: open the file and look at its
/// generation.
///
/// # Safety
/// nothing more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_commit(
    ring: *mut Ring,
    writer: Writer,
    length: u64,
    generation: *mut u64,
) -> i32 {
    let commit = |core: &mut Core| {
        core.opened.writer(writer)?;
        if !generation.is_null() {
            // SAFETY: a pointer to a number of C's.
            unsafe { check_place(generation) }?;
        }
        let handle = core.opened.remove(writer)?;
        let committed = core.call(|session| session.submit_commit(handle, length));
        core.close(handle);
        let opened = committed?.opened();
        let (_, body) = opened.map_err(|error| error.while_doing("committing"))?;
        if !generation.is_null() {
            // SAFETY: checked above.
            unsafe { generation.write(body.generation.0) };
        }
        Ok(())
    };
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, commit) })
}

/// Drops a generation that was not committed, and closes the writer.
///
/// # Errors
/// FOREBAY_INVALID if it is not open in this ring.
///
/// # Safety
/// nothing more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_abort(ring: *mut Ring, writer: Writer) -> i32 {
    let abort = |core: &mut Core| {
        core.opened.writer(writer)?;
        let handle = core.opened.remove(writer)?;
        core.close(handle);
        Ok(())
    };
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, abort) })
}
