use std::time::{Duration, Instant};

use extent::wire::OpenMode;
use extent::{FileName, Generation, Kind, NumberMap, Result};
use rdma::Fabric;

use super::plan::{OpenFile, Place, Plan, Visit, mix};
use super::tally::Tally;
use super::{Direction, Load, Pattern, Stop};
use crate::session::{Completed, Session, Ticket};
use crate::{Memory, Options, clock};

/// A session that fails so often is doing no good.
const MOST_ERRORS: u64 = 10_000;
/// How long a generation is if nothing is said.
const DEFAULT_GENERATION_BYTES: u64 = 1 << 30;
const ALIGN_BYTES: usize = 4096;
/// How long one sleep may take before the clock is looked at again.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);
/// How long a thread sleeps at most that has several sessions, and waits for one of them.
const NAP: Duration = Duration::from_millis(1);

/// One session of a load.
pub(super) struct Worker {
    session: Session,
    options: Options,
    work: Work,
    /// Memory that no operation uses.
    free: Vec<Memory>,
    /// Pieces that were given up, and not replaced yet.
    missing: usize,
    stride: usize,
    /// When each operation under way began.
    begun: NumberMap<Ticket, Instant>,
    /// Operations left; without end if time decides.
    left: u64,
    runs_for: Option<Duration>,
    warmup: Duration,
    /// When operations begin to count, when it is enough, and when something completed last.
    count_from: Instant,
    end: Option<Instant>,
    last: Instant,
    quiet_since: Instant,
    completed: Vec<Completed>,
    tally: Tally,
}

/// What a session did when it was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Something, or it is worth looking again.
    Moved,
    /// Nothing for a while: the node is to be waited for.
    Quiet,
    /// There is nothing more to do.
    Over,
}

enum Work {
    Read(Plan),
    Write(Box<Generations>),
}

/// A file that is written again and again.
struct Generations {
    name: FileName,
    bytes: u64,
    block_bytes: u64,
    pattern: Pattern,
    seed: u64,
    /// The generation that is being written: its handle, and what is left of it.
    current: Option<(u64, Visit)>,
    count: u64,
}

/// Drives sessions on this thread until all are done.
pub(super) fn run(mut workers: Vec<Worker>) -> Vec<Tally> {
    let mut tallies = Vec::with_capacity(workers.len());
    workers.iter_mut().for_each(Worker::start);
    let mut sleeper = 0;
    while !workers.is_empty() {
        let mut moved = false;
        let mut place = 0;
        while place < workers.len() {
            match workers[place].turn() {
                Turn::Over => {
                    tallies.push(workers.swap_remove(place).finish());
                    moved = true;
                    continue;
                }
                turn => moved |= turn == Turn::Moved,
            }
            place += 1;
        }
        let longest = if workers.len() == 1 { LONGEST_SLEEP } else { NAP };
        sleeper = if sleeper + 1 < workers.len() { sleeper + 1 } else { 0 };
        if !moved && let Some(worker) = workers.get_mut(sleeper) {
            worker.doze(longest);
        }
    }
    tallies
}

impl Worker {
    pub(super) fn new(load: &Load, index: usize, mut session: Session) -> Result<Self> {
        let (share, shares) = (index as u64, load.sessions as u64);
        let block = usize::try_from(load.block_bytes)
            .map_err(|_| Kind::Invalid.error("a block does not fit into memory"))?;
        let stride = block.next_multiple_of(ALIGN_BYTES);
        let total = stride.checked_mul(load.depth).ok_or_else(|| {
            Kind::Invalid.error("block size times depth does not fit into memory")
        })?;
        let mut memory = session.allocate(total)?;
        fill(memory.as_mut_slice(), load.seed.wrapping_add(share));
        let mut free: Vec<Memory> =
            (1..load.depth).rev().map(|slot| memory.split_off(slot * stride)).collect();
        free.push(memory);

        let (left, runs_for) = match load.stop {
            Stop::After(time) => (u64::MAX, Some(time)),
            Stop::Operations(count) => (count / shares + u64::from(share < count % shares), None),
        };
        let now = clock::now();
        let mut worker = Self {
            session,
            options: load.options.clone(),
            work: Work::Write(Box::new(Generations::new(load, index))),
            free,
            missing: 0,
            stride,
            begun: NumberMap::with_capacity_and_hasher(load.depth, Default::default()),
            left,
            runs_for,
            warmup: load.warmup,
            count_from: now,
            end: None,
            last: now,
            quiet_since: now,
            completed: Vec::with_capacity(load.depth),
            tally: Tally::new(),
        };
        if load.direction == Direction::Read {
            let files = worker.open_all(&load.files)?;
            let (block, set) = (load.block_bytes, load.working_set_bytes);
            let plan = Plan::new(files, block, set, load.pattern, load.seed, (share, shares))?;
            worker.work = Work::Read(plan);
        }
        Ok(worker)
    }

