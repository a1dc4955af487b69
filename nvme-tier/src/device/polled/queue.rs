#![allow(unsafe_code)]

mod completion;
mod shape;
mod trouble;

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dma::{Region, RegionId, Span};
use extent::{Kind, Result};

use self::shape::{Namespace, QueueMemory};
use super::Controller;
use super::core::Core;
use super::doorbell::{Doorbell, Side};
use super::features::QueuePlace;
use super::life::Life;
use super::operation::{Operation, Part, protect, prp};
use super::places::{Hold, Places};
use super::rings::{CompletionRing, SubmissionRing};
use crate::clock;
use crate::device::nvme::{DataPointer, IdentifyNamespace, SubmissionEntry, io};
use crate::device::{Command, Completion, Geometry, HandedOver, Token, admit};

/// A drop waits this long for what is in flight, then resets the controller.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
const DRAIN_PAUSE: Duration = Duration::from_micros(100);

/// A completion queue is longer than what is in flight, so that its doorbell is rung seldom.
const COMPLETIONS_PER_COMMAND: u32 = 4;

/// One thread's pair of queues onto one namespace.
pub(in crate::device) struct PolledQueue {
    controller: Arc<Controller>,
    core: Arc<Core>,
    namespace: Namespace,
    id: u16,
    /// Under which the queues were made.
    life: Life,
    submission: SubmissionRing,
    completion: CompletionRing,
    memory: QueueMemory,
    places: Places,
    operations: Box<[Operation]>,
    free_operations: Vec<u16>,
    parts: Box<[Part]>,
    free_parts: Vec<u16>,
    /// Operations of which something has still to be issued.
    waiting: VecDeque<u16>,
    /// Command ids to be sent again, at the next tick or when the controller asked for: what was in
    /// the way may have passed by then.
    parked: Vec<u16>,
    /// Whether the queues exist.
    is_made: bool,
    /// How often the controller had been reset when this queue last flushed.
    flushed_resets: u32,
    /// Operations that have ended without the controller.
    ended: Vec<u16>,
    last_tick: u32,
}

impl PolledQueue {
    /// A queue for at most `depth` commands in flight onto the namespace `nsid`.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if the controller has no queue left, or there is no memory; [`Kind::Io`].
    pub(in crate::device) fn new(
        controller: &Arc<Controller>,
        (nsid, identity): (u32, &IdentifyNamespace),
        geometry: Geometry,
        read_only: bool,
        depth: usize,
    ) -> Result<Self> {
        admit::check_depth(depth)?;
        let core = controller.core();
        let most = core.capabilities.most_queue_entries().min(1 << 15);
        let floor = |entries: u32| 1 << (u32::BITS - 1 - entries.leading_zeros());
        let wanted = u32::try_from(depth).unwrap_or(u32::MAX - 1).saturating_add(1);
        let submission_entries: u32 =
            wanted.checked_next_power_of_two().unwrap_or(most).min(floor(most));
        let completion_entries = (submission_entries * COMPLETIONS_PER_COMMAND).min(floor(most));
        let parts = (submission_entries - 1).min(completion_entries - 1);
        let narrow = |entries: u32| u16::try_from(entries).expect("at most 2^15");
        let (submission_entries, completion_entries, parts) =
            (narrow(submission_entries), narrow(completion_entries), narrow(parts));

        let namespace = Namespace::new(controller, nsid, identity, geometry, read_only);
        let memory = QueueMemory::new(
            controller,
            &namespace,
            (submission_entries, completion_entries, parts),
        )?;
        let id = core.take_queue_id()?;
        let doorbell =
            |side| Doorbell::new(core.registers, core.capabilities, id, side, core.shadows());
        // SAFETY: the memory is fresh and zeroed, and kept beside the rings.
        let submission = unsafe {
            let entries = memory.memory.at(0, usize::from(submission_entries) * 64).cast();
            SubmissionRing::new(entries, submission_entries, doorbell(Side::Submission))
        };
        // SAFETY: as above.
        let completion = unsafe {
            let entries = memory.memory.at(memory.completions_at, memory.completion_bytes).cast();
            CompletionRing::new(entries, completion_entries, parts, doorbell(Side::Completion))
        };
        let depth_16 = u16::try_from(depth).expect("depths are checked to be at most 4096");
        let mut queue = Self {
            controller: Arc::clone(controller),
            core: Arc::clone(core),
            namespace,
            id,
            life: core.life(),
            submission,
            completion,
            memory,
            places: Places::new(),
            operations: (0..depth).map(|_| Operation::free()).collect(),
            free_operations: (0..depth_16).rev().collect(),
            parts: vec![Part::FREE; usize::from(parts)].into(),
            free_parts: (0..parts).rev().collect(),
            waiting: VecDeque::with_capacity(depth),
            ended: Vec::with_capacity(depth),
            parked: Vec::with_capacity(usize::from(parts)),
            is_made: false,
            flushed_resets: core.life().resets(),
            last_tick: core.ticks(),
        };
        queue.create()?;
        Ok(queue)
    }

