//! The node's side of shared memory.

use std::os::fd::{AsFd, BorrowedFd};

use dma::{Source, Target, Window};
use extent::wire::{Reply, Segment};
use extent::{Error, Kind, Result};

use super::handshake::{ShmConnection, ShmOptions};
use super::session::Session;
use super::{copy, sys, wake};
use crate::{Event, Fabric, SessionId, Transfer, Transport};

/// Sessions that fit into the low bits of an id.
const MAX_SESSIONS: u64 = 4096;
/// Polls between two looks at epoll, which costs a system call.
const POLLS_PER_LOOK: u32 = 64;
/// Empty polls, over all sessions, that are spent on a session before it must ring: a few sessions are
/// polled for milliseconds after their last request, hundreds only for a moment.
const IDLE_POLLS: usize = 1 << 16;
const MIN_IDLE_POLLS: usize = 64;

const CONTROL: u64 = 0;
const DOORBELL: u64 = 1;

/// One shard's sessions over shared memory.
///
/// Rings of sessions in use are polled; a session that fell silent is armed, one by one, and costs
/// nothing until its client rings. Transfers are copies, made at once and reported by the next poll.
pub struct ShmTransport {
    options: ShmOptions,
    base: u64,
    /// Of the next session; ids are `base + serial × 4096 + slot`, and never come again.
    serial: u64,
    slots: Vec<Option<Box<Session>>>,
    free: Vec<usize>,
    /// Slots of sessions whose rings are polled.
    hot: Vec<usize>,
    /// Slots of sessions that were armed only for the shard's sleep.
    napping: Vec<usize>,
    /// Slots with replies to publish.
    dirty: Vec<usize>,
    /// What happened since the last poll.
    events: Vec<Event>,
    epoll: sys::Epoll,
    polls: u32,
}

impl ShmTransport {
    /// A transport without sessions, whose sessions are numbered from `session_base`
    /// (see [`SessionId::base`]).
    ///
    /// # Errors
    /// [`Kind::Io`] if the node is out of descriptors.
    pub fn new(session_base: u64, options: ShmOptions) -> Result<Self> {
        Ok(Self {
            options,
            base: session_base,
            serial: 0,
            slots: Vec::new(),
            free: Vec::new(),
            hot: Vec::new(),
            napping: Vec::new(),
            dirty: Vec::new(),
            events: Vec::new(),
            epoll: sys::Epoll::new()?,
            polls: 0,
        })
    }

    /// Takes a client over; the next poll reports it [`Event::Opened`].
    ///
    /// # Errors
    /// [`Kind::Busy`] if there are too many sessions; [`Kind::Io`] if it cannot be watched. It is
    /// hung up on then.
    pub fn adopt(&mut self, mut connection: ShmConnection) -> Result<SessionId> {
        let most = self.options.max_sessions.min(usize::try_from(MAX_SESSIONS).unwrap_or(0));
        let peer = std::mem::take(&mut connection.peer);
        let refused = (self.sessions() >= most).then(|| {
            Kind::Busy.error(format!("this node serves {most} local sessions already: try later"))
        });
        let slot = self.free.last().copied().unwrap_or(self.slots.len());
        let id = SessionId(self.base + self.serial * MAX_SESSIONS + slot as u64);
        let mut session = Box::new(Session::new(id, connection, &self.options));
        let data = (id.0 - self.base) << 1;
        let watched = refused.map_or(Ok(()), Err).and_then(|()| {
            self.epoll.add(session.socket(), data | CONTROL, false)?;
            let rings = self.epoll.add(session.doorbell(), data | DOORBELL, true);
            rings.inspect_err(|_| self.epoll.remove(session.socket()))
        });
        if let Err(error) = watched {
            session.say_closed(&error);
            return Err(error);
        }
        self.serial += 1;
        if self.free.pop().is_none() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(session);
        self.hot.push(slot);
        self.events.push(Event::Opened { session: id, fabric: Fabric::SharedMemory, peer });
        Ok(id)
    }

    fn slot_of(&self, id: SessionId) -> Option<usize> {
        let slot = usize::try_from(id.0.checked_sub(self.base)? % MAX_SESSIONS).ok()?;
        let session = self.slots.get(slot)?.as_ref()?;
        (session.id == id).then_some(slot)
    }

    fn session(&self, id: SessionId) -> Result<&Session> {
        let session = self.slot_of(id).and_then(|slot| self.slots[slot].as_deref());
        session.ok_or_else(|| Kind::Disconnected.error("the client is gone"))
    }

    /// Ends a session, whoever wanted it.
    fn end(&mut self, slot: usize, reason: Error) {
        let Some(mut session) = self.slots[slot].take() else {
            return;
        };
        session.publish();
        session.say_closed(&reason);
        // The client holds the same doorbell, so that closing ours would leave it watched.
        self.epoll.remove(session.doorbell());
        self.epoll.remove(session.socket());
        if session.hot {
            self.hot.retain(|&hot| hot != slot);
        }
        self.free.push(slot);
        let unmapped = session.regions.drain().map(|r| Event::Unmapped { region: r.id() });
        self.events.extend(unmapped);
        self.events.push(Event::Closed { session: session.id, reason });
    }