    pub(super) fn fabric(&self) -> Fabric {
        self.session.fabric()
    }

    fn open_all(&mut self, names: &[FileName]) -> Result<Vec<OpenFile>> {
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let mode = OpenMode::Read(Generation(0));
            let opened = self.call(|session| session.submit_open(name, mode))?.opened();
            let (handle, body) =
                opened.map_err(|error| error.while_doing(format_args!("opening {name}")))?;
            files.push(OpenFile { handle, length: body.length });
        }
        Ok(files)
    }

    /// Does one operation while nothing else is outstanding.
    fn call(&mut self, submit: impl FnOnce(&mut Session) -> Result<Ticket>) -> Result<Completed> {
        let ticket = submit(&mut self.session)?;
        self.session.kick();
        let deadline = clock::after(self.options.timeout);
        let mut completed = Vec::new();
        loop {
            self.session.poll(&mut completed);
            if let Some(done) = completed.pop() {
                assert_eq!(done.ticket, ticket, "nothing else is outstanding");
                return Ok(done);
            }
            self.wait_until(deadline, LONGEST_SLEEP);
        }
    }

    /// Sleeps a while; past the deadline, gives the session up.
    fn wait_until(&mut self, deadline: Instant, longest: Duration) {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            let patience = self.options.timeout;
            self.session.tear_down(
                &Kind::Disconnected.error(format!("the node did not answer within {patience:?}")),
            );
        } else {
            self.session.wait(left.min(longest));
        }
    }

    /// Begins to measure.
    fn start(&mut self) {
        let now = clock::now();
        self.count_from = now + self.warmup;
        self.end = self.runs_for.map(|time| self.count_from + time);
        (self.last, self.quiet_since) = (now, now);
    }

    /// Does what there is to do, without waiting for it.
    fn turn(&mut self) -> Turn {
        match self.step() {
            Ok(turn) => turn,
            Err(error) => {
                self.tally.fail(&error);
                Turn::Over
            }
        }
    }

    fn step(&mut self) -> Result<Turn> {
        let now = clock::now();
        let enough = self.end.is_some_and(|end| now >= end)
            || self.left == 0
            || self.tally.errors >= MOST_ERRORS
            || self.session.failure().is_some();
        if !enough {
            self.submit(now)?;
        }
        if self.session.outstanding() == 0 {
            if enough {
                self.commit()?;
                let last = self.last.max(clock::now().min(self.end.unwrap_or(self.last)));
                self.tally.elapsed = last.saturating_duration_since(self.count_from);
                return Ok(Turn::Over);
            }
            if self.missing == 0 {
                // The generation is written, and nothing but its end is left to do.
                self.commit()?;
                return Ok(Turn::Moved);
            }
        }
        if let Some(now) = self.collect() {
            (self.quiet_since, self.last) = (now, now);
            return Ok(Turn::Moved);
        }
        Ok(if now - self.quiet_since >= self.options.spin { Turn::Quiet } else { Turn::Moved })
    }

    /// Waits for the node.
    fn doze(&mut self, longest: Duration) {
        self.wait_until(self.quiet_since + self.options.timeout, longest);
    }

    fn finish(mut self) -> Tally {
        let stats = self.session.stats();
        self.tally.reconnections = stats.connections.saturating_sub(1);
        self.tally.repeated = stats.repeated;
        self.tally
    }

    /// A generation of which one write failed cannot become whole: the next one may.
    fn on_error(&mut self) {
        if let Work::Write(generations) = &mut self.work
            && let Some((_, visit)) = &mut generations.current
        {
            visit.spoil();
        }
    }

    /// Fills the depth up.
    fn submit(&mut self, now: Instant) -> Result<()> {
        let mut submitted = false;
        while self.missing != 0 {
            match self.session.allocate(self.stride) {
                Ok(memory) => self.free.push(memory),
                Err(error) if error.kind() == Kind::Busy => break,
                Err(error) => return Err(error),
            }
            self.missing -= 1;
        }
        while self.left != 0 && !self.free.is_empty() {
            let Some(place) = self.next_place()? else { break };
            let mut memory = self.free.pop().expect("just seen");
            let length = usize::try_from(place.length).expect("no more than a block");
            let taken = match &self.work {
                Work::Read(_) => {
                    self.session.submit_read(place.handle, place.offset, memory, 0..length)
                }
                Work::Write(_) => {
                    stamp(&mut memory, place.offset ^ mix(self.left));
                    self.session.submit_write(place.handle, place.offset, memory, 0..length)
                }
            };
            self.begun.insert(taken?, now);
            self.left -= 1;
            submitted = true;
        }
        if submitted {
            self.session.kick();
        }
        Ok(())
    }

    fn next_place(&mut self) -> Result<Option<Place>> {
        if let Work::Write(generations) = &self.work
            && generations.current.is_none()
        {
            let (name, mode) = (generations.name.clone(), OpenMode::Write(generations.bytes));
            let (handle, _) = self.call(|session| session.submit_open(&name, mode))?.opened()?;
            if let Work::Write(generations) = &mut self.work {
                generations.begin(handle);
            }
        }
        Ok(match &mut self.work {
            Work::Read(plan) => Some(plan.next()),
            Work::Write(generations) => generations.next(),
        })
    }

    /// Commits a generation that is whole, and lets go of one that is not.
    fn commit(&mut self) -> Result<()> {
        let Work::Write(generations) = &mut self.work else { return Ok(()) };
        let Some((handle, visit)) = generations.current.take() else { return Ok(()) };
        let bytes = generations.bytes;
        if visit.is_over() {
            match self.call(|session| session.submit_commit(handle, bytes))?.result {
                Ok(()) => self.tally.commits += 1,
                Err(error) => self.tally.fail(&error),
            }
        }
        self.call(|session| session.submit_close(handle))?.result
    }

    /// Takes in what has completed, and says when, if anything has.
    fn collect(&mut self) -> Option<Instant> {
        let mut completed = std::mem::take(&mut self.completed);
        self.session.poll(&mut completed);
        if completed.is_empty() {
            self.completed = completed;
            return None;
        }
        let now = clock::now();
        for mut done in completed.drain(..) {
            let begun = self.begun.remove(&done.ticket).unwrap_or(now);
            if now >= self.count_from {
                self.tally.count(&done, now - begun);
            }
            // Without any, the session is over, or a connection that was shared memory is.
            match done.memory.take() {
                Some(memory) => self.free.push(memory),
                None => self.missing += 1,
            }
            if done.result.is_err() {
                self.on_error();
            }
        }
        self.completed = completed;
        Some(now)
    }
}

