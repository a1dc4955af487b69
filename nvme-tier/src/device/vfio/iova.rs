//! Which addresses devices see memory at.

use std::collections::BTreeMap;

/// IO virtual addresses: an allocator of our own, since the memory's own addresses need 47 bits and
/// an emulated or older IOMMU has 39. First fit; there are few, large pieces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct IovaSpace {
    /// All pieces that devices reach, free or taken, as in `free`.
    reached: BTreeMap<u64, u64>,
    /// Free pieces, by where they begin, with their lengths. No two touch.
    free: BTreeMap<u64, u64>,
}

/// Large pieces begin where a large page of the IOMMU does, as the memory behind them does.
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const PAGE_BYTES: u64 = 4096;

impl IovaSpace {
    /// Addresses that lie in these ranges, both ends included. The first page is left out: an
    /// address of zero only ever comes from a mistake.
    pub(super) fn new(ranges: &[(u64, u64)]) -> Self {
        let free = pieces(ranges);
        Self { reached: free.clone(), free }
    }

    /// Leaves of it what lies in these ranges, too: those of another group of devices that is to reach
    /// the same memory. Nothing has changed if it fails.
    ///
    /// # Errors
    /// A taken piece, as its first and last address, that the others would not reach.
    pub(super) fn restrict(&mut self, ranges: &[(u64, u64)]) -> Result<(), (u64, u64)> {
        let theirs = pieces(ranges);
        // What is reached and not free is taken.
        for (start, length) in &without(&self.reached, &self.free) {
            let end = start + length;
            let lost = without(&BTreeMap::from([(*start, *length)]), &theirs);
            if !lost.is_empty() {
                return Err((*start, end - 1));
            }
        }
        self.reached = common(&self.reached, &theirs);
        self.free = common(&self.free, &theirs);
        Ok(())
    }

    /// A piece of whole pages that begins in its large page where `address` does in its own, so
    /// that large pages stay large pages.
    pub(super) fn take(&mut self, length: u64, address: u64) -> Option<u64> {
        let length = length.next_multiple_of(PAGE_BYTES);
        let unit = if length >= LARGE_PAGE_BYTES { LARGE_PAGE_BYTES } else { PAGE_BYTES };
        let wanted = address % unit;
        let fitting = |(start, free): (&u64, &u64)| {
            let skip = (wanted + unit - start % unit) % unit;
            (skip.checked_add(length)? <= *free).then_some((*start, *free, start + skip))
        };
        let (start, free, at) = self.free.iter().find_map(fitting)?;
        self.free.remove(&start);
        if at > start {
            self.free.insert(start, at - start);
        }
        let (end, taken_end) = (start + free, at + length);
        if end > taken_end {
            self.free.insert(taken_end, end - taken_end);
        }
        Some(at)
    }

    /// Takes a piece back.
    pub(super) fn give_back(&mut self, mut at: u64, length: u64) {
        let mut length = length.next_multiple_of(PAGE_BYTES);
        if let Some((start, free)) = self.free.range(..at).next_back().map(|(s, l)| (*s, *l)) {
            debug_assert!(start + free <= at, "given back twice");
            if start + free == at {
                self.free.remove(&start);
                (at, length) = (start, free + length);
            }
        }
        if let Some(after) = self.free.remove(&(at + length)) {
            length += after;
        }
        self.free.insert(at, length);
    }
}

/// Whole pages in ranges whose ends are included; those that touch become one.
fn pieces(ranges: &[(u64, u64)]) -> BTreeMap<u64, u64> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut pieces: BTreeMap<u64, u64> = BTreeMap::new();
    for (first, last) in sorted {
        let Some(start) = first.max(PAGE_BYTES).checked_next_multiple_of(PAGE_BYTES) else {
            continue;
        };
        let end = last.saturating_add(1) & !(PAGE_BYTES - 1);
        match pieces.last_entry() {
            Some(mut before) if start <= *before.key() + *before.get() => {
                let length = end.saturating_sub(*before.key()).max(*before.get());
                before.insert(length);
            }
            _ if start < end => {
                pieces.insert(start, end - start);
            }
            _ => {}
        }
    }
    pieces
}

