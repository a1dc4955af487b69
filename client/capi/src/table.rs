//! Things kept under numbers that are never used twice.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bugs::{self, Bug};

/// A number is that of the table, how often something was put there, and the place.
const SLOT_BITS: u32 = 20;
const USE_BITS: u32 = 28;
/// Places of a table.
const MOST: usize = (1 << SLOT_BITS) - 1;

/// See the module. A number of another table is not taken for one of this, as long as no more than
/// 65,535 were made in between.
pub(crate) struct Table<T> {
    prefix: u64,
    uses: u64,
    slots: Vec<Option<(u64, T)>>,
    free: Vec<usize>,
}

impl<T> Table<T> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        static TABLES: AtomicU64 = AtomicU64::new(1);
        Self {
            prefix: TABLES.fetch_add(1, Ordering::Relaxed) << (SLOT_BITS + USE_BITS),
            uses: 0,
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == MOST
    }

    /// Its number, never 0.
    ///
    /// # Panics
    /// If the table is full.
    pub(crate) fn insert(&mut self, entry: T) -> u64 {
        assert!(!self.is_full(), "there is room");
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if !bugs::is(Bug::NumbersReused) {
            self.uses = (self.uses + 1) % (1 << USE_BITS);
        }
        let number = self.prefix | self.uses << SLOT_BITS | (slot as u64 + 1);
        self.slots[slot] = Some((number, entry));
        number
    }

    pub(crate) fn get(&self, number: u64) -> Option<&T> {
        let (its, entry) = self.slots.get(slot_of(number))?.as_ref()?;
        (*its == number).then_some(entry)
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (its, entry) = self.slots.get_mut(slot_of(number))?.as_mut()?;
        (*its == number).then_some(entry)
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        self.get(number)?;
        let slot = slot_of(number);
        self.free.push(slot);
        self.slots[slot].take().map(|(_, entry)| entry)
    }

    /// Everything in it, with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().flatten().map(|(number, entry)| (*number, entry))
    }
}

/// Where it would be; no number has place 0.
fn slot_of(number: u64) -> usize {
    let slot = number & MOST as u64;
    usize::try_from(slot).map_or(usize::MAX, |slot| slot.wrapping_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_one_table_and_one_use() {
        let (mut ours, mut theirs) = (Table::with_capacity(1), Table::with_capacity(1));
        let (first, other) = (ours.insert(7), theirs.insert(8));
        assert_ne!(first, other);
        assert!(ours.get(other).is_none() && theirs.get(first).is_none());
        assert_eq!(ours.remove(first), Some(7));
        let second = ours.insert(9);
        assert!(ours.get(first).is_none() && ours.remove(first).is_none());
        *ours.get_mut(second).expect("there") += 1;
        for strange in [0, 1, u64::MAX, second + 1] {
            assert!(ours.get(strange).is_none(), "{strange:#x}");
        }
        assert_eq!(ours.iter().collect::<Vec<_>>(), [(second, &10)]);
        assert_eq!(ours.len(), 1);
    }
}
