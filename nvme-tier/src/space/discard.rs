//! Slots and slabs that are free, and whose device is told so before anybody gets them.

use std::ops::Range;

use super::{DeviceSpace, FEW_RECORDS, Purpose, Space, purpose_index};
use crate::holdings::SlotId;

impl Space {
    /// The entry is durably erased, but the slot is kept until its device knows that it is free.
    pub(crate) fn begin_discard(&mut self, slot: SlotId) {
        self.slab_mut(slot).discarding += 1;
    }

    /// The device knows, or need not: the slot is free.
    pub(crate) fn finish_discard(&mut self, slot: SlotId) {
        self.slab_mut(slot).discarding -= 1;
        self.finish_erase(slot);
    }
}

impl DeviceSpace {
    /// The bytes of the device that slots of a data slab take.
    pub(crate) fn data_range(&self, number: u32, slots: Range<u32>) -> Range<u64> {
        let shape = &self.slabs[number as usize].shape;
        let first = self.layout.slab_offset(number) + shape.slots_offset;
        let at = |slot: u32| first + u64::from(slot) * shape.slot_bytes;
        at(slots.start)..at(slots.end)
    }

    /// Whether nothing is in a slab, and another one has free slots of its class: one that is ready
    /// is not given up. Neither is the last slab that records could have while they may need one.
    pub(crate) fn is_spare(&self, number: u32) -> bool {
        let slab = &self.slabs[number as usize];
        let others =
            |purpose| self.with_free[purpose_index(purpose)].iter().any(|at| *at != number);
        let has_records = self.free_slots(Purpose::Records, FEW_RECORDS) >= FEW_RECORDS;
        slab.is_unused()
            && slab.purpose.is_some_and(others)
            && (has_records || self.has_unassigned())
    }

    /// Takes an unused slab from its class. It is free for nothing before [`Self::end_discard`].
    pub(crate) fn begin_slab_discard(&mut self, number: u32) {
        self.vacate(number);
        self.unassigned.retain(|other| *other != number);
    }

    /// The slab is free for anything.
    pub(crate) fn end_discard(&mut self, number: u32) {
        self.unassigned.push(number);
    }
}
