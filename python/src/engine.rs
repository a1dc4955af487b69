//! One session with a node, shared by the threads of a process.
//!
//! Whoever waits drives it. While nobody does, a thread looks after it now and then, so that what
//! was started goes on; see [`crate::pump`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

use client::device::DeviceOptions;
use client::{Memory, Session};
use dma::Region;
use extent::{Kind, Result};
use rdma::Fabric;

use crate::clock;
use crate::gpus::Gpus;
use crate::lock::Mutex;
use crate::pump::{self, Bell};
use crate::slab::Slab;
use crate::state::State;
use crate::transfer::Transfer;

/// The longest that a thread keeps the session to itself while it sleeps on it.
const LONGEST_SLEEP: Duration = Duration::from_millis(1);
/// The same while a GPU copies, which wakes nobody.
const COPY_SLEEP: Duration = Duration::from_micros(50);
/// Dead entries in the table of buffers before it is tidied up.
const DEAD_BUFFERS: usize = 64;

/// How many engines there were.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// See the module.
pub(crate) struct Engine {
    /// Of this process's: no other engine ever has it.
    number: u64,
    state: Mutex<State>,
    /// Threads that are about to take the lock.
    waiting: AtomicUsize,
    /// Threads that drive the session.
    drivers: AtomicUsize,
    /// Transfers whose end somebody is to be told.
    watched: Arc<AtomicUsize>,
    pump_is_awake: AtomicBool,
    bell: Arc<Bell>,
    /// Handles to give back.
    closing: Mutex<Vec<u64>>,
    buffers: Mutex<Buffers>,
    gpus: Gpus,
    fabric: Fabric,
    timeout: Duration,
}

/// Buffers by the addresses that they begin at.
#[derive(Default)]
struct Buffers {
    by_base: BTreeMap<usize, Weak<Slab>>,
    tidy_at: usize,
}

impl Buffers {
    /// From now on it is found by the addresses of its bytes.
    fn add(&mut self, slab: Slab) -> Arc<Slab> {
        let slab = Arc::new(slab);
        if self.by_base.len() >= self.tidy_at {
            self.by_base.retain(|_, slab| slab.strong_count() != 0);
            self.tidy_at = 2 * self.by_base.len() + DEAD_BUFFERS;
        }
        self.by_base.insert(slab.base().addr().get(), Arc::downgrade(&slab));
        slab
    }

    /// Whether any byte between two addresses belongs to one.
    fn touches(&self, begin: usize, end: usize) -> bool {
        let before = self.by_base.range(..end).rev();
        let alive = before.filter_map(|(base, slab)| Some((*base, slab.upgrade()?))).next();
        alive.is_some_and(|(base, slab)| base + slab.len() > begin)
    }
}

/// A handle of the node's, given back on drop.
pub(crate) struct Handle {
    engine: Arc<Engine>,
    number: u64,
}

impl Handle {
    pub(crate) fn new(engine: &Arc<Engine>, number: u64) -> Arc<Self> {
        Arc::new(Self { engine: Arc::clone(engine), number })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.engine.close_handle(self.number);
    }
}

