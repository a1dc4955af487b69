//! CRC32C (Castagnoli, as in RFC 3720 appendix B.4), the checksum of data blocks, records and capsules.

mod shifts;
mod tables;

use std::fmt;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crc_fast::CrcAlgorithm::Crc32Iscsi;

/// Whether [`choose`] found shifts to be much faster. Either way gives the same.
static BY_SHIFTS: AtomicBool = AtomicBool::new(false);

/// The CRC32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    if BY_SHIFTS.load(Ordering::Relaxed) { shifts::crc32c(bytes) } else { by_instructions(bytes) }
}

fn by_instructions(bytes: &[u8]) -> u32 {
    narrow(crc_fast::checksum(Crc32Iscsi, bytes))
}

/// How checksums are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// With the processor's instructions for it, as far as it has them. Unless chosen otherwise.
    Instructions,
    /// By shifts and sums of words, which any processor does.
    Shifts,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Instructions => "instructions",
            Self::Shifts => "shifts",
        })
    }
}

/// What [`choose`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// How checksums are computed from now on.
    pub way: Way,
    /// How long 4 KiB take with instructions.
    pub instructions: Duration,
    /// How long they take by shifts.
    pub shifts: Duration,
}

/// Tries both ways on a few blocks and decides for all threads: shifts if they take less than half the time,
/// as where instructions are emulated, in a guest whose host lacks them. Between ways that are more alike a
/// busy moment would decide, so that is left to instructions. `now` is the time by a clock that never goes
/// back. Takes about 20 µs.
pub fn choose(mut now: impl FnMut() -> Duration) -> Choice {
    let instructions = fastest(&mut now, by_instructions);
    let shifts = fastest(&mut now, shifts::crc32c);
    let way = if shifts < instructions / 2 { Way::Shifts } else { Way::Instructions };
    BY_SHIFTS.store(way == Way::Shifts, Ordering::Relaxed);
    Choice { way, instructions, shifts }
}

/// The shortest of a few times that one block took: whatever interrupts only makes it longer.
fn fastest(now: &mut dyn FnMut() -> Duration, way: fn(&[u8]) -> u32) -> Duration {
    let block = [0x5a; 4096];
    let mut time = || {
        let begin = now();
        black_box(way(black_box(&block)));
        now().saturating_sub(begin)
    };
    (0..8).map(|_| time()).min().unwrap_or(Duration::MAX)
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
    fn a_much_faster_way_is_chosen_and_gives_the_same() {
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let before = crc32c(&bytes);
        for (first, second, way) in
            [(9, 4, Way::Shifts), (9, 5, Way::Instructions), (5, 9, Way::Instructions)]
        {
            let (mut asked, mut time) = (0, Duration::ZERO);
            let now = || {
                let step = if asked / 2 < 8 { first } else { second };
                asked += 1;
                // Every second look is at an end.
                time += Duration::from_micros(if asked % 2 == 0 { step } else { 0 });
                time
            };
            let (instructions, shifts) =
                (Duration::from_micros(first), Duration::from_micros(second));
            assert_eq!(choose(now), Choice { way, instructions, shifts });
            assert_eq!(crc32c(&bytes), before);
        }
        // Of two that are alike the processor's own.
        assert_eq!(choose(|| Duration::ZERO).way, Way::Instructions);
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
