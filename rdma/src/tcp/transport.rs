use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use dma::{Source, Target, Window};
use extent::wire::{Reply, Segment};
use extent::{Error, Kind, Result};
use socket2::{SockRef, TcpKeepalive};

use crate::slots::{Numbered, Slots};
use crate::sys::{self, Epoll, Ready};
use crate::{Event, Gate, OpenGate, SessionId, Transfer, Transport};

use super::greeters::Greeters;
use super::session::Session;

/// A peer that takes no bytes for so long, or answers no keep-alive, is given up by the kernel.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Silence after which the kernel asks whether the peer is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Sockets that one look at epoll reports at most.
const READY_AT_ONCE: usize = 256;
/// What the epoll instance calls the ticker; other numbers are sessions.
const TICK: u64 = u64::MAX;

/// One shard's TCP sessions: nonblocking sockets behind an epoll instance of its own.
///
/// A session's `Opened` comes once the client said the magic words and was let in. Whoever connects and
/// says something else gets no byte back and is only logged; whoever says nothing is hung up on after a
/// while, or earlier if many come.
pub struct TcpTransport {
    epoll: Epoll,
    found: Ready,
    slots: Slots<Session>,
    greeters: Greeters,
    /// Sessions that can do something, and those being served from that list.
    ready: Vec<SessionId>,
    serving: Vec<SessionId>,
    /// Sessions that something was posted to since the last kick.
    dirty: Vec<SessionId>,
    events: Vec<Event>,
}

impl TcpTransport {
    /// The most sessions of one transport.
    pub const MAX_SESSIONS: usize = Slots::<Session>::MAX;

    /// A transport without sessions, whose sessions are numbered from `base` (see
    /// [`SessionId::base`]).
    ///
    /// # Errors
    /// [`Kind::Io`] if the process has no descriptors left.
    pub fn new(base: SessionId) -> Result<Self> {
        let epoll = Epoll::new().map_err(|e| Error::io("making an epoll instance", e))?;
        let greeters = Greeters::new()?;
        epoll
            .add(greeters.as_fd(), libc::EPOLLIN, TICK)
            .map_err(|e| Error::io("watching a timer", e))?;
        Ok(Self {
            epoll,
            found: Ready::with_room(READY_AT_ONCE),
            slots: Slots::new(base),
            greeters,
            ready: Vec::new(),
            serving: Vec::new(),
            dirty: Vec::new(),
            events: Vec::new(),
        })
    }

    /// Takes over a connection that was just accepted from `peer`, whoever that is.
    ///
    /// # Errors
    /// As [`TcpTransport::adopt_through`].
    pub fn adopt(&mut self, stream: TcpStream, peer: impl Into<String>) -> Result<()> {
        self.adopt_through(Arc::new(OpenGate), stream, peer)
    }

    /// Takes over a connection that was just accepted from `peer`, which the gate will be asked about
    /// once it has said who it is.
    ///
    /// # Errors
    /// [`Kind::Busy`] if there are [`TcpTransport::MAX_SESSIONS`] already; [`Kind::Io`] if the
    /// socket cannot be set up.
    pub fn adopt_through(
        &mut self,
        gate: Arc<dyn Gate>,
        stream: TcpStream,
        peer: impl Into<String>,
    ) -> Result<()> {
        if self.sessions() == Self::MAX_SESSIONS {
            return Err(Kind::Busy.error(format!(
                "{} TCP sessions on one shard are the most: use more shards",
                Self::MAX_SESSIONS
            )));
        }
        prepare(&stream).map_err(|e| Error::io("setting up a TCP socket", e))?;
        let id = self.slots.next();
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        self.epoll
            .add(stream.as_fd(), interest, id.0)
            .map_err(|e| Error::io("watching a TCP socket", e))?;
        self.slots.insert(Session::new(id, stream, peer.into(), gate));
        if let Some((oldest, reason)) = self.greeters.add(id, &mut self.slots) {
            self.end(oldest, reason);
        }
        Ok(())
    }

