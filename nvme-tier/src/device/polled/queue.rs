#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dma::{Region, RegionId, Span};
use extent::{Kind, Result};

use super::Controller;
use super::core::{Core, Life};
use super::doorbell::{Doorbell, Side};
use super::features::QueuePlace;
use super::memory::DmaMemory;
use super::operation::{Operation, Part, protect, prp, verify};
use super::places::{Hold, Places};
use super::rings::{CompletionRing, SubmissionRing};
use crate::clock;
use crate::device::nvme::{
    CompletionEntry, DataPointer, IdentifyNamespace, PAGE_BYTES, Protection, SubmissionEntry, io,
};
use crate::device::{Command, Completion, Geometry, Token, admit};

/// How often an NVMe command is sent again that failed for a reason that may pass.
const MOST_TRIES: u8 = 4;

/// How often a command is begun anew after a reset of its controller.
const MOST_RESTARTS: u8 = 1;

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
    /// Operations that have ended without the controller.
    ended: Vec<u16>,
    last_tick: u32,
}

/// What the hot path needs to know of the namespace.
#[derive(Clone, Copy, Debug)]
struct Namespace {
    nsid: u32,
    block_shift: u32,
    /// Of the unit that offsets and lengths are multiples of.
    block_mask: u64,
    /// Whether plain commands need nothing special.
    takes_simple: bool,
    geometry: Geometry,
    /// The most bytes of one NVMe command.
    part_bytes: u32,
    /// What one NVMe command should not cross; zero if nothing.
    boundary_bytes: u64,
    protection: Option<Protection>,
    uses_sgl: bool,
    read_only: bool,
}

