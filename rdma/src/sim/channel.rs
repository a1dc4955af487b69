use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dma::Region;
use extent::Result;
use extent::wire::{Reply, Request};

use crate::{Channel, Fabric, SessionId};

use super::lock;
use super::world::World;

/// A client's end of a [`super::SimFabric`].
#[derive(Debug)]
pub struct SimChannel {
    world: Arc<Mutex<World>>,
    session: SessionId,
}

impl SimChannel {
    pub(super) fn new(world: Arc<Mutex<World>>, session: SessionId) -> Self {
        Self { world, session }
    }

    /// The session's number, for [`super::SimFabric::sever`].
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }
}

impl Channel for SimChannel {
    fn fabric(&self) -> Fabric {
        Fabric::Simulated
    }

    fn allocate(&mut self, length: usize) -> Result<Arc<Region>> {
        lock(&self.world).allocate(self.session, length)
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        lock(&self.world).register(self.session, region)
    }

    fn release(&mut self, region: &Arc<Region>) {
        lock(&self.world).release(self.session, region);
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        lock(&self.world).send(self.session, request)
    }

    fn kick(&mut self) -> Result<()> {
        lock(&self.world).kick_client(self.session)
    }

    fn poll(&mut self, replies: &mut Vec<Reply>) -> Result<()> {
        let mut world = lock(&self.world);
        world.step();
        world.take_replies(self.session, replies)
    }

    /// Returns soon: simulated time passes by polling.
    fn wait(&mut self, _: Duration) -> Result<()> {
        thread::yield_now();
        Ok(())
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        lock(&self.world).leave(self.session);
    }
}
