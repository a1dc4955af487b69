use std::sync::{Arc, Weak};

use extent::ExtentIndex;

use super::Resident;
use crate::FileGeneration;
use crate::holdings::SlotId;
use crate::layout::{PAGE_BYTES, Purpose, Shape};
use crate::shelf::Shelf;

/// One slab in memory.
#[derive(Debug)]
pub(crate) struct Slab {
    /// What it is used for; `None` while it is free for anything.
    pub(crate) purpose: Option<Purpose>,
    pub(crate) epoch: u64,
    pub(crate) shape: Shape,
    /// Slots whose entry is erased on the device, and that nobody holds.
    free: Bitmap,
    /// Slots from here on were never erased in this epoch, and cannot be used yet.
    pub(crate) virgin_from: u32,
    /// Slots that are held, or wait for their entry to be erased.
    pub(crate) used: u32,
    /// Slots that wait for their entry to be erased.
    pub(crate) erasing: u32,
    /// Of those, slots whose entry is erased, and that their device is told of, or will be.
    pub(crate) discarding: u32,
    /// Windows of it that are being erased for their first use.
    pub(crate) windows: u32,
    /// Damaged: whatever is in it is not touched.
    pub(crate) withheld: bool,
    /// What is in each slot of a data slab.
    occupants: Vec<Occupant>,
    /// The slots of a data slab as everybody sees them.
    shelf: Option<Arc<Shelf>>,
}

/// The extent in a slot.
#[derive(Debug, Default)]
struct Occupant {
    generation: Weak<FileGeneration>,
    index: u32,
    /// Which use of the tier's slots this is, to recognise it by.
    use_number: u32,
}

impl Slab {
    /// A slab free for anything.
    pub(crate) fn unassigned(shape: Shape) -> Self {
        Self {
            purpose: None,
            epoch: 0,
            shape,
            free: Bitmap::default(),
            virgin_from: 0,
            used: 0,
            erasing: 0,
            discarding: 0,
            windows: 0,
            withheld: false,
            occupants: Vec::new(),
            shelf: None,
        }
    }

    /// A slab in use, none of whose slots is usable yet; one of data with its shelf.
    pub(crate) fn assigned(
        purpose: Purpose,
        epoch: u64,
        shape: Shape,
        shelf: Option<Arc<Shelf>>,
    ) -> Self {
        let occupants = match purpose {
            Purpose::Records => Vec::new(),
            Purpose::Data(_) => (0..shape.slots).map(|_| Occupant::default()).collect(),
        };
        Self {
            purpose: Some(purpose),
            epoch,
            free: Bitmap::new(shape.slots),
            occupants,
            shelf,
            ..Self::unassigned(shape)
        }
    }

    /// Whether it is a data slab in which nothing is held, nor about to be.
    pub(crate) fn is_vacant(&self) -> bool {
        matches!(self.purpose, Some(Purpose::Data(_)))
            && self.used == self.erasing
            && self.discarding == 0
            && self.windows == 0
            && !self.withheld
    }

    /// Whether it is a data slab in which no slot is held, or waits for anything.
    pub(crate) fn is_unused(&self) -> bool {
        self.is_vacant() && self.used == 0
    }

    pub(crate) fn free_slots(&self) -> u32 {
        self.free.count
    }

    /// Slots that can still be made usable by erasing their entries.
    pub(crate) fn virgin_slots(&self) -> u32 {
        if self.purpose.is_some() && !self.withheld {
            self.shape.slots - self.virgin_from
        } else {
            0
        }
    }

    /// Takes a free slot, whose entry is not in the page of `apart`.
    pub(crate) fn take(&mut self, apart: Option<u32>) -> Option<u32> {
        let slot = match apart {
            None => self.free.take(|_| true),
            Some(other) => {
                let (shape, page) = (self.shape, entry_page(&self.shape, other));
                self.free.take(|slot| entry_page(&shape, slot) != page)
            }
        }?;
        self.used += 1;
        Some(slot)
    }

    /// A slot whose entry is erased on the device and that nobody holds.
    pub(crate) fn set_free(&mut self, slot: u32) {
        self.free.set(slot);
    }

    /// A slot is held, as recovery found it.
    pub(crate) fn set_used(&mut self) {
        self.used += 1;
    }

    /// A held slot, whose entry is blank, is free again.
    pub(crate) fn give_back(&mut self, slot: u32) {
        self.used -= 1;
        self.free.set(slot);
    }

    /// Puts an extent in a slot, and gives that use of it a number.
    pub(crate) fn occupy(
        &mut self,
        slot: u32,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
        use_number: u32,
    ) {
        let generation = Arc::downgrade(generation);
        self.occupants[slot as usize] = Occupant { generation, index: index.0, use_number };
    }

