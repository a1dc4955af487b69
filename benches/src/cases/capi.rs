//! The C interface against the Rust client below it: the same reads, one loop each.
#![expect(unsafe_code, reason = "ours are the calls that a program in C makes")]

use std::ffi::{CString, c_void};
use std::ptr;
use std::time::{Duration, Instant};

use capi::Ring;
use capi::abi::{Cqe, File};
use capi::calls::{files, reads, rings};
use client::{Endpoint, Options, Session};
use extent::wire::OpenMode;
use extent::{Error, Generation, Kind, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::read::{Ours, Shape};
use super::{Case, Contest};
use crate::clock;
use crate::pairs::{Duel, Terms};
use crate::setup::Setup;
use crate::verdict::Setback;

const BLOCK_BYTES: usize = 4096;
const DEPTH: usize = 32;
const SEED: u64 = 11;
const WARMUP: Duration = Duration::from_secs(1);
/// So many reads between two looks at the clock.
const STRETCH: u64 = 256;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "capi-read-4k", unit: "reads/s", target: 0.95 },
    needs_node: true,
    has_rival: false,
    about: "random 4 KiB reads through shared memory by the C interface against the Rust client's session",
    set_up,
};

struct Boundary {
    node: Ours,
    depth: usize,
    seconds: u64,
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    setup.data_file()?;
    let depth = setup.depth.unwrap_or(DEPTH);
    let shape = Shape { block_bytes: BLOCK_BYTES as u64, depth, seconds: setup.seconds };
    let node = Ours::prepare(setup, shape)?;
    Ok(Contest::Duel(Box::new(Boundary { node, depth, seconds: setup.seconds })))
}

impl Duel for Boundary {
    fn ours(&mut self) -> Result<f64> {
        let mut side = Calls::open(&self.node.endpoint()?, self.depth)?;
        let begun = side.begin();
        let score = begun.and_then(|()| self.score(&mut side));
        side.close();
        score
    }

    fn rival(&mut self) -> Result<f64> {
        let mut side = Direct::open(&self.node.endpoint()?, self.depth)?;
        side.begin()?;
        self.score(&mut side)
    }

    fn rival_name(&self) -> String {
        format!("client::Session, depth {}", self.depth)
    }
}

impl Boundary {
    fn score(&self, side: &mut dyn Side) -> Result<f64> {
        run(side, WARMUP)?;
        run(side, Duration::from_secs(self.seconds))
    }
}

/// Keeps its depth of reads on the way.
trait Side {
    /// Takes at least one completion in, and asks for as many reads. How many those were.
    fn turn(&mut self) -> Result<u64>;
}

/// Reads a second.
fn run(side: &mut dyn Side, limit: Duration) -> Result<f64> {
    let begin: Instant = clock::now();
    let mut done = 0u64;
    loop {
        let goal = done + STRETCH;
        while done < goal {
            done += side.turn()?;
        }
        let passed = clock::now() - begin;
        if passed >= limit {
            return Ok(done as f64 / passed.as_secs_f64());
        }
    }
}

/// Where reads begin: blocks of a file, as a seed draws them.
struct Places {
    random: SmallRng,
    blocks: u64,
}

impl Places {
    fn of(length: u64) -> Self {
        let blocks = length / BLOCK_BYTES as u64;
        Self { random: SmallRng::seed_from_u64(SEED), blocks: blocks.max(1) }
    }

    fn next(&mut self) -> u64 {
        self.random.random_range(0..self.blocks) * BLOCK_BYTES as u64
    }
}

/// By the calls of C.
struct Calls {
    ring: *mut Ring,
    file: File,
    memory: *mut u8,
    places: Places,
    depth: usize,
}

impl Calls {
    fn open(endpoint: &Endpoint, depth: usize) -> Result<Self> {
        let text = |text: String| {
            CString::new(text).map_err(|e| Kind::Invalid.error("an odd name").caused_by(e))
        };
        let (endpoint, name) = (text(endpoint.to_string())?, text(Ours::file_name())?);
        let (mut ring, mut memory) = (ptr::null_mut(), ptr::null_mut::<c_void>());
        let (mut file, mut length) = (0, 0);
        // SAFETY: both live as long as the call.
        check(unsafe { rings::forebay_open(endpoint.as_ptr(), ptr::null(), &mut ring) })?;
        // SAFETY: likewise.
        check(unsafe { files::forebay_file_open(ring, name.as_ptr(), 0, &mut file) })?;
        // SAFETY: likewise.
        check(unsafe { files::forebay_file_length(ring, file, &mut length) })?;
        let bytes = (depth * BLOCK_BYTES) as u64;
        // SAFETY: likewise.
        check(unsafe { rings::forebay_alloc(ring, bytes, &mut memory) })?;
        Ok(Self { ring, file, memory: memory.cast(), places: Places::of(length), depth })
    }

