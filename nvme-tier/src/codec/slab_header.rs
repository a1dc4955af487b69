use extent::codec::{Reader, Writer};

use super::{Found, PAD, Place, has_blank_block, is_sealed, is_zero, seal, was_ours};
use crate::layout::{Class, Purpose};

const MAGIC: [u8; 4] = *b"4bSH";
const VERSION: u16 = 1;
const BYTES: usize = 512;

/// What a slab is used for since its epoch began. It stands twice, in different pages; the valid
/// one of the higher epoch counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlabHeader {
    /// Which use of the slab this is. Records of any other are void.
    pub epoch: u64,
    /// What for.
    pub purpose: Purpose,
}

impl SlabHeader {
    /// Bytes that are written for it; the rest of its page is free.
    pub const BYTES: usize = BYTES;

    /// Writes it into the first [`SlabHeader::BYTES`] of `bytes`; the place's epoch is its own.
    ///
    /// # Panics
    /// If `bytes` is shorter.
    pub fn encode(&self, place: &Place, bytes: &mut [u8]) {
        let bytes = &mut bytes[..BYTES];
        bytes.fill(PAD);
        let class_bytes = match self.purpose {
            Purpose::Records => 0,
            Purpose::Data(class) => class.bytes(),
        };
        Writer::new(bytes)
            .slice(&MAGIC)
            .u16(VERSION)
            .u16(place.at.device.0)
            .u128(place.tier.0)
            .u64(place.at.offset)
            .u64(self.epoch)
            .u64(class_bytes);
        seal(bytes);
    }

    /// Reads what stands at a place, whose epoch is not looked at.
    ///
    /// # Panics
    /// If `bytes` is shorter than [`SlabHeader::BYTES`].
    #[must_use]
    pub fn decode(place: &Place, block_bytes: u32, bytes: &[u8]) -> Found<Self> {
        let bytes = &bytes[..BYTES];
        if is_zero(bytes) {
            return Found::Blank;
        }
        let mut reader = Reader::new(bytes);
        let identity = [
            reader.array::<4>() == MAGIC,
            reader.u16() == VERSION,
            reader.u16() == place.at.device.0,
            reader.u128() == place.tier.0,
            reader.u64() == place.at.offset,
        ];
        let sealed = is_sealed(bytes);
        if if sealed { identity.contains(&false) } else { !was_ours(&identity) } {
            return Found::Stranger;
        }
        if !sealed {
            let torn = has_blank_block(bytes, (block_bytes as usize).min(BYTES));
            return if torn { Found::Torn } else { Found::Damaged(None) };
        }
        let epoch = reader.u64();
        match reader.u64() {
            0 => Found::Sound(Self { epoch, purpose: Purpose::Records }),
            bytes => Class::of(bytes).map_or(Found::Damaged(None), |class| {
                Found::Sound(Self { epoch, purpose: Purpose::Data(class) })
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::places;
    use super::*;

    fn headers() -> impl Strategy<Value = SlabHeader> {
        (any::<u64>(), 13u32..27).prop_map(|(epoch, shift)| SlabHeader {
            epoch,
            purpose: Class::of(1 << shift).map_or(Purpose::Records, Purpose::Data),
        })
    }

    proptest! {
        #[test]
        fn round_trip(header in headers(), place in places()) {
            let mut bytes = [0; BYTES];
            header.encode(&place, &mut bytes);
            prop_assert_eq!(SlabHeader::decode(&place, 512, &bytes), Found::Sound(header));
            prop_assert_eq!(SlabHeader::decode(&place.offset(4096), 512, &bytes), Found::Stranger);
        }

        #[test]
        fn a_flipped_bit_is_refused(header in headers(), place in places(), bit in 0..BYTES * 8) {
            let mut bytes = [0; BYTES];
            header.encode(&place, &mut bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(SlabHeader::decode(&place, 512, &bytes), Found::Sound(_)));
        }

        #[test]
        fn garbage_is_refused(place in places(), bytes in proptest::collection::vec(any::<u8>(), BYTES)) {
            prop_assert_eq!(SlabHeader::decode(&place, 4096, &bytes), Found::Stranger);
        }
    }
}
