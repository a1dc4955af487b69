//! COMMIT: from blocks on devices to a generation that everybody sees.

use std::sync::Arc;

use dma::{Frozen, Source};
use extent::wire::Reply;
use extent::{Kind, Result};
use nvme_tier::{Done, FileGeneration};

use super::open::{gone, open_body};
use super::session::Handle;
use super::write::Span;
use super::{Caller, Request, Shard, ZERO_BYTES};
use crate::inbox::Message;
use crate::slots::Key;

/// A COMMIT on its way.
pub(super) struct CommitRequest {
    caller: Caller,
    handle: u64,
    draft: Key,
    length: u64,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// WRITEs of the handle still run.
    Waiting,
    /// Blocks in pieces and gaps are being written.
    Sealing,
    /// The tier makes it durable.
    Committing,
}

impl Shard {
    pub(super) fn commit(&mut self, caller: Caller, handle: u64, length: u64) -> Result<()> {
        let Handle::Writer(draft) = self.handle(caller, handle)? else {
            return Err(Kind::Invalid.error("this handle reads: there is nothing to commit"));
        };
        let state = self.drafts.get_mut(draft).ok_or_else(gone)?;
        state.check()?;
        let expected = state.inner().expected_length();
        if expected != 0 && length > expected {
            return Err(Kind::Invalid
                .error(format!("a length of {length}, and OPEN announced at most {expected}")));
        }
        if length.div_ceil(state.inner().extent_bytes()) > u64::from(u32::MAX) {
            return Err(Kind::Invalid.error("a file has at most 2^32 extents"));
        }
        let request = CommitRequest { caller, handle, draft, length, phase: Phase::Waiting };
        let key = self.requests.insert(Request::Commit(request));
        state.commit = Some(key);
        self.pump_commit(key);
        Ok(())
    }

    /// Moves a draft on after something of it ended: its commit, or its removal.
    pub(super) fn settle_draft(&mut self, key: Key) {
        let Some(state) = self.drafts.get_mut(key) else { return };
        if let Some(commit) = state.commit {
            // One that waits for something else than its own writes is among the stalled.
            if state.is_quiet() && !self.stalled.contains(&commit) {
                self.pump_commit(commit);
            }
        } else if state.is_over() {
            self.drafts.remove(key);
        }
    }

    pub(super) fn pump_commit(&mut self, key: Key) {
        let Some(Request::Commit(request)) = self.requests.get_mut(key) else { return };
        let (draft, length) = (request.draft, request.length);
        let Some(state) = self.drafts.get_mut(draft) else { return };
        match request.phase {
            Phase::Waiting if state.is_quiet() => {
                if let Some(error) = state.error() {
                    let error = error.duplicate().while_doing("an earlier write failed");
                    return self.end_commit(key, Err(error));
                }
                if length < state.written_end() {
                    let error = Kind::Invalid.error(format!(
                        "a length of {length}, and {} bytes were written",
                        state.written_end()
                    ));
                    return self.end_commit(key, Err(error));
                }
                request.phase = Phase::Sealing;
                self.seal(key, draft, length);
            }
            Phase::Sealing => self.seal(key, draft, length),
            Phase::Waiting | Phase::Committing => {}
        }
    }

    /// Writes what is in pieces and what nobody wrote; once all of that is on the device, hands
    /// the draft to the tier.
    fn seal(&mut self, key: Key, draft: Key, length: u64) {
        let block = self.node.tier.checksum_block_bytes() as usize;
        while let Some(state) = self.drafts.get_mut(draft)
            && let Some((index, number)) = state.next_partial()
        {
            let Some(buffer) = self.pool.take(block) else {
                return self.stalled.push_back(key);
            };
            let Some(state) = self.drafts.get_mut(draft) else { return };
            let Some(bytes) = state.take_partial(index, number) else { return };
            self.store_block(None, draft, (index, number), &bytes, buffer);
        }
        let Some(state) = self.drafts.get_mut(draft) else { return };
        for (index, first, end) in state.gaps(length) {
            if self.is_device_full() {
                return self.stalled.push_back(key);
            }
            self.store_zeroes(draft, index, first, end);
        }
        let Some(state) = self.drafts.get_mut(draft) else { return };
        if !state.is_quiet() {
            return;
        }
        if let Some(error) = state.error() {
            let error = error.duplicate();
            return self.end_commit(key, Err(error));
        }
        let extents = state.take_extents(length);
        let inner = state.draft.take().expect("a draft is committed once");
        if let Some(Request::Commit(request)) = self.requests.get_mut(key) {
            request.phase = Phase::Committing;
        }
        let inbox = Arc::clone(&self.inbox);
        let done = Done::new(move |result| inbox.send(Message::Committed { request: key, result }));
        self.node.tier.commit(inner, length, extents, done);
    }

    fn store_zeroes(&mut self, draft: Key, index: u32, first: u32, end: u32) {
        let block = self.node.tier.checksum_block_bytes();
        let most = u32::try_from(ZERO_BYTES).expect("small") / block;
        let mut at = first;
        while at < end {
            let count = (end - at).min(most);
            let range = 0..(count * block) as usize;
            let zeroes = Frozen::clone(&self.zeroes);
            let Some(state) = self.drafts.get_mut(draft) else { return };
            let place = state.place(index, at, &zeroes.as_slice()[range.clone()]);
            let from = Source::Frozen(zeroes, range);
            let begin = u64::from(at) * u64::from(block);
            let span =
                Span { draft, index, begin, end: begin + u64::from(count) * u64::from(block) };
            self.store_blocks(None, span, &place, from);
            at += count;
        }
    }

    pub(super) fn on_committed(&mut self, key: Key, result: Result<Arc<FileGeneration>>) {
        self.end_commit(key, result);
    }

    fn end_commit(&mut self, key: Key, result: Result<Arc<FileGeneration>>) {
        let Some(Request::Commit(request)) = self.requests.remove(key) else { return };
        let (caller, draft) = (request.caller, request.draft);
        if let Some(state) = self.drafts.get_mut(draft) {
            state.commit = None;
        }
        match result {
            Ok(generation) => {
                self.stats.commits.add(1);
                let body = open_body(&self.node.tier, &generation).encode();
                self.drafts.remove(draft);
                if let Some(session) = self.sessions.get_mut(&caller.session) {
                    // The handle may have been closed meanwhile: the commit holds all the same.
                    let _ = session.replace_open(request.handle, Handle::Reader(generation));
                }
                self.answer(caller, Reply { body, ..Reply::success(caller.tag) });
            }
            Err(error) => {
                if self.drafts.get_mut(draft).is_some_and(|state| state.draft.is_none()) {
                    // The tier took it and could not keep it: there is nothing left to write.
                    self.drafts.remove(draft);
                    if let Some(session) = self.sessions.get_mut(&caller.session) {
                        let _ = session.replace(request.handle, None);
                    }
                }
                self.answer_failure(caller, &error);
                self.settle_draft(draft);
            }
        }
    }
}
