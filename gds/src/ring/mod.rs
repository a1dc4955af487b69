//! The staging ring.
#![allow(unsafe_code)]

mod copying;
mod ending;
mod host;
mod pinning;
mod place;
mod proof;
mod stats;

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::time::Duration;

use dma::Span;
use extent::{Error, Kind, Result};

use crate::api::Progress;
use crate::bugs::{self, Bug};
use crate::device::{Event, Pause};
use crate::{Device, DeviceSpan, Stream, clock};
use place::{Place, State};

pub use copying::{Begun, Copied, CopyId, Lent};
pub use host::HostMemory;
pub use pinning::Pinning;
pub use stats::RingStats;

/// A bounded number of pieces of host memory, each of which is free, lent out to be filled, or being
/// copied to the device. No byte is copied by the processor, and none is touched while the device may read it.
///
/// All copies are in one stream of the ring's own, and end in the order in which they were begun.
pub struct Ring<M: HostMemory> {
    device: Device,
    stream: Stream,
    pinning: Pinning,
    places: Vec<Place<M>>,
    free: VecDeque<usize>,
    /// Places whose copies are under way, in their order.
    copying: VecDeque<usize>,
    /// Marks in a caller's stream, and in the ring's for a caller's.
    before: Event,
    after: Event,
    next_copy: u64,
    /// Why the device is lost.
    lost: Option<Error>,
    stats: RingStats,
}

impl<M: HostMemory> Ring<M> {
    /// A ring of these pieces.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for none, or pieces that are not whole pages; with [`Pinning::Require`], what the
    /// device answers. The pieces are dropped.
    pub fn new(device: &Device, memory: Vec<M>, pinning: Pinning) -> Result<Self> {
        let slot_bytes = memory.iter().map(|one| one.as_ref().len()).min().unwrap_or(0);
        if slot_bytes == 0 {
            return Err(Kind::Invalid.error("a ring needs at least one piece of memory"));
        }
        let mut ring = Self {
            stream: device.stream()?,
            before: device.event()?,
            after: device.event()?,
            device: device.clone(),
            pinning,
            places: Vec::with_capacity(memory.len()),
            free: VecDeque::with_capacity(memory.len()),
            copying: VecDeque::with_capacity(memory.len()),
            next_copy: 0,
            lost: None,
            stats: RingStats { slots: memory.len(), slot_bytes, ..RingStats::default() },
        };
        for one in memory {
            let index = ring.places.len();
            let event = device.event()?;
            ring.places.push(Place { state: State::Lent, pin: None, event });
            ring.pin(index, &one)?;
            ring.places[index].state = State::Free(one);
            ring.free.push_back(index);
        }
        Ok(ring)
    }

    /// From now on memory that the device does not take is used unpinned, if it had to be pinned before.
    pub fn relax(&mut self) {
        if self.pinning == Pinning::Require {
            self.pinning = Pinning::Try;
        }
    }

