//! Over RDMA nobody notices that the other side is gone who does not send: a client that waits for
//! its node's answers asks for a sign of life now and then. If nothing arrives there, the queue
//! pair says so, and the connection is lost.

use std::time::{Duration, Instant};

use rdma::Fabric;

use super::transfer::{Operation, Transfer};
use super::{Link, Session};
use crate::{Memory, clock};

/// How long silence is fine.
const PATIENCE: Duration = Duration::from_secs(2);

/// Polls without an answer that have one look at the clock.
const POLLS_PER_LOOK: u32 = 8;

/// When something was heard, or asked for.
#[derive(Default)]
pub(super) struct Probe {
    quiet_since: Option<Instant>,
    /// Polls in which nothing came, since the clock was looked at.
    polls: u32,
}

impl Session {
    /// Whether silence has to be looked into: requests are out, and there is another way to have
    /// them answered.
    fn is_probed(&self) -> bool {
        self.fabric == Fabric::Verbs
            && self.redial.is_some()
            && self.link == Link::Up
            && !self.requests.is_empty()
    }

    /// After every poll, with whether anything came.
    pub(super) fn listen(&mut self, heard: bool) {
        if !self.is_probed() {
            self.probe.quiet_since = None;
            return;
        }
        // Whoever polls without a pause asks for the time now and then only.
        self.probe.polls += 1;
        if !heard && self.probe.quiet_since.is_some() && self.probe.polls < POLLS_PER_LOOK {
            return;
        }
        self.probe.polls = 0;
        let now = clock::now();
        match self.probe.quiet_since {
            Some(since) if !heard && now - since >= PATIENCE => {
                self.probe.quiet_since = Some(now);
                let is_probe = |one: &Transfer| matches!(one.operation, Operation::Probe);
                if !self.transfers.iter().any(is_probe) {
                    self.enqueue_own(Operation::Probe, Memory::default(), 0);
                }
            }
            Some(_) if !heard => {}
            _ => self.probe.quiet_since = Some(now),
        }
    }

    /// How long the sleep may be that follows, after which the clock is looked at again.
    pub(super) fn longest_sleep(&mut self) -> Duration {
        self.probe.polls = POLLS_PER_LOOK;
        if self.is_probed() { PATIENCE } else { Duration::MAX }
    }
}
