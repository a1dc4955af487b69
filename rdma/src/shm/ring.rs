//! A ring of slots with one writer and one reader, in memory that both processes map.
//!
//! Either side keeps its own index in private memory and never reads it back; the other's index is
//! believed only after a check. Slots are read and written by relaxed atomic words, each once: what the
//! other side does to them meanwhile can garble a message, whose checksum then tells, but nothing else.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dma::Region;
use extent::{Kind, Result};

use super::layout::Place;

/// A 32-bit word of a link.
///
/// # Panics
/// If it is outside the region or not aligned.
pub(super) fn word(region: &Region, at: usize) -> &AtomicU32 {
    assert!(at.is_multiple_of(4), "a word is aligned");
    let pointer = region.at(at, 4).cast::<AtomicU32>();
    // SAFETY: `at` checked the bounds, regions begin at a page, the borrow keeps the mapping, and
    // an atomic may have any value and be changed by anyone at any time.
    unsafe { pointer.as_ref() }
}

#[derive(Debug)]
struct Ring<const WORDS: usize> {
    link: Arc<Region>,
    place: Place,
}

impl<const WORDS: usize> Ring<WORDS> {
    fn slot(&self, index: u32) -> &[AtomicU64; WORDS] {
        let slot = (index & (self.place.slots - 1)) as usize;
        let at = self.place.slots_at + slot * WORDS * 8;
        let pointer = self.link.at(at, WORDS * 8).cast::<[AtomicU64; WORDS]>();
        // SAFETY: `at` checked the bounds, slots begin at a multiple of 64 bytes, the borrow keeps
        // the mapping, and atomics may have any value and be changed by anyone at any time.
        unsafe { pointer.as_ref() }
    }

    fn tail(&self) -> &AtomicU32 {
        word(&self.link, self.place.tail_at)
    }

    fn head(&self) -> &AtomicU32 {
        word(&self.link, self.place.head_at)
    }
}

/// The writing side.
#[derive(Debug)]
pub(super) struct Sender<const WORDS: usize> {
    ring: Ring<WORDS>,
    /// The next entry to fill.
    tail: u32,
    /// What the reader was told.
    published: u32,
    /// What the reader said last.
    head: u32,
}

impl<const WORDS: usize> Sender<WORDS> {
    /// The writing side of a new ring.
    pub(super) fn new(link: Arc<Region>, place: Place) -> Self {
        Self { ring: Ring { link, place }, tail: 0, published: 0, head: 0 }
    }

    /// Free slots. Looks at the reader's index only if fewer than `wanted` were free before.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the reader's index is impossible.
    pub(super) fn room(&mut self, wanted: u32) -> Result<u32> {
        let room = self.ring.place.slots - self.used();
        if room >= wanted {
            return Ok(room);
        }
        // Acquire pairs with the reader's release: it is done with the slots up to here.
        let head = self.ring.head().load(Ordering::Acquire);
        if self.tail.wrapping_sub(head) > self.used() {
            return Err(Kind::Corrupt.error(format!(
                "the ring's head {head} is not between {} and {}",
                self.head, self.tail
            )));
        }
        self.head = head;
        Ok(self.ring.place.slots - self.used())
    }

    /// Fills the next slot; the reader sees it after [`Sender::publish`].
    ///
    /// # Panics
    /// If there is no room, or the message is not whole words or too long.
    pub(super) fn push(&mut self, message: &[u8]) {
        assert!(self.used() < self.ring.place.slots, "the caller asked for room");
        let (words, rest) = message.as_chunks::<8>();
        assert!(rest.is_empty() && words.len() <= WORDS, "{} bytes in a slot", message.len());
        for (word, bytes) in self.ring.slot(self.tail).iter().zip(words) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the reader what was pushed; whether there was anything new.
    pub(super) fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        self.ring.tail().store(self.tail, Ordering::Release);
        self.published = self.tail;
        true
    }

    fn used(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }
}

/// The reading side.
#[derive(Debug)]
pub(super) struct Receiver<const WORDS: usize> {
    ring: Ring<WORDS>,
    /// The next entry to read.
    head: u32,
}

impl<const WORDS: usize> Receiver<WORDS> {
    /// The reading side of a new ring.
    pub(super) fn new(link: Arc<Region>, place: Place) -> Self {
        Self { ring: Ring { link, place }, head: 0 }
    }