    /// Sessions of peers that have not said yet who they are.
    pub(crate) fn greeting(&mut self) -> usize {
        if self.greeters.is_empty() { 0 } else { self.greeters.count(&mut self.slots) }
    }

    /// Lists the sessions whose sockets have become ready.
    fn look(&mut self) {
        if self.sessions() == 0 && self.greeters.is_empty() {
            return;
        }
        if let Err(error) = self.epoll.wait(&mut self.found, 0) {
            tracing::error!(%error, "epoll failed");
            return;
        }
        let mut ticked = false;
        for (data, flags) in self.found.iter() {
            ticked |= data == TICK;
            if let Some(session) = self.slots.find(SessionId(data)) {
                session.on_readiness(flags);
                queue(session, &mut self.ready);
            }
        }
        if ticked {
            self.tick();
        }
    }

    /// Hangs up on those that do not say who they are.
    fn tick(&mut self) {
        for (id, reason) in self.greeters.tick(&mut self.slots) {
            self.end(id, reason);
        }
    }

    fn end(&mut self, id: SessionId, reason: Error) {
        if let Some(session) = self.slots.remove(id) {
            session.end(reason, &mut self.events);
        }
    }
}

impl Transport for TcpTransport {
    fn poll(&mut self, events: &mut Vec<Event>) {
        self.look();
        std::mem::swap(&mut self.ready, &mut self.serving);
        for index in 0..self.serving.len() {
            let id = self.serving[index];
            let Some(session) = self.slots.find(id) else { continue };
            session.is_ready = false;
            match session.serve(&mut self.events) {
                Ok(true) => queue(session, &mut self.ready),
                Ok(false) => {}
                Err(reason) => self.end(id, reason),
            }
        }
        self.serving.clear();
        events.append(&mut self.events);
    }

    fn map(&self, _: SessionId, _: Segment) -> Result<Option<Window>> {
        Ok(None)
    }

    fn post_write(&mut self, id: SessionId, transfer: Transfer, from: Source) {
        match self.slots.find(id) {
            Some(session) => {
                session.post_write(&transfer, from, &mut self.events);
                queue_to_send(session, &mut self.dirty);
            }
            None => {
                let (token, result) = (transfer.token, Err(gone()));
                self.events.push(Event::Written { session: id, token, from, result });
            }
        }
    }

    fn post_read(&mut self, id: SessionId, transfer: Transfer, into: Target) {
        match self.slots.find(id) {
            Some(session) => {
                session.post_read(&transfer, into, &mut self.events);
                queue(session, &mut self.ready);
            }
            None => {
                let (token, result) = (transfer.token, Err(gone()));
                self.events.push(Event::Read { session: id, token, into, result });
            }
        }
    }

    fn discard(&mut self, id: SessionId) {
        if let Some(session) = self.slots.find(id) {
            session.discard();
            queue(session, &mut self.ready);
        }
    }

    fn replies_follow(&self, _: SessionId) -> bool {
        true
    }

    fn post_reply(&mut self, id: SessionId, reply: &Reply) {
        if let Some(session) = self.slots.find(id) {
            queue_to_send(session, &mut self.dirty);
            if session.post_reply(reply) {
                queue(session, &mut self.ready);
            }
        }
    }

    fn kick(&mut self) {
        while let Some(id) = self.dirty.pop() {
            let Some(session) = self.slots.find(id) else { continue };
            session.is_dirty = false;
            match session.flush(&mut self.events) {
                Ok(()) if session.has_work() => queue(session, &mut self.ready),
                Ok(()) => {}
                Err(reason) => self.end(id, reason),
            }
        }
    }

    fn close(&mut self, id: SessionId, reason: Error) {
        if let Some(session) = self.slots.find(id) {
            // The last words; if they cannot be said, the session is over all the same.
            let _ = session.flush(&mut self.events);
            self.end(id, reason);
        }
    }

