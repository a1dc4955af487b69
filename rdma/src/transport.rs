//! The seam to fabrics: how a node hears requests and moves bytes to and from its clients' memory.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dma::{Region, RegionId, Source, Target, Window};
use extent::wire::{LONG_REQUEST_BYTES, Reply, Segment, Segments};
use extent::{Error, Result};

/// What a transfer's completion is matched by; passed through untouched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub u64);

/// A client's connection, never used twice by a transport.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SessionId(pub u64);

impl SessionId {
    /// Bits below a transport's [`SessionId::base`], for it to number its sessions with.
    pub const SERIAL_BITS: u32 = 48;

    /// Where the numbers of one shard's sessions on one fabric begin, so that no two transports of
    /// a node ever use the same.
    ///
    /// # Panics
    /// If there are more than 4096 shards.
    #[must_use]
    pub const fn base(fabric: Fabric, shard: u16) -> Self {
        assert!(shard < 1 << 12, "a node has at most 4096 shards");
        Self((fabric as u64) << 60 | (shard as u64) << Self::SERIAL_BITS)
    }

    /// The fabric of a session numbered from [`SessionId::base`].
    #[must_use]
    pub const fn fabric(self) -> Fabric {
        match self.0 >> 60 {
            0 => Fabric::SharedMemory,
            1 => Fabric::Tcp,
            2 => Fabric::Verbs,
            _ => Fabric::Simulated,
        }
    }
}

/// How a client is connected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Fabric {
    /// Memory shared between processes of one host.
    SharedMemory = 0,
    /// A TCP stream.
    Tcp = 1,
    /// RDMA verbs.
    Verbs = 2,
    /// A fabric inside a test.
    Simulated = 3,
}

impl Fabric {
    /// A stable, lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SharedMemory => "shm",
            Self::Tcp => "tcp",
            Self::Verbs => "rdma",
            Self::Simulated => "sim",
        }
    }
}

/// A transfer between node memory and a part of the memory that a request named.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// For the completion.
    pub token: Token,
    /// The request's tag.
    pub tag: u32,
    /// The request's segments.
    pub segments: Segments,
    /// Where the transfer begins, counted from the start of the segments.
    pub at: u64,
}

/// What a transport reports.
#[derive(Debug)]
pub enum Event {
    /// A client connected.
    Opened {
        /// Its session.
        session: SessionId,
        /// How.
        fabric: Fabric,
        /// Who, for logs.
        peer: String,
    },
    /// A capsule arrived, whole, but not yet parsed. A stream is not read any further until the
    /// bytes that follow this request were asked for by [`Transport::post_read`] or given up by
    /// [`Transport::discard`].
    Request {
        /// From whom.
        session: SessionId,
        /// The capsule.
        capsule: [u8; LONG_REQUEST_BYTES],
        /// Bytes of it in use: 64 or 128.
        length: usize,
    },
    /// A [`Transport::post_write`] ended: its memory may be used again.
    Written {
        /// Of which session.
        session: SessionId,
        /// As posted.
        token: Token,
        /// The memory.
        from: Source,
        /// Whether all of it was handed to the fabric.
        result: Result<()>,
    },
    /// A [`Transport::post_read`] ended.
    Read {
        /// Of which session.
        session: SessionId,
        /// As posted.
        token: Token,
        /// The memory.
        into: Target,
        /// Whether it holds the client's bytes.
        result: Result<()>,
    },
    /// A client mapped memory that commands may use directly: worth registering with devices.
    Mapped {
        /// Whose.
        session: SessionId,
        /// What.
        region: Arc<Region>,
    },
    /// Memory went out of use: unregister it.
    Unmapped {
        /// Which.
        region: RegionId,
    },
    /// The session is over: the peer went, broke the protocol, or was closed. All its transfers
    /// have been reported before.
    Closed {
        /// Which.
        session: SessionId,
        /// Why.
        reason: Error,
    },
}

/// One shard's endpoint of one or more fabrics. The node starts every transfer; no client ever
/// holds a key to the node's memory. All calls are non-blocking; calls for a session that is gone
/// complete with [`extent::Kind::Disconnected`], or do nothing where nothing completes.
pub trait Transport: Send {
    /// Appends what happened since.
    fn poll(&mut self, events: &mut Vec<Event>);

    /// The client's own memory behind a segment, if this fabric lets the node's devices use it
    /// directly.
    ///
    /// # Errors
    /// [`extent::Kind::Invalid`] if the segment is outside the memory that the client announced.
    fn map(&self, session: SessionId, segment: Segment) -> Result<Option<Window>>;

    /// Moves node memory into the client's (RDMA WRITE, a DATA frame, or a copy). Ends with
    /// [`Event::Written`].
    fn post_write(&mut self, session: SessionId, transfer: Transfer, from: Source);

    /// Moves client memory into the node's (RDMA READ, the bytes behind a capsule, or a copy), as
    /// many as `into` holds. Ends with [`Event::Read`]. On a stream, reads of one request come in
    /// order.
    fn post_read(&mut self, session: SessionId, transfer: Transfer, into: Target);

    /// Gives up what is left of the bytes that follow the session's latest request.
    fn discard(&mut self, session: SessionId);

    /// Whether a reply may be posted right behind the [`Transport::post_write`]s of its request,
    /// before they are reported: they stay in order, and one that fails ends the session.
    fn replies_follow(&self, session: SessionId) -> bool {
        let _ = session;
        false
    }

    /// Sends a reply. The fabric delivers it after every transfer posted before for its session.
    fn post_reply(&mut self, session: SessionId, reply: &Reply);

    /// Announces memory of the node that transfers will use, so that it is registered before the
    /// first of them needs it. Optional.
    ///
    /// # Errors
    /// If a device has no room for it, or the process may not lock as much.
    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        let _ = region;
        Ok(())
    }

    /// Hands everything posted to the fabric, with as few system calls or doorbells as it can.
    fn kick(&mut self);

    /// Ends a session from this side; [`Event::Closed`] follows.
    fn close(&mut self, session: SessionId, reason: Error);

    /// Sessions that are open.
    fn sessions(&self) -> usize;

    /// Bytes of memory that the open sessions have taken, without what their devices have; `None` where
    /// that is not counted.
    fn session_bytes(&self) -> Option<usize> {
        None
    }

    /// Prepares to sleep: from now on [`Transport::readiness`] becomes readable when something
    /// happens. Returns `false` if something already has: poll instead of sleeping.
    fn arm(&mut self) -> bool;

    /// The opposite of [`Transport::arm`], called on waking. `rung` is whether
    /// [`Transport::readiness`] may be readable: if not, there is no need to look.
    fn disarm(&mut self, rung: bool);

    /// A descriptor (often an epoll instance) to sleep on after [`Transport::arm`]; `None` if the
    /// fabric can only be polled.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}
