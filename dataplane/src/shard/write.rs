//! WRITE: into a generation that nobody sees yet.

use dma::{Buffer, Source, Target};
use extent::checksum::crc32c;
use extent::wire::{Landing, Reply, Segments};
use extent::{ByteRange, Error, ExtentIndex, Kind, Result};
use nvme_tier::Done;
use nvme_tier::device::{Command, Completion, Location};
use rdma::{Fabric, Transfer};

use super::draft::{Merged, Place};
use super::session::Handle;
use super::{CHUNK_BYTES, Caller, Op, Request, Shard};
use crate::bugs::{self, Bug};
use crate::inbox::Message;
use crate::slots::Key;

use std::sync::Arc;

/// A WRITE on its way.
pub(super) struct WriteRequest {
    caller: Caller,
    draft: Key,
    range: ByteRange,
    from: Segments,
    cursor: u64,
    outstanding: u32,
    payload_crc: Option<u32>,
    /// (from, length, checksum) of the parts that came.
    parts: Vec<(u64, u64, u32)>,
    error: Option<Error>,
    stalled: bool,
}

/// Part of one extent of a draft, locked against other writers.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) draft: Key,
    pub(super) index: u32,
    /// From the extent's start.
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// An operation on a draft.
pub(super) enum WriteOp {
    /// A fabric brings bytes from the client.
    Pull { request: Key, span: Span, at: u64 },
    /// A device writes blocks on behalf of a WRITE, or of a COMMIT (`None`).
    Store { request: Option<Key>, span: Span },
    /// A device reads a block that is about to be changed in part.
    Reread {
        request: Key,
        span: Span,
        block: u32,
        at: u32,
        bytes: Box<[u8]>,
        /// Whether it reads the second copy, since the first one does not hold.
        second: bool,
    },
}

impl Shard {
    pub(super) fn write(
        &mut self,
        caller: Caller,
        handle: u64,
        range: ByteRange,
        from: Segments,
        payload_crc: Option<u32>,
    ) -> Result<()> {
        let Handle::Writer(draft) = self.handle(caller, handle)? else {
            return Err(Kind::Invalid.error(
                "this handle reads, and what is committed never changes: open the file for writing",
            ));
        };
        let state = self.drafts.get_mut(draft).ok_or_else(super::open::gone)?;
        state.check()?;
        let extents = range.end().div_ceil(state.inner().extent_bytes());
        if extents > u64::from(u32::MAX) {
            return Err(Kind::Invalid.error("a file has at most 2^32 extents"));
        }
        state.writers += 1;
        let request = WriteRequest {
            caller,
            draft,
            range,
            from,
            cursor: 0,
            outstanding: 0,
            payload_crc,
            parts: Vec::new(),
            error: None,
            stalled: false,
        };
        let key = self.requests.insert(Request::Write(request));
        self.pump_write(key);
        Ok(())
    }

    /// Starts as much as there is room for, and answers when all of it is over.
    pub(super) fn pump_write(&mut self, key: Key) {
        if let Some(Request::Write(request)) = self.requests.get_mut(key) {
            request.stalled = false;
        }
        loop {
            let Some(Request::Write(request)) = self.requests.get_mut(key) else { return };
            if request.cursor == request.range.length() || request.error.is_some() {
                break;
            }
            match self.pull_next(key) {
                Ok(true) => {}
                Ok(false) => {
                    let Some(Request::Write(request)) = self.requests.get_mut(key) else { return };
                    if !request.stalled {
                        request.stalled = true;
                        self.stalled.push_back(key);
                    }
                    return;
                }
                Err(error) => {
                    let Some(Request::Write(request)) = self.requests.get_mut(key) else { return };
                    request.error.get_or_insert(error);
                    let session = request.caller.session;
                    self.transport.discard(session);
                }
            }
        }
        self.finish_write(key);
    }