    /// Makes the queues, empty, in the controller's present life.
    fn create(&mut self) -> Result<()> {
        // The controller has no such queue: nothing of an earlier one may be found in its memory.
        self.memory.memory.zero(0, self.memory.completions_at + self.memory.completion_bytes);
        self.submission.clear();
        self.completion.clear();
        self.life = self.core.create_queues(&QueuePlace {
            id: self.id,
            submission_iova: self.memory.memory.iova(0),
            submission_entries: self.submission.entries(),
            completion_iova: self.memory.memory.iova(self.memory.completions_at),
            completion_entries: self.completion.entries(),
        })?;
        self.is_made = true;
        Ok(())
    }

    /// Queues a command; as [`Device::submit`](crate::device::Device::submit).
    #[inline]
    pub(in crate::device) fn submit(
        &mut self,
        token: Token,
        command: Command,
    ) -> Result<(), Command> {
        let Some(number) = self.free_operations.last().copied() else { return Err(command) };
        let simple = match &command {
            Command::Read { at, into } => self.prepare_simple(io::READ, at.offset, into.span()),
            Command::Write { at, from } if !self.namespace.read_only => {
                self.prepare_simple(io::WRITE, at.offset, from.span())
            }
            Command::Write { .. } | Command::Flush(_) | Command::Deallocate { .. } => None,
        };
        let Some((entry, part, iova, hold)) = simple else {
            self.submit_any(token, command);
            return Ok(());
        };
        self.free_operations.pop();
        let operation = &mut self.operations[usize::from(number)];
        operation.token = token;
        operation.command = Some(command);
        operation.hold = hold;
        operation.iova = iova;
        (operation.length, operation.issued, operation.outstanding) = (part.length, part.length, 1);
        let born = self.core.ticks();
        self.parts[usize::from(entry.cid())] = Part { operation: number, born, ..part };
        self.submission.push(&entry);
        Ok(())
    }

    /// The entry of a command that needs nothing special: whole blocks in registered memory, as
    /// many as one NVMe command takes, without protection, and with a command id to be had.
    #[inline(always)]
    fn prepare_simple(
        &mut self,
        opcode: u8,
        offset: u64,
        span: Span<'_>,
    ) -> Option<(SubmissionEntry, Part, u64, Hold)> {
        let namespace = &self.namespace;
        let (length, block_mask) = (span.length as u64, namespace.block_mask);
        let is_simple = namespace.takes_simple
            && (offset | length) & block_mask == 0
            && span.offset & 3 == 0
            && length.wrapping_sub(1) < u64::from(namespace.part_bytes)
            && offset.checked_add(length)? <= namespace.geometry.capacity_bytes
            && self.waiting.is_empty();
        if !is_simple {
            return None;
        }
        let cid = self.free_parts.last().copied()?;
        let (iova, hold) = self.places.hold_recent(span)?;
        self.free_parts.pop();
        let length = (length & 0xffff_ffff) as u32;
        let data = self.data_pointer(cid, iova, length);
        let shift = self.namespace.block_shift;
        let entry = SubmissionEntry::new(opcode, cid, self.namespace.nsid)
            .with_blocks(offset >> shift, length >> shift)
            .with_data(data);
        Some((entry, Part { length, ..Part::FREE }, iova, hold))
    }

    #[inline]
    fn data_pointer(&self, cid: u16, iova: u64, length: u32) -> DataPointer {
        if self.namespace.uses_sgl {
            return DataPointer::Sgl { address: iova, length };
        }
        let (list, list_iova) = self.memory.list(cid);
        prp(iova, length, list, list_iova)
    }

