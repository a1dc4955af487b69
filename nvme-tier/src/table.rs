use std::ops::Range;

use extent::ExtentIndex;

use crate::shelf::Hold;

/// Extents to a chunk: a file of many extents with few of them resident stays small.
const CHUNK: u32 = 256;

type Chunk = Box<[Option<Hold>]>;

/// The resident extents of a generation, by index: sixteen bytes each, and two steps to any of
/// them, or one in a file of a single chunk.
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
        Self { chunks: Chunks::One(Box::default()), count, copies: None }
    }

    /// The hold of the extent at an index. O(1), no allocation.
    pub(crate) fn find(&self, index: ExtentIndex) -> Option<&Hold> {
        let (number, within) = place(index);
        self.chunk(number)?.get(within)?.as_ref()
    }

    /// Has the processor fetch what leads to an index.
    pub(crate) fn prefetch(&self, index: ExtentIndex) {
        match &self.chunks {
            Chunks::One(_) => self.prefetch_place(index),
            Chunks::Many(chunks) => {
                if let Some(chunk) = chunks.get(place(index).0) {
                    dma::prefetch(chunk);
                }
            }
        }
    }

    /// Has the processor fetch the place of an index, once what leads to it is there.
    pub(crate) fn prefetch_place(&self, index: ExtentIndex) {
        let (number, within) = place(index);
        if let Some(place) = self.chunk(number).and_then(|chunk| chunk.get(within)) {
            dma::prefetch(place);
        }
    }

    /// Adds an extent where there is none; gives it back where there is one, or past the end.
    pub(crate) fn insert(&mut self, index: ExtentIndex, hold: Hold) -> Result<(), Hold> {
        if index.0 >= self.count {
            return Err(hold);
        }
        let (number, within) = place(index);
        let place = &mut self.chunk_to_fill(number)[within];
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
        let (number, within) = place(index);
        let chunk = match &mut self.chunks {
            Chunks::One(chunk) => Some(chunk).filter(|_| number == 0),
            Chunks::Many(chunks) => chunks.get_mut(number)?.as_mut(),
        };
        chunk?.get_mut(within)?.take()
    }

    /// All extents whose index is in a range, in order.
    pub(crate) fn range(&self, indexes: Range<u32>) -> impl Iterator<Item = (ExtentIndex, &Hold)> {
        let indexes = indexes.start..indexes.end.min(self.count);
        let numbers = indexes.start / CHUNK..indexes.end.div_ceil(CHUNK);
        let chunks = numbers.filter_map(|number| Some((number, self.chunk(number as usize)?)));
        let all = chunks.flat_map(|(number, chunk)| (number * CHUNK..).zip(chunk));
        all.filter(move |(index, _)| indexes.contains(index))
            .filter_map(|(index, place)| Some((ExtentIndex(index), place.as_ref()?)))
    }

    fn chunk(&self, number: usize) -> Option<&Chunk> {
        match &self.chunks {
            Chunks::One(chunk) => Some(chunk).filter(|_| number == 0),
            Chunks::Many(chunks) => chunks.get(number)?.as_ref(),
        }
    }

    fn chunk_to_fill(&mut self, number: usize) -> &mut Chunk {
        if let Chunks::One(chunk) = &self.chunks
            && chunk.is_empty()
        {
            self.chunks = if self.count <= CHUNK {
                Chunks::One(empty(self.count))
            } else {
                Chunks::Many((0..self.count.div_ceil(CHUNK)).map(|_| None).collect())
            };
        }
        match &mut self.chunks {
            Chunks::One(chunk) => chunk,
            Chunks::Many(chunks) => {
                let before = u32::try_from(number).expect("32-bit indexes") * CHUNK;
                chunks[number].get_or_insert_with(|| empty((self.count - before).min(CHUNK)))
            }
        }
    }
}

fn empty(length: u32) -> Chunk {
    (0..length).map(|_| None).collect()
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
        fn behaves_like_a_map(count in 1u32..2000, steps in proptest::collection::vec((any::<bool>(), 0u32..2100), 0..200)) {
            let shelf = shelf(&Arc::default(), 2100);
            let (mut table, mut map) = (ExtentTable::new(count), BTreeMap::new());
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
