//! Hashing of file ids, which are hashes already.

use std::hash::{BuildHasher, Hasher, RandomState};

use extent::FileId;

/// Spreads file ids with one multiplication. Whoever chooses names can make ids whose halves are
/// alike, but does not know the numbers that they are mixed with here, which differ in each process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdHash {
    seeds: [u64; 2],
}

impl Default for IdHash {
    fn default() -> Self {
        let random = RandomState::new();
        Self { seeds: [random.hash_one(0), random.hash_one(1)] }
    }
}

impl IdHash {
    #[expect(clippy::cast_possible_truncation, reason = "two halves of an id, and of a product")]
    pub(crate) fn of(&self, id: FileId) -> u64 {
        let (low, high) = (id.0 as u64 ^ self.seeds[0], (id.0 >> 64) as u64 ^ self.seeds[1]);
        let product = u128::from(low) * u128::from(high);
        product as u64 ^ (product >> 64) as u64
    }
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher { by: *self, hash: 0 }
    }
}

/// The hasher of one id.
#[derive(Debug)]
pub(crate) struct IdHasher {
    by: IdHash,
    hash: u64,
}

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Not the way of ids, but right all the same.
        for part in bytes.chunks(16) {
            let mut padded = [0; 16];
            padded[..part.len()].copy_from_slice(part);
            self.write_u128(u128::from_le_bytes(padded));
        }
    }

    fn write_u128(&mut self, id: u128) {
        self.hash = self.by.of(FileId(id ^ u128::from(self.hash)));
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

/// A map by file id.
pub(crate) type IdMap<T> = std::collections::HashMap<FileId, T, IdHash>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_differ_little_are_spread() {
        let hash = IdHash::default();
        let mut buckets = [0u32; 256];
        for number in 0..65536u128 {
            buckets[(hash.of(FileId(number << 64 | number)) % 256) as usize] += 1;
        }
        assert!(buckets.iter().all(|count| (128..512).contains(count)), "{buckets:?}");
        let mut map: IdMap<u32> = IdMap::default();
        map.insert(FileId(7), 1);
        assert_eq!((map.get(&FileId(7)), map.get(&FileId(8))), (Some(&1), None));
    }
}