    /// Entries that wait.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the writer's index is impossible.
    pub(super) fn pending(&self) -> Result<u32> {
        let tail = self.ring.tail().load(Ordering::Acquire);
        let pending = tail.wrapping_sub(self.head);
        if pending > self.ring.place.slots {
            return Err(Kind::Corrupt.error(format!(
                "the ring's tail {tail} is {pending} ahead of {}, and there are {} slots",
                self.head, self.ring.place.slots
            )));
        }
        Ok(pending)
    }

    /// Copies whole words, from word `from` on, out of the entry `ahead` of the next one.
    ///
    /// # Panics
    /// If `out` is not whole words, or the slot has fewer.
    pub(super) fn read(&self, ahead: u32, from: usize, out: &mut [u8]) {
        let (chunks, rest) = out.as_chunks_mut::<8>();
        assert!(rest.is_empty() && from + chunks.len() <= WORDS, "whole words of one slot");
        let slot = self.ring.slot(self.head.wrapping_add(ahead));
        for (bytes, word) in chunks.iter_mut().zip(&slot[from..]) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
    }

    /// Gives the next `count` slots back to the writer.
    pub(super) fn release(&mut self, count: u32) {
        self.head = self.head.wrapping_add(count);
        self.ring.head().store(self.head, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use dma::HugePages;
    use proptest::prelude::*;

    use super::super::layout::{Layout, MIN_SLOTS, REQUEST_WORDS};
    use super::*;

    type Pair = (Sender<REQUEST_WORDS>, Receiver<REQUEST_WORDS>, Arc<Region>, Place);

    fn ring() -> Pair {
        let layout = Layout::new(MIN_SLOTS, MIN_SLOTS).expect("sound");
        let link = Region::anonymous(layout.bytes(), HugePages::Never).expect("memory");
        let place = layout.requests();
        (
            Sender::new(Arc::clone(&link), place),
            Receiver::new(Arc::clone(&link), place),
            link,
            place,
        )
    }

    proptest! {
        #[test]
        fn a_ring_is_a_bounded_queue(steps in proptest::collection::vec((0u32..40, 0u32..40), 1..60), start: u32) {
            let (mut sender, mut receiver, link, place) = ring();
            // As if that many messages had gone through before, so that the indices wrap, too.
            (sender.tail, sender.published, sender.head, receiver.head) = (start, start, start, start);
            word(&link, place.tail_at).store(start, Ordering::Relaxed);
            word(&link, place.head_at).store(start, Ordering::Relaxed);
            let (mut model, mut next) = (VecDeque::new(), 0u64);
            for (pushes, reads) in steps {
                for _ in 0..pushes {
                    if sender.room(1).expect("honest") == 0 {
                        prop_assert_eq!(model.len(), 32);
                        break;
                    }
                    sender.push(&next.to_ne_bytes());
                    model.push_back(next);
                    next += 1;
                }
                sender.publish();
                let pending = receiver.pending().expect("honest");
                prop_assert_eq!(pending as usize, model.len());
                for ahead in 0..reads.min(pending) {
                    let mut bytes = [0; 8];
                    receiver.read(ahead, 0, &mut bytes);
                    prop_assert_eq!(model.pop_front(), Some(u64::from_ne_bytes(bytes)));
                }
                receiver.release(reads.min(pending));
            }
        }
    }

    #[test]
    fn what_was_not_published_is_not_seen() {
        let (mut sender, receiver, ..) = ring();
        sender.push(&[1; 64]);
        assert_eq!(receiver.pending().expect("honest"), 0);
        assert!(sender.publish() && !sender.publish());
        assert_eq!(receiver.pending().expect("honest"), 1);
    }

    #[test]
    fn impossible_indices_are_errors() {
        let (mut sender, receiver, link, place) = ring();
        for tail in [33, u32::MAX, 1 << 31] {
            word(&link, place.tail_at).store(tail, Ordering::Relaxed);
            assert_eq!(receiver.pending().expect_err("too far").kind(), Kind::Corrupt);
        }
        for _ in 0..32 {
            sender.push(&[0; 8]);
        }
        for head in [33, u32::MAX] {
            word(&link, place.head_at).store(head, Ordering::Relaxed);
            assert_eq!(sender.room(1).expect_err("beyond the tail").kind(), Kind::Corrupt);
        }
        word(&link, place.head_at).store(5, Ordering::Relaxed);
        assert_eq!(sender.room(1).expect("honest"), 5);
        word(&link, place.head_at).store(4, Ordering::Relaxed);
        assert_eq!(sender.room(6).expect_err("runs backwards").kind(), Kind::Corrupt);
    }
}
