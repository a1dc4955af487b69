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
use std::time::Duration;

use dma::Region;

use super::ring::word;
use super::sys;

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

    /// Sleeps until the other side takes the word, or the time is over. May end early.
    pub(super) fn sleep(&self, limit: Duration) {
        sys::sleep_on(word(&self.link, self.at), limit);
    }

    /// Wakes an owner who sleeps on the word, which was taken.
    pub(super) fn wake(&self) {
        sys::wake(word(&self.link, self.at));
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

    const MESSAGES: u8 = 3;

    /// What the two sides have done, for an exhaustive walk through all interleavings on a
    /// processor that lets loads overtake stores: a store first goes to its side's buffer, whence
    /// it reaches memory at any later time, or by a fence or an exchange.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
    struct State {
        waker: Waker,
        sleeper: Sleeper,
        /// Published by the waker, and still in its buffer.
        publishing: Option<u8>,
        /// Armed by the sleeper, and still in its buffer.
        arming: bool,
        published: u8,
        armed: bool,
        rung: bool,
        sent: u8,
        consumed: u8,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
    enum Waker {
        #[default]
        Publishes,
        Fences,
        Looks,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
    enum Sleeper {
        #[default]
        Polls,
        Arms,
        Fences,
        LooksAgain,
        Sleeps,
    }

    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Flaw {
        None,
        /// The sleeper does not look again after arming.
        NoSecondLook,
        /// W2 is missing.
        WakerDoesNotFence,
        /// S2 is missing.
        SleeperDoesNotFence,
    }

    fn waker(mut s: State, flaw: Flaw) -> Option<State> {
        s.waker = match s.waker {
            Waker::Publishes if s.sent == MESSAGES => return None,
            Waker::Publishes => {
                s.sent += 1;
                s.publishing = Some(s.sent);
                Waker::Fences
            }
            Waker::Fences if s.publishing.is_some() && flaw != Flaw::WakerDoesNotFence => {
                return None;
            }
            Waker::Fences => Waker::Looks,
            Waker::Looks => {
                if s.armed {
                    s.published = s.publishing.take().unwrap_or(s.published);
                    (s.armed, s.rung) = (false, true);
                }
                Waker::Publishes
            }
        };
        Some(s)
    }

    fn sleeper(mut s: State, flaw: Flaw) -> Option<State> {
        let news = s.consumed < s.published;
        s.sleeper = match s.sleeper {
            Sleeper::Polls if news => {
                s.consumed = s.published;
                Sleeper::Polls
            }
            Sleeper::Polls if s.consumed == MESSAGES => return None,
            Sleeper::Polls => Sleeper::Arms,
            Sleeper::Arms => {
                s.arming = true;
                Sleeper::Fences
            }
            Sleeper::Fences if s.arming && flaw != Flaw::SleeperDoesNotFence => return None,
            Sleeper::Fences => Sleeper::LooksAgain,
            Sleeper::LooksAgain if news && flaw != Flaw::NoSecondLook => {
                (s.arming, s.armed) = (false, false);
                Sleeper::Polls
            }
            Sleeper::LooksAgain => Sleeper::Sleeps,
            Sleeper::Sleeps if s.rung => {
                (s.rung, s.arming, s.armed) = (false, false, false);
                Sleeper::Polls
            }
            Sleeper::Sleeps => return None,
        };
        Some(s)
    }

    fn waker_drains(mut s: State) -> Option<State> {
        s.published = s.publishing.take()?;
        Some(s)
    }

    fn sleeper_drains(mut s: State) -> Option<State> {
        s.armed |= std::mem::take(&mut s.arming).then_some(true)?;
        Some(s)
    }

    /// Whether a run can end before everything was consumed.
    fn can_hang(flaw: Flaw) -> bool {
        let (mut seen, mut todo) = (HashSet::new(), vec![State::default()]);
        while let Some(state) = todo.pop() {
            if !seen.insert(state) {
                continue;
            }
            let next = [
                waker(state, flaw),
                sleeper(state, flaw),
                waker_drains(state),
                sleeper_drains(state),
            ];
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
        let flaws = [Flaw::NoSecondLook, Flaw::WakerDoesNotFence, Flaw::SleeperDoesNotFence];
        for flaw in flaws {
            assert!(can_hang(flaw), "{flaw:?} goes unnoticed");
        }
    }
}
