//! Completion queues and shared receive queues of simulated devices.

use std::collections::VecDeque;

use super::super::completion::WorkCompletion;
use super::super::send_queue::Local;

/// A queue pair: its number, which is used again, and which of those that had it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PairRef {
    pub(super) number: u32,
    pub(super) life: u64,
}

/// A completion that was not taken yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) completion: WorkCompletion,
    pub(super) pair: PairRef,
    /// Places of the send queue that are free again when it is taken.
    pub(super) reclaims: u32,
    /// Whether the queue was told to expect it: all but what comes twice.
    pub(super) is_due: bool,
}

/// A completion queue.
#[derive(Debug)]
pub(super) struct Queue {
    capacity: usize,
    pub(super) entries: VecDeque<Entry>,
    /// Completions that are there, or may still come of what is posted.
    due: usize,
}

impl Queue {
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity: capacity as usize, entries: VecDeque::new(), due: 0 }
    }

    /// So much is posted that each may end in a completion.
    pub(super) fn expect(&mut self, count: usize) {
        self.due += count;
        assert!(
            self.due <= self.capacity,
            "a completion queue of {} entries, and {} may come: it would overflow",
            self.capacity,
            self.due
        );
    }

    /// So much has ended without a completion.
    pub(super) fn forgive(&mut self, count: usize) {
        self.due = self.due.checked_sub(count).expect("no more ends than was posted");
    }

    pub(super) fn due(&self) -> usize {
        self.due
    }

    /// Whether there is room for one that nobody expects.
    pub(super) fn has_room(&self) -> bool {
        self.due.max(self.entries.len()) < self.capacity
    }

    pub(super) fn push(&mut self, entry: Entry) {
        assert!(self.entries.len() < self.capacity, "a completion queue overflowed");
        self.entries.push_back(entry);
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        if entry.is_due {
            self.forgive(1);
        }
        Some(entry)
    }
}

/// A place for a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receive {
    pub(super) id: u64,
    pub(super) place: Local,
}

/// A shared receive queue.
#[derive(Debug)]
pub(super) struct ReceiveQueue {
    pub(super) capacity: usize,
    pub(super) domain: u32,
    pub(super) posted: VecDeque<Receive>,
    /// Queue pairs whose next message found no receive, in the order in which they came: whoever is
    /// served out of turn is so by the node's doing.
    pub(super) waiting: VecDeque<PairRef>,
    /// Where completions of its receives come: that of its queue pairs.
    pub(super) queue: Option<u32>,
}
