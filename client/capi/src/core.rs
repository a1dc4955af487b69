//! A ring behind its handle: one session, and what is under way in it.
//!
//! Everything goes on when C calls, and only then: there is no thread. Between a request and its
//! completion nothing is allocated, unless the node is too busy or the read fails.

mod chunks;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Completed, Memory, Session, Ticket};
use dma::Region;
use extent::{Error, Kind};

use crate::abi::Cqe;
use crate::arena::{Arena, Place};
use crate::clock;
use crate::failure::{Failure, Outcome};
use crate::opened::Opened;
use crate::options::Settings;
use crate::pool::Pool;
use crate::queues::{Completions, Requests};
use crate::table::Table;
use crate::transfer::{Chunk, Transfer};

/// How long requests rest that the node was too busy for.
const BUSY_PAUSE: Duration = Duration::from_micros(500);
/// How often it is looked for transfers that take too long: at least and at most.
const PATIENCE_STEPS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(500));
/// The longest sleep while something waits for more than the node's answer.
const NAP: Duration = Duration::from_millis(1);

/// See the module.
pub(crate) struct Core {
    // In this order they are dropped: once the session is gone, nobody reaches the memory.
    pub(crate) session: Session,
    pub(crate) arena: Arena,
    pub(crate) pool: Pool,
    pub(crate) settings: Settings,
    pub(crate) requests: Requests,
    pub(crate) completions: Completions,
    pub(crate) opened: Opened,
    transfers: Table<Transfer>,
    flights: HashMap<Ticket, Flight>,
    /// Transfers that wait for memory to copy through.
    hungry: VecDeque<u64>,
    /// What the node was too busy for, and when it is sent again.
    resting: Vec<(Chunk, Memory)>,
    rested_at: Instant,
    looked_at: Instant,
    /// How the plain operation ended that somebody waits for.
    answer: Option<Completed>,
    /// How the write ended that somebody waits for.
    written: Option<Outcome<()>>,
    /// The session's numbers of files to close.
    closing: Vec<u64>,
    scratch: Vec<Completed>,
}

/// What a request of the session is for.
enum Flight {
    Answer,
    Chunk(Chunk),
}

impl Core {
    pub(crate) fn new(session: Session, settings: Settings) -> Self {
        let entries = settings.entries;
        let now = clock::now();
        Self {
            session,
            arena: Arena::default(),
            pool: Pool::new(settings.copy_bytes),
            requests: Requests::new(entries),
            completions: Completions::new(entries),
            opened: Opened::new(),
            // One more is a write, which is waited for.
            transfers: Table::with_capacity(entries + 1),
            flights: HashMap::with_capacity(2 * entries),
            hungry: VecDeque::with_capacity(entries + 1),
            resting: Vec::new(),
            rested_at: now,
            looked_at: now,
            answer: None,
            written: None,
            closing: Vec::new(),
            scratch: Vec::with_capacity(entries),
            settings,
        }
    }

    /// Requests that were handed out to C and whose completions it has not seen.
    pub(crate) fn taken(&self) -> usize {
        self.requests.len() + self.transfers.len() + self.completions.len()
    }

