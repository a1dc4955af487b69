//! Having memory fetched before it is needed.
#![allow(unsafe_code)]

const LINE_BYTES: usize = 64;

/// Has the processor fetch the first cache line of a value that is about to be looked at. Costs next to
/// nothing, and changes nothing but how long that look takes.
pub fn prefetch<T>(value: &T) {
    prefetch_line(std::ptr::from_ref(value).cast());
}

/// Has the processor fetch bytes that are about to be read.
pub(crate) fn prefetch_bytes(bytes: &[u8]) {
    bytes.chunks(LINE_BYTES).for_each(|line| prefetch_line(line.as_ptr()));
}

#[cfg(target_arch = "x86_64")]
fn prefetch_line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: it reads nothing, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_line(_: *const u8) {}
