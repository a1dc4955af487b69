use std::ops::Range;

use dma::Run;
use extent::ExtentIndex;

use crate::shelf::Hold;

/// Extents to a chunk: a file of many extents with few of them resident stays small.
const CHUNK: u32 = 256;

/// The most extents that are ever in one array: it takes 64 KiB.
const MOST_IN_ONE: u32 = 4096;

/// Random lookups find these in no cache, so at least the pages are large.
type Chunk = Run<Option<Hold>>;

/// The resident extents of a generation, by index: sixteen bytes each, and two steps to any of
/// them, or one in a file of a single array.
#[derive(Debug)]
pub(crate) struct ExtentTable {
    chunks: Chunks,
    count: u32,
    /// Second copies, on other devices: only of what was written here and has them.
    copies: Option<Box<Self>>,
}

#[derive(Debug)]
enum Chunks {
    /// All there can be.
    One(Chunk),
    Many(Box<[Option<Chunk>]>),
}

impl ExtentTable {
    /// An empty table for a file of `count` extents.
    pub(crate) fn new(count: u32) -> Self {
        Self { chunks: Chunks::One(Run::default()), count, copies: None }
    }

    /// Makes room for extents of which so many come at once: one array, if that many nearly fill it.
    pub(crate) fn expect(&mut self, resident: usize) {
        let fills = resident >= self.count as usize / 2 && self.count <= MOST_IN_ONE;
        if fills && matches!(&self.chunks, Chunks::One(chunk) if chunk.is_empty()) {
            self.chunks = Chunks::One(Run::new(self.count as usize));
        }
    }

    /// The hold of the extent at an index. O(1), no allocation.
    pub(crate) fn find(&self, index: ExtentIndex) -> Option<&Hold> {
        self.place(index)?.as_ref()
    }

    /// Has the processor fetch the place of an index, or what leads to it.
    pub(crate) fn prefetch(&self, index: ExtentIndex) {
        match &self.chunks {
            Chunks::One(chunk) => {
                if let Some(place) = chunk.get(index.0 as usize) {
                    dma::prefetch(place);
                }
            }
            Chunks::Many(chunks) => {
                if let Some(chunk) = chunks.get(place(index).0) {
                    dma::prefetch(chunk);
                }
            }
        }
    }

    /// Has the processor fetch the place of an index, where something led to it that is there by now.
    pub(crate) fn prefetch_listed(&self, index: ExtentIndex) {
        if let Chunks::Many(_) = &self.chunks
            && let Some(place) = self.place(index)
        {
            dma::prefetch(place);
        }
    }

    /// Adds an extent where there is none; gives it back where there is one, or past the end.
    pub(crate) fn insert(&mut self, index: ExtentIndex, hold: Hold) -> Result<(), Hold> {
        if index.0 >= self.count {
            return Err(hold);
        }
        let place = self.place_to_fill(index);
        if place.is_some() {
            return Err(hold);
        }
        *place = Some(hold);
        Ok(())
    }

    /// The hold of the second copy of the extent at an index.
    pub(crate) fn find_copy(&self, index: ExtentIndex) -> Option<&Hold> {
        self.copies.as_ref()?.find(index)
    }

    /// Adds a second copy where there is none; gives it back where there is one, or past the end.
    pub(crate) fn insert_copy(&mut self, index: ExtentIndex, hold: Hold) -> Result<(), Hold> {
        let count = self.count;
        self.copies.get_or_insert_with(|| Box::new(Self::new(count))).insert(index, hold)
    }

    /// Takes all second copies out.
    pub(crate) fn take_copies(&mut self) -> Option<Box<Self>> {
        self.copies.take()
    }

    /// All second copies whose index is in a range, in order.
    pub(crate) fn copies(&self, indexes: Range<u32>) -> impl Iterator<Item = (ExtentIndex, &Hold)> {
        self.copies.iter().flat_map(move |copies| copies.range(indexes.clone()))
    }

    /// Takes the extent at an index out.
    pub(crate) fn remove(&mut self, index: ExtentIndex) -> Option<Hold> {
        let (chunk, within) = match &mut self.chunks {
            Chunks::One(chunk) => (chunk, index.0 as usize),
            Chunks::Many(chunks) => {
                let (number, within) = place(index);
                (chunks.get_mut(number)?.as_mut()?, within)
            }
        };
        chunk.get_mut(within)?.take()
    }

