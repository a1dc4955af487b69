//! Reads under way: pieces of them come into the ring, and leave it for the device.

use std::collections::{HashMap, VecDeque};
use std::thread;
use std::time::{Duration, Instant};

use extent::wire::{Landing, Served};
use extent::{Error, Kind, Result};
use gds::{Copied, CopyId, Lent, Path, Stream};

use super::under::{Piece, Under, head};
use super::{DeviceFetch, DeviceRead, DeviceReader, Verified};
use crate::bugs::{self, Bug};
use crate::client::{Awaited, BUSY_PAUSES};
use crate::session::{Completed, Ticket};
use crate::state::{BatchId, State};
use crate::{Client, Memory, clock};

pub(super) struct Flight<'a> {
    pub(super) reader: &'a mut DeviceReader,
    pub(super) client: Client,
    pub(super) inbox: BatchId,
    /// What the copies are handed to, so that nobody waits for them.
    pub(super) stream: Option<&'a Stream>,
    pub(super) begin: Instant,
    /// When a node that only ever says that it is busy is no longer asked.
    pub(super) patience_ends: Instant,
    pub(super) fetches: Vec<Under>,
    /// The first fetch with pieces that were never asked for.
    next: usize,
    /// Pieces that are to be asked for again: the node was too busy, or it is not known whether they are there.
    pub(super) again: VecDeque<Piece>,
    /// Into the ring, or into the device.
    pub(super) reading: HashMap<Ticket, (Piece, Option<Lent>)>,
    pub(super) direct_reading: usize,
    /// For which connection it was found out what goes into the device, and how often.
    pub(super) prepared_on: Option<u64>,
    pub(super) preparations: u32,
    copying: HashMap<CopyId, usize>,
    /// The device does not go on: copies are not waited for.
    has_stalled: bool,
    /// A piece that was lost could not be replaced.
    has_failed_to_refill: bool,
}

impl<'a> Flight<'a> {
    pub(super) fn new(
        reader: &'a mut DeviceReader,
        fetches: Vec<DeviceFetch>,
        stream: Option<&'a Stream>,
    ) -> Self {
        let client = reader.client.clone();
        let verifies = client.options().verify;
        let verified = if verifies { Verified::ByNodeAndClient } else { Verified::ByNode };
        let nothing = DeviceRead {
            bytes: 0,
            path: reader.ring_path,
            served: Served::Nothing,
            landing: Landing::Nothing,
            verified,
            to_host: Duration::ZERO,
            total: Duration::ZERO,
        };
        let under = |DeviceFetch { handle, name, offset, into }| {
            let (asked, has_ended, error, read) = (0, false, None, nothing);
            let (aim, detour, is_direct) = (None, None, false);
            Under {
                handle,
                name,
                offset,
                into,
                asked,
                has_ended,
                error,
                aim,
                detour,
                is_direct,
                read,
            }
        };
        let begin = clock::now();
        let inbox = client.lock().open_inbox();
        Self {
            inbox,
            stream,
            begin,
            patience_ends: begin + client.options().timeout,
            fetches: fetches.into_iter().map(under).collect(),
            next: 0,
            again: VecDeque::new(),
            reading: HashMap::new(),
            direct_reading: 0,
            prepared_on: None,
            preparations: 0,
            copying: HashMap::new(),
            has_stalled: false,
            has_failed_to_refill: false,
            client,
            reader,
        }
    }

    /// Does all of it. How each fetch ended, in their order.
    pub(super) fn run(mut self) -> Vec<Result<DeviceRead>> {
        loop {
            self.take_copies();
            self.prepare();
            self.refill();
            self.start();
            if !self.reading.is_empty() {
                self.await_reads();
            } else if self.has_more() {
                self.await_room();
            } else if self.awaits_copies() {
                self.await_copies();
            } else {
                break;
            }
        }
        self.flush_direct();
        let ends = std::mem::take(&mut self.fetches).into_iter();
        ends.map(|fetch| match fetch.error {
            None => Ok(fetch.read),
            Some(error) => Err(error.while_doing(format_args!(
                "reading {} at {} into device memory",
                fetch.name, fetch.offset
            ))),
        })
        .collect()
    }

