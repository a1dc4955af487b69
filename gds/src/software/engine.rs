use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use dma::{DmaBuf, Window, page_bytes};
use extent::checksum::crc32c;
use extent::{Error, Kind, Result};

use super::CopyStep;
use super::allocated::Allocated;
use crate::api::{DevicePointer, EventHandle, Progress, StreamHandle};

/// Where addresses begin: where no process has memory.
const FIRST_ADDRESS: u64 = 0xFB00_0000_0000_0000;
const ALIGN_BYTES: u64 = 256;
/// More steps than these are not kept.
const MOST_STEPS: usize = 1 << 16;

/// Memory, streams and events of a software device.
pub(super) struct Engine {
    memory_left: u64,
    next_address: u64,
    next_handle: u64,
    seed: u64,
    pub(super) allocations: BTreeMap<u64, Allocated>,
    /// Where something was that is freed, and bytes from there on, if addresses are used again.
    hole: Option<(u64, u64)>,
    pub(super) exports: bool,
    pub(super) refuses_exports: bool,
    pub(super) flushes: u64,
    /// Pinned host memory: from where to where.
    pins: BTreeMap<usize, usize>,
    pub(super) pinned_bytes: usize,
    pub(super) peak_pinned_bytes: usize,
    pub(super) streams: BTreeMap<StreamHandle, StreamState>,
    pub(super) events: BTreeMap<EventHandle, EventState>,
    /// Copies into the device that were queued.
    pub(super) copies: u64,
    pub(super) copies_allowed: Option<u64>,
    pub(super) held: Option<u64>,
    pub(super) failing: Vec<u64>,
    pub(super) refused: Vec<u64>,
    pub(super) refuses_pins: bool,
    pub(super) is_lost: bool,
    pub(super) is_closing: bool,
    pub(super) overtaken: u64,
    pub(super) steps: Vec<CopyStep>,
}

#[derive(Default)]
pub(super) struct StreamState {
    queue: VecDeque<Op>,
    /// What went wrong and no event has told.
    error: Option<Error>,
    is_ending: bool,
}

#[derive(Default)]
pub(super) struct EventState {
    /// How often it was recorded, and how many of those marks were come past.
    recorded: u64,
    passed: u64,
    error: Option<Error>,
}

/// What a stream does, one after the other.
pub(super) enum Op {
    In { copy: u64, to: DevicePointer, from: Window, crc: u32 },
    Out { from: DevicePointer, to: Window },
    Record { event: EventHandle, mark: u64 },
    Wait { event: EventHandle, mark: u64 },
}

impl Engine {
    pub(super) fn new(memory_bytes: u64, seed: u64, exports: bool) -> Self {
        Self {
            hole: None,
            exports,
            refuses_exports: false,
            flushes: 0,
            memory_left: memory_bytes,
            next_address: FIRST_ADDRESS,
            next_handle: 1,
            seed,
            allocations: BTreeMap::new(),
            pins: BTreeMap::new(),
            pinned_bytes: 0,
            peak_pinned_bytes: 0,
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            copies: 0,
            copies_allowed: None,
            held: None,
            failing: Vec::new(),
            refused: Vec::new(),
            refuses_pins: false,
            is_lost: false,
            is_closing: false,
            overtaken: 0,
            steps: Vec::new(),
        }
    }

    pub(super) fn check_there(&self) -> Result<()> {
        if self.is_lost {
            return Err(Kind::Disconnected.error("the device is lost: start the process anew"));
        }
        Ok(())
    }

    pub(super) fn allocate(&mut self, bytes: usize) -> Result<DevicePointer> {
        let wanted = bytes as u64;
        if wanted > self.memory_left {
            return Err(Kind::NoSpace.error(format!(
                "{bytes} bytes of device memory, of which {} are left",
                self.memory_left
            )));
        }
        let made = Allocated::new(bytes, self.exports, self.handle())?;
        self.memory_left -= wanted;
        let address = match self.hole.take() {
            Some((address, bytes)) if wanted <= bytes => address,
            _ => {
                let (address, align) = (self.next_address, self.align_bytes());
                // A gap behind each, so that what runs over its end is noticed.
                self.next_address = (address + wanted + align).next_multiple_of(align);
                address
            }
        };
        self.allocations.insert(address, made);
        Ok(DevicePointer(address))
    }

    fn align_bytes(&self) -> u64 {
        if self.exports { page_bytes() as u64 } else { ALIGN_BYTES }
    }

