//! One read or write that Python asked for, in as many requests as it takes.

use std::collections::VecDeque;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use client::{Completed, Memory, Session};
use extent::wire::{Landing, Served};
use extent::{Error, Kind, Result};

use crate::clock;
use crate::engine::Handle;
use crate::lock::Mutex;
use crate::pool::{LARGE_BYTES, Pool};
use crate::slab::Slab;
use crate::watch::Watch;

/// Requests at a time of a transfer that is copied.
const COPIES_IN_FLIGHT: usize = 8;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Read,
    Write,
}

/// Bytes of memory that is not the node's to use, such as a `bytearray`'s. Whoever made this keeps
/// them where they are until the transfer is over, or [`Transfer::let_go`].
pub(crate) struct Foreign(pub(crate) NonNull<u8>);

#[expect(unsafe_code, reason = "a pointer into a Python object's buffer")]
// SAFETY: it is only used by `copy_out` and `copy_in`, under the transfer's lock, while whoever
// made it keeps the bytes there.
unsafe impl Send for Foreign {}

/// See the module.
pub(crate) struct Transfer {
    flow: Flow,
    pub(crate) handle: Arc<Handle>,
    /// In the file.
    offset: u64,
    length: usize,
    /// Memory of the node's to use, and where in it the transfer begins.
    slab: Option<(Arc<Slab>, usize)>,
    begun: Instant,
    progress: Mutex<Progress>,
    settled: AtomicBool,
}

struct Progress {
    /// Pieces of the slab that no request has had yet, each with its place there.
    pieces: VecDeque<(usize, Memory)>,
    /// `None` if it is a slab, or if nobody waits any more.
    foreign: Option<Foreign>,
    /// How much of foreign memory was asked for.
    next: usize,
    in_flight: usize,
    done: Done,
    error: Option<Error>,
    watch: Option<(Arc<Watch>, u64)>,
}

/// What a transfer did, so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Done {
    pub(crate) bytes: u64,
    pub(crate) served: Served,
    pub(crate) landing: Landing,
    /// Whether this process copied the bytes.
    pub(crate) copied: bool,
    pub(crate) service_us: u32,
}

/// What one request moves.
pub(crate) struct Chunk {
    /// In the slab, or in foreign memory.
    start: usize,
    length: usize,
    pub(crate) memory: Memory,
}

/// See [`Transfer::next`].
pub(crate) enum Next {
    Chunk(Chunk),
    /// Nothing, or nothing before something has ended.
    Nothing,
    /// Memory to copy through, when some comes back.
    NoMemory,
}

impl Transfer {
    /// To or from a part of a slab.
    ///
    /// # Errors
    /// As [`Slab::take`].
    pub(crate) fn of_slab(
        flow: Flow,
        handle: &Arc<Handle>,
        offset: u64,
        slab: &Arc<Slab>,
        range: Range<usize>,
    ) -> Result<Self> {
        let pieces = slab.take(&range)?.into();
        let slab = Some((Arc::clone(slab), range.start));
        Ok(Self::new(flow, handle, offset, range.len(), slab, pieces, None))
    }

    /// To or from foreign memory of so many bytes.
    pub(crate) fn of_foreign(
        flow: Flow,
        handle: &Arc<Handle>,
        offset: u64,
        foreign: Foreign,
        length: usize,
    ) -> Self {
        Self::new(flow, handle, offset, length, None, VecDeque::new(), Some(foreign))
    }

    fn new(
        flow: Flow,
        handle: &Arc<Handle>,
        offset: u64,
        length: usize,
        slab: Option<(Arc<Slab>, usize)>,
        pieces: VecDeque<(usize, Memory)>,
        foreign: Option<Foreign>,
    ) -> Self {
        let copied = foreign.is_some() && length != 0;
        Self {
            flow,
            handle: Arc::clone(handle),
            offset,
            length,
            slab,
            begun: clock::now(),
            settled: AtomicBool::new(length == 0),
            progress: Mutex::new(Progress {
                pieces,
                foreign,
                next: 0,
                in_flight: 0,
                done: Done { copied, ..Done::default() },
                error: None,
                watch: None,
            }),
        }
    }

    /// When it was asked for.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// Whether it is over.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// What it did; `None` while it is under way.
    pub(crate) fn outcome(&self) -> Option<Result<Done>> {
        if !self.is_settled() {
            return None;
        }
        let progress = self.progress.lock();
        Some(progress.error.as_ref().map_or(Ok(progress.done), |error| Err(error.duplicate())))
    }

    /// Foreign memory is not touched any more once this returns.
    pub(crate) fn let_go(&self) {
        self.progress.lock().foreign = None;
    }

    /// From now on the end of this is told to a watch. False if it has ended.
    pub(crate) fn watch(&self, watch: &Arc<Watch>, number: u64) -> bool {
        let mut progress = self.progress.lock();
        if self.is_settled() {
            return false;
        }
        watch.begin();
        progress.watch = Some((Arc::clone(watch), number));
        true
    }

