//! When to connect again, and over which rail.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use extent::{Error, Kind, Result};
use rdma::Channel;

use crate::clock;
use crate::connector::{Connector, Dial};
use crate::options::Reconnect;

/// A connection that lasted so long was worth something, though nobody asked it for anything.
const CALM: Duration = Duration::from_secs(1);

type Dialed = Result<Box<dyn Channel>>;

/// See the module.
pub(super) struct Redial {
    connector: Box<dyn Connector>,
    options: Reconnect,
    /// The rail in use, or the one to be tried next.
    rail: usize,
    /// Rails tried since the last pause, and how many of them will not have this client at all.
    tried: usize,
    refused: usize,
    /// Pauses since anything was answered.
    pauses: u32,
    /// Since when nothing was answered.
    since: Option<Instant>,
    next_at: Option<Instant>,
    dialing: Option<Receiver<Dialed>>,
    dialed: Option<Dialed>,
    /// Given up, until somebody wants something again.
    resting: bool,
    random: u64,
}

/// What is to be done now.
pub(super) enum Step {
    /// Nothing.
    Wait,
    /// There is a channel.
    Connected(Box<dyn Channel>),
    /// It took too long, or no rail wants this client.
    GiveUp(Error),
}

impl Redial {
    /// `rail` is the one in use.
    pub(super) fn new(connector: Box<dyn Connector>, options: Reconnect, rail: usize) -> Self {
        Self {
            connector,
            options,
            rail,
            tried: 0,
            refused: 0,
            pauses: 0,
            since: None,
            next_at: None,
            dialing: None,
            dialed: None,
            resting: false,
            random: RandomState::new().build_hasher().finish(),
        }
    }

    /// How often one request may be sent again.
    pub(super) fn repeats(&self) -> u32 {
        self.options.repeats
    }

    pub(super) fn rail(&self) -> (usize, String) {
        (self.rail, self.connector.name(self.rail))
    }

    /// A request was answered: the connection is worth something.
    pub(super) fn on_answer(&mut self) {
        (self.since, self.pauses, self.tried, self.refused) = (None, 0, 0, 0);
    }

    /// A connection was lost that had lasted so long, or none came about.
    pub(super) fn on_failure(&mut self, reason: &Error, lasted: Duration) {
        let now = clock::now();
        if lasted >= self.options.give_up_after.max(CALM) {
            self.on_answer();
        }
        let first = self.since.is_none();
        self.since.get_or_insert(now);
        self.rail = (self.rail + 1) % self.connector.rails();
        if first {
            // The other rails are tried at once, and the same one too, last of all.
            self.next_at = Some(now);
            return;
        }
        self.tried += 1;
        self.refused += usize::from(matches!(reason.kind(), Kind::Denied | Kind::Unsupported));
        if self.tried >= self.connector.rails() {
            self.tried = 0;
            self.next_at = Some(now + self.pause());
        } else {
            self.next_at = Some(now);
        }
    }

    /// Whether the node was given up.
    pub(super) fn is_resting(&self) -> bool {
        self.resting
    }

    /// Somebody wants something.
    pub(super) fn wake(&mut self) {
        if self.resting {
            self.resting = false;
            self.since = Some(clock::now());
            self.next_at = self.since;
            (self.pauses, self.tried, self.refused) = (0, 0, 0);
        }
    }

    /// Goes on connecting. Never blocks.
    pub(super) fn step(&mut self) -> Step {
        if self.resting {
            return Step::Wait;
        }
        if self.dialed.is_none() && self.dialing.is_none() {
            let now = clock::now();
            if self.next_at.is_some_and(|at| now < at) {
                return Step::Wait;
            }
            match self.connector.dial(self.rail) {
                Dial::Done(outcome) => self.dialed = Some(outcome),
                Dial::UnderWay(receiver) => self.dialing = Some(receiver),
            }
        }
        self.listen(Duration::ZERO);
        match self.dialed.take() {
            None => Step::Wait,
            Some(Ok(channel)) => Step::Connected(channel),
            Some(Err(error)) => {
                tracing::debug!(%error, rail = self.connector.name(self.rail), "no connection");
                self.on_failure(&error, Duration::ZERO);
                self.judge(error)
            }
        }
    }

    /// Whether that was enough.
    pub(super) fn judge(&mut self, error: Error) -> Step {
        let now = clock::now();
        let since = self.since.unwrap_or(now);
        let next = self.next_at.unwrap_or(now);
        let hopeless = self.tried == 0 && self.refused >= self.connector.rails();
        if hopeless || next.saturating_duration_since(since) >= self.options.give_up_after {
            self.resting = true;
            return Step::GiveUp(error);
        }
        if self.tried == 0 {
            self.refused = 0;
        }
        Step::Wait
    }

    /// Sleeps until there is something to do, or the time is over.
    pub(super) fn wait(&mut self, timeout: Duration) {
        if self.dialing.is_some() {
            self.listen(timeout);
            return;
        }
        let now = clock::now();
        let left = self.next_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let nap = if self.resting { timeout } else { left.min(timeout) };
        if !nap.is_zero() {
            thread::sleep(nap);
        }
    }

    fn listen(&mut self, timeout: Duration) {
        let Some(receiver) = &self.dialing else { return };
        let outcome = if timeout.is_zero() {
            receiver.try_recv().map_err(|error| error == TryRecvError::Disconnected)
        } else {
            receiver.recv_timeout(timeout).map_err(|error| error == RecvTimeoutError::Disconnected)
        };
        self.dialed = match outcome {
            Ok(outcome) => Some(outcome),
            Err(false) => return,
            Err(true) => Some(Err(Kind::Disconnected.error("connecting ended without a word"))),
        };
        self.dialing = None;
    }

    /// Anything from nothing to a limit that doubles each time: clients that lost the same node do
    /// not come back together.
    fn pause(&mut self) -> Duration {
        let doubled = self.options.first_pause.saturating_mul(1 << self.pauses.min(20));
        let limit = doubled.min(self.options.longest_pause);
        self.pauses += 1;
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let share = u32::try_from(self.random >> 48).expect("16 bits");
        limit.saturating_mul(share) / (1 << 16)
    }
}
