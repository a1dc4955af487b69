//! Memory that a node reads and writes itself.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Bound, Range, RangeBounds};
use std::slice;
use std::sync::Arc;

use dma::Region;
use extent::{Kind, Result};
use parking_lot::Mutex;

/// Exclusive use of a piece of memory that is registered with one session.
///
/// A request takes it by value, or by `&mut` for the length of a blocking call, so that nobody can
/// look at it while the node uses it. It is empty after a call in which the session was lost while
/// the node's devices might still write into it: ask the next session for new memory then.
#[derive(Default)]
pub struct Memory {
    block: Option<Arc<Block>>,
    offset: usize,
    length: usize,
}

/// What all pieces of one region share: it is unregistered when the last of them is gone.
struct Block {
    region: Arc<Region>,
    home: Arc<Home>,
}

/// Where a session finds the regions that nobody uses any more.
#[derive(Default)]
pub(crate) struct Home {
    unused: Mutex<Vec<Arc<Region>>>,
}

impl Home {
    /// Regions to unregister.
    pub(crate) fn take_unused(&self) -> Vec<Arc<Region>> {
        std::mem::take(&mut *self.unused.lock())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.home.unused.lock().push(Arc::clone(&self.region));
    }
}

impl Memory {
    /// Takes over a region that no one else reads or writes.
    pub(crate) fn new(region: Arc<Region>, length: usize, home: &Arc<Home>) -> Self {
        assert!(length <= region.length(), "a session's region is as long as was asked for");
        let block = Block { region, home: Arc::clone(home) };
        Self { block: Some(Arc::new(block)), offset: 0, length }
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        let Some(block) = &self.block else { return &[] };
        let base = block.region.at(self.offset, self.length);
        // SAFETY: pieces of a region never overlap, `&self` keeps other users of this one out, and
        // the node writes only while a request owns it.
        unsafe { slice::from_raw_parts(base.as_ptr(), self.length) }
    }

    /// Its bytes, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let Some(block) = &self.block else { return &mut [] };
        let base = block.region.at(self.offset, self.length);
        // SAFETY: as in `as_slice`, and `&mut self` is exclusive.
        unsafe { slice::from_raw_parts_mut(base.as_ptr(), self.length) }
    }

    /// Splits it in two: keeps the bytes before `at`, and returns those from `at` on. Both stay
    /// registered until the last piece of the region is dropped.
    ///
    /// # Panics
    /// If `at` is past the end.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.length, "{at} is past the end of {} bytes", self.length);
        let rest =
            Self { block: self.block.clone(), offset: self.offset + at, length: self.length - at };
        self.length = at;
        rest
    }

    /// The region that it lies in, for registration with other hardware; `None` if it is empty
    /// because its session was lost.
    #[must_use]
    pub fn region(&self) -> Option<&Arc<Region>> {
        self.block.as_ref().map(|block| &block.region)
    }

    /// Where in its region it begins.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Whether it belongs to the session of `home`.
    pub(crate) fn lives_in(&self, home: &Arc<Home>) -> bool {
        self.block.as_ref().is_some_and(|block| Arc::ptr_eq(&block.home, home))
    }

    /// The bounds as a range of this memory's bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is not inside.
    pub(crate) fn resolve(&self, bounds: &impl RangeBounds<usize>) -> Result<Range<usize>> {
        let start = match bounds.start_bound() {
            Bound::Included(start) => Some(*start),
            Bound::Excluded(start) => start.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let end = match bounds.end_bound() {
            Bound::Included(end) => end.checked_add(1),
            Bound::Excluded(end) => Some(*end),
            Bound::Unbounded => Some(self.length),
        };
        match (start, end) {
            (Some(start), Some(end)) if start <= end && end <= self.length => Ok(start..end),
            _ => Err(Kind::Invalid.error(format!(
                "the range is not inside memory of {} bytes{}",
                self.length,
                if self.block.is_none() {
                    ", whose session is over: allocate it again"
                } else {
                    ""
                }
            ))),
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let region = self.region().map(|region| region.id());
        f.debug_struct("Memory")
            .field("region", &region)
            .field("offset", &self.offset)
            .field("length", &self.length)
            .finish()
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl AsMut<[u8]> for Memory {
    fn as_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

#[cfg(test)]
mod tests {
    use dma::HugePages;

    use super::*;

    fn memory(length: usize) -> (Memory, Arc<Home>) {
        let home = Arc::new(Home::default());
        let region = Region::anonymous(length, HugePages::Never).expect("memory");
        (Memory::new(region, length, &home), home)
    }

    #[test]
    fn pieces_do_not_overlap_and_the_last_one_gives_the_region_back() {
        let (mut front, home) = memory(5000);
        let mut back = front.split_off(1000);
        front.as_mut_slice().fill(1);
        back.as_mut_slice().fill(2);
        assert_eq!((front.len(), back.len(), back.offset()), (1000, 4000, 1000));
        assert!(front.as_slice().iter().all(|byte| *byte == 1));
        drop(front);
        assert!(home.take_unused().is_empty());
        assert!(back.as_slice().iter().all(|byte| *byte == 2));
        drop(back);
        assert_eq!(home.take_unused().len(), 1);
    }

    #[test]
    fn ranges_outside_are_refused() {
        let (memory, _home) = memory(100);
        assert_eq!(memory.resolve(&(..)).expect("all"), 0..100);
        assert_eq!(memory.resolve(&(10..=19)).expect("some"), 10..20);
        for bad in [50..101, 101..101, usize::MAX..usize::MAX] {
            assert_eq!(memory.resolve(&bad).expect_err("outside").kind(), Kind::Invalid);
        }
        assert_eq!(memory.resolve(&(..=usize::MAX)).expect_err("outside").kind(), Kind::Invalid);
        assert!(Memory::default().as_slice().is_empty());
    }
}