    fn awaits_copies(&self) -> bool {
        let is_over = self.stream.is_some() || self.has_stalled || bugs::is(Bug::CopiesNotAwaited);
        !is_over && !self.copying.is_empty()
    }

    /// Whether something is still to be asked for.
    pub(super) fn has_more(&self) -> bool {
        !self.again.is_empty() || self.fetches[self.next..].iter().any(Under::wants_more)
    }

    /// The next piece to ask for.
    fn next_piece(&mut self) -> Option<Piece> {
        while let Some(piece) = self.again.pop_front() {
            // Also where the file has ended: it has not before this piece.
            if self.fetches[piece.fetch].error.is_none() {
                return Some(piece);
            }
        }
        while let Some(fetch) = self.fetches.get_mut(self.next) {
            if let Some((at, bytes)) = fetch.cut(self.reader.options.slot_bytes) {
                return Some(Piece { fetch: self.next, at, bytes });
            }
            self.next += 1;
        }
        None
    }

    /// Replaces pieces of the ring that were lost with a connection.
    fn refill(&mut self) {
        let is_last = self.reader.ring.available() + self.in_use() == 0;
        if self.has_failed_to_refill && !is_last {
            return;
        }
        while self.reader.ring.missing() > 0 && self.has_more() {
            let more = self.client.alloc(self.reader.options.slot_bytes);
            match more.and_then(|memory| self.reader.ring.replace(memory)) {
                Ok(()) => {}
                Err(error) if self.reader.ring.available() + self.in_use() == 0 => {
                    self.fail_all(&error);
                    return;
                }
                // The rest of the ring does, and is not kept waiting for the same refusal again,
                // unless that was of a session that is connecting.
                Err(error) => {
                    self.has_failed_to_refill = error.kind() != Kind::Busy;
                    return;
                }
            }
        }
    }

    fn in_use(&self) -> usize {
        self.reading.len() + self.reader.ring.under_way()
    }

    /// Asks the node for as many pieces as there is room for.
    fn start(&mut self) {
        let client = self.client.clone();
        let mut state = client.lock();
        while let Some(piece) = self.next_piece() {
            if self.is_direct(piece) {
                if self.ask_direct(&mut state, piece) {
                    continue;
                }
                break;
            }
            if let Some(error) = self.is_stuck(piece) {
                self.fetches[piece.fetch].fail(error);
                continue;
            }
            let Some((lent, memory)) = self.reader.ring.lend() else {
                self.again.push_front(piece);
                break;
            };
            if !self.ask(&mut state, piece, lent, memory) {
                break;
            }
        }
        state.session.kick();
    }

    /// Whether the session took it.
    fn ask(&mut self, state: &mut State, piece: Piece, lent: Lent, memory: Memory) -> bool {
        let fetch = &mut self.fetches[piece.fetch];
        let offset = fetch.offset + piece.at as u64;
        let within = head(offset)..head(offset) + piece.bytes;
        match state.session.submit_read(fetch.handle.number, offset, memory, within) {
            Ok(ticket) => {
                state.expect_in(ticket, self.inbox);
                self.reading.insert(ticket, (piece, Some(lent)));
                true
            }
            Err(refused) => {
                self.reader.ring.give_back(lent, refused.memory);
                if refused.error.kind() == Kind::Busy && clock::now() < self.patience_ends {
                    self.again.push_front(piece);
                } else {
                    fetch.fail(refused.error);
                }
                false
            }
        }
    }

    /// Waits for the node, or for room that it may be asked to fill.
    fn await_reads(&mut self) {
        let client = self.client.clone();
        let deadline = clock::after(client.options().timeout);
        let wants_room = self.has_more();
        let mut copied = Vec::new();
        let completed = client.advance(deadline, Awaited::All(self.inbox), |state| {
            let completed = state.empty_inbox(self.inbox);
            self.reader.ring.poll(&mut copied);
            let news = !completed.is_empty() || (wants_room && !copied.is_empty());
            news.then_some(completed)
        });
        self.on_copied(copied);
        completed.into_iter().for_each(|completed| self.on_read(completed));
    }

