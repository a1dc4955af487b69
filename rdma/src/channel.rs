//! The client's side of a fabric.

use std::sync::Arc;
use std::time::Duration;

use dma::{DmaBuf, Region};
use extent::wire::{Reply, Request};
use extent::{Kind, Result};

use crate::Fabric;

/// One session, seen from the client. Single-threaded: a client that wants more threads opens more
/// channels, or puts a lock around one.
///
/// Requests name memory by segments whose `key` is the low 32 bits of a registered region's
/// [`dma::RegionId`] and whose `address` is the offset in that region, on every fabric: the channel translates
/// to what its fabric puts on the wire. Memory of devices is named the same way. The caller owns the regions, and must not touch a request's
/// segments until its reply is there, or the channel is gone.
pub trait Channel: Send {
    /// How the node is reached.
    fn fabric(&self) -> Fabric;

    /// Memory that the node may use directly over this fabric, of at least `length` bytes,
    /// registered until the channel is dropped or [`Channel::release`].
    ///
    /// # Errors
    /// [`extent::Kind::NoSpace`] if there is no memory; [`extent::Kind::Busy`] if too many regions are registered.
    fn allocate(&mut self, length: usize) -> Result<Arc<Region>>;

    /// Registers memory that an earlier channel allocated, and that no request of that one can
    /// reach any more: it was dropped.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] if this fabric takes none but its own; else as [`Channel::allocate`].
    fn register(&mut self, region: &Arc<Region>) -> Result<()>;

    /// Forgets a region. Do this only when no request names it any more.
    fn release(&mut self, region: &Arc<Region>);

    /// Has the node write into memory of another device, which requests to READ then name as they do a region: by its
    /// id, and by how far from its front. That ends when the channel is dropped, or with
    /// [`Channel::release_device`]: whatever the node does afterwards, no byte of it changes.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] if this fabric, or its device, reaches no memory of other devices;
    /// [`extent::Kind::NoSpace`] or [`extent::Kind::Busy`] if there is no room for it.
    fn register_device(&mut self, memory: &Arc<DmaBuf>) -> Result<()> {
        let _ = memory;
        Err(Kind::Unsupported.error(format!(
            "the node is reached over {}, by which it writes into no other device's memory",
            self.fabric().name()
        )))
    }

    /// Forgets memory of a device. A request that still names it ends the connection, so do this when none does.
    fn release_device(&mut self, memory: &Arc<DmaBuf>) {
        let _ = memory;
    }

    /// Queues a request; the bytes of a WRITE, or the name of an OPEN, are taken from its segments.
    ///
    /// # Errors
    /// [`extent::Kind::Busy`] if the ring or the send buffer is full: poll first.
    /// [`extent::Kind::Disconnected`] if the session is over.
    fn send(&mut self, request: &Request) -> Result<()>;

    /// Hands everything queued to the node.
    ///
    /// # Errors
    /// [`extent::Kind::Disconnected`] if the session is over.
    fn kick(&mut self) -> Result<()>;

    /// Appends the replies that have come; the bytes of their READs are in place. Never blocks.
    ///
    /// # Errors
    /// [`extent::Kind::Disconnected`] if the session is over, [`extent::Kind::Corrupt`] if the node sent nonsense; no request will
    /// be answered any more.
    fn poll(&mut self, replies: &mut Vec<Reply>) -> Result<()>;

    /// Sleeps until [`Channel::poll`] has something to do, or the time is over.
    ///
    /// # Errors
    /// As [`Channel::poll`].
    fn wait(&mut self, timeout: Duration) -> Result<()>;
}
