//! What stands on the device, little-endian: one file for each kind of record.
//!
//! Every record says what it is (magic and version), whose it is (the tier's random id, so that
//! what an earlier format left behind is never believed), where it stands (so that a misdirected
//! write is noticed), which use of its slab it belongs to (the epoch), in which order it was
//! written (the sequence), and carries a CRC32C over all of it.
//!
//! **Torn or damaged?** A place is zeroed before it is written, a block is atomic, and no block of
//! a whole record is all zero (padding is [`PAD`]). So a record with an all-zero block was never
//! completely written, or is half erased: nobody was ever told of it, or nobody needs it any more.
//! A record without one that fails its CRC *was* there and has been damaged since.
//!
//! **Stranger or damaged?** A record of an earlier use of its place, or of another tier, is whole: its
//! CRC holds. One that does not hold is ours if at most one field of its identity is wrong, so that
//! a flipped bit does not pass one of our records off as rubbish that may be written over.

mod descriptor;
mod record;
mod slab_header;
mod superblock;

use std::fmt;

use extent::checksum::crc32c;

use crate::device::Location;
use crate::layout::RECORD_BYTES;

pub use descriptor::Descriptor;
pub use record::{FileRecord, Mark};
pub use slab_header::SlabHeader;
pub use superblock::{SUPERBLOCK_BYTES, Superblock};

/// What fills the unused rest of a record, so that no block of it is all zero.
pub const PAD: u8 = 0xA5;

/// The random number a tier gets when it is formatted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TierId(pub u128);

impl fmt::Display for TierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whose a record is, where it stands and to which use of its slab it belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The tier.
    pub tier: TierId,
    /// Where the record begins.
    pub at: Location,
    /// The slab's epoch.
    pub epoch: u64,
}

impl Place {
    /// The same, `bytes` further on.
    #[must_use]
    pub fn offset(&self, bytes: u64) -> Self {
        let Location { device, offset } = self.at;
        Self { at: Location { device, offset: offset + bytes }, ..*self }
    }
}

/// What was found where a record may stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found<T> {
    /// All zero: erased and free.
    Blank,
    /// Whole and right.
    Sound(T),
    /// Not of this tier, place or use of the slab: never one of ours, or of an earlier use.
    Stranger,
    /// Half written or half erased.
    Torn,
    /// It was whole and has been damaged since; with what can still be told.
    Damaged(Option<T>),
}

/// Whether something that does not hold was ours: which fields of its identity are right.
pub(crate) fn was_ours(identity: &[bool]) -> bool {
    identity.iter().filter(|is_right| !**is_right).count() <= 1
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Compared with zeroes rather than byte by byte: recovery sees mostly erased entries.
    static ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|part| part == &ZEROES[..part.len()])
}

/// Whether one of the blocks is all zero.
pub(crate) fn has_blank_block(bytes: &[u8], block_bytes: usize) -> bool {
    bytes.chunks(block_bytes).any(is_zero)
}

/// The CRC32C of a record whose last field of `bytes` it is.
pub(crate) fn seal(bytes: &mut [u8]) {
    let end = bytes.len() - 4;
    let sum = crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
}

/// The CRC32C that a record carries at the end of its first [`RECORD_BYTES`], right or not.
pub(crate) fn seal_of(record: &[u8]) -> u32 {
    let seal = &record[RECORD_BYTES - 4..RECORD_BYTES];
    u32::from_le_bytes(seal.try_into().expect("four bytes"))
}

/// Whether the CRC32C in the last four bytes holds.
pub(crate) fn is_sealed(bytes: &[u8]) -> bool {
    let (body, sum) = bytes.split_at(bytes.len() - 4);
    crc32c(body).to_le_bytes() == *sum
}

#[cfg(test)]
pub(crate) mod testing {
    use proptest::prelude::*;

    use super::*;
    use crate::device::DeviceIndex;

    pub(crate) const fn location(device: u16, offset: u64) -> Location {
        Location { device: DeviceIndex(device), offset }
    }

    /// Any tier, place and epoch.
    pub(crate) fn places() -> impl Strategy<Value = Place> {
        (any::<u128>(), any::<u16>(), 0u64..1 << 50, any::<u64>()).prop_map(
            |(tier, device, page, epoch)| Place {
                tier: TierId(tier),
                at: location(device, page << 12),
                epoch,
            },
        )
    }
}
