//! One shard's RDMA sessions.

mod arrival;
mod ending;
#[cfg(test)]
mod hooks;
mod unasked;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use dma::{Region, Source, Target, Window};
use extent::wire::{LONG_REQUEST_BYTES, REQUEST_BYTES, Reply, Segment};
use extent::{Error, Kind, NumberMap, Result};

use crate::bugs::{self, Bug};
use crate::slots::{Numbered, Slots};
use crate::sys::Epoll;
use crate::{Event, SessionId, Transfer, Transport};

use super::completion::{Wake, WorkCompletion, WorkStatus};
use super::connection::{CmEvent, CmEventKind};
use super::events::DeviceEvent;
use super::nursery::Nursery;
use super::options::VerbsOptions;
use super::provider::{EventChannel as _, Provider, Ticker as _};
use super::rdma_core::RdmaCore;
use super::receive::RECEIVE;
use super::send_queue::Ended;
use super::session::{Memory, Session, event, gone};
use super::tenant::Tenant;
use super::tenants::Tenants;
use super::turns::Turns;
use ending::Dying;

/// Completions of one tenant that a poll takes, before others have their turn.
const TURN: usize = 128;
/// Polls between two looks at what RDMA CM tells: each is a system call, and nothing hurries.
const CM_EVERY: u32 = 1024;
/// What is heard of it at a time: a crowd that leaves is no reason to keep others waiting.
const HEARD_AT_ONCE: usize = 32;
/// Seconds of a tick, by which silence is measured.
const TICK_S: libc::time_t = 10;
/// What a session may post where there is hardly any room, and its share of it else.
const LEAST_ROOM: u32 = 8;
const SHARE_OF_ROOM: u32 = 4;

/// One shard's RDMA sessions: reliable connections. Those of one tenant over one device share a
/// protection domain, receives and a completion queue. See [`crate::verbs`].
#[expect(private_bounds, reason = "what it stands on is nobody's choice but this module's")]
pub struct VerbsTransport<P: Provider = RdmaCore> {
    options: VerbsOptions,
    channel: Arc<P::EventChannel>,
    epoll: Epoll,
    slots: Slots<Session<P>>,
    tenants: Tenants<P>,
    nursery: Nursery<P>,
    /// Sessions by tenant and the number of their queue pair.
    pairs: NumberMap<(usize, u32), SessionId>,
    /// Sessions by the number of their id.
    ids: NumberMap<usize, SessionId>,
    /// Sessions with something to post.
    turns: Turns,
    /// Sessions that have ended, but for their queue pairs, and why.
    dying: Vec<Dying<P>>,
    ticker: P::Ticker,
    events: Vec<Event>,
    completions: Vec<WorkCompletion>,
    ended: Vec<Ended>,
    free_receives: Vec<u32>,
    news: Vec<DeviceEvent>,
    polls: u32,
    /// Sessions of which something goes on when a work request ends.
    awaited: usize,
}

impl VerbsTransport {
    /// A transport without sessions, whose sessions are numbered from `base` (see
    /// [`SessionId::base`]).
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if there is no RDMA device or library; [`Kind::Denied`] without the
    /// right to use it.
    pub fn new(base: SessionId, options: VerbsOptions) -> Result<Self> {
        Self::over(&RdmaCore, base, options)
    }
}

#[expect(private_bounds, reason = "as of the type")]
impl<P: Provider> VerbsTransport<P> {
    /// The most sessions of one transport.
    pub const MAX_SESSIONS: usize = Slots::<Session>::MAX;

    pub(super) fn over(provider: &P, base: SessionId, options: VerbsOptions) -> Result<Self> {
        let channel = provider.event_channel()?;
        let epoll = Epoll::new().map_err(|e| Error::io("making an epoll instance", e))?;
        let ticker = provider.ticker(TICK_S)?;
        let nursery = Nursery::new()?;
        let born = Some(nursery.readiness());
        for descriptor in [channel.readiness(), ticker.readiness(), born].into_iter().flatten() {
            epoll
                .add(descriptor, libc::EPOLLIN, 0)
                .map_err(|e| Error::io("watching RDMA CM, a timer and tenants to come", e))?;
        }
        Ok(Self {
            options,
            channel,
            epoll,
            slots: Slots::new(base),
            tenants: Tenants::default(),
            nursery,
            pairs: NumberMap::default(),
            ids: NumberMap::default(),
            turns: Turns::default(),
            dying: Vec::new(),
            news: Vec::new(),
            ticker,
            events: Vec::new(),
            completions: Vec::new(),
            ended: Vec::new(),
            free_receives: Vec::new(),
            polls: 0,
            awaited: 0,
        })
    }

    /// Work requests that could be posted, of all tenants together.
    pub(super) fn room(&self) -> u32 {
        self.tenants.room()
    }

