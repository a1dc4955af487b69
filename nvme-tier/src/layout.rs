//! Where things lie on a device: pure arithmetic, no I/O.
//!
//! ```text
//! 0          superblock A (4 KiB)
//! 64 KiB     superblock B (4 KiB)
//! 1 MiB      slab 0 | slab 1 | …, all of one size
//!
//! slab:      header A | header B | descriptors, one a slot | slots     data of one size class
//!            header A | header B | file records                       a record slab
//!            4 KiB      4 KiB      from 8 KiB on; slots begin at a multiple of 4 KiB
//! ```
//!
//! **Why file records live in slabs** rather than in a table of their own: a table has to be sized
//! when the device is formatted, and is then either too small for a tier of a million small files
//! or a waste on a tier of a hundred large ones. A record slab is taken when records need room.
//!
//! A descriptor takes at least one whole device block, and so does a record: nothing that was
//! acknowledged is ever rewritten because its neighbour changed.

use extent::{ExtentIndex, Kind, Result};

/// The unit that metadata copies are kept apart by, and that long descriptors are cut into.
pub const PAGE_BYTES: u64 = 4096;
/// Where the two superblocks lie.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 64 << 10];
/// Where the first slab begins.
pub const SLABS_OFFSET: u64 = 1 << 20;
/// Where a slab's two headers lie within it.
pub const HEADER_OFFSETS: [u64; 2] = [0, PAGE_BYTES];
/// Where a slab's descriptors or records begin within it.
pub const TABLE_OFFSET: u64 = 2 * PAGE_BYTES;
/// Bytes of a file record.
pub const RECORD_BYTES: usize = 2048;
/// Bytes in front of the checksums in each page of a descriptor.
pub const DESCRIPTOR_HEADER_BYTES: usize = 104;
/// Bytes of the smallest descriptor.
pub const MIN_DESCRIPTOR_BYTES: u32 = 512;
/// Bytes of the largest slot.
pub const LARGEST_CLASS_BYTES: u64 = 64 << 20;
/// Bytes of the smallest slot.
pub const SMALLEST_CLASS_BYTES: u64 = 16 << 10;
/// Bytes of the smallest and largest slab.
pub const SLAB_BYTES_RANGE: std::ops::RangeInclusive<u64> = 256 << 10..=16 << 30;
/// The most extents of one file.
pub const MAX_EXTENTS: u64 = 1 << 24;

/// A slot size: a power of two of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Class(u8);

impl Class {
    /// One more than the largest index of any class.
    pub const COUNT: usize = 27;

    /// The class of slots of exactly `bytes`; `None` unless that is a supported power of two.
    #[must_use]
    pub fn of(bytes: u64) -> Option<Self> {
        let fits = (SMALLEST_CLASS_BYTES..=LARGEST_CLASS_BYTES).contains(&bytes);
        let shift = u8::try_from(bytes.trailing_zeros()).ok()?;
        (fits && bytes.is_power_of_two()).then_some(Self(shift))
    }

    /// Bytes of a slot.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// A small number to index arrays of [`Class::COUNT`] by.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a slab is used for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// File records.
    Records,
    /// Extents in slots of one size.
    Data(Class),
}

/// The arithmetic of one slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Bytes from one descriptor or record to the next.
    pub stride: u32,
    /// How many there are.
    pub slots: u32,
    /// Bytes of a slot of data; zero in a record slab.
    pub slot_bytes: u64,
    /// Where the slots of data begin within the slab.
    pub slots_offset: u64,
}

impl Shape {
    /// Where a descriptor or record lies within its slab.
    #[must_use]
    pub fn entry_offset(&self, slot: u32) -> u64 {
        TABLE_OFFSET + u64::from(slot) * u64::from(self.stride)
    }

    /// Where a slot's data lies within its slab.
    #[must_use]
    pub fn slot_offset(&self, slot: u32) -> u64 {
        self.slots_offset + u64::from(slot) * self.slot_bytes
    }

    /// Bytes of all descriptors or records.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.slots) * u64::from(self.stride)
    }
}

/// The sizes that one device is laid out by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of a logical block: 512 to 4096.
    pub block_bytes: u32,
    /// Bytes of a slab.
    pub slab_bytes: u64,
    /// How many slabs there are.
    pub slab_count: u32,
    /// Bytes that one checksum covers.
    pub checksum_block_bytes: u32,
    /// The smallest slot.
    pub min_class: Class,
    /// The largest slot.
    pub max_class: Class,
}