    /// Whether any transfer is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.transfers.len() != 0
    }

    /// Begins a transfer; the rest follows by [`Core::turn`].
    pub(crate) fn start(&mut self, transfer: Transfer) {
        if transfer.wanted.place == Place::Outside {
            // To ask for memory says nothing to a session that has given up.
            self.session.wake();
        }
        self.opened.begin(transfer.wanted.file);
        let number = self.transfers.insert(transfer);
        self.feed(number);
    }

    /// Begins a write and waits for it.
    pub(crate) fn write(&mut self, transfer: Transfer) -> Outcome<()> {
        self.start(transfer);
        self.session.kick();
        loop {
            // A transfer ends by itself when its time is over.
            if let Some(outcome) = self.advance(self.settings.timeout, |core| core.written.take()) {
                return outcome;
            }
        }
    }

    /// Submits an operation that is no transfer, and waits for its answer.
    ///
    /// # Errors
    /// What the session or the node answers.
    pub(crate) fn call(
        &mut self,
        mut submit: impl FnMut(&mut Session) -> extent::Result<Ticket>,
    ) -> Outcome<Completed> {
        let deadline = clock::now() + self.settings.timeout;
        loop {
            let ticket = match submit(&mut self.session) {
                Ok(ticket) => ticket,
                Err(error) if error.kind() == Kind::Busy && clock::now() < deadline => {
                    self.advance(NAP, |_| None::<()>);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.flights.insert(ticket, Flight::Answer);
            self.session.kick();
            let done = self.answer_to(ticket, deadline);
            let busy = done.result.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
            if !busy || clock::now() >= deadline {
                return Ok(done);
            }
            self.advance(NAP, |_| None::<()>);
        }
    }

    fn answer_to(&mut self, ticket: Ticket, deadline: Instant) -> Completed {
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            if let Some(done) = self.advance(left, |core| core.answer.take()) {
                return done;
            }
            self.session.expire(&[ticket], &self.late());
        }
    }

    /// Memory that the node uses itself.
    ///
    /// # Errors
    /// As [`Session::allocate`].
    pub(crate) fn allocate(&mut self, length: usize) -> Outcome<Memory> {
        self.when_connected(|session| session.allocate(length))
    }

    /// Memory of the program's that the node uses itself.
    ///
    /// # Errors
    /// As [`Session::register`].
    pub(crate) fn register(&mut self, region: &Arc<Region>) -> Outcome<Memory> {
        self.when_connected(|session| session.register(region))
    }

    fn when_connected(
        &mut self,
        mut act: impl FnMut(&mut Session) -> extent::Result<Memory>,
    ) -> Outcome<Memory> {
        self.session.wake();
        let outcome = self.advance(self.settings.timeout, |core| {
            let outcome = act(&mut core.session);
            let waits = outcome.as_ref().is_err_and(|error| error.kind() == Kind::Busy)
                && !core.session.is_connected();
            (!waits).then_some(outcome)
        });
        Ok(outcome.unwrap_or_else(|| Err(self.late()))?)
    }

    /// Gives a file back without waiting for the node's answer.
    pub(crate) fn close(&mut self, handle: u64) {
        self.closing.push(handle);
        self.close_handles();
        self.session.kick();
    }

    /// Drives everything until `ready` has an answer, or the time is over.
    pub(crate) fn advance<T>(
        &mut self,
        limit: Duration,
        mut ready: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let begin = clock::now();
        loop {
            self.turn();
            let answer = ready(self);
            let passed = clock::now() - begin;
            if answer.is_some() || passed >= limit {
                return answer;
            }
            if passed >= self.settings.spin {
                self.session.wait(self.nap().min(limit - passed));
            }
        }
    }

    fn nap(&self) -> Duration {
        if self.resting.is_empty() && self.hungry.is_empty() { self.patience_step() } else { NAP }
    }

    /// Drives everything as far as it goes without waiting.
    pub(crate) fn turn(&mut self) {
        let mut completed = std::mem::take(&mut self.scratch);
        // For all at once: how many end together is chance, and nothing grows by chance.
        completed.reserve(self.flights.len());
        self.session.poll(&mut completed);
        for done in completed.drain(..) {
            match self.flights.remove(&done.ticket) {
                // Nobody waits for a file to be closed.
                None => {}
                Some(Flight::Answer) => self.answer = Some(done),
                Some(Flight::Chunk(chunk)) => self.take_in(chunk, done),
            }
        }
        self.scratch = completed;
        if !self.resting.is_empty() && clock::now() >= self.rested_at {
            for (chunk, memory) in std::mem::take(&mut self.resting) {
                self.send(chunk, memory);
                self.feed(chunk.transfer);
            }
        }
        self.feed_hungry();
        if self.is_busy() {
            self.give_up_late();
        }
        self.close_handles();
        self.session.kick();
    }

    /// A completion for a request that nothing was begun for.
    pub(crate) fn refuse(&mut self, user_data: u64, failure: Failure) {
        let completion = Cqe { user_data, result: -i64::from(failure.code), ..Cqe::NONE };
        self.completions.add(completion, Some(failure));
    }

    fn patience_step(&self) -> Duration {
        (self.settings.timeout / 8).clamp(PATIENCE_STEPS.0, PATIENCE_STEPS.1)
    }

    fn late(&self) -> Error {
        Kind::Disconnected
            .error(format!("no answer within {:?}: is the node well?", self.settings.timeout))
    }

    fn close_handles(&mut self) {
        while let Some(handle) = self.closing.pop() {
            match self.session.submit_close(handle) {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Busy => {
                    self.closing.push(handle);
                    return;
                }
                // A session that is over has no files.
                Err(_) => self.closing.clear(),
            }
        }
    }
}
