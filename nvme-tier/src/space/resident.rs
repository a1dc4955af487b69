use std::sync::Arc;

use extent::ExtentIndex;

use crate::FileGeneration;
use crate::device::DeviceIndex;
use crate::holdings::SlotId;
use crate::shelf::Shelf;

/// An extent as the ledger finds it by its slot, which it does not hold: only the ledger itself
/// could put something else there.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) generation: Arc<FileGeneration>,
    pub(crate) index: ExtentIndex,
    pub(crate) slot: SlotId,
    pub(super) shelf: Arc<Shelf>,
}

impl Resident {
    /// Whether anybody besides its generation's table holds it.
    pub(crate) fn is_in_use(&self) -> bool {
        self.shelf.holders(self.slot.slot) > 1
    }

    /// How often it was used since it was last considered for eviction.
    pub(crate) fn frequency(&self) -> u32 {
        self.shelf.frequency(self.slot.slot)
    }

    pub(crate) fn set_frequency(&self, frequency: u32) {
        self.shelf.set_frequency(self.slot.slot, frequency);
    }
}

/// One use of a slot, to find what is in it, or to find that it is gone. Twelve bytes, since the
/// eviction queues are full of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    /// A device of 64, and a slab of 64 million.
    slab: u32,
    slot: u32,
    use_number: u32,
}

const SLAB_BITS: u32 = 26;

impl Ticket {
    pub(super) fn new(slot: SlotId, use_number: u32) -> Self {
        debug_assert!(slot.slab < 1 << SLAB_BITS && slot.device.0 < 64, "{slot:?}");
        let slab = u32::from(slot.device.0) << SLAB_BITS | slot.slab;
        Self { slab, slot: slot.slot, use_number }
    }

    pub(super) fn slot(self) -> SlotId {
        let device = u16::try_from(self.slab >> SLAB_BITS).expect("six bits");
        let slab = self.slab & ((1 << SLAB_BITS) - 1);
        SlotId { device: DeviceIndex(device), slab, slot: self.slot }
    }

    pub(super) fn use_number(self) -> u32 {
        self.use_number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_name_the_farthest_slot() {
        let slot = SlotId { device: DeviceIndex(63), slab: (1 << SLAB_BITS) - 1, slot: u32::MAX };
        assert_eq!(Ticket::new(slot, 7).slot(), slot);
        assert_eq!(size_of::<Ticket>(), 12);
    }
}
