use extent::codec::{Reader, Writer};

use super::{TierId, is_sealed, seal};

/// Bytes of a superblock that mean something; the rest of its 4 KiB is zero.
pub const SUPERBLOCK_BYTES: usize = 512;

const MAGIC: [u8; 8] = *b"4bayTIER";
const VERSION: u16 = 1;

/// How a device is laid out, and how far its counter of ids is reserved. There are two, in
/// different places; the valid one of the higher sequence counts, and the other is written next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The tier this device belongs to.
    pub tier: TierId,
    /// This device's place in the tier, from 0.
    pub device: u16,
    /// Devices in the tier.
    pub devices: u16,
    /// Bytes of a logical block when it was formatted.
    pub block_bytes: u32,
    /// Bytes that one checksum covers.
    pub checksum_block_bytes: u32,
    /// Bytes of the device when it was formatted.
    pub capacity_bytes: u64,
    /// Bytes of a slab.
    pub slab_bytes: u64,
    /// Bytes of a full extent of new files.
    pub extent_bytes: u64,
    /// Bytes of the smallest slot.
    pub min_class_bytes: u64,
    /// Bytes of the largest slot.
    pub max_class_bytes: u64,
    /// Which superblock is newer.
    pub sequence: u64,
    /// Attempts, epochs and sequences below this may be in use already. A start begins here.
    pub id_limit: u64,
    /// Devices, a bit each, that the tier last ran without. What they hold may be older.
    pub without: u64,
}

impl Superblock {
    /// Writes it into the first [`SUPERBLOCK_BYTES`] of `bytes`, for a superblock at `offset`.
    ///
    /// # Panics
    /// If `bytes` is shorter.
    pub fn encode(&self, offset: u64, bytes: &mut [u8]) {
        let bytes = &mut bytes[..SUPERBLOCK_BYTES];
        bytes.fill(0);
        Writer::new(bytes)
            .slice(&MAGIC)
            .u16(VERSION)
            .u16(self.device)
            .u16(self.devices)
            .zeroes(2)
            .u128(self.tier.0)
            .u64(offset)
            .u32(self.block_bytes)
            .u32(self.checksum_block_bytes)
            .u64(self.capacity_bytes)
            .u64(self.slab_bytes)
            .u64(self.extent_bytes)
            .u64(self.min_class_bytes)
            .u64(self.max_class_bytes)
            .u64(self.sequence)
            .u64(self.id_limit)
            .u64(self.without);
        seal(bytes);
    }

    /// Whether something stands here that was a superblock once, even if it does not hold, and even
    /// if a byte of what it begins with is damaged.
    #[must_use]
    pub fn is_trace(bytes: &[u8]) -> bool {
        let right = bytes.iter().zip(&MAGIC).filter(|(found, expected)| found == expected);
        right.count() >= MAGIC.len() - 1
    }

    /// Reads it; `None` if there is none, or it does not hold, or is of another version.
    ///
    /// # Panics
    /// If `bytes` is shorter than [`SUPERBLOCK_BYTES`].
    #[must_use]
    pub fn decode(offset: u64, bytes: &[u8]) -> Option<Self> {
        let bytes = &bytes[..SUPERBLOCK_BYTES];
        let mut reader = Reader::new(bytes);
        if reader.array::<8>() != MAGIC || !is_sealed(bytes) || reader.u16() != VERSION {
            return None;
        }
        let (device, devices) = (reader.u16(), reader.u16());
        reader.skip(2);
        let tier = TierId(reader.u128());
        if reader.u64() != offset {
            return None;
        }
        Some(Self {
            tier,
            device,
            devices,
            block_bytes: reader.u32(),
            checksum_block_bytes: reader.u32(),
            capacity_bytes: reader.u64(),
            slab_bytes: reader.u64(),
            extent_bytes: reader.u64(),
            min_class_bytes: reader.u64(),
            max_class_bytes: reader.u64(),
            sequence: reader.u64(),
            id_limit: reader.u64(),
            without: reader.u64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn superblocks() -> impl Strategy<Value = Superblock> {
        (any::<(u128, u16, u16, u32, u32)>(), any::<[u64; 7]>()).prop_map(|(small, large)| {
            Superblock {
                tier: TierId(small.0),
                device: small.1,
                devices: small.2,
                block_bytes: small.3,
                checksum_block_bytes: small.4,
                capacity_bytes: large[0],
                slab_bytes: large[1],
                extent_bytes: large[2],
                min_class_bytes: large[3],
                max_class_bytes: large[4],
                sequence: large[5],
                id_limit: large[6],
                without: large[6].rotate_left(7),
            }
        })
    }

    proptest! {
        #[test]
        fn round_trip(superblock in superblocks(), offset in any::<u64>()) {
            let mut bytes = [7; SUPERBLOCK_BYTES];
            superblock.encode(offset, &mut bytes);
            prop_assert_eq!(Superblock::decode(offset, &bytes), Some(superblock));
            prop_assert_eq!(Superblock::decode(offset ^ 4096, &bytes), None);
        }

        #[test]
        fn a_flipped_bit_is_refused(superblock in superblocks(), bit in 0..SUPERBLOCK_BYTES * 8) {
            let mut bytes = [0; SUPERBLOCK_BYTES];
            superblock.encode(0, &mut bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Superblock::decode(0, &bytes), None);
        }

        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), SUPERBLOCK_BYTES)) {
            prop_assert_eq!(Superblock::decode(0, &bytes), None);
        }
    }
}