    fn sessions(&self) -> usize {
        self.slots.len()
    }

    fn arm(&mut self) -> bool {
        self.ready.is_empty() && self.dirty.is_empty() && self.events.is_empty()
    }

    fn disarm(&mut self, _: bool) {}

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

impl Numbered for Session {
    fn id(&self) -> SessionId {
        self.id
    }
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE / 3);
    SockRef::from(stream).set_tcp_keepalive(&keep_alive)?;
    sys::limit_stall(stream.as_fd(), STALL_LIMIT)
}

fn queue(session: &mut Session, list: &mut Vec<SessionId>) {
    if !session.is_ready {
        session.is_ready = true;
        list.push(session.id);
    }
}

fn queue_to_send(session: &mut Session, list: &mut Vec<SessionId>) {
    if !session.is_dirty {
        session.is_dirty = true;
        list.push(session.id);
    }
}

fn gone() -> Error {
    Kind::Disconnected.error("the session is over")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use extent::wire::STREAM_MAGIC;

    use super::*;
    use crate::Fabric;

    /// A transport, and where peers connect to.
    fn node() -> (TcpTransport, TcpListener) {
        let transport = TcpTransport::new(SessionId::base(Fabric::Tcp, 0)).expect("an epoll");
        (transport, TcpListener::bind("127.0.0.1:0").expect("a port"))
    }

    fn connect(transport: &mut TcpTransport, listener: &TcpListener) -> TcpStream {
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let (accepted, peer) = listener.accept().expect("a client");
        transport.adopt(accepted, peer.to_string()).expect("room");
        stream
    }

    fn until_opened(transport: &mut TcpTransport, wanted: usize) {
        let mut events = Vec::new();
        for _ in 0..5_000_000 {
            transport.poll(&mut events);
            if events.iter().filter(|event| matches!(event, Event::Opened { .. })).count() == wanted
            {
                return;
            }
        }
        panic!("nobody was let in");
    }

    #[test]
    fn whoever_says_nothing_is_hung_up_on_and_nobody_else() {
        let (mut transport, listener) = node();
        let mut silent = connect(&mut transport, &listener);
        let mut slow = connect(&mut transport, &listener);
        let mut client = connect(&mut transport, &listener);
        slow.write_all(&STREAM_MAGIC[..7]).expect("room");
        client.write_all(&STREAM_MAGIC).expect("room");
        until_opened(&mut transport, 1);
        transport.tick();
        let mut late = connect(&mut transport, &listener);
        transport.tick();
        assert_eq!(transport.sessions(), 4, "there is time");
        transport.tick();
        assert_eq!(transport.sessions(), 2, "the client, and the one that came late");
        for stream in [&mut silent, &mut slow] {
            assert_eq!(stream.read(&mut [0]).expect("closed in order"), 0);
        }
        late.write_all(&STREAM_MAGIC).expect("room");
        until_opened(&mut transport, 1);
        (0..9).for_each(|_| transport.tick());
        assert_eq!(transport.sessions(), 2);
        assert!(transport.greeters.is_empty(), "and the clock stands still");
    }

    #[test]
    fn a_crowd_that_says_nothing_makes_room_for_those_that_do() {
        let (mut transport, listener) = node();
        let mut client = connect(&mut transport, &listener);
        client.write_all(&STREAM_MAGIC).expect("room");
        until_opened(&mut transport, 1);
        let mut crowd: Vec<_> = (0..256).map(|_| connect(&mut transport, &listener)).collect();
        assert_eq!(transport.sessions(), 257);
        let mut other = connect(&mut transport, &listener);
        assert_eq!(transport.sessions(), 257, "one had to go");
        assert_eq!(crowd[0].read(&mut [0]).expect("closed in order"), 0);
        other.write_all(&STREAM_MAGIC).expect("room");
        until_opened(&mut transport, 1);
        crowd[1].write_all(&STREAM_MAGIC).expect("still there");
        until_opened(&mut transport, 1);
    }
}
