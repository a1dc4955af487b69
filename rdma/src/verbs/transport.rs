//! One shard's RDMA sessions.

mod ending;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use dma::{Region, Source, Target, Window};
use extent::wire::{LONG_REQUEST_BYTES, REQUEST_BYTES, Reply, Segment};
use extent::{Error, Kind, Result};

use crate::slots::{Numbered, Slots};
use crate::sys::{Epoll, Ticker};
use crate::{Event, Fabric, SessionId, Transfer, Transport};

use super::completion::{Wake, WorkCompletion, WorkStatus};
use super::connection::{CmEvent, CmEventKind, CmId, ConnectionParameters, EventChannel};
use super::greeting::Welcome;
use super::listener::Incoming;
use super::options::VerbsOptions;
use super::receive::RECEIVE;
use super::send_queue::Ended;
use super::session::{Memory, Session, event, gone};
use super::tenant::Tenant;

/// Completions of one tenant that a poll takes, before others have their turn.
const TURN: usize = 128;
/// Polls between two looks at what RDMA CM tells: each is a system call, and nothing hurries.
const CM_EVERY: u32 = 1024;
/// Seconds of a tick, by which silence is measured.
const TICK_S: libc::time_t = 10;
/// Polls between the end of a connection and that of its queue pair: its last completions have come then,
/// and with them the receives that they used.
const BURY_EVERY: u32 = 64;
/// What a session may post where there is hardly any room, and its share of it else.
const LEAST_ROOM: u32 = 8;
const SHARE_OF_ROOM: u32 = 4;
/// RDMA READs of one session under way: more than that is of no use on the way of writes.
const READS_OUT: u8 = 16;

/// One shard's RDMA sessions: reliable connections that share receives and a completion queue for
/// each device. See [`crate::verbs`].
pub struct VerbsTransport {
    options: VerbsOptions,
    channel: Arc<EventChannel>,
    epoll: Epoll,
    slots: Slots<Session>,
    tenants: Vec<Tenant>,
    /// Sessions by tenant and the number of their queue pair.
    pairs: HashMap<(usize, u32), SessionId>,
    /// Sessions by the number of their id.
    ids: HashMap<usize, SessionId>,
    /// What every tenant registers.
    regions: Vec<Arc<Region>>,
    /// Sessions with something to post, and those that found no room in the completion queue.
    dirty: VecDeque<SessionId>,
    starved: VecDeque<SessionId>,
    /// Sessions that have ended, but for their queue pairs, and why.
    dying: Vec<(Session, Error)>,
    dying_polls: u32,
    ticker: Ticker,
    events: Vec<Event>,
    completions: Vec<WorkCompletion>,
    ended: Vec<Ended>,
    free_receives: Vec<u32>,
    polls: u32,
    /// Sessions of which something goes on when a work request ends.
    awaited: usize,
}

impl VerbsTransport {
    /// The most sessions of one transport.
    pub const MAX_SESSIONS: usize = Slots::<Session>::MAX;

    /// A transport without sessions, whose sessions are numbered from `base` (see
    /// [`SessionId::base`]).
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if there is no RDMA device or library; [`Kind::Denied`] without the
    /// right to use it.
    pub fn new(base: SessionId, options: VerbsOptions) -> Result<Self> {
        let channel = EventChannel::new()?;
        let epoll = Epoll::new().map_err(|e| Error::io("making an epoll instance", e))?;
        epoll
            .add(channel.as_fd(), libc::EPOLLIN, 0)
            .map_err(|e| Error::io("watching RDMA CM", e))?;
        let ticker = Ticker::new(TICK_S).and_then(|ticker| {
            epoll.add(ticker.as_fd(), libc::EPOLLIN, 0)?;
            Ok(ticker)
        });
        Ok(Self {
            options,
            channel,
            epoll,
            slots: Slots::new(base),
            tenants: Vec::new(),
            pairs: HashMap::new(),
            ids: HashMap::new(),
            regions: Vec::new(),
            dirty: VecDeque::new(),
            starved: VecDeque::new(),
            dying: Vec::new(),
            dying_polls: 0,
            ticker: ticker.map_err(|e| Error::io("making a timer", e))?,
            events: Vec::new(),
            completions: Vec::new(),
            ended: Vec::new(),
            free_receives: Vec::new(),
            polls: 0,
            awaited: 0,
        })
    }

