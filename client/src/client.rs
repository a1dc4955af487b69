use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dma::Region;
use extent::wire::{OpenBody, OpenMode};
use extent::{Error, FileName, Generation, Kind, Result};
use parking_lot::{Mutex, MutexGuard};
use rdma::Fabric;

use crate::session::{Completed, Refused, Session, Ticket};
use crate::state::{BatchId, State};
use crate::{Batch, Endpoint, Fetch, File, Memory, Options, Writer, clock};

/// The longest that a thread keeps the session to itself while it sleeps on it.
const LONGEST_SLEEP: Duration = Duration::from_millis(1);
/// First and longest pause before a request that the node was too busy for is sent again.
pub(crate) const BUSY_PAUSES: (Duration, Duration) =
    (Duration::from_micros(50), Duration::from_millis(10));

/// A node, as most programs want it: open files, read them, write new ones.
///
/// It may be cloned and shared between threads, which then take turns on one session. Threads that
/// want the last microsecond connect a client each.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Threads that are about to take the lock.
    waiting: AtomicUsize,
    options: Options,
}

/// What a thread waits for.
#[derive(Clone, Copy)]
pub(crate) enum Awaited<'a> {
    /// Room, or a connection.
    Room,
    /// This operation, once it is submitted.
    One(&'a Cell<Option<Ticket>>),
    /// All operations of a batch.
    All(BatchId),
}

/// What became of a client's connections.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientStats {
    /// Connections that were lost and made again.
    pub reconnections: u64,
    /// Requests that were sent again for that.
    pub repeated_requests: u64,
    /// The way to the node in use, or tried at the moment; `None` if the client does not connect
    /// again.
    pub rail: Option<String>,
}

impl Client {
    /// Connects to a node: through shared memory where that can be had, else over TCP.
    /// [`Client::fabric`] says which it became.
    ///
    /// A connection that is lost is made again, as [`Options::reconnect`] says, and calls do not
    /// notice but for the time: only a generation that is being written is gone with it.
    ///
    /// # Errors
    /// [`Kind::Disconnected`] if nobody answers there; [`Kind::Denied`] if the node does not want
    /// this user; [`Kind::Unsupported`] if versions have nothing in common.
    pub fn connect(endpoint: &Endpoint, options: &Options) -> Result<Self> {
        Ok(Self::over(endpoint.session(options)?, options))
    }