    /// Queues any command at all; there is a place for it.
    #[inline(never)]
    fn submit_any(&mut self, token: Token, command: Command) {
        let number = self.free_operations.pop().expect("seen by the caller");
        let prepared = self.prepare(&command);
        let operation = &mut self.operations[usize::from(number)];
        operation.token = token;
        // What moves no bytes has one that stands for it, so that there is something to issue.
        operation.length = u32::try_from(command.length().max(1)).unwrap_or(u32::MAX);
        operation.issued = 0;
        operation.resets = self.flushed_resets;
        operation.command = Some(command);
        match prepared {
            Ok((iova, hold)) => {
                operation.iova = iova;
                operation.hold = hold;
                if !self.waiting.is_empty() || !self.issue(number) {
                    self.waiting.push_back(number);
                }
            }
            Err(error) => {
                operation.failure = Some(error);
                self.ended.push(number);
            }
        }
    }

    /// Checks a command, and finds out where the controller sees its memory.
    fn prepare(&mut self, command: &Command) -> Result<(u64, Hold)> {
        admit::check(command, Some(self.namespace.geometry))?;
        if self.namespace.read_only && !matches!(command, Command::Read { .. }) {
            return Err(admit::read_only());
        }
        let span = match command {
            Command::Flush(_) => return self.prepare_flush().map(|()| (0, Hold::default())),
            Command::Deallocate { at, bytes } => {
                return self.prepare_deallocation(at.offset, *bytes);
            }
            Command::Read { into, .. } => into.span(),
            Command::Write { from, .. } => from.span(),
        };
        // Memory addresses of data have to be multiples of four (Base 4.1.1).
        if !span.offset.is_multiple_of(4) {
            return Err(Kind::Invalid.error("memory for NVMe must begin at a multiple of 4 bytes"));
        }
        self.places.hold(&self.controller, span)
    }

    /// The range of a deallocation, if it is read from memory.
    fn prepare_deallocation(&self, offset: u64, bytes: u64) -> Result<(u64, Hold)> {
        match self.namespace.deallocator {
            Some(deallocator) if deallocator.has_range() => {
                Places::hold_page(&self.controller, &deallocator.range(offset, bytes))
            }
            _ => Ok((0, Hold::default())),
        }
    }

    /// A reset may have cost what was in the volatile cache. Whoever flushes next has to learn of
    /// it, whether or not anything was in flight at the time.
    fn prepare_flush(&mut self) -> Result<()> {
        let resets = self.core.life().resets();
        let before = mem::replace(&mut self.flushed_resets, resets);
        if before == resets || !self.namespace.geometry.volatile_cache {
            return Ok(());
        }
        Err(Kind::Io.error(format!(
            "flushing {}: the NVMe controller was reset since the last flush, and what was written \
             before may be lost",
            self.core.host.name()
        )))
    }

    /// Issues what is left of an operation, as far as there are command ids. Whether that was all.
    #[inline]
    fn issue(&mut self, number: u16) -> bool {
        loop {
            let operation = &mut self.operations[usize::from(number)];
            if operation.is_issued() {
                return true;
            }
            let Some(cid) = self.free_parts.pop() else { return false };
            let length = self.namespace.part_length(operation);
            let part = Part { operation: number, offset: operation.issued, length, ..Part::FREE };
            operation.issued += length;
            operation.outstanding += 1;
            self.send(cid, part);
        }
    }

