//! Use of a slot, by whoever reads, writes or serves what is in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::{DESCRIBED, FREQUENCY_LIMIT, HOLDERS, Shelf, ShelfShape, USE};
use crate::checksums::Vector;
use crate::codec::Place;
use crate::device::Location;
use crate::holdings::{Holdings, Returned, SlotId};

/// Use of a slot: it is not used for anything else before the last of them is dropped, on whichever
/// thread, which hands it to the ledger.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(super) shelf: Arc<Shelf>,
    pub(super) slot: u32,
}

impl Hold {
    pub(crate) fn slot(&self) -> SlotId {
        let ShelfShape { device, slab, .. } = self.shelf.shape;
        SlotId { device, slab, slot: self.slot }
    }

    /// Where the slot's data begins.
    pub(crate) fn at(&self) -> Location {
        let ShelfShape { device, first, slot_bytes, .. } = self.shelf.shape;
        Location { device, offset: first + u64::from(self.slot) * slot_bytes }
    }

    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.shelf.shape.slot_bytes
    }

    pub(crate) fn shape(&self) -> &ShelfShape {
        &self.shelf.shape
    }

    pub(crate) fn descriptor_place(&self) -> Place {
        self.shelf.descriptor_place(self.slot)
    }

    pub(crate) fn holdings(&self) -> &Holdings {
        &self.shelf.holdings
    }

    /// From here on a descriptor may stand on the device.
    pub(crate) fn describe(&self) {
        self.state().fetch_or(DESCRIBED, Ordering::Relaxed);
    }

    pub(crate) fn set_checksums(&self, checksums: impl Iterator<Item = u32>) {
        self.shelf.set_checksums(self.slot, checksums);
    }

    /// The checksums may go from now on: see [`Shelf::offer`].
    pub(crate) fn offer(&self) {
        self.shelf.offer(self.slot);
    }

    /// Puts a vector that was read from the descriptor in the slot's place, unless there is one; it
    /// may go again.
    pub(crate) fn keep(&self, vector: &Arc<Vector>) {
        let Some(places) = &self.shelf.vectors else { return };
        let mut place = places[self.slot as usize].write();
        if place.is_none() {
            *place = Some(Arc::clone(vector));
            drop(place);
            vector.offer(&self.shelf, self.slot);
            self.holdings().checksums.make_room();
        }
    }

    pub(crate) fn beside(&self, count: u32) -> Option<&[AtomicU32]> {
        self.shelf.beside(self.slot, count)
    }

    /// The vector, if the slot's checksums are in memory apart from it.
    pub(crate) fn vector(&self) -> Option<Arc<Vector>> {
        self.shelf.vector(self.slot)
    }

    /// Only ever called to see whether tests notice.
    pub(crate) fn give_back_although_held(&self) {
        self.holdings().give_back(Returned { slot: self.slot(), described: true });
        // Never dropped, or the slot would come back twice.
        std::mem::forget(self.clone());
    }

    /// Another hold, which counts as a use.
    pub(crate) fn used(&self) -> Self {
        // Most holds only count themselves once the limit is reached.
        let low = self.state().load(Ordering::Relaxed) / USE < FREQUENCY_LIMIT;
        self.state().fetch_add(if low { USE + 1 } else { 1 }, Ordering::Relaxed);
        Self { shelf: Arc::clone(&self.shelf), slot: self.slot }
    }

    /// Has the processor fetch what a hold and a look at the checksums need.
    pub(crate) fn prefetch(&self) {
        let row = self.row();
        // The others are not looked at before the device has read, if they are in another line.
        match row.first_chunk::<2>() {
            Some(state_and_first) => dma::prefetch(state_and_first),
            None => dma::prefetch(&row[0]),
        }
        if let Some(places) = &self.shelf.vectors {
            dma::prefetch(&places[self.slot as usize]);
        }
    }

    fn state(&self) -> &AtomicU32 {
        &self.row()[0]
    }

    fn row(&self) -> &[AtomicU32] {
        self.shelf.row(self.slot).expect("whoever holds a slot has used it")
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        self.state().fetch_add(1, Ordering::Relaxed);
        Self { shelf: Arc::clone(&self.shelf), slot: self.slot }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // As the counts of an `Arc`: whatever others did with the slot has happened before the
        // last of them hands it in.
        let before = self.state().fetch_sub(1, Ordering::Release);
        if before & HOLDERS == 1 {
            fence(Ordering::Acquire);
            self.shelf.forget_checksums(self.slot);
            let described = before & DESCRIBED != 0;
            self.shelf.holdings.give_back(Returned { slot: self.slot(), described });
        }
    }
}
