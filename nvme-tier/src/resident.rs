use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use extent::ExtentIndex;

use crate::FileGeneration;
use crate::device::Location;
use crate::holdings::{SlotHold, SlotId};

/// How often a use is counted at most.
const FREQUENCY_LIMIT: u8 = 3;

/// An extent on the tier. It never changes. Its slot is not used again while anybody holds it, so
/// whoever reads from the device keeps it until the read has completed.
#[derive(Debug)]
pub struct Extent {
    checksums: Box<[u32]>,
    generation: Weak<FileGeneration>,
    hold: SlotHold,
    length: u32,
    index: ExtentIndex,
    /// Uses since it was last considered for eviction.
    frequency: AtomicU8,
}

impl Extent {
    pub(crate) fn new(
        generation: Weak<FileGeneration>,
        index: ExtentIndex,
        length: u32,
        checksums: Box<[u32]>,
        mut hold: SlotHold,
    ) -> Self {
        hold.describe();
        hold.holdings().extents.fetch_add(1, Ordering::Relaxed);
        hold.holdings().bytes.fetch_add(u64::from(length), Ordering::Relaxed);
        Self { checksums, generation, hold, length, index, frequency: AtomicU8::new(0) }
    }

    /// Where its slot begins.
    #[must_use]
    pub fn at(&self) -> Location {
        Location { device: self.hold.slot().device, offset: self.hold.offset() }
    }

    /// Valid bytes. The slot holds them padded with zeroes to a whole checksum block.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// The CRC32C of each checksum block, the last one padded.
    #[must_use]
    pub fn checksums(&self) -> &[u32] {
        &self.checksums
    }

    /// Which extent of its file.
    #[must_use]
    pub fn index(&self) -> ExtentIndex {
        self.index
    }

    pub(crate) fn slot(&self) -> SlotId {
        self.hold.slot()
    }

    /// Only ever called to see whether tests notice.
    pub(crate) fn give_back_although_held(self: &Arc<Self>) {
        self.hold.give_back();
        // Never dropped, or the slot would come back twice.
        std::mem::forget(Arc::clone(self));
    }

    pub(crate) fn generation(&self) -> Option<Arc<FileGeneration>> {
        self.generation.upgrade()
    }

    /// Counts a use. Most calls only read, so that readers do not fight for the cache line.
    pub(crate) fn touch(&self) {
        let frequency = self.frequency.load(Ordering::Relaxed);
        if frequency < FREQUENCY_LIMIT {
            self.frequency.store(frequency + 1, Ordering::Relaxed);
        }
    }

    pub(crate) fn frequency(&self) -> u8 {
        self.frequency.load(Ordering::Relaxed)
    }

    pub(crate) fn set_frequency(&self, frequency: u8) {
        self.frequency.store(frequency, Ordering::Relaxed);
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let holdings = self.hold.holdings();
        holdings.extents.fetch_sub(1, Ordering::Relaxed);
        holdings.bytes.fetch_sub(u64::from(self.length), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the two counts of its `Arc` and the allocator's share an extent takes 96 bytes; eight
    /// more in each of its generation's table, its slab and its eviction queue. Ten million extents
    /// take less than 2 GB besides their checksums.
    #[test]
    fn an_extent_is_small() {
        assert!(size_of::<Extent>() <= 72, "{}", size_of::<Extent>());
    }
}
