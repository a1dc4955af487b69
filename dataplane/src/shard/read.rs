//! READ: from the tier, from what is just arriving, or from the silo.

use std::sync::Arc;

use dma::{Frozen, Source, Target, Window};
use extent::checksum::crc32c;
use extent::wire::{Landing, Reply, Segments, Served};
use extent::{ByteRange, Error, ExtentIndex, Kind, Result};
use nvme_tier::device::{Command, Completion, Location};
use nvme_tier::{Extent, FileGeneration, Mark, State};
use rdma::{Fabric, SessionId, Transfer};

use super::descriptor::Needs;
use super::open::gone;
use super::part::Part;
use super::recall::Damage;
use super::session::Handle;
use super::{CHUNK_BYTES, Caller, Op, Request, Shard, ZERO_BYTES};
use crate::bugs::{self, Bug};
use crate::looks::Looks;
use crate::slots::Key;

/// A READ on its way.
pub(super) struct ReadRequest {
    pub(super) caller: Caller,
    pub(super) generation: Arc<FileGeneration>,
    /// Cut at the end of the file.
    pub(super) range: ByteRange,
    pub(super) into: Segments,
    /// Bytes of the range that were started.
    cursor: u64,
    /// Parts of the range to start once more.
    pub(super) again: Vec<Part>,
    /// Operations running.
    pub(super) outstanding: u32,
    /// Whether devices may read straight into the client's memory.
    pub(super) direct: bool,
    pub(super) repairs: u8,
    pub(super) served: Served,
    landing: Landing,
    error: Option<Error>,
    /// With `payload_crc` asked for: (from, length, checksum) of the parts that left.
    parts: Option<Vec<(u64, u64, u32)>>,
    stalled: bool,
}

/// An operation of a READ. `at` counts from the start of the request's range; `held` is how
/// many bytes it has on their way, and counts against its session's share.
pub(super) enum ReadOp {
    /// A device reads whole blocks of an extent.
    Chunk {
        request: Key,
        extent: Extent,
        first_block: usize,
        part: Part,
        held: u64,
        /// Why its checksums cannot be had.
        doubt: Option<Damage>,
    },
    /// A fabric writes to the client; nobody waits for it where the reply follows it in order.
    Push { request: Option<Key>, session: SessionId, held: u64 },
    /// The mover fetches the extent.
    Recall { request: Key, within: u64, at: u64, length: u64, held: u64 },
}

/// What to start next: part of one extent.
pub(super) struct Step {
    pub(super) index: ExtentIndex,
    /// From the extent's start.
    pub(super) within: u64,
    /// From the request's start.
    pub(super) at: u64,
    /// Bytes left of the piece.
    pub(super) length: u64,
    /// What is known of it.
    pub(super) looks: Looks,
}

/// Where a chunk goes, how much node memory that keeps, and what it takes to verify it.
struct Arrival {
    into: Target,
    held: u64,
    needs: Needs,
}

impl Shard {
    pub(super) fn read(
        &mut self,
        caller: Caller,
        handle: u64,
        range: ByteRange,
        into: Segments,
        want_crc: bool,
    ) -> Result<()> {
        let Handle::Reader(generation) = self.handle(caller, handle)? else {
            return Err(Kind::Invalid.error("this handle writes: commit it before you read"));
        };
        match generation.mark() {
            Some(Mark::Quarantined) if self.node.tier.is_waiting(&generation) => {
                let devices = self.node.tier.untrusted();
                let devices: Vec<_> = devices.iter().map(|device| device.0.to_string()).collect();
                return Err(Kind::Io.error(format!(
                    "part of what was written is on a device that the node runs without (device {}): \
                     bring it back and restart the node",
                    devices.join(", ")
                )));
            }
            Some(Mark::Quarantined) => {
                return Err(Kind::Corrupt.error(
                    "this generation was written here and is damaged: it is kept, not served",
                ));
            }
            Some(Mark::Conflict | Mark::Lost) | None => {}
        }
        let range = range.intersect(ByteRange::new(0, generation.length())?);
        let fabric = self.sessions.get(&caller.session).ok_or_else(gone)?.fabric;
        let request = ReadRequest {
            caller,
            generation,
            range,
            into,
            cursor: 0,
            again: Vec::new(),
            outstanding: 0,
            direct: !want_crc && matches!(fabric, Fabric::SharedMemory | Fabric::Simulated),
            repairs: 0,
            served: Served::Nothing,
            landing: Landing::Nothing,
            error: None,
            parts: want_crc.then(Vec::new),
            stalled: false,
        };
        let key = self.requests.insert(Request::Read(request));
        self.pump_read(key);
        Ok(())
    }