impl Engine {
    /// Takes a session over. Calls that wait for the node longer than `timeout` end the session.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] or [`Kind::Busy`] if there is no memory to copy through; [`Kind::Io`] if no
    /// thread can be started.
    pub(crate) fn start(
        session: Session,
        timeout: Duration,
        verifies: bool,
        device_options: DeviceOptions,
    ) -> Result<Arc<Self>> {
        let bell = Arc::new(Bell::default());
        let engine = Arc::new(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            fabric: session.fabric(),
            state: Mutex::new(State::new(session, timeout)?),
            waiting: AtomicUsize::new(0),
            drivers: AtomicUsize::new(0),
            watched: Arc::default(),
            pump_is_awake: AtomicBool::new(false),
            bell: Arc::clone(&bell),
            closing: Mutex::default(),
            buffers: Mutex::default(),
            gpus: Gpus::new(verifies, device_options),
            timeout,
        });
        pump::start(&engine, bell)?;
        Ok(engine)
    }

    /// No other engine of this process has the same.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn fabric(&self) -> Fabric {
        self.fabric
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The count of watched transfers, for a new watch.
    pub(crate) fn watched(&self) -> &Arc<AtomicUsize> {
        &self.watched
    }

    /// Memory that the node uses itself.
    ///
    /// # Errors
    /// As [`Session::allocate`].
    pub(crate) fn allocate(&self, length: usize) -> Result<Arc<Slab>> {
        let memory = self.lock().session.allocate(length)?;
        let mut buffers = self.buffers.lock();
        Ok(buffers.add(Slab::new(memory)?))
    }

    /// Memory of Python's that the node uses itself from now on.
    ///
    /// # Errors
    /// As [`Session::register`]; [`Kind::Invalid`] if the node uses some of it already.
    pub(crate) fn register(&self, region: &Arc<Region>) -> Result<Arc<Slab>> {
        let (begin, length) = (region.base().addr().get(), region.length());
        let taken = |buffers: &Buffers| {
            let taken = buffers.touches(begin, begin + length);
            taken.then(|| Kind::Invalid.error("the node uses some of this memory already"))
        };
        if let Some(error) = taken(&self.buffers.lock()) {
            return Err(error);
        }
        let memory = self.lock().session.register(region)?;
        let mut buffers = self.buffers.lock();
        // Another thread may have come first.
        if let Some(error) = taken(&buffers) {
            drop((buffers, memory));
            self.hurry_pump();
            return Err(error);
        }
        Ok(buffers.add(Slab::new(memory)?))
    }

    /// Gives a handle back, soon.
    pub(crate) fn close_handle(&self, number: u64) {
        // Not the session's lock: this may run while a thread holds that and waits.
        self.closing.lock().push(number);
        self.wake_pump();
    }

    /// A buffer is found by the addresses of its bytes no longer.
    pub(crate) fn hide(&self, slab: &Slab) {
        self.buffers.lock().by_base.remove(&slab.base().addr().get());
    }

    /// Has the node forget memory that was registered.
    pub(crate) fn release(&self, memory: Vec<Memory>) {
        let mut state = self.lock();
        memory.into_iter().for_each(|memory| state.session.release(memory));
    }

    /// What is known of GPUs.
    pub(crate) fn gpus(&self) -> &Gpus {
        &self.gpus
    }

    /// The buffer that holds these bytes, and where in it they begin.
    pub(crate) fn buffer_at(&self, address: usize, length: usize) -> Option<(Arc<Slab>, usize)> {
        let buffers = self.buffers.lock();
        let before = buffers.by_base.range(..=address).rev();
        let (base, slab) =
            before.filter_map(|(base, slab)| Some((*base, slab.upgrade()?))).next()?;
        let offset = address - base;
        let inside = offset.checked_add(length).is_some_and(|end| end <= slab.len());
        inside.then_some((slab, offset))
    }

    /// Starts transfers; `None` if others kept the session for longer than `limit`.
    pub(crate) fn submit(&self, transfers: &[Arc<Transfer>], limit: Duration) -> Option<()> {
        let mut state = self.lock_for(limit)?;
        for transfer in transfers.iter().filter(|transfer| !transfer.is_settled()) {
            state.begin(transfer);
        }
        state.session.kick();
        drop(state);
        self.wake_pump();
        Some(())
    }

    /// Drives the session until `ready` has an answer, but not for longer than `limit`.
    pub(crate) fn drive<T>(
        &self,
        limit: Duration,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let end = clock::now() + limit;
        self.drivers.fetch_add(1, Ordering::Relaxed);
        let answer = loop {
            let Some(mut state) = self.lock_for(end.saturating_duration_since(clock::now())) else {
                break None;
            };
            self.turn(&mut state);
            let answer = ready(&mut state);
            let now = clock::now();
            if answer.is_some() || now >= end {
                break answer;
            }
            if self.waiting.load(Ordering::Relaxed) != 0 {
                Mutex::make_way(state);
            } else {
                let longest = if state.is_copying() { COPY_SLEEP } else { LONGEST_SLEEP };
                state.session.wait(longest.min(end - now));
            }
        };
        self.drivers.fetch_sub(1, Ordering::Relaxed);
        answer
    }

    /// Waits for a transfer, but not for longer than `limit`. False if it is still under way.
    pub(crate) fn wait(&self, transfer: &Transfer, limit: Duration) -> bool {
        transfer.is_settled()
            || self.drive(limit, |_| transfer.is_settled().then_some(())).is_some()
    }

    /// Waits until no GPU writes on a transfer's behalf any more. False if one does after `limit`.
    pub(crate) fn wait_for_copies(&self, transfer: &Transfer, limit: Duration) -> bool {
        let is_done = || (!transfer.is_copying()).then_some(());
        is_done().is_some() || self.drive(limit, |_| is_done()).is_some()
    }

    /// Whether the session is over.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().session.failure().is_some()
    }

    /// Ends the session: everything under way fails.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.session.tear_down(&Kind::Disconnected.error("the client was closed"));
        state.poll();
        drop(state);
        self.gpus.close(self);
    }

    /// What the thread that looks after the session does at a time. False if nothing is under way,
    /// and it may sleep until it is woken.
    pub(crate) fn pump(&self) -> bool {
        while self.watched.load(Ordering::Relaxed) != 0 {
            self.drive(LONGEST_SLEEP, |_| None::<()>);
        }
        if self.drivers.load(Ordering::Relaxed) != 0 {
            return true;
        }
        let Some(mut state) = self.state.try_lock() else { return true };
        self.turn(&mut state);
        let busy = state.is_busy();
        // Under the lock, so that what is started after this wakes it again.
        self.pump_is_awake.store(busy, Ordering::SeqCst);
        busy || !self.closing.lock().is_empty()
    }

    fn turn(&self, state: &mut State) {
        state.poll();
        state.close_handles(&mut self.closing.lock());
    }

    fn wake_pump(&self) {
        if !self.pump_is_awake.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    /// Something that a watch waits for goes on at once.
    pub(crate) fn hurry_pump(&self) {
        self.pump_is_awake.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    /// The state, unless others keep it for longer than `limit`, as a thread may that allocates.
    fn lock_for(&self, limit: Duration) -> Option<MutexGuard<'_, State>> {
        if let Some(state) = self.state.try_lock() {
            return Some(state);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let state = self.state.try_lock_for(limit);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        state
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        state
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.bell.stop();
    }
}
