//! Room for many small things in huge pages.
//!
//! Regions are cut into spans, each of which holds things of one size only. A span in which nothing
//! is left serves any size again, so that memory does not stay with sizes that nobody wants any more.
//! Regions stay: an arena takes as much as there once was in it.

use std::ptr::NonNull;
use std::sync::Arc;

use extent::Result;

use crate::region::HUGE_PAGE_BYTES;
use crate::{HugePages, Region};

/// The largest thing there can be, and what things of one size are given at a time.
pub(crate) const SPAN_BYTES: usize = 256 << 10;
/// Every thing begins at a multiple of this.
pub(crate) const THING_ALIGN_BYTES: usize = 16;

const REGION_BYTES: usize = 32 << 20;
const SPANS_A_REGION: usize = REGION_BYTES / SPAN_BYTES;
const CLASSES: usize = 96;

/// Things of one size: sixteen bytes more each time up to 128, then eight sizes to a doubling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Class {
    number: usize,
    bytes: usize,
}

/// Memory for things of many sizes.
#[derive(Debug)]
pub(crate) struct Arena {
    regions: Vec<Spans>,
    spans: Vec<Span>,
    /// Of each class, its spans that have room.
    open: [Vec<usize>; CLASSES],
    /// Spans in which there is nothing.
    vacant: Vec<usize>,
}

/// The spans of one region, in the order of their addresses.
#[derive(Debug)]
struct Spans {
    /// Address of the first span.
    base: usize,
    first: usize,
    region: Arc<Region>,
}

#[derive(Debug, Default)]
struct Span {
    used: u16,
    /// Places from here on were never used.
    fresh: u16,
    /// Places that were given back.
    free: Vec<u16>,
    /// Where it is in the list of its class, while it has room.
    listed: usize,
}

impl Arena {
    pub(crate) const fn new() -> Self {
        Self {
            regions: Vec::new(),
            spans: Vec::new(),
            open: [const { Vec::new() }; CLASSES],
            vacant: Vec::new(),
        }
    }

    /// Memory for so many bytes, one to [`SPAN_BYTES`], until it is given back.
    ///
    /// # Errors
    /// [`extent::Kind::NoSpace`] if there is no more memory.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<NonNull<u8>> {
        let class = Class::of(bytes);
        let number = match self.open[class.number].last() {
            Some(number) => *number,
            None => self.open_span(class)?,
        };
        let span = &mut self.spans[number];
        let place = span.free.pop().unwrap_or_else(|| {
            span.fresh += 1;
            span.fresh - 1
        });
        span.used += 1;
        if usize::from(span.used) == class.in_a_span() {
            self.open[class.number].pop();
        }
        Ok(self.address(number, usize::from(place) * class.bytes, class.bytes))
    }

    /// Takes back what was given for so many bytes.
    pub(crate) fn give_back(&mut self, thing: NonNull<u8>, bytes: usize) {
        let class = Class::of(bytes);
        let address = thing.addr().get();
        let spans = self.regions.partition_point(|spans| spans.base <= address);
        let spans = &self.regions[spans.checked_sub(1).expect("it came from one of the regions")];
        let offset = address - spans.base;
        let number = spans.first + offset / SPAN_BYTES;
        let place = offset % SPAN_BYTES / class.bytes;
        let span = &mut self.spans[number];
        span.free.push(u16::try_from(place).expect("at most 16 Ki things in a span"));
        if usize::from(span.used) == class.in_a_span() {
            span.listed = self.open[class.number].len();
            self.open[class.number].push(number);
        }
        span.used -= 1;
        if span.used == 0 {
            let listed = span.listed;
            *span = Span::default();
            self.open[class.number].swap_remove(listed);
            if let Some(moved) = self.open[class.number].get(listed) {
                self.spans[*moved].listed = listed;
            }
            self.vacant.push(number);
        }
    }

    /// A span with nothing in it, for things of a size.
    fn open_span(&mut self, class: Class) -> Result<usize> {
        if self.vacant.is_empty() {
            self.add_region()?;
        }
        let number = self.vacant.pop().expect("a region has spans");
        self.spans[number].listed = self.open[class.number].len();
        self.open[class.number].push(number);
        Ok(number)
    }

    fn add_region(&mut self) -> Result<()> {
        // A huge page more, since a mapping may begin within one.
        let region = Region::anonymous(REGION_BYTES + HUGE_PAGE_BYTES, HugePages::Merged)?;
        let base = region.base().addr().get().next_multiple_of(HUGE_PAGE_BYTES);
        let first = self.spans.len();
        self.spans.extend((0..SPANS_A_REGION).map(|_| Span::default()));
        // The first one first, so that what is used lies together.
        self.vacant.extend((first..self.spans.len()).rev());
        let at = self.regions.partition_point(|spans| spans.base < base);
        self.regions.insert(at, Spans { base, first, region });
        Ok(())
    }

    fn address(&self, span: usize, offset: usize, bytes: usize) -> NonNull<u8> {
        let within = |spans: &&Spans| (spans.first..spans.first + SPANS_A_REGION).contains(&span);
        let spans = self.regions.iter().rev().find(within).expect("every span is in a region");
        let skipped = spans.base - spans.region.base().addr().get();
        spans.region.at(skipped + (span - spans.first) * SPAN_BYTES + offset, bytes)
    }
}