    fn begin(&mut self) -> Result<()> {
        (0..self.depth as u64).try_for_each(|slot| self.prepare(slot))?;
        // SAFETY: the memory stays until the ring is closed.
        check(unsafe { reads::forebay_submit(self.ring) })
    }

    fn prepare(&mut self, slot: u64) -> Result<()> {
        // SAFETY: the ring is open.
        let sqe = unsafe { reads::forebay_get_sqe(self.ring) };
        let at = usize::try_from(slot).unwrap_or(0) * BLOCK_BYTES;
        let into = self.memory.wrapping_add(at).cast();
        let (length, offset) = (BLOCK_BYTES as u64, self.places.next());
        // SAFETY: it was just handed out, and null is refused.
        check(unsafe { reads::forebay_prep_read(sqe, self.file, into, length, offset) })?;
        // SAFETY: it was not refused.
        unsafe { (*sqe).user_data = slot };
        Ok(())
    }

    fn close(self) {
        // SAFETY: once.
        let _ = unsafe { rings::forebay_close(self.ring) };
    }
}

impl Side for Calls {
    fn turn(&mut self) -> Result<u64> {
        let (mut cqe, mut taken) = (ptr::null(), 0);
        // SAFETY: `cqe` lives as long as the call.
        check(unsafe { reads::forebay_wait_cqe(self.ring, &mut cqe, -1) })?;
        // Those that came with it; more turns are not worth a look.
        while !cqe.is_null() && taken < self.depth as u64 {
            // SAFETY: it was just handed out.
            let Cqe { user_data: slot, result, .. } = unsafe { cqe.read() };
            check(i32::try_from(result.min(0)).unwrap_or(i32::MIN))?;
            // SAFETY: likewise.
            check(unsafe { reads::forebay_cqe_seen(self.ring, cqe) })?;
            self.prepare(slot)?;
            taken += 1;
            // SAFETY: `cqe` lives as long as the call. None is no error here.
            let _ = unsafe { reads::forebay_peek_cqe(self.ring, &mut cqe) };
        }
        // SAFETY: as in `begin`.
        check(unsafe { reads::forebay_submit(self.ring) })?;
        Ok(taken)
    }
}

fn check(result: i32) -> Result<()> {
    if result >= 0 {
        return Ok(());
    }
    Err(Kind::Io.error(format!("a call of the C interface answered {result}")))
}

/// By the session itself.
struct Direct {
    session: Session,
    handle: u64,
    places: Places,
    depth: usize,
    completed: Vec<client::Completed>,
}

impl Direct {
    fn open(endpoint: &Endpoint, depth: usize) -> Result<Self> {
        let options = Options::default();
        let mut session = endpoint.session(&options)?;
        session.submit_open(&Ours::file_name().parse()?, OpenMode::Read(Generation(0)))?;
        session.kick();
        let mut completed = Vec::new();
        while completed.is_empty() {
            session.wait(options.timeout);
            session.poll(&mut completed);
        }
        let opened = completed.pop().map(client::Completed::opened);
        let (handle, body) =
            opened.unwrap_or_else(|| Err(Kind::Disconnected.error("no answer to an OPEN")))?;
        Ok(Self { session, handle, places: Places::of(body.length), depth, completed })
    }

    fn begin(&mut self) -> Result<()> {
        let mut memory = self.session.allocate(self.depth * BLOCK_BYTES)?;
        while !memory.is_empty() {
            let block = memory.split_off(memory.len() - BLOCK_BYTES);
            self.submit(block)?;
        }
        self.session.kick();
        Ok(())
    }

    fn submit(&mut self, memory: client::Memory) -> Result<()> {
        let offset = self.places.next();
        self.session
            .submit_read(self.handle, offset, memory, 0..BLOCK_BYTES)
            .map(drop)
            .map_err(Error::from)
    }
}

impl Side for Direct {
    fn turn(&mut self) -> Result<u64> {
        let mut completed = std::mem::take(&mut self.completed);
        self.session.poll(&mut completed);
        while completed.is_empty() {
            self.session.wait(Duration::from_secs(1));
            self.session.poll(&mut completed);
        }
        let count = completed.len() as u64;
        for mut done in completed.drain(..) {
            done.result?;
            self.submit(done.memory.take().unwrap_or_default())?;
        }
        self.completed = completed;
        self.session.kick();
        Ok(count)
    }
}
