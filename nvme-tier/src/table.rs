use std::ops::Range;
use std::sync::Arc;

use extent::ExtentIndex;

use crate::Extent;

/// Extents to a chunk: a file of many extents with few of them resident stays small.
const CHUNK: u32 = 256;

type Chunk = Box<[Option<Arc<Extent>>]>;

/// The resident extents of a generation, by index. Two steps to any of them, and eight bytes each.
#[derive(Debug)]
pub(crate) struct ExtentTable {
    chunks: Vec<Option<Chunk>>,
    count: u32,
}

impl ExtentTable {
    /// An empty table for a file of `count` extents.
    pub(crate) const fn new(count: u32) -> Self {
        Self { chunks: Vec::new(), count }
    }

    /// The extent at an index. O(1), no allocation.
    pub(crate) fn find(&self, index: ExtentIndex) -> Option<&Arc<Extent>> {
        let (chunk, within) = place(index);
        self.chunks.get(chunk)?.as_ref()?.get(within)?.as_ref()
    }

    /// Adds an extent where there is none; gives it back where there is one, or past the end.
    pub(crate) fn insert(&mut self, extent: Arc<Extent>) -> Result<(), Arc<Extent>> {
        let index = extent.index();
        if index.0 >= self.count {
            return Err(extent);
        }
        let (chunk, within) = place(index);
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let length = (self.count - index.0 / CHUNK * CHUNK).min(CHUNK) as usize;
        let chunk = self.chunks[chunk].get_or_insert_with(|| vec![None; length].into());
        if chunk[within].is_some() {
            return Err(extent);
        }
        chunk[within] = Some(extent);
        Ok(())
    }

    /// Takes the extent at an index out.
    pub(crate) fn remove(&mut self, index: ExtentIndex) -> Option<Arc<Extent>> {
        let (chunk, within) = place(index);
        self.chunks.get_mut(chunk)?.as_mut()?.get_mut(within)?.take()
    }

    /// All extents whose index is in a range, in order.
    pub(crate) fn range(&self, indexes: Range<u32>) -> Vec<Arc<Extent>> {
        let last = indexes.end.min(self.count).div_ceil(CHUNK) as usize;
        let first = (indexes.start / CHUNK) as usize;
        let chunks = self.chunks.iter().take(last).skip(first).flatten();
        chunks
            .flat_map(|chunk| chunk.iter().flatten())
            .filter(|extent| indexes.contains(&extent.index().0))
            .cloned()
            .collect()
    }
}

const fn place(index: ExtentIndex) -> (usize, usize) {
    ((index.0 / CHUNK) as usize, (index.0 % CHUNK) as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Weak;

    use proptest::prelude::*;

    use super::*;
    use crate::device::DeviceIndex;
    use crate::holdings::{Holdings, SlotHold, SlotId};

    fn extent(index: u32) -> Arc<Extent> {
        let slot = SlotId { device: DeviceIndex(0), slab: 0, slot: index };
        let hold = SlotHold::new(&Arc::default(), slot, 0, false);
        Arc::new(Extent::new(Weak::new(), ExtentIndex(index), 1, Box::default(), hold))
    }

    #[test]
    fn the_last_holder_returns_the_slot() {
        let holdings: Arc<Holdings> = Arc::default();
        let slot = SlotId { device: DeviceIndex(0), slab: 3, slot: 5 };
        let hold = SlotHold::new(&holdings, slot, 0, false);
        let extent = Extent::new(Weak::new(), ExtentIndex(0), 1, Box::default(), hold);
        let mut table = ExtentTable::new(1);
        table.insert(Arc::new(extent)).expect("empty place");
        let reader = table.find(ExtentIndex(0)).cloned();
        drop(table.remove(ExtentIndex(0)));
        assert!(!holdings.has_returned(), "a reader still holds it");
        drop(reader);
        let returned = holdings.take_returned();
        assert_eq!(
            returned.iter().map(|r| (r.slot, r.described)).collect::<Vec<_>>(),
            [(slot, true)]
        );
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(count in 1u32..2000, steps in proptest::collection::vec((any::<bool>(), 0u32..2100), 0..200)) {
            let (mut table, mut map) = (ExtentTable::new(count), BTreeMap::new());
            for (insert, index) in steps {
                let at = ExtentIndex(index);
                if insert {
                    let extent = extent(index);
                    let fits = index < count && !map.contains_key(&index);
                    prop_assert_eq!(table.insert(Arc::clone(&extent)).is_ok(), fits);
                    if fits { map.insert(index, extent); }
                } else {
                    prop_assert_eq!(table.remove(at).map(|e| e.index()), map.remove(&index).map(|e| e.index()));
                }
                prop_assert_eq!(table.find(at).is_some(), map.contains_key(&index));
            }
            let all: Vec<u32> = table.range(0..u32::MAX).iter().map(|e| e.index().0).collect();
            prop_assert_eq!(all, map.keys().copied().collect::<Vec<_>>());
            let some: Vec<u32> = table.range(100..700).iter().map(|e| e.index().0).collect();
            prop_assert_eq!(some, map.range(100..700).map(|(i, _)| *i).collect::<Vec<_>>());
        }
    }
}
