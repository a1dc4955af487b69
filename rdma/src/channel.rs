//! The client's side of a fabric.

use std::sync::Arc;
use std::time::Duration;

use dma::Region;
use extent::Result;
use extent::wire::{Reply, Request};

use crate::Fabric;

/// One session, seen from the client. Single-threaded: a client that wants more threads opens more
/// channels, or puts a lock around one.
///
/// Requests name memory by segments whose `key` is the low 32 bits of a registered region's
/// [`dma::RegionId`] and whose `address` is the offset in that region, on every fabric: the channel translates
/// to what its fabric puts on the wire. The caller owns the regions, and must not touch a request's
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