    /// Starts as much as there is room for, and answers when all of it is over.
    pub(super) fn pump_read(&mut self, key: Key) {
        if let Some(Request::Read(request)) = self.requests.get_mut(key) {
            request.stalled = false;
        }
        while let Some(Request::Read(request)) = self.requests.get_mut(key) {
            let Some(step) = request.next_step() else { break };
            let generation = Arc::clone(&request.generation);
            let started = if self.is_device_full() {
                Ok(0)
            } else if let Some(extent) = step.looks.source(&generation, step.index) {
                self.read_chunk(key, &extent, &step)
            } else if generation.is_written()
                && (generation.state() == State::Dirty || bugs::is(Bug::ReleasedIsHole))
            {
                Ok(self.push_zeroes(key, &step))
            } else {
                self.recall(key, &generation, &step)
            };
            let Some(Request::Read(request)) = self.requests.get_mut(key) else { return };
            match started {
                // No buffer, or no place in a queue: whoever frees one resumes us.
                Ok(0) => {
                    if !request.stalled {
                        request.stalled = true;
                        self.stalled.push_back(key);
                    }
                    return;
                }
                Ok(bytes) => request.started(bytes),
                Err(error) => request.fail(error),
            }
        }
        self.finish_read(key);
    }

    /// Reads from the device, and returns how many bytes of the step that covers; 0 for no room.
    fn read_chunk(&mut self, key: Key, extent: &Extent, step: &Step) -> Result<u64> {
        let block = u64::from(self.node.tier.checksum_block_bytes());
        if let Some((window, length)) = self.direct_window(key, extent, step, block)? {
            let first = step.within / block;
            let Some(needs) = self.needs(extent) else { return Ok(0) };
            let into = Target::Window(window);
            let part = Part { at: step.at, length, looks: step.looks };
            self.submit_chunk(key, extent, first, part, Arrival { into, held: 0, needs });
            self.note(key, Landing::Direct);
            return Ok(length);
        }
        let first = step.within / block;
        let end = (step.within + step.length).min(first * block + CHUNK_BYTES);
        // Of memory that can be used directly, only the odd edges go through a buffer.
        let end = match self.requests.get_mut(key) {
            Some(Request::Read(request)) if request.direct => end.min((first + 1) * block),
            _ => end,
        };
        let span = usize::try_from(end.next_multiple_of(block) - first * block).expect("a chunk");
        if !self.may_hold(key, span as u64) {
            return Ok(0);
        }
        let Some(buffer) = self.pool.take(span) else { return Ok(0) };
        // Both or neither, so that nobody waits with what others could go on with.
        let Some(needs) = self.needs(extent) else { return Ok(0) };
        let arrival = Arrival { into: Target::Buffer(buffer, 0..span), held: span as u64, needs };
        let length = end - step.within;
        let part = Part { at: step.at, length, looks: step.looks };
        self.submit_chunk(key, extent, first, part, arrival);
        Ok(length)
    }

    /// The client's memory for as many whole blocks as fit, if the device may write there.
    fn direct_window(
        &mut self,
        key: Key,
        extent: &Extent,
        step: &Step,
        block: u64,
    ) -> Result<Option<(Window, u64)>> {
        let Some(Request::Read(request)) = self.requests.get_mut(key) else { return Ok(None) };
        if !request.direct || !step.within.is_multiple_of(block) {
            return Ok(None);
        }
        let wanted = step.length.min(CHUNK_BYTES);
        let Some(segment) = request.into.slice(step.at, wanted).next() else { return Ok(None) };
        let whole = u64::from(segment.length) / block * block;
        if whole == 0 {
            return Ok(None);
        }
        let Some(window) = self.transport.map(request.caller.session, segment)? else {
            request.direct = false;
            return Ok(None);
        };
        let unit = self.device.geometry(extent.at().device).block_bytes as usize;
        if !window.is_aligned(unit) {
            request.direct = false;
            return Ok(None);
        }
        Ok(Some((window.part(0..usize::try_from(whole).expect("a chunk")), whole)))
    }

