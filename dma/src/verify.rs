//! Checking memory that a device has just filled.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::slice;

use extent::checksum::first_mismatch_in;

use crate::prefetch::prefetch_bytes;

/// How far the processor is asked to read ahead, in bytes. Tuned on memory that no cache holds, which
/// is what a device leaves: the checksum reads several streams at a time, and that keeps the
/// processor's own prefetching from seeing where they go.
const AHEAD_BYTES: usize = 1024;

/// The index of the first block of the memory whose CRC32C is not the expected one.
///
/// # Safety
/// `length` bytes from `base` on are readable. Others may write to them meanwhile: they are only
/// folded into an integer.
///
/// # Panics
/// If `expected` does not hold one value for each block.
pub(crate) unsafe fn first_mismatch(
    base: NonNull<u8>,
    length: usize,
    block_bytes: usize,
    expected: impl ExactSizeIterator<Item = u32>,
) -> Option<usize> {
    // SAFETY: the caller says that they are readable.
    let bytes = unsafe { slice::from_raw_parts(base.as_ptr(), length) };
    let mut asked = 0;
    let blocks = bytes.chunks(block_bytes).enumerate().map(|(index, block)| {
        let until = (index * block_bytes + block.len() + AHEAD_BYTES).min(length);
        prefetch_bytes(&bytes[asked..until]);
        asked = until;
        block
    });
    first_mismatch_in(blocks, expected)
}

#[cfg(test)]
mod tests {
    use extent::checksum::crc32c;

    use super::*;

    #[test]
    fn finds_the_first_flipped_block_of_any_number() {
        for blocks in 1..=9 {
            for tail in [0, 1, 100] {
                let mut bytes: Vec<u8> = (0..=255).cycle().take(blocks * 4096 + tail).collect();
                let sums: Vec<u32> = bytes.chunks(4096).map(crc32c).collect();
                let find = |bytes: &mut [u8]| {
                    let base = NonNull::new(bytes.as_mut_ptr()).expect("memory");
                    // SAFETY: they are readable, being borrowed.
                    unsafe { first_mismatch(base, bytes.len(), 4096, sums.iter().copied()) }
                };
                assert_eq!(find(&mut bytes), None);
                for block in (0..sums.len()).rev() {
                    bytes[block * 4096] ^= 1;
                    assert_eq!(find(&mut bytes), Some(block));
                }
            }
        }
    }
}
