use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use dma::{Region, Source, Target, Window};
use extent::wire::{Reply, Segment};
use extent::{Error, Kind, Result};

use crate::inbox::{Inbox, Incoming};
use crate::shm::{ShmOptions, ShmTransport};
use crate::sys::Epoll;
use crate::tcp::TcpTransport;
use crate::verbs::{VerbsOptions, VerbsTransport};
use crate::{Event, Fabric, SessionId, Transfer, Transport};

/// Connections that a poll takes over: to make the queue pair of one takes several system calls, and those
/// who are connected already wait meanwhile, for that of one but not for those of a crowd.
const ADOPTED_AT_ONCE: usize = 1;

/// All fabrics of one shard as one transport: TCP, shared memory, RDMA where it is wanted, and an inbox
/// for connections that a [`crate::Listener`] accepted.
pub struct Fabrics {
    tcp: TcpTransport,
    shm: ShmTransport,
    verbs: Option<VerbsTransport>,
    inbox: Inbox,
    /// Holds the readiness of all of them.
    epoll: Epoll,
    sessions: usize,
}

impl Fabrics {
    /// The fabrics of shard number `shard`, without sessions; RDMA is one of them
    /// if there are options for it.
    ///
    /// # Errors
    /// [`extent::Kind::Io`] if the process has no descriptors left; as [`VerbsTransport::new`].
    ///
    /// # Panics
    /// If `shard` is not below 4096.
    pub fn new(shard: u16, shm: ShmOptions, rdma: Option<VerbsOptions>) -> Result<Self> {
        let tcp = TcpTransport::new(SessionId::base(Fabric::Tcp, shard))?;
        let shm = ShmTransport::new(SessionId::base(Fabric::SharedMemory, shard).0, shm)?;
        let base = SessionId::base(Fabric::Verbs, shard);
        let verbs = rdma.map(|options| VerbsTransport::new(base, options)).transpose()?;
        let inbox = Inbox::new()?;
        let watch = || {
            let epoll = Epoll::new()?;
            epoll.add(inbox.wake().as_fd(), libc::EPOLLIN, 0)?;
            let rdma = verbs.as_ref().and_then(Transport::readiness);
            for fd in [tcp.readiness(), shm.readiness(), rdma].into_iter().flatten() {
                epoll.add(fd, libc::EPOLLIN, 0)?;
            }
            Ok(epoll)
        };
        let epoll = watch().map_err(|e| Error::io("watching a shard's fabrics", e))?;
        Ok(Self { tcp, shm, verbs, inbox, epoll, sessions: 0 })
    }

    /// Where connections for this shard go.
    #[must_use]
    pub fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    #[cfg(test)]
    pub(crate) fn verbs(&self) -> Option<&VerbsTransport> {
        self.verbs.as_ref()
    }

    #[cfg(test)]
    pub(crate) fn verbs_mut(&mut self) -> Option<&mut VerbsTransport> {
        self.verbs.as_mut()
    }

    fn of(&mut self, session: SessionId) -> &mut dyn Transport {
        match (session.fabric(), &mut self.verbs) {
            (Fabric::SharedMemory, _) => &mut self.shm,
            (Fabric::Verbs, Some(verbs)) => verbs,
            _ => &mut self.tcp,
        }
    }

    fn adopt(&mut self, connection: Incoming) {
        let refused = match connection {
            Incoming::Tcp(stream, peer, gate) => self.tcp.adopt_through(gate, stream, peer).err(),
            Incoming::Shm(connection) => self.shm.adopt(connection).err(),
            Incoming::Verbs(connection) => match &mut self.verbs {
                Some(verbs) => verbs.adopt(connection).err(),
                None => Some(Kind::Unsupported.error("this shard has no RDMA")),
            },
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
            inbox.take(ADOPTED_AT_ONCE, |connection| self.adopt(connection));
        }
        self.shm.poll(events);
        self.tcp.poll(events);
        if let Some(verbs) = &mut self.verbs {
            verbs.poll(events);
        }
        // Whoever has proved nothing takes no place.
        let sessions = self.sessions() - self.tcp.greeting();
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

    fn replies_follow(&self, session: SessionId) -> bool {
        matches!(session.fabric(), Fabric::Verbs | Fabric::Tcp)
    }

    fn post_reply(&mut self, session: SessionId, reply: &Reply) {
        self.of(session).post_reply(session, reply);
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        self.verbs.as_mut().map_or(Ok(()), |verbs| verbs.register(region))
    }

    fn kick(&mut self) {
        self.shm.kick();
        self.tcp.kick();
        if let Some(verbs) = &mut self.verbs {
            verbs.kick();
        }
    }

    fn close(&mut self, session: SessionId, reason: Error) {
        self.of(session).close(session, reason);
    }

    fn sessions(&self) -> usize {
        let verbs = self.verbs.as_ref().map_or(0, Transport::sessions);
        self.shm.sessions() + self.tcp.sessions() + verbs
    }

    fn arm(&mut self) -> bool {
        let verbs = self.verbs.as_mut().is_none_or(Transport::arm);
        let quiet = verbs && self.tcp.arm() && self.shm.arm() && !self.inbox.has_news();
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
        if let Some(verbs) = &mut self.verbs {
            verbs.disarm(rung);
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_crowd_at_the_door_is_let_in_one_by_one() {
        const CROWD: usize = 20;
        let mut fabrics = Fabrics::new(5, ShmOptions::default(), None).expect("descriptors");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut clients = Vec::new();
        for _ in 0..CROWD {
            clients.push(TcpStream::connect(address).expect("listening"));
            let (stream, peer) = listener.accept().expect("a client");
            fabrics
                .inbox
                .push(Incoming::Tcp(stream, peer.to_string(), Arc::new(crate::OpenGate)))
                .expect("room");
        }
        let mut events = Vec::new();
        for taken in 1..=CROWD {
            assert!(!fabrics.arm(), "somebody waits");
            fabrics.poll(&mut events);
            assert_eq!(fabrics.tcp.sessions(), taken);
        }
        assert!(!fabrics.inbox.has_news());
        drop(clients);
    }
}
