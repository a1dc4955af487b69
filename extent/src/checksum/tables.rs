//! CRC32C by tables, sixteen bytes at a time.
//!
//! Slicing (Kounavis and Berry, "A systematic approach to building high performance software-based CRC
//! generators", ISCC 2005): the remainder of sixteen bytes is the sum of those of each byte followed by
//! zeroes, and a table holds those.

/// The polynomial, bit-reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// Bytes of a step.
const STEP: usize = 16;

/// `TABLES[zeroes][byte]` is the remainder of a byte with so many zero bytes behind it.
static TABLES: [[u32; 256]; STEP] = make();

#[expect(clippy::cast_possible_truncation, reason = "an index below 256")]
const fn make() -> [[u32; 256]; STEP] {
    let mut tables = [[0; 256]; STEP];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let carry = POLYNOMIAL & 0u32.wrapping_sub(remainder & 1);
            remainder = (remainder >> 1) ^ carry;
            bit += 1;
        }
        tables[0][byte] = remainder;
        byte += 1;
    }
    let mut zeroes = 1;
    while zeroes < STEP {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[zeroes - 1][byte];
            tables[zeroes][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        zeroes += 1;
    }
    tables
}

/// The remainder after `bytes`, from the one before them.
pub(super) fn after(before: u32, bytes: &[u8]) -> u32 {
    let (steps, rest) = bytes.as_chunks::<STEP>();
    let whole = steps.iter().fold(before, |crc, step| after_step(crc, *step));
    rest.iter().fold(whole, |crc, byte| (crc >> 8) ^ TABLES[0][index(crc ^ u32::from(*byte))])
}

#[inline(always)]
fn after_step(crc: u32, step: [u8; STEP]) -> u32 {
    let word = |at: usize| u32::from_le_bytes([step[at], step[at + 1], step[at + 2], step[at + 3]]);
    let of_word = |word: u32, behind: usize| {
        TABLES[behind + 3][index(word)]
            ^ TABLES[behind + 2][index(word >> 8)]
            ^ TABLES[behind + 1][index(word >> 16)]
            ^ TABLES[behind][index(word >> 24)]
    };
    of_word(word(0) ^ crc, 12) ^ of_word(word(4), 8) ^ of_word(word(8), 4) ^ of_word(word(12), 0)
}

/// The lowest byte.
#[inline(always)]
fn index(word: u32) -> usize {
    (word & 0xff) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_the_instructions_give() {
        let bytes: Vec<u8> =
            (0..5000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        assert_eq!(!after(!0, b"123456789"), 0xE306_9283);
        for begin in [0, 1, 7] {
            for length in (0..100).chain([4095, 4096, 4097]) {
                let part = &bytes[begin..begin + length];
                assert_eq!(
                    !after(!0, part),
                    super::super::by_instructions(part),
                    "{begin} {length}"
                );
            }
        }
    }
}
