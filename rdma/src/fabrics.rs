use std::os::fd::{AsFd, BorrowedFd};

use dma::{Source, Target, Window};
use extent::wire::{Reply, Segment};
use extent::{Error, Result};

use crate::inbox::{Inbox, Incoming};
use crate::shm::{ShmOptions, ShmTransport};
use crate::sys::Epoll;
use crate::tcp::TcpTransport;
use crate::{Event, Fabric, SessionId, Transfer, Transport};

/// All fabrics of one shard as one transport: TCP, shared memory, and an inbox for connections that
/// a [`crate::Listener`] accepted.
pub struct Fabrics {
    tcp: TcpTransport,
    shm: ShmTransport,
    inbox: Inbox,
    /// Holds the readiness of all three.
    epoll: Epoll,
    sessions: usize,
}

impl Fabrics {
    /// The fabrics of shard number `shard`, without sessions.
    ///
    /// # Errors
    /// [`extent::Kind::Io`] if the process has no descriptors left.
    ///
    /// # Panics
    /// If `shard` is not below 4096.
    pub fn new(shard: u16, shm: ShmOptions) -> Result<Self> {
        let tcp = TcpTransport::new(SessionId::base(Fabric::Tcp, shard))?;
        let shm = ShmTransport::new(SessionId::base(Fabric::SharedMemory, shard).0, shm)?;
        let inbox = Inbox::new()?;
        let watch = || {
            let epoll = Epoll::new()?;
            epoll.add(inbox.wake().as_fd(), libc::EPOLLIN, 0)?;
            for fd in [tcp.readiness(), shm.readiness()].into_iter().flatten() {
                epoll.add(fd, libc::EPOLLIN, 0)?;
            }
            Ok(epoll)
        };
        let epoll = watch().map_err(|e| Error::io("watching a shard's fabrics", e))?;
        Ok(Self { tcp, shm, inbox, epoll, sessions: 0 })
    }

    /// Where connections for this shard go.
    #[must_use]
    pub fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    fn of(&mut self, session: SessionId) -> &mut dyn Transport {
        match session.fabric() {
            Fabric::SharedMemory => &mut self.shm,
            _ => &mut self.tcp,
        }
    }

    fn adopt(&mut self, connection: Incoming) {
        let refused = match connection {
            Incoming::Tcp(stream, peer) => self.tcp.adopt(stream, peer).err(),
            Incoming::Shm(connection) => self.shm.adopt(connection).err(),
        };
        if let Some(error) = refused {
            tracing::warn!(%error, "a client was turned away");
        }
    }
}

impl Transport for Fabrics {
    fn poll(&mut self, events: &mut Vec<Event>) {
        if self.inbox.has_news() {
            let inbox = self.inbox.clone();
            inbox.take(|connection| self.adopt(connection));
        }
        self.shm.poll(events);
        self.tcp.poll(events);
        let sessions = self.sessions();
        if sessions != self.sessions {
            self.sessions = sessions;
            self.inbox.set_open(sessions);
        }
    }

    fn map(&self, session: SessionId, segment: Segment) -> Result<Option<Window>> {
        match session.fabric() {
            Fabric::SharedMemory => self.shm.map(session, segment),
            _ => self.tcp.map(session, segment),
        }
    }

    fn post_write(&mut self, session: SessionId, transfer: Transfer, from: Source) {
        self.of(session).post_write(session, transfer, from);
    }

    fn post_read(&mut self, session: SessionId, transfer: Transfer, into: Target) {
        self.of(session).post_read(session, transfer, into);
    }

    fn discard(&mut self, session: SessionId) {
        self.of(session).discard(session);
    }

    fn post_reply(&mut self, session: SessionId, reply: &Reply) {
        self.of(session).post_reply(session, reply);
    }

    fn kick(&mut self) {
        self.shm.kick();
        self.tcp.kick();
    }

    fn close(&mut self, session: SessionId, reason: Error) {
        self.of(session).close(session, reason);
    }

    fn sessions(&self) -> usize {
        self.shm.sessions() + self.tcp.sessions()
    }

    fn arm(&mut self) -> bool {
        let quiet = self.tcp.arm() && self.shm.arm() && !self.inbox.has_news();
        if !quiet {
            self.disarm(true);
        }
        quiet
    }

    fn disarm(&mut self, rung: bool) {
        if rung {
            // A signal may come after its news was taken, and would end every sleep from then on.
            // News that was not taken is not forgotten: the next poll asks for it.
            self.inbox.wake().clear();
        }
        self.shm.disarm(rung);
        self.tcp.disarm(rung);
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}
