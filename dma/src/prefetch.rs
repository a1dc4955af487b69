//! Having memory fetched before it is needed.
#![allow(unsafe_code)]

const LINE_BYTES: usize = 64;

/// Has the processor fetch the cache lines of a small value that is about to be looked at: the first, and
/// the one of its last byte. Costs next to nothing, and changes nothing but how long that look takes.
pub fn prefetch<T>(value: &T) {
    let first: *const u8 = std::ptr::from_ref(value).cast();
    prefetch_line(first);
    let last = first.wrapping_add(size_of::<T>().saturating_sub(1));
    if last.addr() / LINE_BYTES != first.addr() / LINE_BYTES {
        prefetch_line(last);
    }
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