    /// A client over a session that was made elsewhere.
    #[must_use]
    pub fn over(session: Session, options: &Options) -> Self {
        let shared = Shared {
            state: Mutex::new(State::new(session)),
            waiting: AtomicUsize::new(0),
            options: options.clone(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// How the node is reached: at the moment, since another connection may be another way.
    #[must_use]
    pub fn fabric(&self) -> Fabric {
        self.lock().session.fabric()
    }

    /// What became of its connections so far.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        let state = self.lock();
        let stats = state.session.stats();
        ClientStats {
            reconnections: stats.connections.saturating_sub(1),
            repeated_requests: stats.repeated,
            rail: state.session.rail().map(|(_, name)| name),
        }
    }

    /// Memory that the node reads and writes itself, without a copy where the fabric allows it. Other threads'
    /// requests wait while new memory is registered (see [`Session::allocate`]).
    ///
    /// # Errors
    /// As [`Session::allocate`].
    pub fn alloc(&self, length: usize) -> Result<Memory> {
        self.when_connected(|state| state.session.allocate(length))
    }

    /// Has the node read and write memory of the caller's, where it is. See [`Session::register`], which
    /// this is, over RDMA and TCP.
    ///
    /// # Errors
    /// As [`Session::register`].
    pub fn register(&self, region: &Arc<Region>) -> Result<Memory> {
        self.when_connected(|state| state.session.register(region))
    }

    /// Does what needs a connection, and waits for that if it is being made again.
    pub(crate) fn when_connected<T>(
        &self,
        mut act: impl FnMut(&mut State) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.lock();
        state.session.wake();
        let outcome = act(&mut state);
        if !is_busy(&outcome) || state.session.is_connected() {
            return outcome;
        }
        drop(state);
        let deadline = clock::after(self.shared.options.timeout);
        self.advance(deadline, Awaited::Room, |state| {
            let outcome = act(state);
            let waits = is_busy(&outcome) && !state.session.is_connected();
            (!waits || clock::now() >= deadline).then_some(outcome)
        })
    }

    /// Opens the newest generation of a file. What was opened stays as it is, whatever is written
    /// later.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if neither the node nor the silo has it.
    pub fn open(&self, name: &FileName) -> Result<File> {
        self.open_generation(name, Generation(0))
    }

    /// Opens one generation of a file; `Generation(0)` is the newest.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such file; [`Kind::Stale`] if that generation is gone.
    pub fn open_generation(&self, name: &FileName, generation: Generation) -> Result<File> {
        let (handle, body) = self.open_handle(name, OpenMode::Read(generation))?;
        Ok(File::new(self, name.clone(), handle, body))
    }

    /// Starts a new generation of a file, or a new file. Nobody sees it before
    /// [`Writer::commit`]; a writer that is dropped without that leaves nothing behind.
    /// `expected_bytes` is a hint, 0 where the length is not known.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown silo; [`Kind::NoSpace`] if the node is full of data that
    /// it may not evict.
    pub fn create(&self, name: &FileName, expected_bytes: u64) -> Result<Writer> {
        let (handle, _) = self.open_handle(name, OpenMode::Write(expected_bytes))?;
        Ok(Writer::new(self, name.clone(), handle))
    }

    /// Starts many reads at once.
    #[must_use]
    pub fn read_batch(&self, fetches: impl IntoIterator<Item = Fetch>) -> Batch {
        Batch::start(self, fetches)
    }

    /// Asks the node for a sign of life and returns how long that took.
    ///
    /// # Errors
    /// [`Kind::Disconnected`] if there is none.
    pub fn ping(&self) -> Result<Duration> {
        let begin = clock::now();
        self.call(Session::submit_ping)?.result?;
        Ok(begin.elapsed())
    }

    fn open_handle(&self, name: &FileName, mode: OpenMode) -> Result<(u64, OpenBody)> {
        let opened = self.call(|session| session.submit_open(name, mode))?.opened();
        opened.map_err(|error| error.while_doing(format_args!("opening {name}")))
    }

    pub(crate) fn options(&self) -> &Options {
        &self.shared.options
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let state = self.shared.state.lock();
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// Submits an operation without memory of the caller's, and waits for it.
    pub(crate) fn call(
        &self,
        mut submit: impl FnMut(&mut Session) -> Result<Ticket>,
    ) -> Result<Completed> {
        self.run(Memory::default(), |session, memory| {
            submit(session).map_err(|error| Refused { error, memory })
        })
        .map_err(Error::from)
    }

    /// Submits an operation and waits for it, again while the node is too busy for it.
    pub(crate) fn run(
        &self,
        memory: Memory,
        mut submit: impl FnMut(&mut Session, Memory) -> Result<Ticket, Refused>,
    ) -> Result<Completed, Refused> {
        let deadline = clock::after(self.shared.options.timeout);
        let mut memory = memory;
        let mut pause = BUSY_PAUSES.0;
        loop {
            let mut completed = self.run_once(memory, &mut submit, deadline)?;
            let busy = completed.result.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
            if !busy || clock::now() + pause >= deadline {
                return Ok(completed);
            }
            memory = completed.memory.take().unwrap_or_default();
            thread::sleep(pause);
            pause = (pause * 2).min(BUSY_PAUSES.1);
        }
    }

    fn run_once(
        &self,
        memory: Memory,
        submit: &mut impl FnMut(&mut Session, Memory) -> Result<Ticket, Refused>,
        deadline: Instant,
    ) -> Result<Completed, Refused> {
        let mut memory = Some(memory);
        let ticket = Cell::new(None);
        self.advance(deadline, Awaited::One(&ticket), |state| {
            if let Some(memory_now) = memory.take() {
                match submit(&mut state.session, memory_now) {
                    Ok(taken) => {
                        state.expect(taken);
                        state.session.kick();
                        ticket.set(Some(taken));
                    }
                    // The session's own queue is full of other threads' requests.
                    Err(refused)
                        if refused.error.kind() == Kind::Busy && clock::now() < deadline =>
                    {
                        memory = Some(refused.memory);
                    }
                    Err(refused) => return Some(Err(refused)),
                }
            }
            state.take(ticket.get()?).map(Ok)
        })
    }

    /// Drives the session until `ready` has an answer. When the deadline passes, what is awaited is
    /// given up, and completes: `ready` has an answer for sure, if it does not wait for room itself.
    pub(crate) fn advance<T>(
        &self,
        deadline: Instant,
        awaited: Awaited<'_>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> T {
        let begin = clock::now();
        loop {
            let mut state = self.lock();
            state.poll();
            if let Some(answer) = ready(&mut state) {
                return answer;
            }
            let now = clock::now();
            if now >= deadline {
                let tickets = match awaited {
                    Awaited::Room => Vec::new(),
                    Awaited::One(ticket) => ticket.get().into_iter().collect(),
                    Awaited::All(batch) => state.under_way(batch),
                };
                let waited = now - begin;
                let reason = Kind::Disconnected.error(format!(
                    "no answer within {waited:?}; the connection is given up, {}",
                    if state.session.connects_again() {
                        "what is asked for later makes another: is the node well?"
                    } else {
                        "and the session with it: connect again"
                    }
                ));
                state.session.expire(&tickets, &reason);
            } else if self.shared.waiting.load(Ordering::Relaxed) != 0 {
                MutexGuard::unlock_fair(state);
                thread::yield_now();
            } else if now - begin >= self.shared.options.spin {
                state.session.wait(LONGEST_SLEEP.min(deadline - now));
            }
        }
    }

    /// Gives a handle back without waiting for the node's answer.
    pub(crate) fn close(&self, handle: u64) {
        self.lock().close(handle);
    }
}

fn is_busy<T>(outcome: &Result<T>) -> bool {
    outcome.as_ref().is_err_and(|error| error.kind() == Kind::Busy)
}