    fn submit_chunk(
        &mut self,
        request: Key,
        extent: &Extent,
        first_block: u64,
        part: Part,
        arrival: Arrival,
    ) {
        let Arrival { into, held, needs } = arrival;
        let block = u64::from(self.node.tier.checksum_block_bytes());
        let from = extent.at();
        let at_device = Location { device: from.device, offset: from.offset + first_block * block };
        let op = ReadOp::Chunk {
            request,
            extent: extent.clone(),
            first_block: usize::try_from(first_block).expect("within an extent"),
            part,
            held,
            doubt: None,
        };
        self.hold(request, held);
        self.stats.hits.add(1);
        let chunk = self.submit(Op::Read(op), Command::Read { at: at_device, into });
        if let Some(Request::Read(request)) = self.requests.get_mut(request) {
            request.served = request.served.max(Served::Tier);
            request.outstanding += 1;
            if matches!(needs, Needs::Nothing) {
                return self.stats.checksum_hits.add(1);
            }
            let generation = Arc::clone(&request.generation);
            self.promise(chunk, generation, extent, needs);
        }
    }

    pub(super) fn on_chunk_read(&mut self, op: ReadOp, completion: Completion) {
        let ReadOp::Chunk { ref extent, ref doubt, .. } = op else {
            unreachable!("only chunks are read from devices")
        };
        let waits = doubt.is_none() && !extent.has_checksums();
        if completion.result.is_ok() && waits && !bugs::is(Bug::AbsentUnverified) {
            let at = extent.descriptor().0;
            return self.wait_for_descriptor(at, op, completion);
        }
        let ReadOp::Chunk { request: key, extent, first_block, part, held, doubt } = op else {
            unreachable!("as above")
        };
        let Command::Read { into, .. } = completion.command else {
            unreachable!("a read comes back as a read")
        };
        let block = self.node.tier.checksum_block_bytes() as usize;
        let blocks = first_block..first_block + into.length().div_ceil(block);
        let damage = match (completion.result, extent.checksums_of(blocks)) {
            (Err(error), _) => {
                tracing::warn!(%error, "reading an extent failed");
                Some(Damage::Device(error))
            }
            (Ok(()), None) => doubt,
            (Ok(()), Some(expected)) => {
                let holds =
                    into.first_mismatch(block, expected).is_none() || bugs::is(Bug::ReadUnverified);
                (!holds).then_some(Damage::Checksum)
            }
        };
        if let Some(damage) = damage {
            let in_doubt = matches!(damage, Damage::Descriptor(_));
            let hint_only = matches!(into, Target::Window(_)) && !in_doubt;
            drop(into);
            return self.on_damage(key, &extent, damage, hint_only, part, held);
        }
        if part.looks.second {
            self.note_second_copy(key);
        }
        let Part { at, length, .. } = part;
        match into {
            Target::Window(_) => self.end_read_op(key, held, Ok(())),
            Target::Buffer(buffer, _) => {
                let begin = self.offset_in_block(key, at, block);
                let begin = if bugs::is(Bug::BlockStartServed) { 0 } else { begin };
                let range = begin..begin + usize::try_from(length).expect("a chunk");
                self.push(key, at, Source::Buffer(buffer, range), held);
                self.end_read_op(key, 0, Ok(()));
            }
        }
    }

    /// Where in its first block a part of the request begins.
    fn offset_in_block(&mut self, key: Key, at: u64, block: usize) -> usize {
        match self.requests.get_mut(key) {
            Some(Request::Read(request)) => {
                let within = (request.range.offset() + at) % request.generation.extent_bytes();
                usize::try_from(within % block as u64).expect("within a block")
            }
            _ => 0,
        }
    }

    fn push_zeroes(&mut self, key: Key, step: &Step) -> u64 {
        let length = step.length.min(ZERO_BYTES as u64);
        // They take no buffer, but a place in every queue on their way.
        if !self.may_hold(key, length) {
            return 0;
        }
        self.hold(key, length);
        let range = 0..usize::try_from(length).expect("bounded by the zero buffer");
        self.push(key, step.at, Source::Frozen(Frozen::clone(&self.zeroes), range), length);
        if let Some(Request::Read(request)) = self.requests.get_mut(key) {
            request.served = request.served.max(Served::Tier);
        }
        length
    }

    /// Sends bytes that are verified to the client.
    pub(super) fn push(&mut self, key: Key, at: u64, from: Source, held: u64) {
        let Some(Request::Read(request)) = self.requests.get_mut(key) else { return };
        if let (Some(parts), Some(bytes)) = (&mut request.parts, from.bytes()) {
            parts.push((at, bytes.len() as u64, crc32c(bytes)));
        }
        let (caller, segments) = (request.caller, request.into);
        let waits = !self.transport.replies_follow(caller.session);
        request.outstanding += u32::from(waits);
        let landing = match self.sessions.get(&caller.session).map(|session| session.fabric) {
            Some(Fabric::SharedMemory) => Landing::Copied,
            Some(Fabric::Verbs | Fabric::Simulated) => Landing::Rdma,
            Some(Fabric::Tcp) | None => Landing::Stream,
        };
        self.note(key, landing);
        let op = ReadOp::Push { request: waits.then_some(key), session: caller.session, held };
        let token = self.transfer_token(Op::Read(op));
        let transfer = Transfer { token, tag: caller.tag, segments, at };
        self.transport.post_write(caller.session, transfer, from);
    }