    /// The device that it copies to.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it did.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        self.stats
    }

    /// Copies under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.copying.len()
    }

    /// Pieces that may be lent.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Pieces that were lost and not replaced.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.places.iter().filter(|place| matches!(place.state, State::Missing)).count()
    }

    /// Lends a piece to be filled; `None` if all are in use.
    pub fn lend(&mut self) -> Option<(Lent, M)> {
        let Some(index) = self.free.pop_front() else {
            self.stats.waits += 1;
            return None;
        };
        let State::Free(memory) = mem::replace(&mut self.places[index].state, State::Lent) else {
            unreachable!("what is listed as free is free");
        };
        let in_use = self.places.len() - self.free.len() - self.missing();
        self.stats.peak_slots = self.stats.peak_slots.max(in_use);
        Some((Lent(index), memory))
    }

    /// Takes back a piece of which nothing is to be copied.
    pub fn give_back(&mut self, Lent(index): Lent, memory: M) {
        self.places[index].state = State::Free(memory);
        // It is used next: what was just touched is in the caches.
        self.free.push_front(index);
    }

    /// A piece does not come back, because somebody may still write to it.
    pub fn lose(&mut self, Lent(index): Lent) {
        self.unpin(index);
        self.places[index].state = State::Missing;
    }

    /// Takes a piece for one that was lost.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if none is missing, or it is too short; what pinning answers.
    pub fn replace(&mut self, memory: M) -> Result<()> {
        let is_missing = |place: &Place<M>| matches!(place.state, State::Missing);
        let Some(index) = self.places.iter().position(is_missing) else {
            return Err(Kind::Invalid.error("no piece of the ring is missing"));
        };
        if memory.as_ref().len() < self.stats.slot_bytes {
            return Err(Kind::Invalid.error("too short for the ring"));
        }
        self.pin(index, &memory)?;
        self.places[index].state = State::Free(memory);
        self.free.push_back(index);
        Ok(())
    }

    /// Begins to copy `from` of a lent piece to the front of `to`, and keeps both until that has ended.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it does not fit, or is another device's; with [`Pinning::Require`], what pinning
    /// answers; what the device answers. The piece is free again then.
    pub fn copy(
        &mut self,
        lent: Lent,
        memory: M,
        from: Range<usize>,
        to: &DeviceSpan,
    ) -> Result<Begun> {
        let index = lent.0;
        let bytes = from.len();
        if let Err(error) = self.ready(index, &memory, &from, to) {
            self.give_back(lent, memory);
            return Err(error);
        }
        let to = to.part(..bytes)?;
        let whole = memory.span().expect("looked at just now");
        let start = if bugs::is(Bug::FrontOfSlice) { 0 } else { from.start };
        let source = Span { region: whole.region, offset: whole.offset + start, length: bytes };
        // SAFETY: the ring owns the memory, which nobody else then uses, until the event that is recorded
        // below is done, or for ever.
        let queued = unsafe { self.device.api.copy_in(to.pointer(), source, self.stream.handle()) };
        if let Err(error) = queued {
            self.stats.failures += 1;
            if error.kind() == Kind::Disconnected {
                self.lost = Some(error.duplicate());
                self.leak(index, memory);
                mem::forget(to);
            } else {
                self.give_back(lent, memory);
            }
            return Err(error);
        }
        let is_pinned = self.places[index].pin.is_some();
        let id = CopyId(self.next_copy);
        self.next_copy += 1;
        self.stats.copies += 1;
        self.stats.copied_bytes += bytes as u64;
        self.stats.unpinned_copies += u64::from(!is_pinned);
        if let Err(error) = self.places[index].event.record(&self.stream) {
            // Nobody will ever know when it has ended.
            self.stats.failures += 1;
            if error.kind() == Kind::Disconnected {
                self.lost = Some(error.duplicate());
            }
            self.leak(index, memory);
            mem::forget(to);
            return Err(error);
        }
        self.places[index].state = State::Copying { memory, to, id };
        self.copying.push_back(index);
        self.stats.peak_copies = self.stats.peak_copies.max(self.copying.len());
        Ok(Begun { id, is_pinned })
    }

    /// Whether a copy may begin; pins the memory if it is other memory than before.
    fn ready(
        &mut self,
        index: usize,
        memory: &M,
        from: &Range<usize>,
        to: &DeviceSpan,
    ) -> Result<()> {
        if let Some(error) = &self.lost {
            return Err(error.duplicate());
        }
        if !to.device().is(&self.device) {
            return Err(Kind::Invalid.error("the ring copies to another device"));
        }
        if from.start > from.end || from.end > memory.as_ref().len() || from.len() > to.len() {
            return Err(Kind::Invalid.error(format!(
                "{from:?} of {} bytes to {} of the device",
                memory.as_ref().len(),
                to.len()
            )));
        }
        self.pin(index, memory)
    }

    /// Appends the copies that have ended, and frees their pieces. Never blocks.
    pub fn poll(&mut self, ended: &mut Vec<Copied>) {
        while let Some(&index) = self.copying.front() {
            let outcome = match self.places[index].event.progress() {
                Ok(Progress::Pending) if !bugs::is(Bug::LentBeforeCopied) => return,
                Ok(_) => Ok(()),
                Err(error) if error.kind() == Kind::Disconnected => {
                    self.on_lost(&error, ended);
                    return;
                }
                Err(_) if bugs::is(Bug::FailureIgnored) => Ok(()),
                Err(error) => Err(error),
            };
            self.copying.pop_front();
            let state = mem::replace(&mut self.places[index].state, State::Missing);
            let State::Copying { memory, to, id } = state else {
                unreachable!("what is listed as copying is copying");
            };
            self.places[index].state = State::Free(memory);
            self.free.push_back(index);
            self.stats.failures += u64::from(outcome.is_err());
            ended.push(Copied { id, bytes: to.len(), result: outcome });
        }
    }

    /// Waits until at least one copy has ended, or `patience` has; at once if there is none.
    pub fn wait(&mut self, patience: Duration, ended: &mut Vec<Copied>) {
        let deadline = clock::now() + patience;
        let before = ended.len();
        let mut pause = Pause::new();
        loop {
            self.poll(ended);
            if ended.len() > before || self.copying.is_empty() || clock::now() >= deadline {
                return;
            }
            pause.once_more();
        }
    }

    /// Copies that begin from now on wait for what is in a caller's stream now.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is another device's; what the device answers.
    pub fn follow(&mut self, stream: &Stream) -> Result<()> {
        self.check_stream(stream)?;
        if bugs::is(Bug::StreamOverrun) {
            return Ok(());
        }
        self.before.record(stream)?;
        self.stream.wait_for(&self.before)
    }

    /// What comes into a caller's stream from now on waits for the copies that were begun until now.
    ///
    /// # Errors
    /// As [`Ring::follow`].
    pub fn lead(&mut self, stream: &Stream) -> Result<()> {
        self.check_stream(stream)?;
        if bugs::is(Bug::StreamRunsAhead) {
            return Ok(());
        }
        self.after.record(&self.stream)?;
        stream.wait_for(&self.after)
    }

    fn check_stream(&self, stream: &Stream) -> Result<()> {
        if stream.device().is(&self.device) {
            return Ok(());
        }
        Err(Kind::Invalid.error("the stream is another device's than the ring"))
    }
}
