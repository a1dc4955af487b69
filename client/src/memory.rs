//! Memory that a node reads and writes itself.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Range, RangeBounds};
use std::slice;
use std::sync::Arc;

use dma::Region;
use extent::Kind;

use crate::arena::Home;
use crate::bugs::{self, Bug};

/// Exclusive use of a piece of memory that is registered with one session.
///
/// A request takes it by value, or by `&mut` for the length of a blocking call, so that nobody can
/// look at it while the node uses it. It stays valid when its session makes another connection: it
/// is registered there, or, over shared memory, replaced by other memory with the same bytes as soon
/// as a request uses it, so that [`Memory::region`] may change then. It is empty after a call that
/// failed because a connection was lost while the node's devices might still write into it: ask for
/// new memory then.
#[derive(Default)]
pub struct Memory {
    piece: Option<Piece>,
    offset: usize,
    length: usize,
    /// Bytes that go back on drop: at least `length`, or none of a view.
    reserved: usize,
    /// Whether somebody knows it by its address, so that no other memory may take its place.
    fixed: bool,
}

/// Where memory comes from and goes back to.
struct Piece {
    region: Arc<Region>,
    home: Arc<Home>,
}

impl Piece {
    fn shared(&self) -> Self {
        Self { region: Arc::clone(&self.region), home: Arc::clone(&self.home) }
    }
}

impl Memory {
    /// Takes over bytes that no one else reads or writes.
    pub(crate) fn new(
        region: Arc<Region>,
        reserved: Range<usize>,
        length: usize,
        home: &Arc<Home>,
    ) -> Self {
        assert!(length <= reserved.len() && reserved.end <= region.length(), "reserved inside");
        let piece = Some(Piece { region, home: Arc::clone(home) });
        Self { piece, offset: reserved.start, length, reserved: reserved.len(), fixed: false }
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
        let Some(piece) = &self.piece else { return &[] };
        let base = piece.region.at(self.offset, self.length);
        // SAFETY: pieces of a region never overlap, `&self` keeps other users of this one out, and
        // the node writes only while a request owns it.
        unsafe { slice::from_raw_parts(base.as_ptr(), self.length) }
    }