    /// Looks at control sockets and doorbells.
    fn look(&mut self) {
        let mut ready = [0; sys::EVENTS];
        let count = self.epoll.ready(&mut ready);
        for data in &ready[..count] {
            // An earlier event of this round may have ended the session.
            let Some(slot) = self.slot_of(SessionId(self.base + (data >> 1))) else {
                continue;
            };
            let Some(session) = self.slots[slot].as_deref_mut() else {
                continue;
            };
            if data & 1 == DOORBELL {
                session.warm();
                if !session.hot {
                    session.hot = true;
                    self.hot.push(slot);
                }
            } else if let Err(reason) = session.on_control(&mut self.events) {
                self.end(slot, reason);
            }
        }
    }

    /// Takes requests from every ring in use.
    fn walk(&mut self, events: &mut Vec<Event>) {
        let patience = (IDLE_POLLS / self.hot.len().max(1)).max(MIN_IDLE_POLLS);
        let mut at = 0;
        while let Some(&slot) = self.hot.get(at) {
            let Some(session) = self.slots[slot].as_deref_mut() else {
                self.hot.swap_remove(at);
                continue;
            };
            let asleep = match session.take_requests(events) {
                Ok(0) => {
                    session.idle_polls += 1;
                    if session.idle_polls as usize > patience { session.cool() } else { Ok(false) }
                }
                Ok(_) => {
                    session.idle_polls = 0;
                    Ok(false)
                }
                Err(reason) => Err(reason),
            };
            match asleep {
                Ok(false) => at += 1,
                Ok(true) => {
                    session.hot = false;
                    self.hot.swap_remove(at);
                }
                Err(reason) => self.end(slot, reason),
            }
        }
    }
}

impl Transport for ShmTransport {
    fn poll(&mut self, events: &mut Vec<Event>) {
        if self.polls.is_multiple_of(POLLS_PER_LOOK) && self.sessions() != 0 {
            self.look();
        }
        self.polls = self.polls.wrapping_add(1);
        events.append(&mut self.events);
        self.walk(events);
        events.append(&mut self.events);
    }

    fn map(&self, session: SessionId, segment: Segment) -> Result<Option<Window>> {
        self.session(session)?.regions.window(segment).map(Some)
    }

    fn post_write(&mut self, session: SessionId, transfer: Transfer, from: Source) {
        let result =
            self.session(session).and_then(|s| copy::into_client(&s.regions, &transfer, &from));
        self.events.push(Event::Written { session, token: transfer.token, from, result });
    }

    fn post_read(&mut self, session: SessionId, transfer: Transfer, mut into: Target) {
        let result =
            self.session(session).and_then(|s| copy::from_client(&s.regions, &transfer, &mut into));
        self.events.push(Event::Read { session, token: transfer.token, into, result });
    }

    fn discard(&mut self, _session: SessionId) {
        // Nothing follows a capsule here.
    }

    fn post_reply(&mut self, session: SessionId, reply: &Reply) {
        let Some(slot) = self.slot_of(session) else {
            return;
        };
        let Some(session) = self.slots[slot].as_deref_mut() else {
            return;
        };
        let was_dirty = session.dirty;
        match session.reply(reply) {
            Ok(()) if was_dirty => {}
            Ok(()) => self.dirty.push(slot),
            Err(reason) => {
                tracing::error!(%reason, "a session is closed");
                self.end(slot, reason);
            }
        }
    }

    fn kick(&mut self) {
        if self.dirty.is_empty() {
            return;
        }
        // A slot may stand here for a session that ended: its successor is not dirty, or stands
        // here itself.
        for &slot in &self.dirty {
            if let Some(session) = self.slots[slot].as_deref_mut() {
                session.publish();
            }
        }
        wake::published();
        while let Some(slot) = self.dirty.pop() {
            if let Some(session) = self.slots[slot].as_deref_mut().filter(|session| session.dirty) {
                session.wake_client();
            }
        }
    }

    fn close(&mut self, session: SessionId, reason: Error) {
        if let Some(slot) = self.slot_of(session) {
            self.end(slot, reason);
        }
    }

    fn sessions(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn arm(&mut self) -> bool {
        self.kick();
        let mut at = 0;
        while let Some(&slot) = self.hot.get(at) {
            let Some(session) = self.slots[slot].as_deref_mut() else {
                self.hot.swap_remove(at);
                continue;
            };
            match session.cool() {
                Ok(true) => {
                    session.hot = false;
                    self.hot.swap_remove(at);
                    self.napping.push(slot);
                }
                Ok(false) => at += 1,
                Err(reason) => self.end(slot, reason),
            }
        }
        // What is still polled has something to do.
        self.hot.is_empty() && self.events.is_empty()
    }

    fn disarm(&mut self, rung: bool) {
        if rung {
            // Look at once who has.
            self.polls = 0;
        }
        // Whoever was polled before the sleep need not ring while the shard is awake.
        while let Some(slot) = self.napping.pop() {
            if let Some(session) = self.slots[slot].as_deref_mut()
                && !session.hot
            {
                session.hot = true;
                session.stay_warm();
                self.hot.push(slot);
            }
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

impl std::fmt::Debug for ShmTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("ShmTransport");
        f.field("sessions", &self.sessions()).field("hot", &self.hot.len()).finish_non_exhaustive()
    }
}
