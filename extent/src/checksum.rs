//! CRC32C (Castagnoli, as in RFC 3720 appendix B.4), the checksum of data blocks, records and capsules.

use crc_fast::CrcAlgorithm::Crc32Iscsi;

/// The CRC32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    narrow(crc_fast::checksum(Crc32Iscsi, bytes))
}

/// The CRC32C of each `block_bytes` of `bytes`, in order. The last block may be short.
pub fn crc32c_blocks(bytes: &[u8], block_bytes: usize) -> impl ExactSizeIterator<Item = u32> {
    bytes.chunks(block_bytes).map(crc32c)
}

/// The CRC32C of two runs of bytes, one after the other, from that of each and the second's length.
#[must_use]
pub fn combine(first: u32, second: u32, second_bytes: u64) -> u32 {
    narrow(crc_fast::checksum_combine(Crc32Iscsi, first.into(), second.into(), second_bytes))
}

/// The index of the first block of `bytes` whose CRC32C is not the one in `expected`.
///
/// # Panics
/// If `expected` does not hold exactly one value for each block.
#[must_use]
pub fn first_mismatch(
    bytes: &[u8],
    block_bytes: usize,
    expected: impl ExactSizeIterator<Item = u32>,
) -> Option<usize> {
    first_mismatch_in(bytes.chunks(block_bytes), expected)
}

/// As [`first_mismatch`], for whoever has something to do before each block is read.
///
/// # Panics
/// If `expected` does not hold exactly one value for each block.
pub fn first_mismatch_in<'a>(
    blocks: impl ExactSizeIterator<Item = &'a [u8]>,
    expected: impl ExactSizeIterator<Item = u32>,
) -> Option<usize> {
    assert_eq!(blocks.len(), expected.len(), "one checksum a block");
    blocks.zip(expected).position(|(block, want)| crc32c(block) != want)
}

#[expect(clippy::cast_possible_truncation, reason = "a 32-bit checksum in a 64-bit return value")]
const fn narrow(checksum: u64) -> u32 {
    checksum as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_check_value_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    }

    #[test]
    fn checksums_of_parts_combine() {
        let whole = b"a forebay is the pool in front of a turbine";
        for cut in 0..=whole.len() {
            let (first, second) = whole.split_at(cut);
            let joined = combine(crc32c(first), crc32c(second), second.len() as u64);
            assert_eq!(joined, crc32c(whole));
        }
    }

    #[test]
    fn finds_the_flipped_block() {
        let mut data = vec![7; 4096 * 3 + 100];
        let sums: Vec<u32> = crc32c_blocks(&data, 4096).collect();
        assert_eq!(sums.len(), 4);
        assert_eq!(first_mismatch(&data, 4096, sums.iter().copied()), None);
        data[4096 * 3 + 99] ^= 1;
        assert_eq!(first_mismatch(&data, 4096, sums.iter().copied()), Some(3));
    }
}
