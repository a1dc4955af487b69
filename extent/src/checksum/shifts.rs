//! CRC32C by shifts and sums of whole words, which need no instructions of its own, and tables for the end only.
//!
//! A checksum is a remainder, and adding a multiple of the divisor changes none. CRC32C's polynomial
//! divides `x^209 + x^144 + x^54 + x^39 + x^14 + 1`: so a bit of a message may be taken away if those
//! that come 65, 155, 170, 195 and 209 bits later are flipped. That is done with all bits of a word at a
//! time, group by group of four, and only what is behind the last whole group but one, seven words at
//! most and a few bytes, is divided by tables.
//! (Multiples of few terms are how Russell, "Chorba: A novel CRC32 implementation", arXiv 2412.16398,
//! 2024, computes another CRC. This one has the smallest degree of those with six terms whose first two are more than a word
//! apart, so that a word changes later ones only and what is at hand are four words, in registers.)

use super::tables;

/// How many bits later those come that are flipped.
const LATER: [usize; 5] = [65, 155, 170, 195, 209];
/// How many words back the farthest of them comes from.
const BEFORE: usize = 4;
/// Shorter ones are left to tables.
const SHORTEST_BYTES: usize = 128;

type Words = [u64; BEFORE];

/// The CRC32C of `bytes`.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    if bytes.len() < SHORTEST_BYTES {
        return !tables::after(!0, bytes);
    }
    let (words, rest) = bytes.as_chunks::<8>();
    let (groups, _) = words.split_at(words.len() - BEFORE).0.as_chunks::<BEFORE>();
    let left = &words[groups.len() * BEFORE..];
    // A checksum begins with all ones before the message, which flips its first 32 bits.
    let (mut before, mut initial) = ([0; BEFORE], u64::from(!0u32));
    for group in groups {
        before = after_group(before, group, initial);
        initial = 0;
    }
    let mut end = [[0; 8]; 2 * BEFORE];
    for (word, place) in left.iter().zip(&mut end) {
        *place = (u64::from_le_bytes(*word) ^ flips(&before)).to_le_bytes();
        // Nothing is taken away any more, so nothing later is flipped by this one.
        before = pushed(before, 0);
    }
    let remainder = tables::after(0, end[..left.len()].as_flattened());
    !tables::after(remainder, rest)
}

/// The last four words, nearest first, after four more were taken away.
#[inline(always)]
fn after_group(mut before: Words, group: &[[u8; 8]; BEFORE], initial: u64) -> Words {
    before = pushed(before, u64::from_le_bytes(group[0]) ^ initial ^ flips(&before));
    before = pushed(before, u64::from_le_bytes(group[1]) ^ flips(&before));
    before = pushed(before, u64::from_le_bytes(group[2]) ^ flips(&before));
    pushed(before, u64::from_le_bytes(group[3]) ^ flips(&before))
}

#[inline(always)]
const fn pushed(before: Words, word: u64) -> Words {
    [word, before[0], before[1], before[2]]
}

/// Which bits of a word those flip that were taken away before it.
#[inline(always)]
const fn flips(before: &Words) -> u64 {
    shifted::<{ LATER[0] }>(before)
        ^ shifted::<{ LATER[1] }>(before)
        ^ shifted::<{ LATER[2] }>(before)
        ^ shifted::<{ LATER[3] }>(before)
        ^ shifted::<{ LATER[4] }>(before)
}

/// The 64 bits that come so many bits before those of a word. The first bit of a message is the lowest.
#[inline(always)]
const fn shifted<const BITS: usize>(before: &Words) -> u64 {
    const { assert!(BITS > 64 && !BITS.is_multiple_of(64), "bits of two words before it") };
    (before[BITS / 64 - 1] << (BITS % 64)) | (before[BITS / 64] >> (64 - BITS % 64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_polynomial_divides_what_is_added() {
        // The remainder of x^n, the highest term in the highest bit.
        let power = |n: usize| {
            (0..n).fold(1u32, |r, _| (r << 1) ^ (0x1EDC_6F41 & 0u32.wrapping_sub(r >> 31)))
        };
        let degree = LATER[4];
        let remainder = LATER.iter().fold(power(degree), |sum, later| sum ^ power(degree - later));
        assert_eq!(remainder, 0);
    }

    #[test]
    fn gives_what_the_instructions_give_for_any_length() {
        let bytes: Vec<u8> =
            (0..9000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        for begin in [0, 1, 7] {
            for length in (0..600).chain([4095, 4096, 4097, 8192, 8990]) {
                let part = &bytes[begin..begin + length];
                assert_eq!(crc32c(part), super::super::by_instructions(part), "{begin} {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn gives_what_the_instructions_give(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(crc32c(&bytes), super::super::by_instructions(&bytes));
        }

        #[test]
        fn one_flipped_bit_is_seen(
            mut bytes in prop::collection::vec(any::<u8>(), 128..5000), bit in any::<prop::sample::Index>(),
        ) {
            let before = crc32c(&bytes);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(crc32c(&bytes), before);
        }
    }
}