impl Generations {
    fn new(load: &Load, index: usize) -> Self {
        Self {
            name: load.files[index % load.files.len()].clone(),
            bytes: load.working_set_bytes.unwrap_or(DEFAULT_GENERATION_BYTES),
            block_bytes: load.block_bytes,
            pattern: load.pattern,
            seed: load.seed,
            current: None,
            count: 0,
        }
    }

    fn begin(&mut self, handle: u64) {
        let blocks = self.bytes.div_ceil(self.block_bytes);
        self.count += 1;
        let seed = self.seed.wrapping_add(self.count);
        self.current = Some((handle, Visit::new(blocks, self.pattern, seed)));
    }

    fn next(&mut self) -> Option<Place> {
        let (handle, visit) = self.current.as_mut()?;
        let offset = visit.next()? * self.block_bytes;
        let length = self.block_bytes.min(self.bytes - offset);
        Some(Place { handle: *handle, offset, length })
    }
}

/// Bytes that do not compress.
fn fill(bytes: &mut [u8], seed: u64) {
    for (word, index) in bytes.chunks_mut(8).zip(0u64..) {
        let random = mix(seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        word.copy_from_slice(&random.to_le_bytes()[..word.len()]);
    }
}

/// Makes a block unlike any other.
fn stamp(memory: &mut Memory, number: u64) {
    let front = memory.len().min(8);
    memory.as_mut_slice()[..front].copy_from_slice(&number.to_le_bytes()[..front]);
}
