use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use extent::ExtentIndex;

use crate::checksums::Vector;
use crate::device::Location;
use crate::holdings::SlotId;
use crate::shelf::Hold;

/// An extent on the tier. It never changes. Its slot is not used again while anybody holds it, so
/// whoever reads from the device keeps it until the read has completed. If its checksums were in memory
/// when it was looked up, it keeps them, too.
#[derive(Clone, Debug)]
pub struct Extent {
    pub(crate) hold: Hold,
    /// Its checksums, where they are not beside its slot.
    pub(crate) vector: Option<Arc<Vector>>,
    index: ExtentIndex,
    length: u32,
    blocks: u32,
}

impl Extent {
    /// With checksum blocks of a power of two of bytes.
    pub(crate) fn new(hold: Hold, index: ExtentIndex, length: u32, block_bytes: u32) -> Self {
        let blocks = (length + block_bytes - 1) >> block_bytes.trailing_zeros();
        let vector = hold.vector();
        Self { hold, vector, index, length, blocks }
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

    /// The CRC32C of each checksum block, the last one padded; `None` if they are not in memory: then
    /// [`Extent::descriptor`] has them.
    pub fn checksums(&self) -> Option<impl ExactSizeIterator<Item = u32> + Clone + '_> {
        self.checksums_of(0..self.blocks as usize)
    }

    /// The CRC32C of some of its checksum blocks, if they are in memory.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn checksums_of(
        &self,
        blocks: Range<usize>,
    ) -> Option<impl ExactSizeIterator<Item = u32> + Clone + '_> {
        let sums = &self.sums()?[blocks];
        Some(sums.iter().map(|sum| sum.load(Ordering::Relaxed)))
    }

    /// The same with checksums that were read.
    pub(crate) fn with_vector(&self, vector: Arc<Vector>) -> Self {
        Self { vector: Some(vector), ..self.clone() }
    }

    /// Counts a use of its checksums, so that they stay longer.
    pub(crate) fn note_use(self) -> Self {
        if let Some(vector) = &self.vector {
            vector.note_use();
        }
        self
    }

    /// Whether it has its checksums.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.sums().is_some()
    }

    /// How many checksum blocks it has.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    fn sums(&self) -> Option<&[AtomicU32]> {
        match &self.vector {
            Some(vector) => Some(vector.sums()),
            None => self.hold.beside(self.blocks),
        }
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
