use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dma::{Region, Source, Target, Window};
use extent::wire::{Reply, Segment};
use extent::{Error, Kind, Result};
use rand::Rng as _;

use crate::{Event, SessionId, Transfer, Transport};

use super::super::channel::VerbsChannel;
use super::super::listener::VerbsListener;
use super::super::transport::VerbsTransport;
use super::SimVerbsChannel;
use super::handles::Simulated;
use super::world::{Shared, finish_errands, lock, step};

/// A shard's end of a [`super::SimVerbs`]: a listener, and the transport that a node has.
pub struct SimVerbsTransport {
    world: Shared,
    listener: VerbsListener<Simulated>,
    inner: VerbsTransport<Simulated>,
}

impl fmt::Debug for SimVerbsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimVerbsTransport").finish_non_exhaustive()
    }
}

impl SimVerbsTransport {
    pub(super) fn new(
        world: Shared,
        listener: VerbsListener<Simulated>,
        inner: VerbsTransport<Simulated>,
    ) -> Self {
        Self { world, listener, inner }
    }

    /// Work requests that could be posted over the devices that have had clients, together.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.inner.room()
    }

    fn accept(&mut self) {
        while let Ok(Some(mut incoming)) = self.listener.accept() {
            let (is_rejected, tenant) = {
                let mut world = lock(&self.world);
                let (chance, tenants) = (world.options.rejected, world.options.tenants);
                (world.chance(chance), world.rng.random_range(0..tenants))
            };
            if tenant > 0 {
                incoming.tenant = format!("t{tenant}").parse().expect("a name");
            }
            if is_rejected {
                incoming.reject(&Kind::Busy.error("this shard takes nobody: try again"));
            } else if let Err(error) = self.inner.adopt(incoming) {
                tracing::debug!(%error, "a client was turned away");
            }
        }
    }
}

impl Transport for SimVerbsTransport {
    fn poll(&mut self, events: &mut Vec<Event>) {
        step(&self.world);
        self.accept();
        self.inner.poll(events);
    }

    fn map(&self, session: SessionId, segment: Segment) -> Result<Option<Window>> {
        self.inner.map(session, segment)
    }

    fn post_write(&mut self, session: SessionId, transfer: Transfer, from: Source) {
        self.inner.post_write(session, transfer, from);
    }

    fn post_read(&mut self, session: SessionId, transfer: Transfer, into: Target) {
        self.inner.post_read(session, transfer, into);
    }

    fn discard(&mut self, session: SessionId) {
        self.inner.discard(session);
    }

    fn replies_follow(&self, session: SessionId) -> bool {
        self.inner.replies_follow(session)
    }

    fn post_reply(&mut self, session: SessionId, reply: &Reply) {
        self.inner.post_reply(session, reply);
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        self.inner.register(region)
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn close(&mut self, session: SessionId, reason: Error) {
        self.inner.close(session, reason);
    }

    fn sessions(&self) -> usize {
        self.inner.sessions()
    }

    fn session_bytes(&self) -> Option<usize> {
        self.inner.session_bytes()
    }

    fn arm(&mut self) -> bool {
        self.inner.arm()
    }

    fn disarm(&mut self, rung: bool) {
        self.inner.disarm(rung);
    }

    /// Nothing: simulated time passes by polling.
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimVerbsTransport {
    fn drop(&mut self) {
        finish_errands(&self.world);
    }
}

/// A client that waits for its connection.
#[derive(Debug)]
pub struct SimVerbsConnecting {
    world: Shared,
    channel: Option<SimVerbsChannel>,
}

impl SimVerbsConnecting {
    pub(super) fn new(world: Shared, channel: SimVerbsChannel) -> Self {
        Self { world, channel: Some(channel) }
    }

    /// Lets time pass, and gives the session once it stands.
    ///
    /// # Errors
    /// Why the node turned the client away.
    pub fn poll(&mut self) -> Result<Option<SimVerbsChannel>> {
        step(&self.world);
        let answered = self.channel.as_ref().map_or(Ok(false), VerbsChannel::is_welcome)?;
        Ok(if answered { self.channel.take() } else { None })
    }
}
