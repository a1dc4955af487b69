//! The two rings of a queue, seen from the host.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use super::doorbell::Doorbell;
use crate::device::nvme::{CompletionEntry, SubmissionEntry};

/// A submission queue (Base 3.3.1). Whoever pushes sees to it that there is room: it allows fewer
/// commands in flight than there are entries.
#[derive(Debug)]
pub(super) struct SubmissionRing {
    entries: NonNull<SubmissionEntry>,
    /// A power of two, less one.
    mask: u16,
    tail: u16,
    rung: u16,
    doorbell: Doorbell,
}

/// A completion queue (Base 3.3.1.2).
#[derive(Debug)]
pub(super) struct CompletionRing {
    entries: NonNull<CompletionEntry>,
    mask: u16,
    head: u16,
    /// The Phase Tag of entries that are new.
    phase: bool,
    /// Entries taken since the doorbell was rung.
    unreported: u16,
    /// How many may be before the controller could run out of room.
    most_unreported: u16,
    doorbell: Doorbell,
}

// SAFETY: the rings point into memory that the queue's owner keeps, and only it has them.
unsafe impl Send for SubmissionRing {}
// SAFETY: as above.
unsafe impl Send for CompletionRing {}

impl SubmissionRing {
    /// A ring of `count` entries, a power of two.
    ///
    /// # Safety
    /// The entries are valid, zeroed memory, and stay so for as long as the ring lives.
    pub(super) unsafe fn new(
        entries: NonNull<SubmissionEntry>,
        count: u16,
        doorbell: Doorbell,
    ) -> Self {
        assert!(count.is_power_of_two());
        Self { entries, mask: count - 1, tail: 0, rung: 0, doorbell }
    }

    /// Adds an entry, of which the controller learns when the doorbell is rung.
    #[inline]
    pub(super) fn push(&mut self, entry: &SubmissionEntry) {
        // SAFETY: the mask keeps the tail inside the ring.
        let place = unsafe { self.entries.add(usize::from(self.tail)) };
        // SAFETY: the controller has read this entry long ago: there are fewer commands in flight
        // than entries.
        unsafe { place.as_ptr().write_volatile(*entry) };
        self.tail = self.tail.wrapping_add(1) & self.mask;
    }

    /// How long it is.
    pub(super) fn entries(&self) -> u16 {
        self.mask + 1
    }

    /// Entries that the controller has not been told of.
    pub(super) fn unrung(&self) -> u16 {
        self.tail.wrapping_sub(self.rung) & self.mask
    }

    /// Rings the doorbell once for all of them.
    #[inline]
    pub(super) fn ring(&mut self) {
        if self.tail != self.rung {
            self.rung = self.tail;
            self.doorbell.ring(self.tail);
        }
    }

    /// As it was at first.
    pub(super) fn clear(&mut self) {
        (self.tail, self.rung) = (0, 0);
        self.doorbell.clear();
    }
}

impl CompletionRing {
    /// A ring of `count` entries, a power of two, for at most `most_in_flight` commands.
    ///
    /// # Safety
    /// As [`SubmissionRing::new`].
    pub(super) unsafe fn new(
        entries: NonNull<CompletionEntry>,
        count: u16,
        most_in_flight: u16,
        doorbell: Doorbell,
    ) -> Self {
        assert!(count.is_power_of_two() && most_in_flight < count);
        // One entry always stays free, or a full ring would look like an empty one.
        let most_unreported = (count - 1 - most_in_flight).min(count / 2);
        let mask = count - 1;
        Self { entries, mask, head: 0, phase: true, unreported: 0, most_unreported, doorbell }
    }

    /// How long it is.
    pub(super) fn entries(&self) -> u16 {
        self.mask + 1
    }

    /// The next entry that the controller has posted.
    #[inline]
    pub(super) fn next(&mut self) -> Option<CompletionEntry> {
        // SAFETY: the mask keeps the head inside the ring.
        let place = unsafe { self.entries.add(usize::from(self.head)) };
        // SAFETY: a field's address alone, inside the entry.
        let word = unsafe { &raw const (*place.as_ptr()).status_and_phase };
        // SAFETY: as above. It is read first: the controller writes it last, or all at once.
        let word = unsafe { word.read_volatile() };
        if (word & 1 != 0) != self.phase {
            return None;
        }
        fence(Ordering::Acquire);
        // SAFETY: inside the ring, as above; the controller is done with the entry.
        let entry = unsafe { place.as_ptr().read_volatile() };
        self.head = self.head.wrapping_add(1) & self.mask;
        if self.head == 0 {
            self.phase = !self.phase;
        }
        self.unreported += 1;
        Some(entry)
    }

    /// Gives entries back to the controller, once it is worth it: a ring that is much longer than
    /// what is in flight needs no doorbell for every poll.
    #[inline]
    pub(super) fn report(&mut self) {
        if self.unreported > self.most_unreported {
            self.unreported = 0;
            self.doorbell.ring(self.head);
        }
    }

    /// As it was at first. The caller zeroes the entries.
    pub(super) fn clear(&mut self) {
        (self.head, self.phase, self.unreported) = (0, true, 0);
        self.doorbell.clear();
    }
}
