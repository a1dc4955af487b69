//! How sessions end: by themselves, or because nothing is heard of them.

use extent::{Error, Kind};

use crate::SessionId;

use super::{VerbsTransport, queue};

/// Ticks before a client that says nothing is asked whether it is there, and before one is given up that
/// asked for a connection and did not take it.
const PROBE_TICKS: u32 = 3;
const ESTABLISH_TICKS: u32 = 2;
/// How often a turn's worth of completions is taken before a queue pair goes.
const DRAIN_TURNS: usize = 256;

impl VerbsTransport {
    /// Ends a session's connection. Its queue pair follows a little later, and then its transfers.
    pub(super) fn end(&mut self, id: SessionId, reason: Error) {
        let Some(mut session) = self.slots.remove(id) else { return };
        session.forget_awaited(&mut self.awaited);
        self.pairs.remove(&(session.tenant, session.pair().number()));
        self.ids.remove(&session.pair().id().number());
        session.pair().id().disconnect();
        self.dying.push((session, reason));
    }

    /// Destroys the queue pairs of connections that have ended. Completions are taken before, since some
    /// devices drop those of a queue pair that goes, and with them the receives that they tell of; and
    /// after, since others leave them, and the room that they take is given away again.
    pub(super) fn bury(&mut self) {
        self.dying_polls = 0;
        self.drain();
        let mut room = vec![0; self.tenants.len()];
        for (session, reason) in std::mem::take(&mut self.dying) {
            let tenant = session.tenant;
            room[tenant] += session.end(reason, &mut self.events);
        }
        self.drain();
        for (tenant, room) in self.tenants.iter_mut().zip(room) {
            tenant.room += room;
        }
    }

    /// Takes what has completed so far.
    fn drain(&mut self) {
        for tenant in 0..self.tenants.len() {
            for _ in 0..DRAIN_TURNS {
                if !self.look(tenant) {
                    break;
                }
            }
        }
    }

    /// Looks after those of whom nothing was heard for a while.
    pub(super) fn tick(&mut self) {
        for id in self.slots.ids() {
            let Some(session) = self.slots.find(id) else { continue };
            session.quiet_ticks += 1;
            if let Some(reason) = session.closing.take() {
                self.end(id, reason);
            } else if !session.is_established && session.quiet_ticks > ESTABLISH_TICKS {
                let late = "the client asked for a connection and did not take it";
                self.end(id, Kind::Disconnected.error(late));
            } else if session.quiet_ticks >= PROBE_TICKS && session.send.is_idle() {
                session.quiet_ticks = 0;
                session.probe();
                queue(session, &mut self.dirty);
            }
        }
    }
}