    /// A piece has come into the ring, or has not.
    fn on_read(&mut self, mut completed: Completed) {
        let (piece, lent) =
            self.reading.remove(&completed.ticket).expect("only what was asked for comes");
        let Some(lent) = lent else { return self.on_direct(piece, completed) };
        let memory = completed.memory.take().filter(|memory| !memory.is_empty());
        let is_busy = completed.result.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
        let fetch = &mut self.fetches[piece.fetch];
        match std::mem::replace(&mut completed.result, Ok(())) {
            Err(_) if is_busy && clock::now() < self.patience_ends => self.again.push_back(piece),
            Err(error) => fetch.fail(error),
            Ok(()) => {
                let now = clock::now();
                self.patience_ends = now + self.client.options().timeout;
                fetch.take_in(piece, &completed, now - self.begin);
                if let Some(memory) = memory {
                    self.pass_on(piece, lent, memory, completed.bytes);
                } else {
                    let lost = Kind::Disconnected.error("the memory of a read was lost");
                    self.fetches[piece.fetch].fail(lost);
                    self.reader.ring.lose(lent);
                }
                return;
            }
        }
        match memory {
            Some(_) if bugs::is(Bug::FailedPieceKept) => {}
            Some(memory) => self.reader.ring.give_back(lent, memory),
            None => self.reader.ring.lose(lent),
        }
    }

    /// Hands a piece that has come to the device.
    fn pass_on(&mut self, piece: Piece, lent: Lent, memory: Memory, bytes: u64) {
        let bytes = usize::try_from(bytes).expect("no more than the piece");
        let fetch = &mut self.fetches[piece.fetch];
        if bytes == 0 || fetch.error.is_some() {
            self.reader.ring.give_back(lent, memory);
            return;
        }
        let at = if bugs::is(Bug::PieceAtFront) { 0 } else { piece.at };
        let into = fetch.into.part(at..at + bytes).expect("a piece is inside");
        let from = head(fetch.offset + piece.at as u64);
        match self.reader.ring.copy(lent, memory, from..from + bytes, &into) {
            Ok(begun) => {
                self.copying.insert(begun.id, piece.fetch);
                fetch.read.total = clock::now() - self.begin;
                let way = if begun.is_pinned { Path::Staged } else { Path::Host };
                let before = fetch.read.path;
                fetch.read.path = before.max(way);
                if way == Path::Host && before != way {
                    self.reader.note_degraded();
                }
            }
            Err(error) => fetch.fail(error),
        }
    }

    fn take_copies(&mut self) {
        let mut ended = Vec::new();
        self.reader.ring.poll(&mut ended);
        self.on_copied(ended);
    }

    pub(super) fn on_copied(&mut self, ended: Vec<Copied>) {
        let now = clock::now() - self.begin;
        for copied in ended {
            let Some(fetch) = self.copying.remove(&copied.id) else {
                self.reader.take_late(std::iter::once(copied));
                continue;
            };
            let fetch = &mut self.fetches[fetch];
            match copied.result {
                Ok(()) => fetch.read.total = fetch.read.total.max(now),
                Err(error) => fetch.fail(error),
            }
        }
    }

    /// Nothing is asked of the node, because the ring is full or the node is busy.
    fn await_room(&mut self) {
        if self.reader.ring.available() > 0 {
            thread::sleep(BUSY_PAUSES.0);
        } else if self.reader.ring.under_way() > 0 {
            self.await_copies();
        } else {
            // Nothing of the ring is left.
            let error = Kind::NoSpace.error("no host memory to read through: make another reader");
            self.fail_all(&error);
        }
    }

    /// Waits for the device.
    fn await_copies(&mut self) {
        let mut ended = Vec::new();
        self.reader.ring.wait(self.client.options().timeout, &mut ended);
        if ended.is_empty() {
            self.has_stalled = true;
            let error = self.reader.stalled();
            for fetch in self.copying.values() {
                self.fetches[*fetch].fail(error.duplicate());
            }
            self.fail_all(&error);
        }
        self.on_copied(ended);
    }

    /// Nothing more is asked for.
    fn fail_all(&mut self, error: &Error) {
        for fetch in self.fetches.iter_mut().filter(|fetch| fetch.wants_more()) {
            fetch.fail(error.duplicate());
        }
        for piece in self.again.drain(..).filter(|_| !bugs::is(Bug::WaitingForgotten)) {
            self.fetches[piece.fetch].fail(error.duplicate());
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.client.lock().close_inbox(self.inbox);
    }
}