impl Class {
    fn of(bytes: usize) -> Self {
        assert!((1..=SPAN_BYTES).contains(&bytes), "{bytes} bytes are none, or more than a span");
        if bytes <= 128 {
            let bytes = bytes.next_multiple_of(16);
            return Self { number: bytes / 16 - 1, bytes };
        }
        let shift = (bytes - 1).ilog2() - 3;
        let bytes = bytes.next_multiple_of(1 << shift);
        Self { number: 8 * (shift as usize - 3) + (bytes >> shift) - 9, bytes }
    }

    const fn in_a_span(self) -> usize {
        SPAN_BYTES / self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn classes_follow_each_other_and_waste_little() {
        let mut last = Class::of(1);
        assert_eq!(last, Class { number: 0, bytes: 16 });
        for bytes in 1..=SPAN_BYTES {
            let class = Class::of(bytes);
            assert!(class.bytes >= bytes && class.bytes.is_multiple_of(THING_ALIGN_BYTES));
            assert!(class.bytes - bytes < 16.max(bytes / 8 + 1), "{bytes} in {}", class.bytes);
            assert!(class == last || (class.number == last.number + 1 && class.bytes > last.bytes));
            last = class;
        }
        assert_eq!(last, Class { number: CLASSES - 1, bytes: SPAN_BYTES });
    }

    proptest! {
        #[test]
        fn things_never_overlap(steps in proptest::collection::vec((any::<bool>(), 1..=SPAN_BYTES, 1u32..18), 1..300)) {
            let mut arena = Arena::new();
            let mut things: BTreeMap<usize, (NonNull<u8>, usize)> = BTreeMap::new();
            for (take, bytes, shift) in steps {
                if take || things.is_empty() {
                    // Small ones as often as large ones.
                    let bytes = (bytes >> shift).max(1);
                    let thing = arena.take(bytes).expect("memory");
                    let at = thing.addr().get();
                    prop_assert!(at.is_multiple_of(THING_ALIGN_BYTES));
                    let before = things.range(..=at).next_back();
                    prop_assert!(before.is_none_or(|(other, (_, bytes))| other + bytes <= at));
                    let after = things.range(at..).next();
                    prop_assert!(after.is_none_or(|(other, _)| at + bytes <= *other));
                    things.insert(at, (thing, bytes));
                } else {
                    let at = *things.keys().nth(bytes % things.len()).expect("not empty");
                    let (thing, bytes) = things.remove(&at).expect("just found");
                    arena.give_back(thing, bytes);
                }
            }
            for (thing, bytes) in things.into_values() {
                arena.give_back(thing, bytes);
            }
            prop_assert_eq!(arena.vacant.len(), arena.spans.len(), "all may be used for any size");
            prop_assert!(arena.open.iter().all(Vec::is_empty));
        }
    }

    #[test]
    fn what_was_given_back_is_used_again() {
        let mut arena = Arena::new();
        for bytes in [16, 100, 4096, 81_920, SPAN_BYTES] {
            let things: Vec<_> = (0..1000.min(REGION_BYTES / Class::of(bytes).bytes / 2))
                .map(|_| arena.take(bytes).expect("memory"))
                .collect();
            things.into_iter().for_each(|thing| arena.give_back(thing, bytes));
        }
        assert_eq!(arena.regions.len(), 1);
    }
}
