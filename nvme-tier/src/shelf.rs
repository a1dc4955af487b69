//! Slots as everybody sees them: who holds them, and the checksums of what is in them.
//!
//! Ten million extents are too many to allocate one by one. So what is known of an extent lies where
//! its slot's number says: a row of four bytes that count its holders and its uses, and its checksums,
//! so that one cache line has what a lookup needs. A [`Hold`] is a pointer to the shelf and a number.

mod hold;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use dma::Run;
use parking_lot::RwLock;

use crate::bugs::{self, Bug};
use crate::checksums::{Fate, Vector};
use crate::codec::Place;
use crate::device::{DeviceIndex, Location};
use crate::holdings::Holdings;

pub(crate) use hold::Hold;

/// How often a use is counted at most.
pub(crate) const FREQUENCY_LIMIT: u32 = 3;

/// What the first four bytes of a slot's row hold: how many hold it, a mark, and how often it was used of late.
const HOLDERS: u32 = (1 << 24) - 1;
const DESCRIBED: u32 = 1 << 24;
/// Six bits, so that threads that count at the same time never carry into nothing.
const USE: u32 = 1 << 26;

/// How many words are allocated at a time at most, unless one row is more: so many that the list of
/// parts stays in a cache.
const WORDS_AT_A_TIME: u32 = 20 << 10;

/// Rows of some slots, in the order of their numbers.
type Part = Run<AtomicU32>;
/// Where a slot's vector is, while it is in memory.
type VectorPlace = RwLock<Option<Arc<Vector>>>;

/// The slots of one data slab.
#[derive(Debug)]
pub(crate) struct Shelf {
    holdings: Arc<Holdings>,
    shape: ShelfShape,
    /// Words of a slot: one, and one for each checksum that is beside it.
    row_words: u32,
    /// The rows of so many slots, a power of two, are allocated together, when the first is used.
    part_shift: u32,
    parts: Box<[OnceLock<Part>]>,
    /// Where checksums are not beside their slots: vectors, as far as they are in memory.
    vectors: Option<Box<[VectorPlace]>>,
}

/// What a shelf is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShelfShape {
    pub(crate) device: DeviceIndex,
    pub(crate) slab: u32,
    /// Where the first slot begins on the device.
    pub(crate) first: u64,
    pub(crate) slots: u32,
    pub(crate) slot_bytes: u64,
    pub(crate) checksum_block_bytes: u32,
    /// Which use of the slab this is.
    pub(crate) epoch: u64,
    /// Where the first slot's descriptor begins on the device.
    pub(crate) descriptors: u64,
    /// Bytes from one descriptor to the next.
    pub(crate) stride: u32,
    /// Bytes of a logical block of the device.
    pub(crate) block_bytes: u32,
}

impl Shelf {
    pub(crate) fn new(holdings: &Arc<Holdings>, shape: ShelfShape) -> Arc<Self> {
        let sums_per_slot = shape.slot_bytes / u64::from(shape.checksum_block_bytes);
        let sums_per_slot = u32::try_from(sums_per_slot).expect("bounded by the largest slot");
        let beside = holdings.checksums.is_beside(sums_per_slot);
        let row_words = if beside { 1 + sums_per_slot } else { 1 };
        let part_shift = (WORDS_AT_A_TIME / row_words).max(1).ilog2();
        let part_shift = part_shift.min(shape.slots.next_power_of_two().ilog2());
        let parts = shape.slots.div_ceil(1 << part_shift);
        Arc::new(Self {
            holdings: Arc::clone(holdings),
            shape,
            row_words,
            part_shift,
            parts: (0..parts).map(|_| OnceLock::new()).collect(),
            vectors: (!beside).then(|| (0..shape.slots).map(|_| RwLock::default()).collect()),
        })
    }

    /// Exclusive use of a slot that nobody holds.
    pub(crate) fn hold(self: &Arc<Self>, slot: u32) -> Hold {
        let state = self.state_to_use(slot);
        let before = state.swap(1, Ordering::Relaxed);
        if bugs::is(Bug::ReadersIgnored) {
            // In the place of the hold that was forgotten; those who still read go on counting.
            state.store((before & HOLDERS).max(1), Ordering::Relaxed);
        } else {
            debug_assert!(before & HOLDERS == 0, "slot {slot} is held already");
        }
        Hold { shelf: Arc::clone(self), slot }
    }