    /// All extents whose index is in a range, in order.
    pub(crate) fn range(&self, indexes: Range<u32>) -> impl Iterator<Item = (ExtentIndex, &Hold)> {
        let indexes = indexes.start..indexes.end.min(self.count);
        let numbers = indexes.start / CHUNK..indexes.end.div_ceil(CHUNK);
        let chunks = numbers.filter_map(|number| Some((number, self.chunk(number)?)));
        let all = chunks.flat_map(|(number, chunk)| (number * CHUNK..).zip(chunk));
        all.filter(move |(index, _)| indexes.contains(index))
            .filter_map(|(index, place)| Some((ExtentIndex(index), place.as_ref()?)))
    }

    fn place(&self, index: ExtentIndex) -> Option<&Option<Hold>> {
        match &self.chunks {
            Chunks::One(chunk) => chunk.get(index.0 as usize),
            Chunks::Many(chunks) => {
                let (number, within) = place(index);
                chunks.get(number)?.as_ref()?.get(within)
            }
        }
    }

    /// The places from `number` times [`CHUNK`] on, as many at most.
    fn chunk(&self, number: u32) -> Option<&[Option<Hold>]> {
        match &self.chunks {
            Chunks::One(all) => all.chunks(CHUNK as usize).nth(number as usize),
            Chunks::Many(chunks) => chunks.get(number as usize)?.as_deref(),
        }
    }

    fn place_to_fill(&mut self, index: ExtentIndex) -> &mut Option<Hold> {
        if let Chunks::One(chunk) = &self.chunks
            && chunk.is_empty()
        {
            self.chunks = if self.count <= CHUNK {
                Chunks::One(Run::new(self.count as usize))
            } else {
                Chunks::Many((0..self.count.div_ceil(CHUNK)).map(|_| None).collect())
            };
        }
        match &mut self.chunks {
            Chunks::One(chunk) => &mut chunk[index.0 as usize],
            Chunks::Many(chunks) => {
                let (number, within) = place(index);
                let left = self.count - index.0 / CHUNK * CHUNK;
                let chunk =
                    chunks[number].get_or_insert_with(|| Run::new(left.min(CHUNK) as usize));
                &mut chunk[within]
            }
        }
    }
}

const fn place(index: ExtentIndex) -> (usize, usize) {
    ((index.0 / CHUNK) as usize, (index.0 % CHUNK) as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::shelf::testing::shelf;

    proptest! {
        #[test]
        fn behaves_like_a_map(count in 1u32..2000, expected in 0usize..2000, steps in proptest::collection::vec((any::<bool>(), 0u32..2100), 0..200)) {
            let shelf = shelf(&Arc::default(), 2100);
            let (mut table, mut map) = (ExtentTable::new(count), BTreeMap::new());
            table.expect(expected);
            for (insert, index) in steps {
                let at = ExtentIndex(index);
                if insert {
                    if shelf.holders(index) != 0 { continue }
                    let hold = shelf.hold(index);
                    let fits = index < count && !map.contains_key(&index);
                    prop_assert_eq!(table.insert(at, hold).is_ok(), fits);
                    if fits { map.insert(index, ()); }
                    let again = table.find(at).cloned();
                    if let Some(again) = again { prop_assert!(table.insert(at, again).is_err()); }
                } else {
                    prop_assert_eq!(table.remove(at).map(|h| h.slot().slot), map.remove(&index).map(|()| index));
                }
                prop_assert_eq!(table.find(at).is_some(), map.contains_key(&index));
            }
            let all: Vec<u32> = table.range(0..u32::MAX).map(|(i, _)| i.0).collect();
            prop_assert_eq!(all, map.keys().copied().collect::<Vec<_>>());
            let some: Vec<u32> = table.range(100..700).map(|(i, hold)| { assert_eq!(hold.slot().slot, i.0); i.0 }).collect();
            prop_assert_eq!(some, map.range(100..700).map(|(i, ())| *i).collect::<Vec<_>>());
        }
    }
}