impl Layout {
    /// Where a slab begins on the device.
    #[must_use]
    pub fn slab_offset(&self, slab: u32) -> u64 {
        SLABS_OFFSET + u64::from(slab) * self.slab_bytes
    }

    /// The smallest class that holds `length` bytes, padded to whole checksum blocks; `None` if
    /// even the largest does not.
    #[must_use]
    pub fn class_for(&self, length: u64) -> Option<Class> {
        let padded = length.checked_next_multiple_of(u64::from(self.checksum_block_bytes))?;
        let bytes = padded.checked_next_power_of_two()?.max(self.min_class.bytes());
        Class::of(bytes).filter(|class| *class <= self.max_class)
    }

    /// The arithmetic of a slab.
    ///
    /// # Panics
    /// If a slab has no room for one slot, which the layout of a formatted tier excludes.
    #[must_use]
    pub fn shape(&self, purpose: Purpose) -> Shape {
        let room = self.slab_bytes - TABLE_OFFSET;
        match purpose {
            Purpose::Records => {
                let stride = u32::try_from(RECORD_BYTES).expect("small").max(self.block_bytes);
                let slots = count(room / u64::from(stride));
                Shape { stride, slots, slot_bytes: 0, slots_offset: self.slab_bytes }
            }
            Purpose::Data(class) => {
                let stride = self.descriptor_stride(class);
                let mut slots = room / (class.bytes() + u64::from(stride));
                let table = |slots: u64| (slots * u64::from(stride)).next_multiple_of(PAGE_BYTES);
                while table(slots) + slots * class.bytes() > room {
                    slots -= 1;
                }
                assert!(slots > 0, "a slab of {} bytes holds no slot", self.slab_bytes);
                Shape {
                    stride,
                    slots: count(slots),
                    slot_bytes: class.bytes(),
                    slots_offset: TABLE_OFFSET + table(slots),
                }
            }
        }
    }

    fn descriptor_stride(&self, class: Class) -> u32 {
        descriptor_stride(self.block_bytes, class, self.checksum_block_bytes)
    }
}

/// Bytes from one descriptor of a class to the next: enough for a checksum of each block of the
/// slot, at least 512 and a whole device block, doubled as often as it takes.
#[must_use]
pub fn descriptor_stride(block_bytes: u32, class: Class, checksum_block_bytes: u32) -> u32 {
    let checksums = class.bytes() / u64::from(checksum_block_bytes);
    let mut stride = MIN_DESCRIPTOR_BYTES.max(block_bytes);
    while checksums_in(stride) < checksums {
        stride *= 2;
    }
    stride
}

/// Bytes of each page of a descriptor, each with its own identity and checksum.
#[must_use]
pub fn descriptor_page_bytes(stride: u32) -> usize {
    to_usize(u64::from(stride).min(PAGE_BYTES))
}

/// How many checksums one page of a descriptor holds.
#[must_use]
pub const fn checksums_in_page(page_bytes: usize) -> usize {
    (page_bytes - DESCRIPTOR_HEADER_BYTES) / 4
}

fn checksums_in(stride: u32) -> u64 {
    let page = descriptor_page_bytes(stride);
    let pages = u64::from(stride) / page as u64;
    pages * checksums_in_page(page) as u64
}

/// The largest class of a tier: at most 64 MiB and a quarter of a slab, and with descriptors that
/// one command can move. `None` if not even the smallest fits.
#[must_use]
pub fn largest_class(
    slab_bytes: u64,
    block_bytes: u32,
    checksum_block_bytes: u32,
    max_transfer_bytes: u32,
) -> Option<Class> {
    let mut bytes = LARGEST_CLASS_BYTES.min(slab_bytes / 4);
    loop {
        let class = Class::of(bytes)?;
        if descriptor_stride(block_bytes, class, checksum_block_bytes) <= max_transfer_bytes {
            return Some(class);
        }
        bytes /= 2;
    }
}

/// How many slabs a device holds.
///
/// # Errors
/// [`Kind::Invalid`] if there is not room for two: one for records and one for data.
pub fn slab_count(capacity_bytes: u64, slab_bytes: u64) -> Result<u32> {
    let slabs = capacity_bytes.saturating_sub(SLABS_OFFSET) / slab_bytes;
    if slabs < 2 {
        return Err(Kind::Invalid.error(format!(
            "a device of {capacity_bytes} bytes holds {slabs} slabs of {slab_bytes}, and two are \
             the least: give it more room or format it with smaller slabs"
        )));
    }
    Ok(u32::try_from(slabs).unwrap_or(u32::MAX))
}

