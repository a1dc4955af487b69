//! When to connect again, and over which rail.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use extent::{Error, Kind, Result};
use rdma::Channel;

use crate::bugs::{self, Bug};
use crate::clock;
use crate::connector::{Connector, Dial};
use crate::options::Reconnect;

/// A connection that lasted so long was worth something, though nobody asked it for anything.
const CALM: Duration = Duration::from_secs(1);
/// A dial has its own limits, one for each thing that it waits for. This is for what has none.
const CONNECT_TIMEOUTS_PER_DIAL: u32 = 4;
/// So often in a row all rails may refuse this client: a node that is just starting, or a proof that
/// was just used up, refuses once.
const REFUSALS: u32 = 2;

type Dialed = Result<Box<dyn Channel>>;

/// See the module.
pub(super) struct Redial {
    connector: Box<dyn Connector>,
    options: Reconnect,
    connect_timeout: Duration,
    /// The rail in use, or the one to be tried next.
    rail: usize,
    /// Rails tried since the last pause, and how many of them will not have this client at all.
    tried: usize,
    refused: usize,
    /// How often in a row all of them would not.
    refusals: u32,
    /// Pauses since anything was answered.
    pauses: u32,
    /// Since when nothing was answered.
    since: Option<Instant>,
    next_at: Option<Instant>,
    dialing: Option<Dialing>,
    dialed: Option<Dialed>,
    /// Given up, until somebody wants something again.
    resting: bool,
    random: u64,
}

/// A connection that is being made.
struct Dialing {
    outcome: Receiver<Dialed>,
    begun: Instant,
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
    /// `rail` is the one in use; connecting takes some `connect_timeout`s at most.
    pub(super) fn new(
        connector: Box<dyn Connector>,
        options: Reconnect,
        connect_timeout: Duration,
        rail: usize,
    ) -> Self {
        Self {
            connector,
            options,
            connect_timeout,
            rail,
            tried: 0,
            refused: 0,
            refusals: 0,
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
        self.since = None;
        self.forget_failures();
    }

    fn forget_failures(&mut self) {
        (self.pauses, self.tried, self.refused, self.refusals) = (0, 0, 0, 0);
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
            let all_refused = self.refused >= self.connector.rails();
            self.refusals = if all_refused { self.refusals + 1 } else { 0 };
            (self.tried, self.refused) = (0, 0);
            self.next_at = Some(now + self.pause());
        } else {
            self.next_at = Some(now);
        }
    }

    /// Whether the node was given up.
    pub(super) fn is_resting(&self) -> bool {
        self.resting
    }

    /// Whether time without an answer is counted, or was.
    pub(super) fn is_counting(&self) -> bool {
        self.resting || self.since.is_some()
    }