    /// Asks the fabric for the next part. `false` if something must happen first.
    fn pull_next(&mut self, key: Key) -> Result<bool> {
        let Some(Request::Write(request)) = self.requests.get_mut(key) else { return Ok(false) };
        let (draft_key, caller, segments) = (request.draft, request.caller, request.from);
        let at = request.cursor;
        let rest = ByteRange::new(request.range.offset() + at, request.range.length() - at)?;
        let draft = self.drafts.get_mut(draft_key).ok_or_else(super::open::gone)?;
        if let Some(error) = draft.check().err()
            && draft.commit.is_none()
        {
            return Err(error);
        }
        let Some(piece) = rest.pieces(draft.inner().extent_bytes()).next() else {
            return Ok(true);
        };
        match draft.has_reservation(piece.index.0) {
            Some(true) => {}
            Some(false) => return Ok(false),
            None => {
                self.reserve(draft_key, piece.index)?;
                return Ok(false);
            }
        }
        let block = u64::from(self.node.tier.checksum_block_bytes());
        let begin = piece.within.offset();
        let shift = begin % block;
        let end = piece.within.end().min(begin - shift + CHUNK_BYTES);
        let size = usize::try_from(shift + end - begin).expect("a chunk");
        if self.is_device_full() {
            return Ok(false);
        }
        let Some(buffer) = self.pool.take(size) else { return Ok(false) };
        let draft = self.drafts.get_mut(draft_key).ok_or_else(super::open::gone)?;
        if !draft.lock(piece.index.0, begin, end)? {
            return Ok(false);
        }
        let span = Span { draft: draft_key, index: piece.index.0, begin, end };
        let Some(Request::Write(request)) = self.requests.get_mut(key) else { return Ok(false) };
        request.cursor += end - begin;
        request.outstanding += 1;
        let token = self.transfer_token(Op::Write(WriteOp::Pull { request: key, span, at }));
        let into = Target::Buffer(buffer, usize::try_from(shift).expect("within a block")..size);
        let transfer = Transfer { token, tag: caller.tag, segments, at };
        self.transport.post_read(caller.session, transfer, into);
        Ok(true)
    }

    fn reserve(&mut self, key: Key, index: ExtentIndex) -> Result<()> {
        let draft = self.drafts.get_mut(key).ok_or_else(super::open::gone)?;
        let room = draft.extent_room(index.0)?;
        draft.expect_reservation(index.0);
        let inbox = Arc::clone(&self.inbox);
        let done = Done::new(move |result| {
            inbox.send(Message::Reserved { draft: key, index: index.0, result });
        });
        let draft = self.drafts.get_mut(key).ok_or_else(super::open::gone)?;
        self.node.tier.reserve_draft(draft.inner(), index, room, done);
        Ok(())
    }

    pub(super) fn on_reserved(
        &mut self,
        key: Key,
        index: u32,
        result: Result<nvme_tier::Reservation>,
    ) {
        if let Some(draft) = self.drafts.get_mut(key) {
            draft.reserved(index, result);
        }
        self.settle_draft(key);
    }

    pub(super) fn on_chunk_pulled(&mut self, op: &WriteOp, into: Target, result: Result<()>) {
        let &WriteOp::Pull { request: key, span, at } = op else {
            unreachable!("only pulls are posted as reads")
        };
        let Target::Buffer(buffer, range) = into else {
            unreachable!("writes are pulled into buffers")
        };
        let result = result.and_then(|()| {
            if let Some(Request::Write(request)) = self.requests.get_mut(key)
                && request.payload_crc.is_some()
            {
                let bytes = &buffer.as_slice()[range.clone()];
                request.parts.push((at, bytes.len() as u64, crc32c(bytes)));
            }
            self.place_chunk(key, span, buffer, range.start)
        });
        if let Some(draft) = self.drafts.get_mut(span.draft) {
            draft.unlock(span.index, span.begin, span.end);
        }
        self.end_write_op(key, result);
    }

    /// Sends whole blocks to the device and keeps what is left at the edges. `shift` is where in
    /// the buffer, and so in its first block, the bytes begin.
    fn place_chunk(&mut self, key: Key, span: Span, buffer: Buffer, shift: usize) -> Result<()> {
        let block = u64::from(self.node.tier.checksum_block_bytes());
        let base = span.begin - shift as u64;
        let (whole_begin, whole_end) =
            (span.begin.next_multiple_of(block), span.end / block * block);
        let edges = if whole_begin > whole_end {
            [(span.begin, span.end), (0, 0)]
        } else {
            [(span.begin, whole_begin), (whole_end, span.end)]
        };
        let within = |offset: u64| usize::try_from(offset - base).expect("a chunk");
        for (begin, end) in edges {
            if begin < end {
                let bytes = &buffer.as_slice()[within(begin)..within(end)];
                self.place_edge(key, span, begin, bytes)?;
            }
        }
        if whole_begin < whole_end {
            let range = within(whole_begin)..within(whole_end);
            let draft = self.drafts.get_mut(span.draft).ok_or_else(super::open::gone)?;
            let first = u32::try_from(whole_begin / block).expect("within an extent");
            let place = draft.place(span.index, first, &buffer.as_slice()[range.clone()]);
            let whole = Span { begin: whole_begin, end: whole_end, ..span };
            self.store_blocks(Some(key), whole, &place, Source::Buffer(buffer, range));
        }
        Ok(())
    }