    /// Writes a part's submission entry.
    #[inline]
    fn send(&mut self, cid: u16, part: Part) {
        let born = self.core.ticks();
        self.parts[usize::from(cid)] = Part { born, is_aborted: false, is_parked: false, ..part };
        let namespace = &self.namespace;
        let operation = &self.operations[usize::from(part.operation)];
        let (opcode, at) = match operation.command.as_ref().expect("in flight") {
            Command::Read { at, .. } => (io::READ, at),
            Command::Write { at, .. } => (io::WRITE, at),
            Command::Flush(_) => {
                self.submission.push(&SubmissionEntry::new(io::FLUSH, cid, namespace.nsid));
                return;
            }
            Command::Deallocate { at, bytes } => {
                let deallocator = namespace.deallocator.expect("admitted only where there is one");
                let ids = (cid, namespace.nsid);
                self.submission.push(&deallocator.entry(ids, at.offset, *bytes, operation.iova));
                return;
            }
        };
        let lba = (at.offset + u64::from(part.offset)) >> namespace.block_shift;
        let iova = operation.iova + u64::from(part.offset);
        let data = self.data_pointer(cid, iova, part.length);
        let mut entry = SubmissionEntry::new(opcode, cid, namespace.nsid)
            .with_blocks(lba, part.length >> namespace.block_shift)
            .with_data(data);
        if let Some(protection) = namespace.protection {
            let (tuples, tuples_iova) = self.memory.tuples(cid);
            if let Some(Command::Write { from, .. }) = &operation.command {
                let data = (at_offset(from.address(), part.offset), part.length as usize);
                // SAFETY: the part lies inside the command's memory, and its tuples in one page.
                unsafe { protect(protection, lba, data, tuples) };
            }
            entry = entry.with_protection(protection, lba, tuples_iova);
        }
        self.submission.push(&entry);
    }

    /// Rings the doorbell for all that was queued since.
    #[inline]
    pub(in crate::device) fn kick(&mut self) {
        if self.submission.unrung() > 0 && self.core.life() == self.life {
            self.submission.ring();
        }
    }

    /// Appends what has completed since.
    #[inline]
    pub(in crate::device) fn poll(&mut self, completions: &mut Vec<Completion>) {
        if !self.ended.is_empty() {
            self.finish_ended(completions);
        }
        let core = &self.core;
        let tick = core.ticks();
        if core.life() != self.life {
            self.follow(completions);
            return;
        }
        while let Some(entry) = self.completion.next() {
            self.on_completion(&entry, completions);
        }
        self.completion.report();
        if !self.waiting.is_empty() {
            self.issue_waiting();
        }
        if tick != self.last_tick {
            self.last_tick = tick;
            self.send_parked(tick);
            self.look_for_late_ones(tick);
        }
    }

    /// Commands submitted and not yet reported complete.
    pub(in crate::device) fn in_flight(&self) -> usize {
        self.operations.len() - self.free_operations.len()
    }

    pub(in crate::device) fn handed_over(&self) -> HandedOver {
        self.submission.handed_over()
    }

    /// Maps memory for many commands to come.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] over the limit on locked memory.
    pub(in crate::device) fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        self.places.register(&self.controller, region)
    }

    /// Forgets memory mapped before, as soon as nothing is in flight on it.
    pub(in crate::device) fn unregister(&mut self, region: RegionId) {
        self.places.unregister(region);
    }
}

fn at_offset(memory: std::ptr::NonNull<u8>, offset: u32) -> std::ptr::NonNull<u8> {
    // SAFETY: parts lie inside the memory of their command.
    unsafe { memory.add(offset as usize) }
}

impl Drop for PolledQueue {
    fn drop(&mut self) {
        let begin = clock::now();
        let mut completions = Vec::new();
        let mut asked = false;
        while self.in_flight() > 0 && begin.elapsed() < 2 * DRAIN_LIMIT {
            self.kick();
            self.poll(&mut completions);
            completions.clear();
            if begin.elapsed() > DRAIN_LIMIT && !asked {
                self.core.want_reset(self.life);
                asked = true;
            }
            if self.in_flight() > 0 {
                thread::sleep(DRAIN_PAUSE);
            }
        }
        let core = &self.core;
        // Until a reset is over, nobody knows what the controller still writes to.
        let settle = || {
            while !core.life().is_working() && !core.life().is_dead() {
                thread::sleep(DRAIN_PAUSE);
            }
        };
        settle();
        let is_there = self.is_made && core.life() == self.life;
        let mut is_gone = !is_there || core.delete_queues(self.id).is_ok();
        if !is_gone {
            // Taken down by a reset in the meantime, if by nothing else.
            settle();
            is_gone = core.life() != self.life;
        }
        if self.in_flight() > 0 || !is_gone {
            let leaked = self.in_flight();
            tracing::error!(leaked, "a queue could not be taken down: its memory is given up");
            mem::forget(mem::take(&mut self.operations));
            mem::forget(mem::replace(&mut self.places, Places::new()));
            self.memory.leak();
            return;
        }
        core.give_queue_id_back(self.id);
    }
}
