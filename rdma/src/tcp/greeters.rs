//! Clients that connected and have not said yet who they are. They cost a session and a buffer each, and
//! have proved nothing: so they have little time, are few, and take no place of those who have.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use extent::{Error, Kind, Result};

use crate::SessionId;
use crate::slots::Slots;
use crate::sys::Ticker;

use super::session::Session;

/// Seconds of a tick, and how many of them a greeting may take: 10 to 15 seconds.
const TICK_S: libc::time_t = 5;
const GREETING_TICKS: u32 = 3;
/// The most at a time on one shard. If more come, whoever waits longest goes.
const MAX_GREETERS: usize = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct Greeters {
    /// Oldest first. Some may have been let in or have gone meanwhile.
    list: VecDeque<SessionId>,
    /// Ticks only while there are some: an idle node is not woken.
    ticker: Ticker,
}

impl Greeters {
    pub(super) fn new() -> Result<Self> {
        let ticker = Ticker::stopped().map_err(|e| Error::io("making a timer", e))?;
        Ok(Self { list: VecDeque::new(), ticker })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are.
    pub(super) fn count(&self, slots: &mut Slots<Session>) -> usize {
        let greets =
            |id: &&SessionId| slots.find(**id).is_some_and(|session| session.is_greeting());
        self.list.iter().filter(greets).count()
    }

    /// Becomes readable when it is time to [tick](Greeters::tick).
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.ticker.as_fd()
    }

    /// Expects a greeting of a session. Returns one to end, and why, if there are too many.
    #[must_use]
    pub(super) fn add(
        &mut self,
        id: SessionId,
        slots: &mut Slots<Session>,
    ) -> Option<(SessionId, Error)> {
        if self.list.is_empty() {
            self.set_ticker(TICK_S);
        }
        if self.list.len() >= MAX_GREETERS {
            self.forget_greeted(slots);
        }
        self.list.push_back(id);
        if self.list.len() <= MAX_GREETERS {
            return None;
        }
        let reason = Kind::Busy.error("others came while the peer did not say who it is");
        self.list.pop_front().map(|oldest| (oldest, reason))
    }

    /// A tick has passed. Returns the sessions to end, and why.
    #[must_use]
    pub(super) fn tick(&mut self, slots: &mut Slots<Session>) -> Vec<(SessionId, Error)> {
        self.ticker.ticked();
        self.forget_greeted(slots);
        let mut late = Vec::new();
        self.list.retain(|id| {
            let Some(session) = slots.find(*id) else { return false };
            session.silent_ticks += 1;
            if session.silent_ticks < GREETING_TICKS {
                return true;
            }
            late.push((*id, Kind::Disconnected.error("the peer does not say who it is")));
            false
        });
        if self.list.is_empty() {
            self.set_ticker(0);
        }
        late
    }

    fn forget_greeted(&mut self, slots: &mut Slots<Session>) {
        self.list.retain(|id| slots.find(*id).is_some_and(|session| session.is_greeting()));
    }

    fn set_ticker(&self, seconds: libc::time_t) {
        if let Err(error) = self.ticker.set(seconds) {
            tracing::error!(%error, "peers that say nothing are not hung up on");
        }
    }
}
