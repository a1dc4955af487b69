//! Which addresses devices see memory at.

use std::collections::BTreeMap;

/// IO virtual addresses: an allocator of our own, since the memory's own addresses need 47 bits and
/// an emulated or older IOMMU has 39. First fit; there are few, large pieces.
#[derive(Debug)]
pub(super) struct IovaSpace {
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
        let mut free = BTreeMap::new();
        for (first, last) in ranges {
            let start = (*first).max(PAGE_BYTES).next_multiple_of(PAGE_BYTES);
            let end = last.saturating_add(1) & !(PAGE_BYTES - 1);
            if start < end {
                free.insert(start, end - start);
            }
        }
        Self { free }
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