    /// Its bytes, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let Some(piece) = &self.piece else { return &mut [] };
        let base = piece.region.at(self.offset, self.length);
        // SAFETY: as in `as_slice`, and `&mut self` is exclusive.
        unsafe { slice::from_raw_parts_mut(base.as_ptr(), self.length) }
    }

    /// Splits it in two: keeps the bytes before `at`, and returns those from `at` on. Both stay
    /// registered for as long as they live.
    ///
    /// # Panics
    /// If `at` is past the end.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.length, "{at} is past the end of {} bytes", self.length);
        let piece = self.piece.as_ref().map(Piece::shared);
        let rest = Self {
            piece,
            offset: self.offset + at,
            length: self.length - at,
            // A view gives nothing back, and so has nothing to share out.
            reserved: self.reserved.saturating_sub(at),
            fixed: self.fixed,
        };
        (self.length, self.reserved) = (at, self.reserved.min(at));
        rest
    }

    /// Takes the bytes that follow, as [`Memory::split_off`] returned them.
    ///
    /// # Errors
    /// `rest` as it was, if it is not what follows.
    pub fn join(&mut self, mut rest: Self) -> Result<(), Self> {
        let follows = match (&self.piece, &rest.piece) {
            (Some(one), Some(other)) => {
                let of_one = Arc::ptr_eq(&one.region, &other.region)
                    && Arc::ptr_eq(&one.home, &other.home)
                    && self.fixed == rest.fixed;
                // What gives bytes back has none between the two that are only its.
                let is_whole = self.reserved == self.length || (self.reserved | rest.reserved) == 0;
                of_one && is_whole && self.offset + self.length == rest.offset
            }
            _ => false,
        };
        if !follows {
            return Err(rest);
        }
        rest.piece = None;
        self.length += rest.length;
        self.reserved += rest.reserved;
        Ok(())
    }

    /// Another view of a part of it, for callers that know memory by its address, such as those in C.
    /// A request that has a view never goes on in other memory: if its connection is lost over shared
    /// memory, it fails. Allocates nothing.
    ///
    /// # Safety
    /// As long as the view lives, `self` does, and nobody else uses those bytes but by other views.
    /// What a node reads or writes is seen by no other view before the request is over.
    ///
    /// # Panics
    /// If the part is not inside.
    #[must_use]
    pub unsafe fn view(&self, within: Range<usize>) -> Self {
        assert!(within.start <= within.end && within.end <= self.length, "the part is inside");
        Self {
            piece: self.piece.as_ref().map(Piece::shared),
            offset: self.offset + within.start,
            length: within.len(),
            reserved: 0,
            fixed: true,
        }
    }

    /// From now on a request that has it stays in it: somebody knows it by its address.
    pub(crate) fn fix(&mut self) {
        self.fixed = true;
    }

    /// Whether a request that has it must stay in it.
    pub(crate) fn is_fixed(&self) -> bool {
        self.fixed && !bugs::is(Bug::FixedMemoryMoved)
    }

    /// The region that it lies in, for registration with other hardware; `None` if it is empty
    /// because its session was lost.
    #[must_use]
    pub fn region(&self) -> Option<&Arc<Region>> {
        self.piece.as_ref().map(|piece| &piece.region)
    }

    /// Where in its region it begins.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Whether it belongs to the session of `home`.
    pub(crate) fn lives_in(&self, home: &Arc<Home>) -> bool {
        self.piece.as_ref().is_some_and(|piece| Arc::ptr_eq(&piece.home, home))
    }

    /// The bounds as a range of this memory's bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is not inside.
    pub(crate) fn resolve(&self, bounds: &impl RangeBounds<usize>) -> extent::Result<Range<usize>> {
        dma::range_within(bounds, self.length).ok_or_else(|| {
            let lost = ", whose session is over: allocate it again";
            Kind::Invalid.error(format!(
                "the range is not inside memory of {} bytes{}",
                self.length,
                if self.piece.is_none() { lost } else { "" }
            ))
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(piece) = self.piece.take() {
            piece.home.give_back(&piece.region, self.offset..self.offset + self.reserved);
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
        (home.adopt(region, length), home)
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
    fn pieces_that_follow_each_other_are_joined() {
        let (mut front, home) = memory(5000);
        let mut middle = front.split_off(1000);
        let back = middle.split_off(1000);
        let (mut other, _other_home) = memory(100);
        let back = front.join(back).expect_err("there is something between");
        other = front.join(other).expect_err("another region's");
        assert_eq!((front.len(), other.len()), (1000, 100));
        // SAFETY: `middle` outlives it, and neither is used.
        let view = unsafe { middle.view(0..1000) };
        drop(front.join(view).expect_err("it gives nothing back"));
        front.join(middle).expect("it follows");
        front.join(back).expect("it follows");
        assert_eq!((front.len(), front.offset()), (5000, 0));
        front.as_mut_slice().fill(3);
        assert!(home.take_unused().is_empty());
        drop(front);
        assert_eq!(home.take_unused().len(), 1, "all of it went back");
    }

    #[test]
    fn a_view_shows_the_same_bytes_and_gives_nothing_back() {
        let (mut memory, home) = memory(5000);
        memory.as_mut_slice().fill(1);
        // SAFETY: `memory` outlives it, and is not used meanwhile.
        let mut view = unsafe { memory.view(1000..2000) };
        assert!(view.is_fixed() && !memory.is_fixed());
        assert_eq!((view.len(), view.offset()), (1000, 1000));
        view.as_mut_slice().fill(2);
        let rest = view.split_off(300);
        assert_eq!((view.len(), rest.len(), rest.offset()), (300, 700, 1300));
        drop((view, rest));
        assert!(home.take_unused().is_empty());
        assert!(memory.as_slice()[1000..2000].iter().all(|byte| *byte == 2));
        assert_eq!((memory.as_slice()[999], memory.as_slice()[2000]), (1, 1));
        drop(memory);
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