    fn note(&mut self, key: Key, landing: Landing) {
        if let Some(Request::Read(request)) = self.requests.get_mut(key) {
            request.landing = request.landing.max(landing);
        }
    }

    pub(super) fn on_pushed(&mut self, op: &ReadOp, result: Result<()>) {
        let &ReadOp::Push { request, session, held } = op else {
            unreachable!("only pushes are posted as writes")
        };
        if let Some(request) = request {
            return self.end_read_op(request, held, result);
        }
        // Its request was answered, and its session ends if it failed.
        if let Some(session) = self.sessions.get_mut(&session) {
            session.held_bytes -= held;
        }
    }

    /// Whether a request's session may keep that much more node memory busy. One that takes its
    /// bytes slowly is held back here, and not those who share the node with it.
    pub(super) fn may_hold(&mut self, key: Key, bytes: u64) -> bool {
        let Some(Request::Read(request)) = self.requests.get_mut(key) else { return false };
        let share = self.node.options.session_share_bytes;
        self.sessions
            .get(&request.caller.session)
            .is_none_or(|session| session.held_bytes == 0 || session.held_bytes + bytes <= share)
    }

    pub(super) fn hold(&mut self, key: Key, bytes: u64) {
        if let Some(Request::Read(request)) = self.requests.get_mut(key)
            && let Some(session) = self.sessions.get_mut(&request.caller.session)
        {
            session.held_bytes += bytes;
        }
    }

    pub(super) fn end_read_op(&mut self, key: Key, held: u64, result: Result<()>) {
        let Some(Request::Read(request)) = self.requests.get_mut(key) else { return };
        if let Some(session) = self.sessions.get_mut(&request.caller.session) {
            session.held_bytes -= held;
        }
        request.outstanding -= 1;
        if let Err(error) = result {
            request.fail(error);
        }
        if request.again.is_empty() {
            self.finish_read(key);
        } else {
            self.pump_read(key);
        }
    }

    fn finish_read(&mut self, key: Key) {
        let Some(Request::Read(request)) = self.requests.get_mut(key) else { return };
        let running = request.outstanding != 0 && !bugs::is(Bug::ReplyBeforeData);
        if running || request.next_step().is_some() {
            return;
        }
        let Some(Request::Read(request)) = self.requests.remove(key) else { return };
        let caller = request.caller;
        self.stats.reads.add(1);
        if let Some(error) = request.error {
            return self.answer_failure(caller, &error);
        }
        self.stats.read_bytes.add(request.range.length());
        self.stats.read_ns.lock().saturating_record(self.now_ns - caller.since_ns);
        let reply = Reply {
            value: request.range.length(),
            payload_crc: request.parts.map_or(0, combine),
            served: request.served,
            landing: request.landing,
            ..Reply::success(caller.tag)
        };
        self.answer(caller, reply);
    }
}

impl ReadRequest {
    /// The next part to start; `None` when all is started, or something failed.
    fn next_step(&self) -> Option<Step> {
        if self.error.is_some() {
            return None;
        }
        let Part { at, length: left, looks } = match self.again.last() {
            Some(part) => *part,
            None => Part::new(self.cursor, self.range.length() - self.cursor),
        };
        let rest = ByteRange::new(self.range.offset() + at, left).expect("part of a range");
        let piece = rest.pieces(self.generation.extent_bytes()).next()?;
        Some(Step {
            index: piece.index,
            within: piece.within.offset(),
            at,
            length: piece.within.length(),
            looks,
        })
    }

    /// Moves on by the `bytes` that an operation covers.
    fn started(&mut self, bytes: u64) {
        match self.again.pop() {
            Some(Part { at, length, looks }) if length > bytes => {
                self.again.push(Part { at: at + bytes, length: length - bytes, looks });
            }
            Some(_) => {}
            None => self.cursor += bytes,
        }
    }

    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
        self.again.clear();
    }
}

/// The checksum of the whole from those of its parts.
pub(super) fn combine(mut parts: Vec<(u64, u64, u32)>) -> u32 {
    parts.sort_unstable_by_key(|part| part.0);
    parts.into_iter().fold(crc32c(&[]), |whole, (_, length, part)| {
        extent::checksum::combine(whole, part, length)
    })
}