    pub(crate) fn shelf(&self) -> Option<&Arc<Shelf>> {
        self.shelf.as_ref()
    }

    /// What is in a slot, if it is still that use of it.
    pub(crate) fn resident(&self, slot: SlotId, use_number: u32) -> Option<Resident> {
        let occupant = self.occupants.get(slot.slot as usize)?;
        if occupant.use_number != use_number {
            return None;
        }
        self.resident_in(occupant, slot)
    }

    /// Whether a slot may still hold what it held in that use of it.
    pub(crate) fn is_use(&self, slot: u32, use_number: u32) -> bool {
        self.occupants.get(slot as usize).is_some_and(|occupant| {
            occupant.use_number == use_number && occupant.generation.strong_count() > 0
        })
    }

    fn resident_in(&self, occupant: &Occupant, slot: SlotId) -> Option<Resident> {
        let generation = occupant.generation.upgrade()?;
        let index = ExtentIndex(occupant.index);
        let shelf = self.shelf.as_ref()?;
        generation.has(index, slot).then(|| Resident {
            generation,
            index,
            slot,
            shelf: Arc::clone(shelf),
        })
    }

    /// Whether a generation's extent is the one in a slot, as far as the ledger has come.
    pub(crate) fn is_occupied_by(
        &self,
        slot: u32,
        generation: &FileGeneration,
        index: ExtentIndex,
    ) -> bool {
        self.occupants.get(slot as usize).is_some_and(|occupant| {
            std::ptr::eq(occupant.generation.as_ptr(), generation) && occupant.index == index.0
        })
    }

    /// Nobody holds the slot any more; its entry is to be erased.
    pub(crate) fn begin_erase(&mut self, slot: u32) {
        self.erasing += 1;
        if let Some(occupant) = self.occupants.get_mut(slot as usize) {
            *occupant = Occupant::default();
        }
    }

    /// The entry of a slot is durably erased.
    pub(crate) fn finish_erase(&mut self, slot: u32) {
        self.erasing -= 1;
        self.give_back(slot);
    }

    /// The extents in it; `None` if a slot is held by something that is no extent (yet, or any
    /// more).
    pub(crate) fn residents(&self, slab: SlotId) -> Option<Vec<Resident>> {
        let slots = (0..).map(|slot| SlotId { slot, ..slab });
        let occupants = slots.zip(&self.occupants);
        let extents: Vec<_> =
            occupants.filter_map(|(slot, occupant)| self.resident_in(occupant, slot)).collect();
        let is_quiet = self.windows == 0 && self.discarding == 0;
        let all = extents.len() == (self.used - self.erasing) as usize && is_quiet;
        all.then_some(extents)
    }
}

fn entry_page(shape: &Shape, slot: u32) -> u64 {
    shape.entry_offset(slot) / PAGE_BYTES
}

/// A set of slots.
#[derive(Debug, Default)]
struct Bitmap {
    words: Vec<u64>,
    count: u32,
    /// No word before this one has a bit set.
    first: usize,
}

impl Bitmap {
    fn new(slots: u32) -> Self {
        Self { words: vec![0; slots.div_ceil(64) as usize], count: 0, first: 0 }
    }

    fn set(&mut self, slot: u32) {
        let (word, bit) = ((slot / 64) as usize, 1u64 << (slot % 64));
        debug_assert!(self.words[word] & bit == 0, "slot {slot} was freed twice");
        self.words[word] |= bit;
        self.count += 1;
        self.first = self.first.min(word);
    }

    fn take(&mut self, suits: impl Fn(u32) -> bool) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        while self.words[self.first] == 0 {
            self.first += 1;
        }
        let (first, mut number) = (self.first, u32::try_from(self.first).expect("32-bit slots"));
        for word in &mut self.words[first..] {
            let mut bits = *word;
            while bits != 0 {
                let slot = number * 64 + bits.trailing_zeros();
                if suits(slot) {
                    *word &= !(1 << (slot % 64));
                    self.count -= 1;
                    return Some(slot);
                }
                bits &= bits - 1;
            }
            number += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bitmap_is_a_set(slots in 1u32..300, steps in proptest::collection::vec(any::<(bool, u32, u32)>(), 0..300)) {
            let (mut bitmap, mut set) = (Bitmap::new(slots), BTreeSet::new());
            for (insert, slot, modulus) in steps {
                let (slot, modulus) = (slot % slots, modulus % 5 + 1);
                if insert {
                    if set.insert(slot) { bitmap.set(slot); }
                } else {
                    let expected = set.iter().copied().find(|slot| slot % modulus == 0);
                    prop_assert_eq!(bitmap.take(|slot| slot % modulus == 0), expected);
                    if let Some(slot) = expected { set.remove(&slot); }
                }
                prop_assert_eq!(bitmap.count as usize, set.len());
            }
        }
    }
}