/// How many extents a file of `length` bytes has.
///
/// # Errors
/// [`Kind::Unsupported`] past [`MAX_EXTENTS`].
pub fn extent_count(length: u64, extent_bytes: u64) -> Result<u32> {
    let extents = length.div_ceil(extent_bytes);
    if extents > MAX_EXTENTS {
        return Err(Kind::Unsupported.error(format!(
            "a file of {length} bytes has {extents} extents of {extent_bytes}, and the most is \
             {MAX_EXTENTS}: format the tier with larger extents"
        )));
    }
    Ok(count(extents))
}

/// Bytes of an extent of a file of `length` bytes; zero past its end.
#[must_use]
pub fn extent_length(length: u64, extent_bytes: u64, index: ExtentIndex) -> u32 {
    let begin = u64::from(index.0).saturating_mul(extent_bytes);
    count(length.saturating_sub(begin).min(extent_bytes))
}

/// A length in memory. Every target of this crate has 64-bit addresses.
pub(crate) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("addresses have 64 bits")
}

fn count(value: u64) -> u32 {
    u32::try_from(value).expect("bounded by the sizes a tier may be formatted with")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(slab_shift: u32, block_shift: u32, sum_shift: u32) -> Layout {
        let (slab_bytes, block_bytes) = (1u64 << slab_shift, 1u32 << block_shift);
        let sum = 1u32 << sum_shift;
        Layout {
            block_bytes,
            slab_bytes,
            slab_count: 4,
            checksum_block_bytes: sum,
            min_class: Class::of(16 << 10).expect("a class"),
            max_class: largest_class(slab_bytes, block_bytes, sum, 1 << 20).expect("one fits"),
        }
    }

    #[test]
    fn the_default_extent_has_the_expected_shape() {
        let shape = layout(30, 12, 12).shape(Purpose::Data(Class::of(4 << 20).expect("a class")));
        assert_eq!(shape.stride, 8192, "1024 checksums and a header take two pages");
        assert_eq!(shape.slots, 255);
        let small = layout(30, 9, 12).shape(Purpose::Data(Class::of(64 << 10).expect("a class")));
        assert_eq!(small.stride, 512);
    }

    #[test]
    fn transfers_bound_the_largest_class() {
        let class = largest_class(1 << 30, 4096, 4096, 16384).expect("one fits");
        assert!(descriptor_stride(4096, class, 4096) <= 16384);
        assert!(class.bytes() < LARGEST_CLASS_BYTES);
        assert_eq!(
            slab_count((1 << 20) + (1 << 18), 1 << 18).expect_err("one slab").kind(),
            Kind::Invalid
        );
    }

    proptest! {
        #[test]
        fn nothing_overlaps(slab in 18u32..31, block in 9u32..13, sum in 12u32..17) {
            let layout = layout(slab, block, sum);
            let block = u64::from(layout.block_bytes);
            for shift in 14..=26u32 {
                let Some(class) = Class::of(1 << shift) else { continue };
                if class > layout.max_class { continue }
                let shape = layout.shape(Purpose::Data(class));
                prop_assert!(TABLE_OFFSET + shape.table_bytes() <= shape.slots_offset);
                prop_assert_eq!(shape.slots_offset % PAGE_BYTES, 0);
                prop_assert!(shape.slot_offset(shape.slots) <= layout.slab_bytes);
                prop_assert_eq!(shape.entry_offset(1) % block, 0);
                prop_assert!(u64::from(shape.stride) >= block);
                prop_assert!(checksums_in(shape.stride) * u64::from(layout.checksum_block_bytes) >= class.bytes());
            }
            let records = layout.shape(Purpose::Records);
            prop_assert!(records.entry_offset(records.slots) <= layout.slab_bytes);
            prop_assert_eq!(u64::from(records.stride) % block, 0);
        }

        #[test]
        fn extents_tile_a_file(length in 0u64..1 << 30, shift in 16u32..26) {
            let size = 1u64 << shift;
            let extents = extent_count(length, size).expect("not too many");
            let sum: u64 = (0..extents).map(|i| u64::from(extent_length(length, size, ExtentIndex(i)))).sum();
            prop_assert_eq!(sum, length);
            prop_assert_eq!(extent_length(length, size, ExtentIndex(extents)), 0);
        }

        #[test]
        fn a_class_holds_the_padded_length(length in 1u64..1 << 21) {
            let layout = layout(23, 12, 12);
            let class = layout.class_for(length).expect("small enough");
            prop_assert!(class.bytes() >= length.next_multiple_of(4096));
            prop_assert!(class == layout.min_class || class.bytes() / 2 < length.next_multiple_of(4096));
        }
    }
}
