#![allow(unsafe_code)]

use dma::Span;

/// Host memory that a ring may have the device read.
///
/// # Safety
/// Whoever owns the value is the only one to use the bytes, but for who has it lent, and they stay mapped
/// as long as it lives. Its span, as long as it is not handed to somebody else, is always the same.
pub unsafe trait HostMemory: AsRef<[u8]> + AsMut<[u8]> + Send {
    /// Where it is; `None` if it is gone.
    fn span(&self) -> Option<Span<'_>>;
}
