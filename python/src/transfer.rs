//! One read or write that Python asked for, in as many requests as it takes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use client::device::{Aim, Lent, Path};
use client::{Completed, Memory, Refused, Session};
use extent::{Error, Kind, Result};

use crate::chunk::{Chunk, Done, Next};
use crate::engine::Handle;
use crate::foreign::Foreign;
use crate::lock::Mutex;
use crate::onto::{Onto, Step};
use crate::pool::LARGE_BYTES;
use crate::progress::Progress;
use crate::rooms::Rooms;
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

/// Where a transfer's bytes are.
enum Place {
    /// In memory of the node's to use, from so many bytes of it on.
    Slab(Arc<Slab>, usize),
    /// In memory of this process, from and to which they are copied.
    Foreign,
    /// In memory of a GPU.
    Device(Onto),
}

/// See the module.
pub(crate) struct Transfer {
    flow: Flow,
    pub(crate) handle: Arc<Handle>,
    /// In the file.
    offset: u64,
    length: usize,
    place: Place,
    progress: Mutex<Progress>,
    settled: AtomicBool,
    /// Whether it is among those that wait for memory.
    is_queued: AtomicBool,
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
        let piece = if range.is_empty() { None } else { Some(slab.take(&range)?) };
        let place = Place::Slab(Arc::clone(slab), range.start);
        Ok(Self::new(flow, handle, offset, range.len(), place, piece, None))
    }

    /// To or from foreign memory of so many bytes.
    pub(crate) fn of_foreign(
        flow: Flow,
        handle: &Arc<Handle>,
        offset: u64,
        foreign: Foreign,
        length: usize,
    ) -> Self {
        let (place, foreign) = (Place::Foreign, Some(foreign));
        Self::new(flow, handle, offset, length, place, None, foreign)
    }

    /// Into all of a GPU's memory, whose ring there is.
    pub(crate) fn of_device(handle: &Arc<Handle>, offset: u64, onto: Onto) -> Self {
        let (length, place) = (onto.into.len(), Place::Device(onto));
        Self::new(Flow::Read, handle, offset, length, place, None, None)
    }

    fn new(
        flow: Flow,
        handle: &Arc<Handle>,
        offset: u64,
        length: usize,
        place: Place,
        piece: Option<Memory>,
        foreign: Option<Foreign>,
    ) -> Self {
        let copied = foreign.is_some() && length != 0;
        Self {
            flow,
            handle: Arc::clone(handle),
            offset,
            length,
            place,
            settled: AtomicBool::new(length == 0),
            is_queued: AtomicBool::new(false),
            progress: Mutex::new(Progress::new(piece, foreign, copied)),
        }
    }

    /// The GPU into whose memory it goes.
    pub(crate) fn ordinal(&self) -> Option<usize> {
        match &self.place {
            Place::Device(onto) => Some(onto.ordinal),
            Place::Slab(..) | Place::Foreign => None,
        }
    }

    /// Before anything of it is asked for, in the order in which Python's calls come.
    ///
    /// # Errors
    /// What a GPU's driver answers.
    pub(crate) fn begin(&self, rooms: &mut Rooms) -> Result<()> {
        match &self.place {
            Place::Device(onto) => {
                let direct = &mut self.progress.lock().direct;
                onto.begin(rooms.of(onto.ordinal), direct)
            }
            Place::Slab(..) | Place::Foreign => Ok(()),
        }
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

    /// Foreign memory is not touched any more once this returns, and no more copies to a GPU's begin.
    pub(crate) fn let_go(&self) {
        let mut progress = self.progress.lock();
        progress.foreign = None;
        progress.is_let_go = true;
    }

    /// Whether a GPU or the node may still write to a GPU's memory on behalf of this, and no stream of the caller's
    /// knows.
    pub(crate) fn is_copying(&self) -> bool {
        if self.ordinal().is_none() {
            return false;
        }
        let progress = self.progress.lock();
        let is_led = progress.is_led && self.is_settled();
        (progress.copying != 0 && !is_led) || progress.direct.in_flight != 0
    }

    /// Whether it has failed because the GPU does not go on.
    pub(crate) fn is_stalled(&self) -> bool {
        let progress = self.progress.lock();
        let is_busy = progress.error.as_ref().is_some_and(|error| error.kind() == Kind::Busy);
        self.is_settled() && progress.copying != 0 && is_busy
    }

    /// From now on it is among those that wait for memory. False if it was already.
    pub(crate) fn queue(&self) -> bool {
        !self.is_queued.swap(true, Ordering::Relaxed)
    }

    /// From now on it is not.
    pub(crate) fn unqueue(&self) {
        self.is_queued.store(false, Ordering::Relaxed);
    }

    /// From now on the end of this is told to a watch. False if it has ended.
    pub(crate) fn watch(&self, watch: &Arc<Watch>, number: u64) -> bool {
        let mut progress = self.progress.lock();
        if self.is_settled() {
            return false;
        }
        watch.begin();
        progress.watches.push((Arc::clone(watch), number));
        true
    }

    /// What to ask for next.
    pub(crate) fn next(&self, rooms: &mut Rooms) -> Next {
        let mut progress = self.progress.lock();
        let progress = &mut *progress;
        if let (Place::Slab(_, start), Some(memory)) = (&self.place, progress.piece.take()) {
            progress.in_flight += 1;
            let (start, within) = (*start, 0..memory.len());
            return Next::Chunk(Chunk { start, within, memory, ..Chunk::default() });
        }
        if !self.wants_more(progress) {
            return Next::Nothing;
        }
        let (start, left) = (progress.next, self.length - progress.next);
        let chunk = match (&self.place, &progress.foreign) {
            (Place::Device(onto), _) => {
                let staged = rooms.of(onto.ordinal);
                match onto.next(start, self.offset, staged, &mut progress.direct) {
                    Ok(Step::Chunk(chunk)) => chunk,
                    Ok(Step::Wait) => return Next::NoMemory,
                    Err(error) => {
                        progress.error = Some(error);
                        self.settle(progress, rooms);
                        return Next::Nothing;
                    }
                }
            }
            (_, Some(foreign)) => {
                if progress.in_flight >= COPIES_IN_FLIGHT {
                    return Next::Nothing;
                }
                let length = left.min(LARGE_BYTES);
                let Some(mut memory) = rooms.pool.take(length) else { return Next::NoMemory };
                if self.flow == Flow::Write {
                    foreign.copy_to(start, &mut memory.as_mut_slice()[..length]);
                }
                Chunk { start, within: 0..length, memory, ..Chunk::default() }
            }
            (_, None) => return Next::Nothing,
        };
        progress.next += chunk.within.len();
        progress.in_flight += 1;
        Next::Chunk(chunk)
    }

    /// Whether there are bytes that were never asked for, and that somebody wants.
    fn wants_more(&self, progress: &Progress) -> bool {
        match self.place {
            Place::Slab(..) => progress.piece.is_some(),
            Place::Foreign | Place::Device(_) => {
                !progress.is_let_go && progress.error.is_none() && progress.next < self.length
            }
        }
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
        let Chunk { start, within, memory, lent, is_direct, busy_since } = chunk;
        let first = match self.place {
            Place::Slab(_, first) => first,
            Place::Foreign | Place::Device(_) => 0,
        };
        let offset = self.offset + (start - first) as u64;
        let number = self.handle.number();
        let submitted = match (self.flow, self.aimed(is_direct)) {
            (Flow::Read, Some((onto, aim))) => onto
                .part(start, within.len())
                .and_then(|into| session.submit_read_to_device(number, offset, &aim.memory, &into))
                .map_err(|error| Refused { error, memory }),
            (Flow::Read, None) => session.submit_read(number, offset, memory, within.clone()),
            (Flow::Write, _) => session.submit_write(number, offset, memory, within.clone()),
        };
        let chunk = |memory| Chunk { start, within, memory, lent, is_direct, busy_since };
        match submitted {
            Ok(ticket) => Ok((ticket, chunk(Memory::default()))),
            Err(refused) => Err((refused.error, chunk(refused.memory))),
        }
    }

    /// Where the node writes by itself, if it does.
    fn aimed(&self, is_direct: bool) -> Option<(&Onto, &Aim)> {
        match &self.place {
            Place::Device(onto) if is_direct => Some((onto, onto.aim.as_ref()?)),
            Place::Device(_) | Place::Slab(..) | Place::Foreign => None,
        }
    }

    /// Whether a chunk that the node was too busy for should be sent again.
    pub(crate) fn is_wanted(&self) -> bool {
        let progress = self.progress.lock();
        let is_let_go = progress.is_let_go && !matches!(self.place, Place::Slab(..));
        progress.error.is_none() && !is_let_go
    }

    /// Takes in how a chunk ended.
    pub(crate) fn take_in(
        self: &Arc<Self>,
        chunk: Chunk,
        completed: Result<Completed>,
        rooms: &mut Rooms,
    ) {
        let mut progress = self.progress.lock();
        let progress = &mut *progress;
        progress.in_flight -= 1;
        let came = match completed.and_then(without_error) {
            Ok(completed) => {
                let done = &mut progress.done;
                done.bytes += completed.bytes;
                done.served = done.served.max(completed.served);
                done.landing = done.landing.max(completed.landing);
                done.service_us = done.service_us.max(completed.service_us);
                usize::try_from(completed.bytes).unwrap_or(usize::MAX).min(chunk.within.len())
            }
            Err(error) => {
                progress.error.get_or_insert(error);
                0
            }
        };
        let Chunk { start, within, memory, lent, is_direct, .. } = chunk;
        let within = within.start..within.start + came;
        match (&self.place, lent) {
            (Place::Slab(slab, _), _) => slab.give_back(start, memory),
            (Place::Device(onto), Some(lent)) => {
                self.pass_on(onto, start, within, (lent, memory), progress, rooms);
            }
            (Place::Device(onto), None) if is_direct => {
                rooms.of(onto.ordinal).end_direct(came);
                progress.direct.in_flight -= 1;
                if came != 0 {
                    progress.direct.has_come = true;
                    progress.done.way = progress.done.way.max(Some(Path::GpuDirect));
                }
            }
            (_, _) => {
                if let Some(foreign) = &progress.foreign
                    && self.flow == Flow::Read
                {
                    foreign.copy_from(start, &memory.as_slice()[within]);
                }
                rooms.pool.give_back(memory);
            }
        }
        self.settle(progress, rooms);
    }

    /// Hands what has come to the GPU.
    fn pass_on(
        self: &Arc<Self>,
        onto: &Onto,
        start: usize,
        within: Range<usize>,
        piece: (Lent, Memory),
        progress: &mut Progress,
        rooms: &mut Rooms,
    ) {
        let staged = rooms.of(onto.ordinal);
        if within.is_empty() || progress.error.is_some() || progress.is_let_go {
            staged.give_back(piece.0, piece.1);
            return;
        }
        let copied = onto
            .into
            .part(start..start + within.len())
            .and_then(|into| staged.copy(self, piece, within, &into));
        match copied {
            Ok(way) => {
                progress.copying += 1;
                progress.done.way = progress.done.way.max(Some(way));
            }
            Err(error) => {
                progress.error.get_or_insert(error);
            }
        }
    }

    /// A copy to the GPU has ended.
    ///
    /// # Errors
    /// What went wrong with it, if nobody can hear of that from the transfer any more.
    pub(crate) fn on_copied(&self, result: Result<()>) -> Result<()> {
        let mut progress = self.progress.lock();
        let progress = &mut *progress;
        progress.copying -= 1;
        if self.is_settled() {
            // A read that failed has told so.
            return if progress.error.is_none() { result } else { Ok(()) };
        }
        if let Err(error) = result {
            progress.error.get_or_insert(error);
        }
        if self.is_over(progress) {
            self.end(progress);
        }
        Ok(())
    }

    /// Ends it, although copies may still be under way.
    pub(crate) fn fail(&self, error: &Error, rooms: &mut Rooms) {
        let mut progress = self.progress.lock();
        let progress = &mut *progress;
        if self.is_settled() {
            return;
        }
        progress.error.get_or_insert_with(|| error.duplicate());
        if progress.in_flight == 0 {
            self.lead(progress, rooms);
            self.end(progress);
        }
    }

    fn settle(&self, progress: &mut Progress, rooms: &mut Rooms) {
        if self.wants_more(progress) || progress.in_flight != 0 {
            return;
        }
        let is_slab = matches!(self.place, Place::Slab(..));
        if progress.error.is_none() && !is_slab && progress.next < self.length {
            progress.error = Some(Kind::Disconnected.error("nobody waited for this any more"));
        }
        self.flush(progress);
        self.lead(progress, rooms);
        if self.is_over(progress) {
            self.end(progress);
        }
    }

    /// The GPU reads what the node wrote by itself, before anybody is told that it is there.
    fn flush(&self, progress: &mut Progress) {
        if let Place::Device(onto) = &self.place
            && std::mem::take(&mut progress.direct.has_come)
            && let Err(error) = onto.flush()
        {
            progress.error.get_or_insert(error);
        }
    }

    /// Whether nothing of it is left to wait for.
    fn is_over(&self, progress: &Progress) -> bool {
        let is_copied = progress.copying == 0 || progress.is_led;
        !self.wants_more(progress) && progress.in_flight == 0 && is_copied
    }

    /// What comes into the caller's stream from now on waits for the copies that there are.
    fn lead(&self, progress: &mut Progress, rooms: &mut Rooms) {
        let Place::Device(Onto { ordinal, before: Some(stream), .. }) = &self.place else { return };
        match rooms.of(*ordinal).staging.ring.lead(stream) {
            Ok(()) => progress.is_led = true,
            // Then the copies are waited for.
            Err(error) => {
                progress.error.get_or_insert(error);
            }
        }
    }

    fn end(&self, progress: &mut Progress) {
        self.settled.store(true, Ordering::Release);
        for (watch, number) in progress.watches.drain(..) {
            watch.end(number);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Nobody waited for it any more, and nothing of it was under way.
        for (watch, number) in self.progress.get_mut().watches.drain(..) {
            watch.end(number);
        }
        // No request ever had it.
        if let (Place::Slab(slab, start), Some(memory)) =
            (&self.place, self.progress.get_mut().piece.take())
        {
            slab.give_back(*start, memory);
        }
    }
}

/// What succeeded, or its error.
fn without_error(mut completed: Completed) -> Result<Completed> {
    std::mem::replace(&mut completed.result, Ok(())).map(|()| completed)
}
