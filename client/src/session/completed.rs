use std::fmt;

use extent::wire::{Landing, OpenBody, Served};
use extent::{Error, Result};

use crate::Memory;

/// An operation that was submitted. Never used twice in a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// How far an operation is. What has not changed for a while stands still, or waits for those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Which one.
    pub ticket: Ticket,
    /// READ and WRITE: bytes that the node was asked for, or has been told of.
    pub sent_bytes: u64,
    /// Requests that the node has not answered. None, if all of it still waits to be sent.
    pub unanswered: usize,
}

/// How an operation ended.
#[derive(Debug)]
pub struct Completed {
    /// Which one.
    pub ticket: Ticket,
    /// Success, or what went wrong, in the node's words.
    pub result: Result<()>,
    /// READ and WRITE: bytes moved. A read may end early, at the end of the file.
    pub bytes: u64,
    /// READ: where the bytes came from; of several requests, the one furthest from the tier.
    pub served: Served,
    /// READ and WRITE: how the bytes moved; of several requests, the longest way.
    pub landing: Landing,
    /// Time in the node, in microseconds; of several requests, the longest. 0 where a short reply over RDMA
    /// does not tell.
    pub service_us: u32,
    /// OPEN: the handle.
    pub handle: u64,
    /// The body of the last reply; see [`Completed::opened`].
    pub body: Vec<u8>,
    /// The memory that was handed in. `None` where none was, or where it is lost because the
    /// node's devices may still write into it.
    pub memory: Option<Memory>,
}

impl Completed {
    /// What OPEN, COMMIT or STAT say of the file.
    ///
    /// # Errors
    /// The operation's own error; [`extent::Kind::Corrupt`] if the body is too short.
    pub fn opened(self) -> Result<(u64, OpenBody)> {
        self.result?;
        Ok((self.handle, OpenBody::parse(&self.body)?))
    }
}

/// An operation that was not taken, and the memory that came with it.
pub struct Refused {
    /// Why.
    pub error: Error,
    /// The memory, untouched.
    pub memory: Memory,
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}