    /// Takes over a client that asked to connect.
    ///
    /// # Errors
    /// [`Kind::Busy`] if there are [`VerbsTransport::MAX_SESSIONS`] already; otherwise what the
    /// device cannot do. The client is told, unless that is to make a queue pair.
    pub(crate) fn adopt(&mut self, incoming: Incoming) -> Result<()> {
        let Incoming { mut id, peer_reads, short_replies } = incoming;
        let ready = self.tenant_of(&id).and_then(|tenant| {
            if self.sessions() == Self::MAX_SESSIONS {
                return Err(
                    Kind::Busy.error("too many RDMA sessions on one shard: use more shards")
                );
            }
            self.options.apply(&id);
            id.migrate(&self.channel)?;
            Ok(tenant)
        });
        let tenant = ready.inspect_err(|error| super::listener::reject(&id, error))?;
        let peer = id.peer();
        let number = id.number();
        let reads_out = READS_OUT.min(self.tenants[tenant].limits().reads_out).min(peer_reads);
        let (pair, depth) = self.tenants[tenant].queue_pair(id)?;
        // No READs from the client: it has no right to any memory of the node.
        let greeting = Welcome::new().encode();
        let parameters = ConnectionParameters {
            private_data: &greeting,
            reads_in: 0,
            reads_out,
            peer_patience: 7,
        };
        let accepted = pair.id().accept(parameters).and_then(|()| pair.settle());
        accepted.inspect_err(|error| super::listener::reject(pair.id(), error))?;
        let session = self.slots.next();
        self.pairs.insert((tenant, pair.number()), session);
        self.ids.insert(number, session);
        self.slots.insert(Session::new(session, tenant, pair, depth, short_replies));
        self.events.push(Event::Opened { session, fabric: Fabric::Verbs, peer });
        Ok(())
    }

    /// The key of the first memory that it registered.
    #[cfg(test)]
    pub(crate) fn first_key(&self) -> Option<u32> {
        self.tenants.first()?.first_key()
    }

    /// What sessions over the device of an id share, made at the first.
    fn tenant_of(&mut self, id: &CmId) -> Result<usize> {
        let adapter = id.adapter()?;
        let same = |tenant: &Tenant| tenant.adapter() == adapter && !tenant.is_broken;
        let known = self.tenants.iter().position(same);
        if let Some(index) = known {
            return Ok(index);
        }
        let mut tenant = Tenant::new(adapter)?;
        for region in &self.regions {
            tenant.register(region)?;
        }
        self.epoll
            .add(tenant.readiness(), libc::EPOLLIN, 0)
            .map_err(|e| Error::io("watching completions", e))?;
        tracing::info!(device = adapter.name(), "serving over RDMA");
        self.tenants.push(tenant);
        Ok(self.tenants.len() - 1)
    }