    fn place_edge(&mut self, key: Key, span: Span, begin: u64, bytes: &[u8]) -> Result<()> {
        let size = u64::from(self.node.tier.checksum_block_bytes());
        let narrow = |n: u64| u32::try_from(n).expect("within an extent");
        let (block, at) = (narrow(begin / size), narrow(begin % size));
        // Taken first: bytes that were acknowledged before must not get lost for want of a buffer.
        let size = usize::try_from(size).expect("a block");
        let buffer = self.pool.take(size).ok_or_else(no_buffer)?;
        let draft = self.drafts.get_mut(span.draft).ok_or_else(super::open::gone)?;
        match draft.merge(span.index, block, at, bytes)? {
            Merged::Kept => {}
            Merged::Whole(bytes) => {
                self.store_block(Some(key), span.draft, (span.index, block), &bytes, buffer);
            }
            Merged::OnDevice => self.reread(key, span, block, at, bytes, buffer),
        }
        Ok(())
    }

    /// Writes one block of (extent, block) from a buffer of its own.
    pub(super) fn store_block(
        &mut self,
        request: Option<Key>,
        draft: Key,
        (index, block): (u32, u32),
        bytes: &[u8],
        mut buffer: Buffer,
    ) {
        let Some(state) = self.drafts.get_mut(draft) else { return };
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        let place = state.place(index, block, bytes);
        let from = Source::Buffer(buffer, 0..bytes.len());
        let begin = u64::from(block) * bytes.len() as u64;
        let span = Span { draft, index, begin, end: begin + bytes.len() as u64 };
        self.store_blocks(request, span, &place, from);
    }

    /// Writes whole blocks to one place or to both, locked until all of that is done: a second write of
    /// the same blocks must not overtake it.
    pub(super) fn store_blocks(
        &mut self,
        request: Option<Key>,
        span: Span,
        place: &Place,
        from: Source,
    ) {
        let Some(copy) = place.copy.filter(|_| !bugs::is(Bug::CopyUnwritten)) else {
            return self.store_at(request, span, place.location, from);
        };
        let (first, second) = shared(from);
        self.store_at(request, span, place.location, first);
        self.store_at(request, span, copy, second);
    }

    fn store_at(&mut self, request: Option<Key>, span: Span, at: Location, from: Source) {
        if let Some(Request::Write(request)) = request.and_then(|key| self.requests.get_mut(key)) {
            request.outstanding += 1;
        }
        if let Some(state) = self.drafts.get_mut(span.draft) {
            state.outstanding += 1;
            state.relock(span.index, span.begin, span.end);
        }
        self.submit(Op::Write(WriteOp::Store { request, span }), Command::Write { at, from });
    }

    /// Reads a block back that is on the device already, to change part of it.
    fn reread(&mut self, key: Key, span: Span, block: u32, at: u32, bytes: &[u8], buffer: Buffer) {
        let size = self.node.tier.checksum_block_bytes() as usize;
        let Some(draft) = self.drafts.get_mut(span.draft) else { return };
        let begin = u64::from(block) * size as u64;
        let only = Span { begin, end: begin + size as u64, ..span };
        let (place, _) = draft.on_device(span.index, block);
        draft.relock(only.index, only.begin, only.end);
        draft.outstanding += 1;
        if let Some(Request::Write(request)) = self.requests.get_mut(key) {
            request.outstanding += 1;
        }
        let bytes = bytes.into();
        let op = WriteOp::Reread { request: key, span: only, block, at, bytes, second: false };
        let into = Target::Buffer(buffer, 0..size);
        self.submit(Op::Write(op), Command::Read { at: place.location, into });
    }