    /// Takes completions of one tenant, at most a turn's worth. Whether there may be more.
    fn look(&mut self, tenant: usize) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        let mut more = self.tenants.find(tenant).is_some_and(|tenant| !tenant.is_broken);
        while more && completions.len() < TURN {
            match self.tenants.of_sessions(tenant).poll(&mut completions) {
                Ok(full) => more = full,
                Err(error) => {
                    tracing::error!(%error, "the sessions of an RDMA device are lost");
                    self.lose_tenant(tenant, &error);
                    more = false;
                }
            }
        }
        for completion in completions.drain(..) {
            self.on_completion(tenant, completion);
        }
        self.completions = completions;
        if !self.free_receives.is_empty() {
            if let Err(error) = self.tenants.of_sessions(tenant).post_receives(&self.free_receives)
            {
                tracing::error!(%error, "no request can be received over an RDMA device any more");
                self.lose_tenant(tenant, &error);
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
        if completion.status != WorkStatus::SUCCESS && !bugs::is(Bug::FailureIgnored) {
            return self.end(id, completion.status.error());
        }
        let count = session.send.complete(completion.id, &mut self.ended);
        session.quiet_ticks = 0;
        session.stalled_ticks = 0;
        if session.send.wants_to_post() {
            queue(session, &mut self.turns);
        }
        session.count_awaited(&mut self.awaited);
        let last_words = session.send.is_idle().then(|| session.closing.take()).flatten();
        self.tenants.of_sessions(tenant).room += count;
        self.events.extend(self.ended.drain(..).map(|ended| event(id, ended, Ok(()))));
        if let Some(reason) = last_words {
            self.end(id, reason);
        }
    }

    fn on_received(&mut self, tenant: usize, completion: WorkCompletion) {
        let slot = u32::try_from(completion.id & u64::from(u32::MAX)).expect("masked");
        if completion.status == WorkStatus::SUCCESS || !bugs::is(Bug::ReceiveForgotten) {
            self.free_receives.push(slot);
        }
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
        self.tenants.of_sessions(tenant).copy_request(slot, &mut capsule[..length]);
        self.events.push(Event::Request { session, capsule, length });
    }

    /// Hears what RDMA CM tells, for a while. Whether there may be more.
    fn hear(&mut self) -> bool {
        for _ in 0..HEARD_AT_ONCE {
            match self.channel.next() {
                Ok(Some(event)) => self.on_cm_event(&event),
                Ok(None) => return false,
                Err(error) => {
                    tracing::error!(%error, "clients that leave are noticed late from now on");
                    return false;
                }
            }
        }
        true
    }

    fn on_cm_event(&mut self, event: &CmEvent<P::CmId>) {
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
        self.turns.begin();
        while let Some(id) = self.turns.next() {
            let Some(session) = self.slots.find(id) else { continue };
            session.is_dirty = false;
            if session.send.is_overrun() {
                let error =
                    "the client does not take its replies: post receives, keep to the credits";
                self.end(id, Kind::Busy.error(error));
                continue;
            }
            let tenant = self.tenants.of_sessions(session.tenant);
            let share = LEAST_ROOM.max(tenant.room / SHARE_OF_ROOM).min(tenant.room);
            let (count, result) = session.post(share);
            tenant.room -= count;
            session.count_awaited(&mut self.awaited);
            if session.send.wants_to_post() && tenant.room == 0 {
                session.is_dirty = true;
                self.turns.starve(session.tenant, id);
            } else if session.send.wants_to_post() {
                queue(session, &mut self.turns);
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
        let tenant = self.tenants.of_sessions(session.tenant);
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
        queue(session, &mut self.turns);
    }
}

impl<P: Provider> Transport for VerbsTransport<P> {
    fn poll(&mut self, events: &mut Vec<Event>) {
        self.polls += 1;
        if self.polls >= CM_EVERY {
            // The rest comes when others have had their turn, and nobody is late before it was heard.
            let more = self.hear();
            self.polls = if more { CM_EVERY } else { 0 };
            self.hear_devices();
            if !more && self.ticker.ticked() {
                self.tick();
            }
        }
        if self.nursery.is_busy() {
            self.receive();
        }
        for tenant in 0..self.tenants.places() {
            self.look(tenant);
        }
        self.flush();
        if !self.dying.is_empty() {
            self.attend();
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
            queue(session, &mut self.turns);
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
        self.slots.len() + self.dying.len() + self.nursery.waiting()
    }

    fn session_bytes(&self) -> Option<usize> {
        let of = |session: &Session<P>| size_of::<Session<P>>() + session.send.bytes();
        Some(self.slots.iter().map(of).sum())
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        self.tenants.register(region)
    }

    fn arm(&mut self) -> bool {
        let mut quiet = true;
        // Whatever the node sent ends sooner or later; nobody has to wake for that.
        let wake = if self.awaited == 0 { Wake::Messages } else { Wake::Everything };
        for place in 0..self.tenants.places() {
            let tenant = self.tenants.find(place).filter(|tenant| !tenant.is_broken);
            let Some(tenant) = tenant else { continue };
            // Else who asks for no event could fill the receives unnoticed.
            tenant.warn_when_low();
            if let Err(error) = tenant.arm(wake) {
                tracing::error!(%error, "an RDMA device cannot wake its shard");
                return false;
            }
            // What came before it was armed wakes nobody.
            quiet &= !self.look(place);
        }
        let (tenants, turns) = (&self.tenants, &self.turns);
        let starves = turns.starved().any(|place| tenants.get(place).room > 0);
        let rests = self.events.is_empty() && !self.nursery.has_news();
        quiet && rests && turns.is_idle() && !starves && self.may_sleep()
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

impl<P: Provider> Drop for VerbsTransport<P> {
    fn drop(&mut self) {
        for id in self.slots.ids() {
            self.end(id, Kind::Disconnected.error("the node is shutting down"));
        }
        self.bury(true);
    }
}

fn queue<P: Provider>(session: &mut Session<P>, turns: &mut Turns) {
    if !session.is_dirty {
        session.is_dirty = true;
        turns.push(session.tenant, session.id());
    }
}
