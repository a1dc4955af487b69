//! The pieces of reads that the node writes into the device by itself.

use std::ops::Range;

use extent::{Error, Kind, Result};
use gds::Path;

use super::direct::Origin;
use super::flight::Flight;
use super::under::Piece;
use crate::bugs::{self, Bug};
use crate::clock;
use crate::session::Completed;
use crate::state::State;

/// So often the connection may be another one before the rest of a read goes another way.
const MOST_PREPARATIONS: u32 = 8;

impl Flight<'_> {
    /// Finds out what the node may write into the device by itself, over the present connection.
    pub(super) fn prepare(&mut self) {
        let is_due = self.reader.direct.is_some() && self.reading.is_empty() && self.has_more();
        if !is_due {
            return;
        }
        let connection = self.connection();
        if self.prepared_on == Some(connection) {
            return;
        }
        self.prepared_on = Some(connection);
        self.preparations += 1;
        let allowed = self.allow_direct(connection);
        for index in 0..self.fetches.len() {
            let todo = self.todo(index);
            if todo.is_empty() {
                continue;
            }
            let fetch = &mut self.fetches[index];
            let origin = Origin { handle: fetch.handle.number, offset: fetch.offset };
            let aimed = match &allowed {
                Ok(()) => self.reader.aim(connection, origin, &fetch.into, &todo),
                Err(error) => Err(error.duplicate()),
            };
            if fetch.read.bytes == 0 {
                fetch.read.path =
                    if aimed.is_ok() { Path::GpuDirect } else { self.reader.ring_path };
            }
            let fetch = &mut self.fetches[index];
            (fetch.aim, fetch.detour) = match aimed {
                Ok(aim) => (Some(aim), None),
                Err(error) => {
                    tracing::debug!(%error, file = fetch.name, "read through the host's memory");
                    (None, Some(error))
                }
            };
            // What is found out over one connection is of no use over another. So often it is not begun again.
            if self.connection() != connection {
                return self.prepare();
            }
        }
    }

    fn connection(&self) -> u64 {
        self.client.lock().session.stats().connections
    }

    /// The node's writes are in no stream: what is to come before them must be done.
    fn allow_direct(&mut self, connection: u64) -> Result<()> {
        if self.preparations > MOST_PREPARATIONS {
            return Err(Kind::Disconnected.error("the connection is lost again and again"));
        }
        let direct = self.reader.direct.as_ref();
        if let Some(error) = direct.and_then(|direct| direct.obstacle(connection)) {
            return Err(error.duplicate());
        }
        let patience = self.client.options().timeout;
        if let Some(stream) = self.stream.filter(|_| !bugs::is(Bug::DirectOvertakes)) {
            stream.finish(patience)?;
        }
        while self.reader.ring.under_way() > 0 {
            let mut ended = Vec::new();
            self.reader.ring.wait(patience, &mut ended);
            if ended.is_empty() {
                return Err(self.reader.stalled());
            }
            self.on_copied(ended);
        }
        Ok(())
    }

    /// What is still to be asked for, of one fetch, in its order.
    fn todo(&self, index: usize) -> Vec<Range<usize>> {
        let fetch = &self.fetches[index];
        if fetch.error.is_some() {
            return Vec::new();
        }
        let again = self.again.iter().filter(|piece| piece.fetch == index);
        let mut todo: Vec<_> = again.map(|piece| piece.at..piece.at + piece.bytes).collect();
        todo.sort_unstable_by_key(|part| part.start);
        todo.extend(fetch.wants_more().then(|| fetch.asked..fetch.into.len()));
        todo
    }

    /// Whether the node writes a piece into the device by itself.
    pub(super) fn is_direct(&self, piece: Piece) -> bool {
        let aim = self.fetches[piece.fetch].aim.as_ref();
        aim.is_some_and(|aim| {
            aim.within.start <= piece.at && piece.at + piece.bytes <= aim.within.end
        })
    }

    /// Why a piece may not go through the ring, if it may not.
    pub(super) fn is_stuck(&self, piece: Piece) -> Option<Error> {
        if self.reader.stages() {
            return None;
        }
        let detour = self.fetches[piece.fetch].detour.as_ref().map(Error::duplicate);
        let part =
            || Kind::Unsupported.error("a page of the host's that is not all of one allocation's");
        let policy = self.reader.options.policy;
        Some(detour.unwrap_or_else(part).while_doing(format_args!("gpudirect, by {policy:?}")))
    }

    /// Whether the session took it.
    pub(super) fn ask_direct(&mut self, state: &mut State, piece: Piece) -> bool {
        let is_prepared = self.prepared_on == Some(state.session.stats().connections);
        if !is_prepared || self.direct_reading >= self.reader.ring.stats().slots {
            self.again.push_front(piece);
            return false;
        }
        let fetch = &mut self.fetches[piece.fetch];
        let into = fetch.into.part(piece.at..piece.at + piece.bytes).expect("a piece is inside");
        let memory = &fetch.aim.as_ref().expect("it goes this way").memory;
        let offset = fetch.offset + piece.at as u64;
        match state.session.submit_read_to_device(fetch.handle.number, offset, memory, &into) {
            Ok(ticket) => {
                state.expect_in(ticket, self.inbox);
                self.reading.insert(ticket, (piece, None));
                self.direct_reading += 1;
                true
            }
            Err(error) if error.kind() == Kind::Busy && clock::now() < self.patience_ends => {
                self.again.push_front(piece);
                false
            }
            Err(error) => {
                fetch.fail(error);
                false
            }
        }
    }

    /// The node says that a piece is in the device's memory, or why it is not.
    pub(super) fn on_direct(&mut self, piece: Piece, mut completed: Completed) {
        self.direct_reading -= 1;
        // Over another connection nothing has been seen to arrive yet.
        let is_believed =
            self.prepared_on == Some(self.connection()) || bugs::is(Bug::DirectUnprovenAgain);
        let fetch = &mut self.fetches[piece.fetch];
        let now = clock::now();
        match std::mem::replace(&mut completed.result, Ok(())) {
            _ if !is_believed => self.again.push_back(piece),
            Err(error) if error.kind() == Kind::Busy && now < self.patience_ends => {
                self.again.push_back(piece);
            }
            Err(error) => fetch.fail(error),
            Ok(()) => {
                self.patience_ends = now + self.client.options().timeout;
                fetch.take_in(piece, &completed, now - self.begin);
                fetch.is_direct |= completed.bytes != 0;
                if let Some(direct) = &mut self.reader.direct {
                    direct.count(completed.bytes);
                }
            }
        }
    }

    /// Sees to it that the device reads what the node wrote.
    pub(super) fn flush_direct(&mut self) {
        let is_direct = self.fetches.iter().any(|fetch| fetch.is_direct);
        if !is_direct || bugs::is(Bug::DirectUnflushed) {
            return;
        }
        if let Err(error) = self.reader.device().flush_writes() {
            for fetch in self.fetches.iter_mut().filter(|fetch| fetch.is_direct) {
                fetch.fail(error.duplicate());
            }
        }
    }
}
