use std::ops::Range;
use std::sync::atomic::Ordering;

use extent::ExtentIndex;

use crate::device::Location;
use crate::holdings::SlotId;
use crate::shelf::Hold;

/// An extent on the tier. It never changes. Its slot is not used again while anybody holds it, so
/// whoever reads from the device keeps it until the read has completed.
#[derive(Clone, Debug)]
pub struct Extent {
    hold: Hold,
    index: ExtentIndex,
    length: u32,
    blocks: u32,
}

impl Extent {
    /// With checksum blocks of a power of two of bytes.
    pub(crate) fn new(hold: Hold, index: ExtentIndex, length: u32, block_bytes: u32) -> Self {
        let blocks = (length + block_bytes - 1) >> block_bytes.trailing_zeros();
        Self { hold, index, length, blocks }
    }

    /// Where its slot begins.
    #[must_use]
    pub fn at(&self) -> Location {
        self.hold.at()
    }

    /// Valid bytes. The slot holds them padded with zeroes to a whole checksum block.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// The CRC32C of each checksum block, the last one padded.
    pub fn checksums(&self) -> impl ExactSizeIterator<Item = u32> + Clone + '_ {
        self.hold.checksums(self.blocks).iter().map(|sum| sum.load(Ordering::Relaxed))
    }

    /// The CRC32C of some of its checksum blocks.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn checksums_of(
        &self,
        blocks: Range<usize>,
    ) -> impl ExactSizeIterator<Item = u32> + Clone + '_ {
        let sums = &self.hold.checksums(self.blocks)[blocks];
        sums.iter().map(|sum| sum.load(Ordering::Relaxed))
    }

    /// Which extent of its file.
    #[must_use]
    pub fn index(&self) -> ExtentIndex {
        self.index
    }

    pub(crate) fn slot(&self) -> SlotId {
        self.hold.slot()
    }
}
