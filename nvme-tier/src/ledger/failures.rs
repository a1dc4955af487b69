//! Devices that fail while the tier runs.

use super::Ledger;
use super::io::{DeviceSet, Job};
use crate::bugs::{self, Bug};
use crate::device::{DeviceIndex, Location};
use crate::layout::SUPERBLOCK_OFFSETS;

impl Ledger {
    /// Nothing is put on devices that have failed.
    pub(super) fn note_failures(&mut self) {
        for device in self.io.failed().iter() {
            self.space.device_mut(device).fail();
        }
    }

    /// Writes to the superblocks of those that are left which ones have failed. Whether they did not
    /// know.
    pub(super) fn tell_failures(&mut self) -> bool {
        let failed = self.io.failed();
        let mut any = false;
        for (index, (superblock, copy)) in (0u16..).zip(&mut self.superblocks) {
            let device = DeviceIndex(index);
            let known = DeviceSet::from_bits(superblock.without);
            let knows = failed.is_within(known) || bugs::is(Bug::FailureUntold);
            if failed.contains(device) || knows {
                continue;
            }
            superblock.without = known.union(failed).bits();
            superblock.sequence += 1;
            let at = Location { device, offset: SUPERBLOCK_OFFSETS[*copy] };
            *copy = 1 - *copy;
            self.io.push(Job::Superblock { at, superblock: *superblock });
            any = true;
        }
        // The next batch writes the other copies.
        self.renew_superblocks |= any;
        any
    }
}