    pub(super) fn free(&mut self, pointer: DevicePointer) -> Result<()> {
        let freed = self.allocations.remove(&pointer.0);
        let freed = freed.ok_or_else(|| Kind::Invalid.error("no such device memory"))?;
        self.memory_left += freed.bytes as u64;
        if self.exports {
            self.hole = Some((pointer.0, freed.bytes as u64));
        }
        Ok(())
    }

    pub(super) fn find(&self, pointer: DevicePointer) -> Result<Range<u64>> {
        let (base, found) = self.allocated(pointer)?;
        Ok(base..base + found.bytes as u64)
    }

    fn allocated(&self, pointer: DevicePointer) -> Result<(u64, &Allocated)> {
        let found = self.allocations.range(..=pointer.0).next_back();
        found
            .map(|(base, found)| (*base, found))
            .filter(|(base, found)| pointer.0 - base < found.bytes as u64)
            .ok_or_else(|| {
                Kind::Invalid.error(format!("{:#x} is no memory of the device", pointer.0))
            })
    }

    pub(super) fn allocation(&self, pointer: DevicePointer) -> Result<u64> {
        Ok(self.allocated(pointer)?.1.number)
    }

    pub(super) fn export(&self, from: DevicePointer, bytes: usize) -> Result<Arc<DmaBuf>> {
        let (base, found) = self.allocated(from)?;
        let file = found
            .file
            .as_ref()
            .filter(|_| !self.refuses_exports)
            .ok_or_else(|| Kind::Unsupported.error("the device exports none of this memory"))?;
        let page = page_bytes() as u64;
        let (at, length) = (from.0 - base, bytes as u64);
        let is_whole = at.is_multiple_of(page) && length.is_multiple_of(page) && bytes != 0;
        if !is_whole || at + length > found.bytes as u64 {
            return Err(Kind::Invalid.error("only whole pages of an allocation are exported"));
        }
        let file = file.try_clone().map_err(|error| Error::io("a descriptor", error))?;
        Ok(DmaBuf::new(file, at, from.0, bytes))
    }

    fn window(&self, pointer: DevicePointer, length: usize) -> Result<Window> {
        let (base, found) = self.allocated(pointer)?;
        let at = pointer.0 - base;
        if at + length as u64 > found.bytes as u64 {
            return Err(
                Kind::Invalid.error(format!("{length} bytes at {:#x} of the device", pointer.0))
            );
        }
        Window::new(Arc::clone(&found.memory), at, length)
    }

    pub(super) fn pin(&mut self, range: Range<usize>) -> Result<()> {
        if self.refuses_pins {
            return Err(Kind::Unsupported.error("the device takes no host memory"));
        }
        let before = self.pins.range(..range.end).next_back();
        if before.is_some_and(|(_, end)| *end > range.start) {
            return Err(Kind::Invalid.error("host memory that is pinned already"));
        }
        self.pinned_bytes += range.len();
        self.peak_pinned_bytes = self.peak_pinned_bytes.max(self.pinned_bytes);
        self.pins.insert(range.start, range.end);
        Ok(())
    }

    pub(super) fn unpin(&mut self, range: &Range<usize>) -> Result<()> {
        if self.pins.remove(&range.start) != Some(range.end) {
            return Err(Kind::Invalid.error("host memory that is not pinned"));
        }
        self.pinned_bytes -= range.len();
        Ok(())
    }

    pub(super) fn is_pinned(&self, range: &Range<usize>) -> bool {
        let around = self.pins.range(..=range.start).next_back();
        around.is_some_and(|(_, end)| *end >= range.end)
    }

    fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }

    pub(super) fn create_stream(&mut self) -> StreamHandle {
        let handle = StreamHandle(self.handle());
        self.streams.insert(handle, StreamState::default());
        handle
    }

    /// What is queued in it is still done.
    pub(super) fn destroy_stream(&mut self, stream: StreamHandle) -> Result<()> {
        self.stream(stream)?.is_ending = true;
        self.sweep();
        Ok(())
    }

    fn sweep(&mut self) {
        self.streams.retain(|_, stream| !stream.is_ending || !stream.queue.is_empty());
    }

    fn stream(&mut self, stream: StreamHandle) -> Result<&mut StreamState> {
        let found = self.streams.get_mut(&stream).filter(|stream| !stream.is_ending);
        found.ok_or_else(|| Kind::Invalid.error("no such stream"))
    }

    pub(super) fn create_event(&mut self) -> EventHandle {
        let handle = EventHandle(self.handle());
        self.events.insert(handle, EventState::default());
        handle
    }

    pub(super) fn queue(&mut self, stream: StreamHandle, op: Op) -> Result<()> {
        self.stream(stream)?.queue.push_back(op);
        Ok(())
    }

    pub(super) fn queue_copy(
        &mut self,
        stream: StreamHandle,
        is_pinned: bool,
        make: impl FnOnce(u64, u32) -> Op,
    ) -> Result<()> {
        let copy = self.copies;
        self.copies += 1;
        if self.refused.contains(&copy) {
            return Err(Kind::Invalid.error("the device takes no such copy"));
        }
        let mut op = make(copy, 0);
        if let Op::In { to, from, crc, .. } = &mut op {
            self.window(*to, from.length())?;
            *crc = checksum(from);
        }
        self.note(CopyStep::Queued { copy, is_pinned });
        self.queue(stream, op)
    }

    pub(super) fn record(&mut self, event: EventHandle, stream: StreamHandle) -> Result<()> {
        let state = self.event(event)?;
        state.recorded += 1;
        let mark = state.recorded;
        self.queue(stream, Op::Record { event, mark })
    }

    pub(super) fn wait(&mut self, stream: StreamHandle, event: EventHandle) -> Result<()> {
        let mark = self.event(event)?.recorded;
        self.queue(stream, Op::Wait { event, mark })
    }

    pub(super) fn query(&mut self, event: EventHandle) -> Result<Progress> {
        let state = self.event(event)?;
        if state.passed < state.recorded {
            return Ok(Progress::Pending);
        }
        state.error.take().map_or(Ok(Progress::Done), Err)
    }

    fn event(&mut self, event: EventHandle) -> Result<&mut EventState> {
        self.events.get_mut(&event).ok_or_else(|| Kind::Invalid.error("no such event"))
    }

    fn note(&mut self, step: CopyStep) {
        if self.steps.len() < MOST_STEPS {
            self.steps.push(step);
        }
    }

    /// Does the next thing of one of the streams that can go on; whether there was one.
    pub(super) fn step(&mut self) -> bool {
        if self.is_lost {
            return false;
        }
        let ready: Vec<StreamHandle> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.queue.front().is_some_and(|op| self.can_go_on(op)))
            .map(|(handle, _)| *handle)
            .collect();
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let turn = usize::try_from(self.seed >> 33).unwrap_or(0) % ready.len().max(1);
        let Some(handle) = ready.get(turn) else { return false };
        let stream = self.streams.get_mut(handle).expect("just seen");
        let op = stream.queue.pop_front().expect("just seen");
        if let Err(error) = self.carry_out(*handle, op)
            && let Some(stream) = self.streams.get_mut(handle)
        {
            stream.error = Some(error);
        }
        self.sweep();
        true
    }

    fn can_go_on(&self, op: &Op) -> bool {
        match op {
            Op::Wait { event, mark } => {
                self.events.get(event).is_none_or(|event| event.passed >= *mark)
            }
            Op::In { copy, .. } => self.copies_allowed != Some(0) && self.held != Some(*copy),
            Op::Out { .. } | Op::Record { .. } => true,
        }
    }

    fn carry_out(&mut self, stream: StreamHandle, op: Op) -> Result<()> {
        match op {
            Op::In { copy, to, from, crc } => {
                if let Some(left) = &mut self.copies_allowed {
                    *left -= 1;
                }
                self.note(CopyStep::Begun { copy });
                let outcome = self.copy_in(copy, to, &from, crc);
                self.note(CopyStep::Ended { copy });
                outcome
            }
            Op::Out { from, to } => {
                to.copy_in(&contents(&self.window(from, to.length())?));
                Ok(())
            }
            Op::Record { event, mark } => {
                let error = self.streams.get_mut(&stream).and_then(|stream| stream.error.take());
                if let Some(event) = self.events.get_mut(&event) {
                    event.passed = event.passed.max(mark);
                    event.error = error;
                }
                Ok(())
            }
            Op::Wait { .. } => Ok(()),
        }
    }

    fn copy_in(&mut self, copy: u64, to: DevicePointer, from: &Window, crc: u32) -> Result<()> {
        if self.failing.contains(&copy) {
            return Err(Kind::Io.error("the copy failed"));
        }
        if checksum(from) != crc {
            self.overtaken += 1;
        }
        self.window(to, from.length())?.copy_in(&contents(from));
        Ok(())
    }
}

fn checksum(window: &Window) -> u32 {
    crc32c(&contents(window))
}

fn contents(window: &Window) -> Vec<u8> {
    let mut bytes = vec![0; window.length()];
    window.copy_out(&mut bytes);
    bytes
}