    /// Somebody wants something; `first` if nobody else does. Time in which nobody wanted anything
    /// is nobody's failure.
    pub(super) fn wake(&mut self, first: bool) {
        if !self.resting && (!first || self.since.is_none() || bugs::is(Bug::IdleTimeCounts)) {
            return;
        }
        let now = Some(clock::now());
        if std::mem::take(&mut self.resting) {
            self.next_at = now;
        }
        self.since = now;
        self.forget_failures();
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
                Dial::UnderWay(outcome) => {
                    self.dialing = Some(Dialing { outcome, begun: now });
                }
            }
        }
        self.listen(Duration::ZERO);
        match self.dialed.take() {
            None => self.judge_waiting(),
            Some(Ok(channel)) => Step::Connected(channel),
            Some(Err(error)) => {
                tracing::debug!(%error, rail = self.connector.name(self.rail), "no connection");
                self.on_failure(&error, Duration::ZERO);
                self.judge(error)
            }
        }
    }

    /// Whether the connection that is being made has taken too long, or all of them together.
    fn judge_waiting(&mut self) -> Step {
        let now = clock::now();
        let over = self.since.is_some_and(|since| now - since >= self.options.give_up_after);
        let begun = self.dialing.as_ref().map(|dialing| dialing.begun);
        if over && begun.is_some_and(|begun| now - begun >= self.connect_timeout) {
            self.dialing = None;
            self.resting = true;
            let name = self.connector.name(self.rail);
            return Step::GiveUp(Kind::Disconnected.error(format!("{name} does not answer")));
        }
        Step::Wait
    }

    /// Whether that was enough.
    pub(super) fn judge(&mut self, error: Error) -> Step {
        let now = clock::now();
        let since = self.since.unwrap_or(now);
        let next = self.next_at.unwrap_or(now);
        let most = if bugs::is(Bug::OneRefusalEnds) { 1 } else { REFUSALS };
        let hopeless = self.refusals >= most;
        if hopeless || next.saturating_duration_since(since) >= self.options.give_up_after {
            self.resting = true;
            return Step::GiveUp(error);
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
        let Some(Dialing { outcome, begun }) = &self.dialing else { return };
        let patience = self.connect_timeout.saturating_mul(CONNECT_TIMEOUTS_PER_DIAL);
        let left = patience.saturating_sub(clock::now() - *begun);
        let timeout = timeout.min(left);
        let heard = if timeout.is_zero() {
            outcome.try_recv().map_err(|error| error == TryRecvError::Disconnected)
        } else {
            outcome.recv_timeout(timeout).map_err(|error| error == RecvTimeoutError::Disconnected)
        };
        let lost = |what: String| Some(Err(Kind::Disconnected.error(what)));
        self.dialed = match heard {
            Ok(outcome) => Some(outcome),
            // Whoever dials finds nobody there, and drops the channel.
            Err(false) if left.is_zero() && !bugs::is(Bug::DialsForEver) => {
                lost(format!("connecting took longer than {patience:?}"))
            }
            Err(false) => return,
            Err(true) => lost("connecting ended without a word".to_owned()),
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

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc::{SyncSender, sync_channel};

    use super::*;

    /// Answers with these kinds of errors, and is silent once there are none.
    struct Refusing {
        answers: VecDeque<Kind>,
        silent: Vec<SyncSender<Dialed>>,
    }

    impl Connector for Refusing {
        fn name(&self, rail: usize) -> String {
            format!("rail {rail}")
        }

        fn dial(&mut self, _: usize) -> Dial {
            match self.answers.pop_front() {
                Some(kind) => Dial::Done(Err(kind.error("refused"))),
                None => {
                    let (sender, receiver) = sync_channel(1);
                    self.silent.push(sender);
                    Dial::UnderWay(receiver)
                }
            }
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn lost(answers: &[Kind], connect_timeout: Duration) -> Redial {
        let connector = Refusing { answers: answers.iter().copied().collect(), silent: Vec::new() };
        let options = Reconnect {
            first_pause: Duration::ZERO,
            longest_pause: Duration::ZERO,
            give_up_after: HOUR,
            ..Reconnect::default()
        };
        let mut redial = Redial::new(Box::new(connector), options, connect_timeout, 0);
        redial.on_failure(&Kind::Disconnected.error("the cable fell out"), Duration::ZERO);
        redial
    }

    /// Makes it an hour later.
    pub(in crate::session) fn idle(redial: &mut Redial) {
        let earlier = |since: Instant| since.checked_sub(HOUR).expect("a long past");
        redial.since = redial.since.map(earlier);
        if let Some(dialing) = &mut redial.dialing {
            dialing.begun = earlier(dialing.begun);
        }
    }

    #[test]
    pub(crate) fn time_in_which_nobody_wanted_anything_does_not_count() {
        let mut redial = lost(&[Kind::Disconnected; 2], HOUR);
        idle(&mut redial);
        redial.wake(true);
        assert!(matches!(redial.step(), Step::Wait), "one dial is no long time");
        idle(&mut redial);
        redial.wake(false);
        assert!(matches!(redial.step(), Step::GiveUp(_)), "somebody has waited for all of it");
        assert!(redial.is_resting());
    }

    #[test]
    pub(crate) fn one_refusal_is_not_the_last_word() {
        let mut redial =
            lost(&[Kind::Denied, Kind::Disconnected, Kind::Denied, Kind::Denied], HOUR);
        for _ in 0..3 {
            assert!(matches!(redial.step(), Step::Wait));
        }
        let Step::GiveUp(error) = redial.step() else { panic!("it was refused twice in a row") };
        assert_eq!(error.kind(), Kind::Denied);
    }

    #[test]
    pub(crate) fn a_connection_that_hangs_is_a_failure() {
        let mut redial = lost(&[], Duration::ZERO);
        assert!(matches!(redial.step(), Step::Wait));
        assert!(redial.dialing.is_none() && redial.dialed.is_none(), "another one follows");
        assert_eq!(redial.pauses, 1);
    }

    #[test]
    fn a_node_is_given_up_while_a_connection_hangs() {
        let mut redial = lost(&[], HOUR);
        assert!(matches!(redial.step(), Step::Wait));
        assert!(redial.dialing.is_some());
        idle(&mut redial);
        let Step::GiveUp(error) = redial.step() else { panic!("an hour is enough") };
        assert!(error.context().contains("rail 0"), "{error}");
        assert!(redial.is_resting() && redial.dialing.is_none());
        redial.wake(true);
        assert!(matches!(redial.step(), Step::Wait), "and looked for again when asked to");
    }
}