/// The pair's own memory: submission entries, completion entries, then for each command id a page
/// of PRP entries and a page of protection information, if there are any.
#[derive(Debug)]
struct QueueMemory {
    memory: Arc<DmaMemory>,
    completions_at: usize,
    completion_bytes: usize,
    lists_at: usize,
    tuples_at: usize,
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
            last_tick: core.ticks(),
        };
        queue.create().inspect_err(|_| core.give_queue_id_back(id))?;
        Ok(queue)
    }

    fn create(&mut self) -> Result<()> {
        let core = &self.core;
        core.create_queues(&QueuePlace {
            id: self.id,
            submission_iova: self.memory.memory.iova(0),
            submission_entries: self.submission.entries(),
            completion_iova: self.memory.memory.iova(self.memory.completions_at),
            completion_entries: self.completion.entries(),
        })
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
            Command::Write { at, from } => self.prepare_simple(io::WRITE, at.offset, from.span()),
            Command::Flush(_) => None,
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
        operation.born = self.core.ticks();
        self.parts[usize::from(entry.cid())] = Part { operation: number, ..part };
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
        Some((entry, Part { operation: 0, tries: 0, offset: 0, length }, iova, hold))
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
        // A flush has no bytes; one stands for it, so that there is something to issue.
        operation.length = u32::try_from(command.length().max(1)).unwrap_or(u32::MAX);
        operation.issued = 0;
        operation.born = self.core.ticks();
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
            Command::Flush(_) => return Ok((0, Hold::default())),
            Command::Read { into, .. } => into.span(),
            Command::Write { from, .. } => from.span(),
        };
        // Memory addresses of data have to be multiples of four (Base 4.1.1).
        if !span.offset.is_multiple_of(4) {
            return Err(Kind::Invalid.error("memory for NVMe must begin at a multiple of 4 bytes"));
        }
        self.places.hold(&self.controller, span)
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
            let part = Part { operation: number, tries: 0, offset: operation.issued, length };
            operation.issued += length;
            operation.outstanding += 1;
            self.parts[usize::from(cid)] = part;
            self.send(cid, part);
        }
    }

    /// Writes a part's submission entry.
    #[inline]
    fn send(&mut self, cid: u16, part: Part) {
        let namespace = &self.namespace;
        let operation = &self.operations[usize::from(part.operation)];
        let (opcode, at) = match operation.command.as_ref().expect("in flight") {
            Command::Read { at, .. } => (io::READ, at),
            Command::Write { at, .. } => (io::WRITE, at),
            Command::Flush(_) => {
                self.submission.push(&SubmissionEntry::new(io::FLUSH, cid, namespace.nsid));
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
            self.look_for_late_ones(tick);
        }
    }

    #[inline]
    fn on_completion(&mut self, entry: &CompletionEntry, completions: &mut Vec<Completion>) {
        let Some(part) = self.parts.get_mut(usize::from(entry.cid)).filter(|part| !part.is_free())
        else {
            self.on_nonsense(entry);
            return;
        };
        let number = part.operation;
        let status = entry.status();
        if status.is_success() && self.namespace.protection.is_none() {
            *part = Part::FREE;
        } else if !self.settle(*entry) {
            return;
        }
        self.free_parts.push(entry.cid);
        let operation = &mut self.operations[usize::from(number)];
        operation.outstanding -= 1;
        if operation.outstanding == 0 && (operation.is_issued() || operation.failure.is_some()) {
            self.finish(number, completions);
        }
    }

    /// Deals with a part that failed or has to be checked. Whether it has ended.
    #[cold]
    fn settle(&mut self, entry: CompletionEntry) -> bool {
        let part = &mut self.parts[usize::from(entry.cid)];
        let status = entry.status();
        if status.is_worth_a_retry() && part.tries < MOST_TRIES {
            part.tries += 1;
            let part = *part;
            tracing::debug!(%status, "sending an NVMe command again");
            self.send(entry.cid, part);
            // Nobody else rings for it.
            self.kick();
            return false;
        }
        let part = mem::replace(part, Part::FREE);
        let operation = &mut self.operations[usize::from(part.operation)];
        let name = self.core.host.name();
        let result = match (&operation.command, self.namespace.protection) {
            _ if !status.is_success() => Err(status.error(operation.describe(&name))),
            (Some(Command::Read { at, into }), Some(protection)) => {
                let lba = (at.offset + u64::from(part.offset)) >> self.namespace.block_shift;
                let data = (at_offset(into.address(), part.offset), part.length as usize);
                let (tuples, _) = self.memory.tuples(entry.cid);
                // SAFETY: the part lies inside the command's memory, its tuples in one page, and it
                // has completed.
                unsafe { verify(protection, lba, data, tuples) }
                    .map_err(|error| error.while_doing(operation.describe(&name)))
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            operation.failure.get_or_insert(error);
        }
        true
    }

    /// A completion of nothing: memory may have been written that was given back already, and
    /// nothing that this controller says can be believed until it is reset.
    #[cold]
    fn on_nonsense(&mut self, entry: &CompletionEntry) {
        tracing::error!(
            name = self.core.host.name(),
            cid = entry.cid,
            queue = self.id,
            "an NVMe controller completed a command that is not in flight"
        );
        self.core.want_reset();
    }

    /// Hands an operation back.
    #[inline]
    fn finish(&mut self, number: u16, completions: &mut Vec<Completion>) {
        let operation = &mut self.operations[usize::from(number)];
        if !operation.is_issued() {
            self.waiting.retain(|waiting| *waiting != number);
        }
        self.places.let_go(&mut operation.hold);
        let command = operation.command.take().expect("in flight");
        let result = match operation.failure.take() {
            None => Ok(()),
            Some(error) => Err(error),
        };
        (operation.restarts, operation.is_aborted) = (0, false);
        completions.push(Completion { token: operation.token, command, result });
        self.free_operations.push(number);
    }

    #[cold]
    fn finish_ended(&mut self, completions: &mut Vec<Completion>) {
        while let Some(number) = self.ended.pop() {
            self.finish(number, completions);
        }
    }

    #[cold]
    fn issue_waiting(&mut self) {
        while let Some(number) = self.waiting.front().copied() {
            // One of which a part has failed issues no more, and ends with its other parts.
            let has_failed = self.operations[usize::from(number)].failure.is_some();
            if !has_failed && !self.issue(number) {
                break;
            }
            self.waiting.pop_front();
        }
        self.kick();
    }

    /// Commands that take too long are aborted, and if that does not help the controller is reset.
    #[cold]
    fn look_for_late_ones(&mut self, tick: u32) {
        let core = &self.core;
        let limit = core.options.command_ticks;
        for (cid, part) in (0..).zip(&self.parts) {
            if part.is_free() {
                continue;
            }
            let operation = &mut self.operations[usize::from(part.operation)];
            let age = tick.wrapping_sub(operation.born);
            if age > 2 * limit {
                core.want_reset();
            } else if age > limit && !operation.is_aborted {
                operation.is_aborted = true;
                core.want_abort(self.id, cid);
            }
        }
    }

    /// The controller was reset or is lost: nothing of what was in flight will complete, and no
    /// memory is touched any more.
    #[cold]
    fn follow(&mut self, completions: &mut Vec<Completion>) {
        let life = self.core.life();
        if life.is_dead() {
            self.fail_all(completions);
        } else if life.is_working() {
            self.begin_anew(completions, life);
        }
        // Else it is being reset: come again.
    }

    fn fail_all(&mut self, completions: &mut Vec<Completion>) {
        self.forget_parts();
        for number in self.busy() {
            let operation = &mut self.operations[usize::from(number)];
            let error = self.core.obituary();
            let doing = operation.describe(&self.core.host.name());
            operation.failure.get_or_insert_with(|| error.while_doing(doing));
            self.finish(number, completions);
        }
    }

    fn begin_anew(&mut self, completions: &mut Vec<Completion>, life: Life) {
        self.forget_parts();
        self.submission.clear();
        self.completion.clear();
        self.memory.memory.zero(self.memory.completions_at, self.memory.completion_bytes);
        if let Err(error) = self.create() {
            tracing::error!(%error, queue = self.id, "a queue could not be made again after a reset");
            self.core.want_reset();
            return;
        }
        self.life = life;
        let (tick, name) = (self.core.ticks(), self.core.host.name());
        for number in self.busy() {
            let operation = &mut self.operations[usize::from(number)];
            // What a flush covers may have gone with the reset: only its caller can know.
            let is_flush = matches!(operation.command, Some(Command::Flush(_)));
            if operation.failure.is_none() && !is_flush && operation.restarts < MOST_RESTARTS {
                operation.restarts += 1;
                (operation.issued, operation.born, operation.is_aborted) = (0, tick, false);
                self.waiting.push_back(number);
                continue;
            }
            let doing = operation.describe(&name);
            operation.failure.get_or_insert_with(|| {
                Kind::Io.error(format!("{doing}: the NVMe controller was reset meanwhile"))
            });
            self.finish(number, completions);
        }
        self.issue_waiting();
    }

    /// As if nothing had been issued.
    fn forget_parts(&mut self) {
        self.parts.fill(Part::FREE);
        self.free_parts.clear();
        let parts = u16::try_from(self.parts.len()).expect("command ids have 16 bits");
        self.free_parts.extend((0..parts).rev());
        self.waiting.clear();
        self.operations.iter_mut().for_each(|operation| operation.outstanding = 0);
    }

    /// Operations that wait for the controller.
    fn busy(&self) -> Vec<u16> {
        let numbers = (0..).zip(&self.operations);
        let busy = numbers.filter(|(_, operation)| operation.command.is_some());
        busy.map(|(number, _)| number).filter(|number| !self.ended.contains(number)).collect()
    }

    /// Commands submitted and not yet reported complete.
    pub(in crate::device) fn in_flight(&self) -> usize {
        self.operations.len() - self.free_operations.len()
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

impl Namespace {
    fn new(
        controller: &Controller,
        nsid: u32,
        identity: &IdentifyNamespace,
        geometry: Geometry,
        read_only: bool,
    ) -> Self {
        let core = controller.core();
        let uses_sgl = core.identity().has_sgl && core.options.sgl;
        let block = u64::from(identity.block_bytes);
        // NLB has sixteen bits; a page holds the tuples of so many blocks.
        let mut most = controller.max_transfer_bytes().min(block << 16).min(1 << 20);
        if identity.protection.is_some() {
            most = most.min(PAGE_BYTES as u64 / 8 * block);
        }
        Self {
            nsid,
            block_shift: identity.block_bytes.trailing_zeros(),
            block_mask: u64::from(geometry.block_bytes) - 1,
            takes_simple: !read_only
                && identity.protection.is_none()
                && identity.boundary_bytes == 0,
            geometry,
            part_bytes: u32::try_from((most / block * block).max(block)).expect("at most 1 MiB"),
            boundary_bytes: identity.boundary_bytes,
            protection: identity.protection,
            uses_sgl,
            read_only,
        }
    }

    /// Bytes of the next NVMe command of an operation.
    #[inline]
    fn part_length(&self, operation: &Operation) -> u32 {
        let left = operation.length - operation.issued;
        if left <= self.part_bytes && self.boundary_bytes == 0 {
            return left;
        }
        let mut length = left.min(self.part_bytes);
        if let (1.., Some(Command::Read { at, .. } | Command::Write { at, .. })) =
            (self.boundary_bytes, &operation.command)
        {
            let start = at.offset + u64::from(operation.issued);
            let to_boundary = self.boundary_bytes - start % self.boundary_bytes;
            length = length.min(u32::try_from(to_boundary).unwrap_or(u32::MAX));
        }
        length
    }
}

impl QueueMemory {
    fn new(
        controller: &Controller,
        namespace: &Namespace,
        (submissions, completions, parts): (u16, u16, u16),
    ) -> Result<Self> {
        let pages = |wanted: bool| if wanted { usize::from(parts) * PAGE_BYTES } else { 0 };
        let completions_at = (usize::from(submissions) * 64).next_multiple_of(PAGE_BYTES);
        let completion_bytes = usize::from(completions) * 16;
        let lists_at = (completions_at + completion_bytes).next_multiple_of(PAGE_BYTES);
        let tuples_at = lists_at + pages(!namespace.uses_sgl);
        let all = tuples_at + pages(namespace.protection.is_some());
        let memory = Arc::new(DmaMemory::new(&controller.core().host, all)?);
        Ok(Self { memory, completions_at, completion_bytes, lists_at, tuples_at })
    }

    #[inline]
    fn list(&self, cid: u16) -> (std::ptr::NonNull<u8>, u64) {
        let at = self.lists_at + usize::from(cid) * PAGE_BYTES;
        (self.memory.at(at, PAGE_BYTES), self.memory.iova(at))
    }

    /// Leaves the memory to the controller for good.
    fn leak(&self) {
        mem::forget(Arc::clone(&self.memory));
    }

    fn tuples(&self, cid: u16) -> (std::ptr::NonNull<u8>, u64) {
        let at = self.tuples_at + usize::from(cid) * PAGE_BYTES;
        (self.memory.at(at, PAGE_BYTES), self.memory.iova(at))
    }
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
                self.core.want_reset();
                asked = true;
            }
            if self.in_flight() > 0 {
                thread::sleep(DRAIN_PAUSE);
            }
        }
        let core = &self.core;
        let is_made = core.life() == self.life;
        let is_gone = !is_made || core.delete_queues(self.id).is_ok();
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