/// What is in both.
fn common(one: &BTreeMap<u64, u64>, other: &BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
    let mut both = BTreeMap::new();
    for (a, a_length) in one {
        for (b, b_length) in other {
            let (start, end) = ((*a).max(*b), (a + a_length).min(b + b_length));
            if start < end {
                both.insert(start, end - start);
            }
        }
    }
    both
}

/// What of the first is not in the second.
fn without(one: &BTreeMap<u64, u64>, other: &BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
    let mut rest = BTreeMap::new();
    for (start, length) in one {
        let (mut at, end) = (*start, start + length);
        for (other, length) in other {
            if other + length <= at || *other >= end {
                continue;
            }
            if *other > at {
                rest.insert(at, other - at);
            }
            at = other + length;
        }
        if at < end {
            rest.insert(at, end - at);
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANGES: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];

    #[test]
    fn pieces_lie_in_their_large_pages_as_the_memory_does() {
        let mut space = IovaSpace::new(&RANGES);
        let small = space.take(100, 0x7fff_1234_5000).expect("room");
        assert!(small >= PAGE_BYTES && small.is_multiple_of(PAGE_BYTES));
        let large = space.take(5 << 20, 0x7fff_1230_0000).expect("room");
        assert_eq!(large % LARGE_PAGE_BYTES, 0x10_0000);
        assert!(space.take(1 << 39, 0).is_none(), "39 bits are not enough");
        let above = space.take(8 << 30, 0).expect("room beyond the hole");
        assert!(above >= 0xfef0_0000);
    }

    #[test]
    fn a_second_group_takes_its_windows_away() {
        let mut space = IovaSpace::new(&RANGES);
        let taken = space.take(8 << 20, 0).expect("room");
        // It reserves a window of its own, and translates fewer bits.
        space.restrict(&[(0, 0x3fff_ffff), (0x5000_0000, (1 << 32) - 1)]).expect("nothing lost");
        assert!(space.take(3 << 30, 0).is_none(), "no piece is that long any more");
        let at = space.take(1 << 30, 0).expect("room between the two windows");
        assert!((0x5000_0000..0xfee0_0000).contains(&at), "{at:x}");
        assert!(at + (1 << 30) <= 0xfee0_0000, "below the window of the first group");
        space.give_back(taken, 8 << 20);
        assert_eq!(space.take(8 << 20, 0), Some(taken));
    }

    #[test]
    fn what_is_mapped_already_must_stay_within_reach() {
        let mut space = IovaSpace::new(&RANGES);
        let taken = space.take(8 << 20, 0).expect("room");
        let before = space.clone();
        for ranges in [&[(taken + (4 << 20), (1 << 39) - 1)][..], &[(0, taken + 4095)], &[]] {
            assert_eq!(space.restrict(ranges), Err((taken, taken + (8 << 20) - 1)));
            assert_eq!(space, before, "as it was");
        }
        space.give_back(taken, 8 << 20);
        space.restrict(&[(0x1000_0000, 0x1fff_ffff)]).expect("nothing is taken");
        assert_eq!(space.take(4096, 0), Some(0x1000_0000));
    }

    #[test]
    fn ranges_that_touch_or_overlap_are_one() {
        let space = IovaSpace::new(&[(0x9000, 0x9fff), (0x1000, 0x4fff), (0x2000, 0x8fff), (5, 9)]);
        assert_eq!(space.free, BTreeMap::from([(0x1000, 0x9000)]));
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_comes_back(
            steps in proptest::collection::vec((1u64..8 << 20, any::<u32>(), any::<bool>()), 1..60),
        ) {
            let mut space = IovaSpace::new(&[(0, (64 << 20) - 1)]);
            let before = space.free.clone();
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (length, address, give_back) in steps {
                if give_back && !taken.is_empty() {
                    let (at, length) = taken.swap_remove(address as usize % taken.len());
                    space.give_back(at, length);
                } else if let Some(at) = space.take(length, u64::from(address) << 12) {
                    let end = at + length.next_multiple_of(PAGE_BYTES);
                    prop_assert!(end <= 64 << 20);
                    let apart = |(other, l): &(u64, u64)| {
                        end <= *other || other + l.next_multiple_of(PAGE_BYTES) <= at
                    };
                    prop_assert!(taken.iter().all(apart));
                    taken.push((at, length));
                }
            }
            for (at, length) in taken {
                space.give_back(at, length);
            }
            prop_assert_eq!(space.free, before);
        }
    }
}