    /// What to ask for next.
    pub(crate) fn next(&self, pool: &mut Pool) -> Next {
        let mut progress = self.progress.lock();
        let progress = &mut *progress;
        if let Some((start, memory)) = progress.pieces.pop_front() {
            progress.in_flight += 1;
            return Next::Chunk(Chunk { start, length: memory.len(), memory });
        }
        let Some(foreign) = &progress.foreign else { return Next::Nothing };
        let left = self.length - progress.next;
        if left == 0 || progress.in_flight >= COPIES_IN_FLIGHT || progress.error.is_some() {
            return Next::Nothing;
        }
        let (start, length) = (progress.next, left.min(LARGE_BYTES));
        let Some(mut memory) = pool.take(length) else { return Next::NoMemory };
        if self.flow == Flow::Write {
            copy_in(foreign, start, &mut memory.as_mut_slice()[..length]);
        }
        progress.next += length;
        progress.in_flight += 1;
        Next::Chunk(Chunk { start, length, memory })
    }

    /// Submits a chunk.
    ///
    /// # Errors
    /// As [`Session::submit_read`], with the chunk.
    pub(crate) fn submit(
        &self,
        session: &mut Session,
        chunk: Chunk,
    ) -> Result<(client::Ticket, Chunk), (Error, Chunk)> {
        let Chunk { start, length, memory } = chunk;
        let first = self.slab.as_ref().map_or(0, |(_, first)| *first);
        let offset = self.offset + (start - first) as u64;
        let number = self.handle.number();
        let submitted = match self.flow {
            Flow::Read => session.submit_read(number, offset, memory, 0..length),
            Flow::Write => session.submit_write(number, offset, memory, 0..length),
        };
        match submitted {
            Ok(ticket) => Ok((ticket, Chunk { start, length, memory: Memory::default() })),
            Err(refused) => Err((refused.error, Chunk { start, length, memory: refused.memory })),
        }
    }

    /// Whether a chunk that the node was too busy for should be sent again.
    pub(crate) fn is_wanted(&self) -> bool {
        let progress = self.progress.lock();
        progress.error.is_none() && (self.slab.is_some() || progress.foreign.is_some())
    }

    /// Takes in how a chunk ended.
    pub(crate) fn take_in(&self, chunk: Chunk, completed: Result<Completed>, pool: &mut Pool) {
        let mut progress = self.progress.lock();
        let progress = &mut *progress;
        progress.in_flight -= 1;
        match completed.and_then(without_error) {
            Ok(completed) => {
                let done = &mut progress.done;
                done.bytes += completed.bytes;
                done.served = done.served.max(completed.served);
                done.landing = done.landing.max(completed.landing);
                done.service_us = done.service_us.max(completed.service_us);
                if let Some(foreign) = &progress.foreign
                    && self.flow == Flow::Read
                {
                    let length = usize::try_from(completed.bytes).unwrap_or(usize::MAX);
                    let bytes = &chunk.memory.as_slice()[..length.min(chunk.length)];
                    copy_out(bytes, foreign, chunk.start);
                }
            }
            Err(error) => progress.error = progress.error.take().or(Some(error)),
        }
        match &self.slab {
            Some((slab, _)) => {
                slab.give_back(chunk.start, chunk.memory);
                if progress.error.is_some() {
                    for (start, memory) in progress.pieces.drain(..) {
                        slab.give_back(start, memory);
                    }
                }
            }
            None => pool.give_back(chunk.memory),
        }
        self.settle(progress);
    }

    fn settle(&self, progress: &mut Progress) {
        let more = match (&self.slab, &progress.foreign) {
            (Some(_), _) => !progress.pieces.is_empty(),
            (None, Some(_)) => progress.error.is_none() && progress.next < self.length,
            (None, None) => false,
        };
        if more || progress.in_flight != 0 {
            return;
        }
        if progress.error.is_none() && self.slab.is_none() && progress.next < self.length {
            progress.error = Some(Kind::Disconnected.error("nobody waited for this any more"));
        }
        self.settled.store(true, Ordering::Release);
        if let Some((watch, number)) = progress.watch.take() {
            watch.end(number);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Pieces that no request ever had.
        if let Some((slab, _)) = &self.slab {
            for (start, memory) in self.progress.get_mut().pieces.drain(..) {
                slab.give_back(start, memory);
            }
        }
    }
}

/// What succeeded, or its error.
fn without_error(mut completed: Completed) -> Result<Completed> {
    std::mem::replace(&mut completed.result, Ok(())).map(|()| completed)
}

impl Foreign {
    #[expect(unsafe_code, reason = "foreign memory is known by its address")]
    fn at(&self, start: usize) -> *mut u8 {
        // SAFETY: chunks lie within the transfer's length, for which this was made.
        unsafe { self.0.as_ptr().add(start) }
    }
}

#[expect(unsafe_code, reason = "foreign memory is known by its address")]
fn copy_out(bytes: &[u8], foreign: &Foreign, start: usize) {
    let place = foreign.at(start);
    // SAFETY: whoever made `foreign` keeps its bytes where they are while the transfer has it, and
    // they are no memory of the pool.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
}

#[expect(unsafe_code, reason = "foreign memory is known by its address")]
fn copy_in(foreign: &Foreign, start: usize, bytes: &mut [u8]) {
    let place = foreign.at(start);
    // SAFETY: as in `copy_out`.
    unsafe { ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), bytes.len()) };
}