    /// Takes completions of one tenant, at most a turn's worth. Whether there may be more.
    fn look(&mut self, tenant: usize) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        let mut more = !self.tenants[tenant].is_broken;
        while more && completions.len() < TURN {
            match self.tenants[tenant].poll(&mut completions) {
                Ok(full) => more = full,
                Err(error) => {
                    tracing::error!(%error, "the sessions of an RDMA device are lost");
                    self.tenants[tenant].is_broken = true;
                    self.end_tenant(tenant, &error);
                    more = false;
                }
            }
        }
        for completion in completions.drain(..) {
            self.on_completion(tenant, completion);
        }
        self.completions = completions;
        if !self.free_receives.is_empty() {
            if let Err(error) = self.tenants[tenant].post_receives(&self.free_receives) {
                tracing::error!(%error, "no request can be received over an RDMA device any more");
                self.end_tenant(tenant, &error);
            }
            self.free_receives.clear();
        }
        more
    }

    fn on_completion(&mut self, tenant: usize, completion: WorkCompletion) {
        if completion.id & RECEIVE != 0 {
            return self.on_received(tenant, completion);
        }
        let low = u32::try_from(completion.id >> 32).expect("half of it");
        // Of a session that is over, there may still be some in the queue.
        let Some(session) = self.slots.find_low(low) else { return };
        let id = session.id();
        if completion.status != WorkStatus::SUCCESS {
            return self.end(id, completion.status.error());
        }
        let count = session.send.complete(completion.id, &mut self.ended);
        session.quiet_ticks = 0;
        if session.send.wants_to_post() {
            queue(session, &mut self.dirty);
        }
        session.count_awaited(&mut self.awaited);
        let last_words = session.send.is_idle().then(|| session.closing.take()).flatten();
        self.tenants[tenant].room += count;
        self.events.extend(self.ended.drain(..).map(|ended| event(id, ended, Ok(()))));
        if let Some(reason) = last_words {
            self.end(id, reason);
        }
    }

    fn on_received(&mut self, tenant: usize, completion: WorkCompletion) {
        let slot = u32::try_from(completion.id & u64::from(u32::MAX)).expect("masked");
        self.free_receives.push(slot);
        let Some(&session) = self.pairs.get(&(tenant, completion.queue_pair)) else { return };
        if completion.status != WorkStatus::SUCCESS {
            return self.end(session, completion.status.error());
        }
        let length = completion.bytes as usize;
        if length != REQUEST_BYTES && length != LONG_REQUEST_BYTES {
            let error = Kind::Corrupt.error(format!("a request capsule of {length} bytes"));
            return self.end(session, error);
        }
        if let Some(session) = self.slots.find(session) {
            session.quiet_ticks = 0;
            if session.closing.is_some() {
                return;
            }
        }
        let mut capsule = [0; LONG_REQUEST_BYTES];
        self.tenants[tenant].copy_request(slot, &mut capsule[..length]);
        self.events.push(Event::Request { session, capsule, length });
    }

    fn hear(&mut self) {
        loop {
            match self.channel.next() {
                Ok(Some(event)) => self.on_cm_event(&event),
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "clients that leave are noticed late from now on");
                    return;
                }
            }
        }
    }

    fn on_cm_event(&mut self, event: &CmEvent) {
        let Some(&id) = self.ids.get(&event.id) else { return };
        match event.kind {
            CmEventKind::Established => {
                if let Some(session) = self.slots.find(id) {
                    session.is_established = true;
                }
            }
            CmEventKind::Disconnected => {
                self.end(id, Kind::Disconnected.error("the client hung up"));
            }
            CmEventKind::TimewaitExit => {}
            _ => {
                let (what, status) = (event.name(), event.status);
                self.end(id, Kind::Disconnected.error(format!("RDMA CM says {what} ({status})")));
            }
        }
    }

    fn end_tenant(&mut self, tenant: usize, reason: &Error) {
        for id in self.slots.ids() {
            if self.slots.find(id).is_some_and(|session| session.tenant == tenant) {
                self.end(id, reason.duplicate());
            }
        }
    }

    /// Posts what waits, of all sessions that have something.
    fn flush(&mut self) {
        for _ in 0..self.starved.len() {
            // Those that found no room come first.
            let Some(id) = self.starved.pop_back() else { break };
            self.dirty.push_front(id);
        }
        for _ in 0..self.dirty.len() {
            let Some(id) = self.dirty.pop_front() else { break };
            let Some(session) = self.slots.find(id) else { continue };
            session.is_dirty = false;
            if session.send.is_overrun() {
                let error =
                    "the client does not take its replies: post receives, keep to the credits";
                self.end(id, Kind::Busy.error(error));
                continue;
            }
            let tenant = &mut self.tenants[session.tenant];
            let share = LEAST_ROOM.max(tenant.room / SHARE_OF_ROOM).min(tenant.room);
            let (count, result) = session.post(share);
            tenant.room -= count;
            session.count_awaited(&mut self.awaited);
            if session.send.wants_to_post() && tenant.room == 0 {
                session.is_dirty = true;
                self.starved.push_back(id);
            } else if session.send.wants_to_post() {
                queue(session, &mut self.dirty);
            }
            if let Err(error) = result {
                self.end(id, error);
            }
        }
    }

    fn transfer(&mut self, id: SessionId, transfer: &Transfer, memory: Memory) {
        let Some(session) = self.slots.find(id) else {
            let over = Kind::Disconnected.error("the session is over");
            return self.events.push(gone(id, transfer.token, memory, over));
        };
        let tenant = &mut self.tenants[session.tenant];
        let local = match &memory {
            Memory::From(from) => tenant.local(from.span()),
            Memory::Into(into) => tenant.local(into.span()),
        };
        match (local, memory) {
            (Ok(local), Memory::From(from)) => session.write(transfer, local, from),
            (Ok(local), Memory::Into(into)) => session.read(transfer, local, into),
            (Err(error), memory) => {
                self.events.push(gone(id, transfer.token, memory, error.duplicate()));
                return self.end(id, error);
            }
        }
        queue(session, &mut self.dirty);
    }
}

