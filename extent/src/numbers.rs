//! Maps whose keys are numbers that nobody chooses who could gain by choosing them badly.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by numbers that this program, its kernel or its devices made: looked into for every request, and a
/// multiplication is enough to spread them. Not for what a client sends.
pub type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// Spreads numbers over all 64 bits by a multiplication (Knuth, volume 3, section 6.4).
#[derive(Clone, Copy, Default, Debug)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        // The lower half spreads upwards and the upper half downwards.
        let (lower, upper) = (self.0 ^ number).carrying_mul(0x9E37_79B9_7F4A_7C15, 0);
        self.0 = lower ^ upper;
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::Hash;

    use super::*;

    fn spread<K: Hash>(keys: impl Iterator<Item = K>) -> (usize, usize, usize) {
        let hash = |key: K| {
            let mut hasher = NumberHasher::default();
            key.hash(&mut hasher);
            hasher.finish()
        };
        let all: HashSet<u64> = keys.map(hash).collect();
        // What a table of so many places looks at: the lowest bits, and the highest seven.
        let low: HashSet<u64> = all.iter().map(|hash| hash & 1023).collect();
        let high: HashSet<u64> = all.iter().map(|hash| hash >> 57).collect();
        (all.len(), low.len(), high.len())
    }

    #[test]
    fn numbers_in_a_row_pairs_and_addresses_are_spread() {
        for (different, low, high) in [
            spread(0..1024u64),
            spread((0..1024u32).map(|n| n << 16)),
            spread((0..1024usize).map(|n| 0x7f00_0000_0000 + (n << 6))),
            spread((0..1024u32).map(|n| (n as usize % 4, n))),
            spread((0..1024u64).map(|n| n << 48)),
            spread((0..1024u64).map(|n| n << 54)),
        ] {
            assert_eq!(different, 1024);
            assert!(low > 512, "{low}");
            assert!(high > 100, "{high}");
        }
    }
}