    pub(super) fn on_draft_io(&mut self, op: WriteOp, completion: Completion) {
        match op {
            WriteOp::Store { request, span } => {
                if let Some(draft) = self.drafts.get_mut(span.draft) {
                    draft.unlock(span.index, span.begin, span.end);
                }
                self.end_draft_io(span.draft, completion.result.as_ref().err());
                match request {
                    Some(key) => self.end_write_op(key, completion.result),
                    None => self.settle_draft(span.draft),
                }
            }
            WriteOp::Reread { request, span, block, at, bytes, second } => {
                let Command::Read { into: Target::Buffer(mut buffer, _), .. } = completion.command
                else {
                    unreachable!("a read comes back as a read")
                };
                let size = self.node.tier.checksum_block_bytes() as usize;
                let result = completion.result.and_then(|()| {
                    let draft = self.drafts.get_mut(span.draft).ok_or_else(super::open::gone)?;
                    let (_, checksum) = draft.on_device(span.index, block);
                    if crc32c(&buffer.as_slice()[..size]) != checksum {
                        return Err(Kind::Corrupt.error("a block just written reads back damaged"));
                    }
                    Ok(())
                });
                let copy = self.drafts.get_mut(span.draft);
                let copy = copy.and_then(|draft| draft.on_device(span.index, block).0.copy);
                if let (Err(error), Some(from), false) = (&result, copy, second) {
                    tracing::warn!(%error, "a block just written is read from its second copy");
                    let op = WriteOp::Reread { request, span, block, at, bytes, second: true };
                    let into = Target::Buffer(buffer, 0..size);
                    self.submit(Op::Write(op), Command::Read { at: from, into });
                    return;
                }
                let result = result.and_then(|()| {
                    let draft = self.drafts.get_mut(span.draft).ok_or_else(super::open::gone)?;
                    if bugs::is(Bug::RestOfBlockLost) {
                        buffer.as_mut_slice()[..size].fill(0);
                    }
                    let begin = at as usize;
                    buffer.as_mut_slice()[begin..begin + bytes.len()].copy_from_slice(&bytes);
                    let place = draft.place(span.index, block, &buffer.as_slice()[..size]);
                    let from = Source::Buffer(buffer, 0..size);
                    self.store_blocks(Some(request), span, &place, from);
                    Ok(())
                });
                if let Some(draft) = self.drafts.get_mut(span.draft) {
                    draft.unlock(span.index, span.begin, span.end);
                }
                self.end_draft_io(span.draft, result.as_ref().err());
                self.end_write_op(request, result);
            }
            WriteOp::Pull { .. } => unreachable!("devices do not pull"),
        }
    }

    fn end_draft_io(&mut self, draft: Key, error: Option<&Error>) {
        if let Some(state) = self.drafts.get_mut(draft) {
            state.outstanding -= 1;
            if let Some(error) = error {
                state.fail(error.duplicate());
            }
        }
    }

    fn end_write_op(&mut self, key: Key, result: Result<()>) {
        let Some(Request::Write(request)) = self.requests.get_mut(key) else { return };
        request.outstanding -= 1;
        if let Err(error) = result {
            request.error.get_or_insert(error);
        }
        self.finish_write(key);
    }

    fn finish_write(&mut self, key: Key) {
        let Some(Request::Write(request)) = self.requests.get_mut(key) else { return };
        let all_started = request.cursor == request.range.length() || request.error.is_some();
        if request.outstanding != 0 || !all_started {
            return;
        }
        let Some(Request::Write(request)) = self.requests.remove(key) else { return };
        let caller = request.caller;
        let mut error = request.error;
        if let (None, Some(expected)) = (&error, request.payload_crc)
            && super::read::combine(request.parts) != expected
        {
            error = Some(Kind::Corrupt.error(
                "the bytes that arrived do not match their checksum: write the range again",
            ));
        }
        self.stats.writes.add(1);
        if let Some(draft) = self.drafts.get_mut(request.draft) {
            draft.writers -= 1;
            if error.is_none() {
                draft.note_end(request.range.end());
            }
        }
        match error {
            Some(error) => self.answer_failure(caller, &error),
            None => {
                self.stats.written_bytes.add(request.range.length());
                let landing = match self.sessions.get(&caller.session).map(|s| s.fabric) {
                    Some(Fabric::SharedMemory) => Landing::Copied,
                    Some(Fabric::Verbs | Fabric::Simulated) => Landing::Rdma,
                    Some(Fabric::Tcp) | None => Landing::Stream,
                };
                let value = request.range.length();
                self.answer(caller, Reply { value, landing, ..Reply::success(caller.tag) });
            }
        }
        self.settle_draft(request.draft);
    }
}

/// The same bytes for two commands.
fn shared(from: Source) -> (Source, Source) {
    let (buffer, range) = match from {
        Source::Buffer(buffer, range) => (Arc::new(buffer), range),
        Source::Frozen(buffer, range) => (buffer, range),
        Source::Window(_) => unreachable!("what is stored is in the node's own memory"),
    };
    (Source::Frozen(Arc::clone(&buffer), range.clone()), Source::Frozen(buffer, range))
}

fn no_buffer() -> Error {
    Kind::Busy.error("no buffer is free for the edge of a block: write whole blocks, or again")
}
