//! The memory of one session, cut into pieces. A node takes only so many regions from a session,
//! and programs want any number of buffers.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dma::{ALIGN_BYTES, Region};
use parking_lot::Mutex;

use crate::Memory;

/// The least that is asked of a channel.
const CHUNK_BYTES: usize = 4 << 20;
/// From so many regions on, each new one is an eighth of what there is already, up to a most.
const MANY_REGIONS: usize = 16;
const MOST_GROWTH_BYTES: usize = 256 << 20;

/// The regions of a session, and what is free of them.
#[derive(Default)]
pub(crate) struct Home {
    state: Mutex<State>,
    /// Whether any of the regions is retired.
    any_retired: AtomicBool,
    /// Whether any is unused: whoever polls does not ask for the lock each time.
    any_unused: AtomicBool,
}

#[derive(Default)]
struct State {
    blocks: Vec<Block>,
    unused: Vec<Arc<Region>>,
}

struct Block {
    region: Arc<Region>,
    /// In order, and never touching.
    free: Vec<Range<usize>>,
    /// Known to no node any more: kept while somebody has a piece of it, and never used again.
    retired: bool,
    /// The caller's own: no piece of it is given to anybody else.
    theirs: bool,
}

impl Home {
    /// Memory that is free already, aligned; `None` if there is not enough in one place.
    pub(crate) fn carve(self: &Arc<Self>, length: usize) -> Option<Memory> {
        let reserved = length.checked_next_multiple_of(ALIGN_BYTES)?;
        let mut state = self.state.lock();
        state.blocks.iter_mut().find_map(|block| {
            let is_free = !block.retired && !block.theirs;
            let range = is_free.then(|| block.carve(reserved))??;
            Some(Memory::new(Arc::clone(&block.region), range, length, self))
        })
    }

    /// How long a new region for `length` bytes should be.
    pub(crate) fn region_bytes(&self, length: usize) -> usize {
        let state = self.state.lock();
        let ours = || state.blocks.iter().filter(|block| !block.theirs);
        let growth = if ours().count() < MANY_REGIONS {
            CHUNK_BYTES
        } else {
            let held: usize = ours().map(|block| block.region.length()).sum();
            (held / 8).clamp(CHUNK_BYTES, MOST_GROWTH_BYTES)
        };
        length.max(growth)
    }

    /// Takes over a region of at least `length` bytes, and carves that off its front.
    pub(crate) fn adopt(self: &Arc<Self>, region: Arc<Region>, length: usize) -> Memory {
        assert!(length <= region.length(), "a channel's region is as long as was asked for");
        let end = length.next_multiple_of(ALIGN_BYTES).min(region.length());
        let rest = end..region.length();
        let free = if rest.is_empty() { Vec::new() } else { vec![rest] };
        let memory = Memory::new(Arc::clone(&region), 0..end, length, self);
        let (retired, theirs) = (false, false);
        self.state.lock().blocks.push(Block { region, free, retired, theirs });
        memory
    }

    /// Takes note of a region of the caller's, who knows it by its address.
    pub(crate) fn admit(self: &Arc<Self>, region: Arc<Region>) -> Memory {
        let length = region.length();
        let mut memory = Memory::new(Arc::clone(&region), 0..length, length, self);
        memory.fix();
        let (free, retired, theirs) = (Vec::new(), false, true);
        self.state.lock().blocks.push(Block { region, free, retired, theirs });
        memory
    }

    /// Whether somebody has a piece of this region.
    pub(crate) fn holds(&self, region: &Arc<Region>) -> bool {
        self.state.lock().blocks.iter().any(|block| Arc::ptr_eq(&block.region, region))
    }

    /// Takes memory back.
    pub(crate) fn give_back(&self, region: &Arc<Region>, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        let of = |block: &Block| Arc::ptr_eq(&block.region, region);
        let index = state.blocks.iter().position(of).expect("a region is kept while it is used");
        if state.blocks[index].give_back(range) {
            let block = state.blocks.swap_remove(index);
            if !block.retired {
                state.unused.push(block.region);
                self.any_unused.store(true, Ordering::Release);
            }
        }
    }

    /// The regions that a node knows, or is to be told of.
    pub(crate) fn regions(&self) -> Vec<Arc<Region>> {
        let state = self.state.lock();
        let used = state.blocks.iter().filter(|block| !block.retired);
        used.map(|block| Arc::clone(&block.region)).collect()
    }

