use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use dma::{Source, Target, Window};
use extent::wire::{Reply, Segment};
use extent::{Error, Result};

use crate::{Event, SessionId, Transfer, Transport};

use super::link::Posted;
use super::lock;
use super::world::World;

/// A shard's end of a [`super::SimFabric`].
#[derive(Debug)]
pub struct SimTransport {
    world: Arc<Mutex<World>>,
    shard: u16,
}

impl SimTransport {
    pub(super) fn new(world: Arc<Mutex<World>>, shard: u16) -> Self {
        Self { world, shard }
    }
}

impl Transport for SimTransport {
    fn poll(&mut self, events: &mut Vec<Event>) {
        let mut world = lock(&self.world);
        world.step();
        world.take_news(self.shard, events);
    }

    fn map(&self, session: SessionId, segment: Segment) -> Result<Option<Window>> {
        lock(&self.world).map(session, segment)
    }

    fn post_write(&mut self, session: SessionId, transfer: Transfer, from: Source) {
        lock(&self.world).post(self.shard, session, Posted::Write(transfer, from));
    }

    fn post_read(&mut self, session: SessionId, transfer: Transfer, into: Target) {
        lock(&self.world).post(self.shard, session, Posted::Read(transfer, into));
    }

    fn discard(&mut self, _: SessionId) {}

    fn post_reply(&mut self, session: SessionId, reply: &Reply) {
        lock(&self.world).post(self.shard, session, Posted::Reply(reply.clone()));
    }

    fn kick(&mut self) {
        lock(&self.world).kick_node(self.shard);
    }

    fn close(&mut self, session: SessionId, reason: Error) {
        lock(&self.world).end(session, &reason);
    }

    fn sessions(&self) -> usize {
        lock(&self.world).sessions_of(self.shard)
    }

    fn arm(&mut self) -> bool {
        lock(&self.world).is_quiet(self.shard)
    }

    fn disarm(&mut self, _: bool) {}

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
