//! Sleeping without missing anything.
//!
//! The sleeper does **S1** store its wake word, **S2** a full fence, **S3** look at the ring, and sleeps
//! only if that is empty. The waker does **W1** publish its index, **W2** a full fence, **W3** look at
//! the wake word, and rings if it is set. Full fences have one order that all threads agree on. If S2
//! comes before W2, then W3 sees what S1 stored, and the waker rings. If W2 comes before S2, then S3
//! sees what W1 published, and the sleeper does not sleep. There is no third case. A ring between S3 and
//! the actual sleep is not lost either, because the descriptor slept on stays readable.
//!
//! The word is 0 while its owner polls, so that nobody makes a system call then; and it is taken by an
//! exchange, so that one sleep costs one call at most. A ring that comes late, because the sleeper
//! found work in S3, costs an empty poll and no more.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use dma::Region;

use super::ring::word;

/// What a sleeper waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub(super) enum Awaits {
    /// Entries in the ring that it reads.
    Entries = 1,
    /// Room in the ring that it writes, as well.
    Room = 2,
}

/// A wake word.
#[derive(Debug)]
pub(super) struct WakeWord {
    link: Arc<Region>,
    at: usize,
}

impl WakeWord {
    pub(super) fn new(link: Arc<Region>, at: usize) -> Self {
        Self { link, at }
    }

    /// S1 and S2. The owner must now look once more for what it waits for.
    pub(super) fn arm(&self, awaits: Awaits) {
        word(&self.link, self.at).store(awaits as u32, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The owner is awake again. Whether nobody has rung, and nobody will.
    pub(super) fn disarm(&self) -> bool {
        word(&self.link, self.at).swap(0, Ordering::Relaxed) != 0
    }

    /// W3, for a caller that has published and fenced: whether it must ring now, having changed
    /// what the owner waits for.
    pub(super) fn take(&self, changed: Awaits) -> bool {
        let word = word(&self.link, self.at);
        word.load(Ordering::Relaxed) >= changed as u32 && word.swap(0, Ordering::Relaxed) != 0
    }
}

/// W2, between publishing and [`WakeWord::take`]; one for any number of sessions.
pub(super) fn published() {
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    /// What the two sides have done, for an exhaustive walk through all interleavings.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
    struct State {
        published: u8,
        consumed: u8,
        armed: bool,
        rung: bool,
        waker: u8,
        sleeper: u8,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Flaw {
        None,
        /// The sleeper does not look again after arming.
        NoSecondLook,
        /// The waker looks at the word before it publishes.
        LooksFirst,
    }

    const MESSAGES: u8 = 3;

    fn waker(mut s: State, flaw: Flaw) -> Option<State> {
        // Steps 2n publish and 2n + 1 look, or the other way round.
        if s.waker == 2 * MESSAGES {
            return None;
        }
        let publish = s.waker.is_multiple_of(2) != (flaw == Flaw::LooksFirst);
        if publish {
            s.published += 1;
        } else if s.armed {
            (s.armed, s.rung) = (false, true);
        }
        s.waker += 1;
        Some(s)
    }

    fn sleeper(mut s: State, flaw: Flaw) -> Option<State> {
        match s.sleeper {
            // Polls, and decides to sleep when there is nothing.
            0 if s.consumed < s.published => s.consumed = s.published,
            0 if s.consumed == MESSAGES => return None,
            0 => s.sleeper = 1,
            1 => (s.armed, s.sleeper) = (true, 2),
            2 if s.consumed < s.published && flaw != Flaw::NoSecondLook => {
                (s.armed, s.sleeper) = (false, 0);
            }
            2 => s.sleeper = 3,
            // Asleep: goes on only once somebody has rung.
            _ if s.rung => (s.rung, s.armed, s.sleeper) = (false, false, 0),
            _ => return None,
        }
        Some(s)
    }

    /// Whether a run can end before everything was consumed.
    fn can_hang(flaw: Flaw) -> bool {
        let (mut seen, mut todo) = (HashSet::new(), vec![State::default()]);
        while let Some(state) = todo.pop() {
            if !seen.insert(state) {
                continue;
            }
            let next = [waker(state, flaw), sleeper(state, flaw)];
            if next.iter().all(Option::is_none) && state.consumed < MESSAGES {
                return true;
            }
            todo.extend(next.into_iter().flatten());
        }
        false
    }

    #[test]
    fn no_interleaving_loses_a_wake_up() {
        assert!(!can_hang(Flaw::None));
    }

    #[test]
    fn the_walk_finds_protocols_that_do() {
        assert!(can_hang(Flaw::NoSecondLook));
        assert!(can_hang(Flaw::LooksFirst));
    }
}