    /// How many hold a slot.
    pub(crate) fn holders(&self, slot: u32) -> u32 {
        self.row(slot).map_or(0, |row| row[0].load(Ordering::Acquire) & HOLDERS)
    }

    /// How often the extent in a slot was used since it was last considered for eviction.
    pub(crate) fn frequency(&self, slot: u32) -> u32 {
        self.row(slot).map_or(0, |row| (row[0].load(Ordering::Relaxed) / USE).min(FREQUENCY_LIMIT))
    }

    pub(crate) fn set_frequency(&self, slot: u32, frequency: u32) {
        let state = self.state_to_use(slot);
        let set = |old| Some(old % USE + frequency * USE);
        let _always = state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set);
    }

    /// Notes the checksums of what is in a slot. Readers see them if they find the slot in its
    /// generation's table, where it is put afterwards. They stay until [`Shelf::offer`].
    pub(crate) fn set_checksums(&self, slot: u32, checksums: impl Iterator<Item = u32>) {
        let Some(places) = &self.vectors else { return self.set_beside(slot, checksums) };
        self.put(&places[slot as usize], Vector::new(&self.holdings.checksums, checksums));
        self.holdings.checksums.make_room();
    }

    /// As [`Shelf::set_checksums`], if there is room for what may go again at once.
    pub(crate) fn offer_checksums(
        self: &Arc<Self>,
        slot: u32,
        checksums: impl ExactSizeIterator<Item = u32>,
    ) {
        let Some(places) = &self.vectors else { return self.set_beside(slot, checksums) };
        if let Some(vector) = Vector::try_new(&self.holdings.checksums, checksums) {
            self.put(&places[slot as usize], Arc::clone(&vector));
            vector.offer(self, slot);
        }
    }

    /// The checksums of what is in a slot may go from now on: it is clean, and its descriptor
    /// has been written.
    pub(crate) fn offer(self: &Arc<Self>, slot: u32) {
        if let Some(vector) = self.vector(slot) {
            vector.offer(self, slot);
            drop(vector);
            self.holdings.checksums.make_room();
        }
    }

    /// What a slot's descriptor must say of where it stands.
    pub(crate) fn descriptor_place(&self, slot: u32) -> Place {
        let ShelfShape { device, descriptors, stride, epoch, .. } = self.shape;
        let offset = descriptors + u64::from(slot) * u64::from(stride);
        Place { tier: self.holdings.tier, at: Location { device, offset }, epoch }
    }

    pub(crate) fn shape(&self) -> &ShelfShape {
        &self.shape
    }

    /// The vector of a slot, if it has one in memory.
    fn vector(&self, slot: u32) -> Option<Arc<Vector>> {
        self.vectors.as_ref()?[slot as usize].read().clone()
    }

    pub(crate) fn has_vector(&self, slot: u32, serial: u64) -> bool {
        self.vector(slot).is_some_and(|vector| vector.is(serial))
    }

    /// Takes a vector out of its place, if it is still that one and, if some are to be spared, was
    /// not used.
    pub(crate) fn drop_vector(&self, slot: u32, serial: u64, spare: bool) -> Fate {
        let Some(places) = &self.vectors else { return Fate::Gone };
        let mut place = places[slot as usize].write();
        match &*place {
            Some(vector) if !vector.is(serial) => Fate::Gone,
            Some(vector) if vector.take_use() && spare => Fate::Spared,
            Some(_) => {
                *place = None;
                Fate::Dropped
            }
            None => Fate::Gone,
        }
    }

    /// Forgets the checksums of a slot that nobody holds.
    pub(crate) fn forget_checksums(&self, slot: u32) {
        if let Some(places) = &self.vectors
            && !bugs::is(Bug::VectorOfEarlierUse)
        {
            *places[slot as usize].write() = None;
        }
    }

    /// The first `count` checksums of what is in a slot, if they are beside it.
    pub(crate) fn beside(&self, slot: u32, count: u32) -> Option<&[AtomicU32]> {
        if self.vectors.is_some() {
            return None;
        }
        Some(self.row(slot).map_or(&[], |row| &row[1..=count as usize]))
    }

    fn set_beside(&self, slot: u32, checksums: impl Iterator<Item = u32>) {
        let (part, begin) = self.place(slot);
        let row = &self.part_to_use(part)[begin..begin + self.row_words as usize];
        for (place, sum) in row[1..].iter().zip(checksums) {
            place.store(sum, Ordering::Relaxed);
        }
    }

    fn put(&self, place: &VectorPlace, vector: Arc<Vector>) {
        let mut place = place.write();
        if !(bugs::is(Bug::VectorOfEarlierUse) && place.is_some()) {
            *place = Some(vector);
        }
    }

    /// The row of a slot, if one near it was ever used.
    fn row(&self, slot: u32) -> Option<&[AtomicU32]> {
        let (part, begin) = self.place(slot);
        Some(&self.parts[part].get()?[begin..begin + self.row_words as usize])
    }

    fn state_to_use(&self, slot: u32) -> &AtomicU32 {
        let (part, begin) = self.place(slot);
        &self.part_to_use(part)[begin]
    }

    fn part_to_use(&self, part: usize) -> &Part {
        self.parts[part].get_or_init(|| {
            self.holdings.checksums.charge(self.part_sum_bytes());
            Run::new((self.row_words as usize) << self.part_shift)
        })
    }

    /// Bytes of checksums in a part.
    fn part_sum_bytes(&self) -> u64 {
        (4 * u64::from(self.row_words - 1)) << self.part_shift
    }

    /// Where a slot's row is: in which part, and where in it.
    fn place(&self, slot: u32) -> (usize, usize) {
        // A shift and a mask, not a division: lookups come through here.
        let within = slot & ((1 << self.part_shift) - 1);
        ((slot >> self.part_shift) as usize, (within * self.row_words) as usize)
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        let parts = self.parts.iter().filter(|part| part.get().is_some()).count() as u64;
        self.holdings.checksums.discharge(parts * self.part_sum_bytes());
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A shelf of slots of 64 KiB that belongs to no slab.
    pub(crate) fn shelf(holdings: &Arc<Holdings>, slots: u32) -> Arc<Shelf> {
        let shape = ShelfShape {
            device: DeviceIndex(0),
            slab: 3,
            first: 1 << 20,
            slots,
            slot_bytes: 64 << 10,
            checksum_block_bytes: 4096,
            epoch: 7,
            descriptors: 1 << 16,
            stride: 512,
            block_bytes: 512,
        };
        Shelf::new(holdings, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::shelf;
    use super::*;
    use crate::holdings::SlotId;

    #[test]
    fn the_last_hold_returns_the_slot() {
        let holdings: Arc<Holdings> = Arc::default();
        let shelf = shelf(&holdings, 10);
        let first = shelf.hold(5);
        first.describe();
        let (second, third) = (first.clone(), first.used());
        drop((first, second));
        assert!(!holdings.has_returned() && shelf.holders(5) == 1, "a reader still holds it");
        drop(third);
        let returned = holdings.take_returned();
        let slot = SlotId { device: DeviceIndex(0), slab: 3, slot: 5 };
        assert_eq!(returned.len(), 1);
        assert_eq!((returned[0].slot, returned[0].described), (slot, true));
        drop(shelf.hold(5));
        assert!(!holdings.take_returned()[0].described, "a new use begins anew");
    }

    #[test]
    fn uses_are_counted_to_the_limit() {
        let shelf = shelf(&Arc::default(), 2);
        let hold = shelf.hold(1);
        for expected in [1, 2, 3, 3, 3] {
            drop(hold.used());
            assert_eq!((shelf.frequency(1), shelf.holders(1)), (expected, 1));
        }
        drop(hold.clone());
        shelf.set_frequency(1, 1);
        assert_eq!((shelf.frequency(1), shelf.holders(1)), (1, 1));
    }

    #[test]
    fn checksums_of_neighbours_do_not_mix() {
        let shelf = shelf(&Arc::default(), 200);
        for slot in 0..200 {
            shelf.set_checksums(slot, (0..16).map(|block| slot * 100 + block));
        }
        for slot in 0..200 {
            let sums: Vec<u32> = shelf
                .beside(slot, 3)
                .expect("beside")
                .iter()
                .map(|s| s.load(Ordering::Relaxed))
                .collect();
            assert_eq!(sums, [slot * 100, slot * 100 + 1, slot * 100 + 2]);
        }
    }

    #[test]
    fn holders_on_many_threads_return_it_once() {
        let holdings: Arc<Holdings> = Arc::default();
        let hold = shelf(&holdings, 1).hold(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mine = hold.used();
                scope.spawn(move || (0..10_000).for_each(|_| drop(mine.used())));
            }
            drop(hold);
        });
        assert_eq!(holdings.take_returned().len(), 1);
    }
}