    /// The node knows none of these regions any more, and shall not.
    pub(crate) fn retire(&self, which: impl Fn(&Region) -> bool) {
        let mut state = self.state.lock();
        for block in state.blocks.iter_mut().filter(|block| which(&block.region)) {
            block.retired = true;
            self.any_retired.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a node may be told of this region.
    pub(crate) fn is_retired(&self, region: &Arc<Region>) -> bool {
        self.any_retired.load(Ordering::Relaxed)
            && self
                .state
                .lock()
                .blocks
                .iter()
                .any(|block| block.retired && Arc::ptr_eq(&block.region, region))
    }

    /// Regions of which nothing is used any more, to be unregistered.
    pub(crate) fn take_unused(&self) -> Vec<Arc<Region>> {
        if !self.any_unused.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut self.state.lock().unused)
    }
}

impl Block {
    fn carve(&mut self, length: usize) -> Option<Range<usize>> {
        let fits = |range: &Range<usize>| {
            let start = range.start.next_multiple_of(ALIGN_BYTES);
            start.checked_add(length).is_some_and(|end| end <= range.end)
        };
        let index = self.free.iter().position(fits)?;
        let found = self.free.remove(index);
        let start = found.start.next_multiple_of(ALIGN_BYTES);
        let rest = [found.start..start, start + length..found.end];
        self.free.splice(index..index, rest.into_iter().filter(|range| !range.is_empty()));
        Some(start..start + length)
    }

    /// Whether all of it is free now.
    fn give_back(&mut self, range: Range<usize>) -> bool {
        let index = self.free.partition_point(|free| free.end <= range.start);
        let mut joined = range;
        if let Some(next) = self.free.get(index)
            && next.start <= joined.end
        {
            assert!(next.start == joined.end, "memory comes back once");
            joined.end = next.end;
            self.free.remove(index);
        }
        match index.checked_sub(1).map(|before| &mut self.free[before]) {
            Some(before) if before.end == joined.start => before.end = joined.end,
            _ => self.free.insert(index, joined),
        }
        self.free.len() == 1 && self.free[0] == (0..self.region.length())
    }
}

#[cfg(test)]
mod tests {
    use dma::HugePages;
    use proptest::prelude::*;

    use super::*;

    fn allocate(home: &Arc<Home>, length: usize) -> Memory {
        home.carve(length).unwrap_or_else(|| {
            let region = Region::anonymous(home.region_bytes(length), HugePages::Never);
            home.adopt(region.expect("memory"), length)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn live_pieces_never_overlap_and_all_comes_back(
            steps in proptest::collection::vec((0u8..4, 1usize..30_000, any::<usize>()), 1..40),
        ) {
            let home = Arc::new(Home::default());
            let mut live: Vec<(u8, Memory)> = Vec::new();
            for (index, (step, length, choice)) in steps.into_iter().enumerate() {
                let mark = u8::try_from(index).expect("few steps");
                match step {
                    0 if !live.is_empty() => {
                        let chosen = choice % live.len();
                        drop(live.swap_remove(chosen));
                    }
                    1 if !live.is_empty() => {
                        let chosen = choice % live.len();
                        let at = length % (live[chosen].1.len() + 1);
                        let rest = live[chosen].1.split_off(at);
                        let mark = live[chosen].0;
                        live.push((mark, rest));
                    }
                    _ => {
                        let mut memory = allocate(&home, length);
                        prop_assert_eq!(memory.offset() % ALIGN_BYTES, 0);
                        memory.as_mut_slice().fill(mark);
                        live.push((mark, memory));
                    }
                }
                for (mark, memory) in &live {
                    prop_assert!(memory.as_slice().iter().all(|byte| byte == mark));
                }
            }
            drop(live);
            prop_assert!(home.state.lock().blocks.is_empty());
        }
    }

    #[test]
    #[expect(unsafe_code, reason = "memory of somebody else's is known by its address")]
    fn what_is_left_of_a_callers_memory_is_given_to_nobody() {
        let home = Arc::new(Home::default());
        let mut owner = vec![0_u8; 100_001];
        // SAFETY: the vector outlives everything here, and is not looked at meanwhile.
        let region = unsafe { Region::lent(std::ptr::NonNull::from(&mut owner[1]), 100_000) };
        let mut memory = home.admit(region.expect("memory"));
        assert!(memory.is_fixed());
        drop(memory.split_off(10));
        assert!(home.carve(4096).is_none());
        assert!(home.take_unused().is_empty());
        drop(memory);
        assert_eq!(home.take_unused().len(), 1);
    }

    #[test]
    fn many_small_buffers_take_few_regions() {
        let home = Arc::new(Home::default());
        let mut live: Vec<Memory> = (0..3000).map(|_| allocate(&home, 30_000)).collect();
        assert!(home.state.lock().blocks.len() < 32);
        live.drain(10..);
        assert!(home.take_unused().len() > 10);
        let before = home.state.lock().blocks.len();
        live.extend((0..50).map(|_| allocate(&home, 30_000)));
        assert_eq!(home.state.lock().blocks.len(), before, "free room is used first");
    }
}
