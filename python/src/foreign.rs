//! Memory of Python's objects, by its address.

use std::ptr::{self, NonNull};

/// Bytes of memory that is not the node's to use, such as a `bytearray`'s. Whoever made this keeps
/// them where they are until its transfer is over, or let go of.
pub(crate) struct Foreign(pub(crate) NonNull<u8>);

#[expect(unsafe_code, reason = "a pointer into a Python object's buffer")]
// SAFETY: it is only used by `copy_from` and `copy_to`, under the transfer's lock, while whoever
// made it keeps the bytes there.
unsafe impl Send for Foreign {}

#[expect(unsafe_code, reason = "foreign memory is known by its address")]
impl Foreign {
    fn at(&self, start: usize) -> *mut u8 {
        // SAFETY: chunks lie within the transfer's length, for which this was made.
        unsafe { self.0.as_ptr().add(start) }
    }

    /// Puts bytes there.
    pub(crate) fn copy_from(&self, start: usize, bytes: &[u8]) {
        let place = self.at(start);
        // SAFETY: whoever made this keeps its bytes where they are while the transfer has it, and
        // they are no memory of the pool.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// Takes bytes from there.
    pub(crate) fn copy_to(&self, start: usize, bytes: &mut [u8]) {
        let place = self.at(start);
        // SAFETY: as in `copy_from`.
        unsafe { ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), bytes.len()) };
    }
}