impl Transport for VerbsTransport {
    fn poll(&mut self, events: &mut Vec<Event>) {
        self.polls += 1;
        if self.polls >= CM_EVERY {
            self.polls = 0;
            self.hear();
            if self.ticker.ticked() {
                self.tick();
            }
        }
        for tenant in 0..self.tenants.len() {
            self.look(tenant);
        }
        self.flush();
        if !self.dying.is_empty() {
            self.dying_polls += 1;
            if self.dying_polls >= BURY_EVERY {
                self.bury();
            }
        }
        events.append(&mut self.events);
    }

    fn map(&self, _: SessionId, _: Segment) -> Result<Option<Window>> {
        Ok(None)
    }

    fn post_write(&mut self, session: SessionId, transfer: Transfer, from: Source) {
        self.transfer(session, &transfer, Memory::From(from));
    }

    fn post_read(&mut self, session: SessionId, transfer: Transfer, into: Target) {
        self.transfer(session, &transfer, Memory::Into(into));
    }

    fn discard(&mut self, _: SessionId) {}

    fn replies_follow(&self, _: SessionId) -> bool {
        true
    }

    fn post_reply(&mut self, id: SessionId, reply: &Reply) {
        if let Some(session) = self.slots.find(id) {
            session.reply(reply);
            queue(session, &mut self.dirty);
        }
    }

    fn kick(&mut self) {
        self.flush();
    }

    fn close(&mut self, session: SessionId, reason: Error) {
        self.flush();
        match self.slots.find(session) {
            // The last words; whoever does not take them is not waited for beyond a tick.
            Some(state) if !state.send.is_idle() => {
                state.closing = Some(reason);
                state.count_awaited(&mut self.awaited);
            }
            _ => self.end(session, reason),
        }
    }

    fn sessions(&self) -> usize {
        self.slots.len() + self.dying.len()
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        self.regions.push(Arc::clone(region));
        self.tenants.iter_mut().try_for_each(|tenant| tenant.register(region).map(drop))
    }

    fn arm(&mut self) -> bool {
        if !self.dying.is_empty() {
            self.bury();
        }
        let mut quiet = true;
        // Whatever the node sent ends sooner or later; nobody has to wake for that.
        let wake = if self.awaited == 0 { Wake::Messages } else { Wake::Everything };
        for index in 0..self.tenants.len() {
            if let Err(error) = self.tenants[index].arm(wake) {
                tracing::error!(%error, "an RDMA device cannot wake its shard");
                return false;
            }
            // What came before it was armed wakes nobody.
            quiet &= !self.look(index);
        }
        quiet && self.events.is_empty() && self.dirty.is_empty() && self.dying.is_empty()
    }

    fn disarm(&mut self, rung: bool) {
        if rung {
            self.tenants.iter_mut().for_each(Tenant::disarm);
            self.polls = CM_EVERY;
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

impl Drop for VerbsTransport {
    fn drop(&mut self) {
        for id in self.slots.ids() {
            self.end(id, Kind::Disconnected.error("the node is shutting down"));
        }
        self.bury();
    }
}

fn queue(session: &mut Session, list: &mut VecDeque<SessionId>) {
    if !session.is_dirty {
        session.is_dirty = true;
        list.push_back(session.id());
    }
}
