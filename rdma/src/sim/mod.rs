//! A fabric inside one process, for tests: seeded, and in the order that the seed says.
//!
//! Time is counted in polls, of either side: nothing moves unless somebody polls, and the same
//! calls with the same seed have the same effects. What is posted waits for its `kick`, as on real
//! fabrics, and then for a seeded number of polls. A session's transfers and replies stay in order;
//! sessions overtake each other. Client memory is looked up when a transfer happens: a client that
//! left meanwhile, or released it, yields an error.

mod channel;
mod link;
mod transport;
mod world;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::SessionId;

pub use channel::SimChannel;
pub use transport::SimTransport;
use world::World;

/// A simulated network: makes the nodes' and the clients' ends, and cuts them.
#[derive(Clone, Debug)]
pub struct SimFabric(Arc<Mutex<World>>);

impl SimFabric {
    /// A network whose delays follow from `seed`. Transfers take up to eight polls, and client
    /// memory is not mapped, as over verbs.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(World::new(seed))))
    }

    /// Whether [`crate::Transport::map`] gives windows into client memory, as over shared memory.
    /// Holds for sessions from now on.
    #[must_use]
    pub fn with_windows(self, windows: bool) -> Self {
        self.lock().set_windows(windows);
        self
    }

    /// The most polls that anything takes; 0 has everything happen at the next.
    #[must_use]
    pub fn with_delay(self, most_polls: u64) -> Self {
        self.lock().set_delay(most_polls);
        self
    }

    /// The endpoint of the next shard; the first is shard 0.
    #[must_use]
    pub fn transport(&self) -> SimTransport {
        let shard = self.lock().add_shard();
        SimTransport::new(Arc::clone(&self.0), shard)
    }

    /// Connects a client to a shard.
    ///
    /// # Panics
    /// If [`SimFabric::transport`] was not called for that shard.
    #[must_use]
    pub fn connect(&self, shard: u16) -> SimChannel {
        let session = self.lock().connect(shard);
        SimChannel::new(Arc::clone(&self.0), session)
    }

    /// The sessions that are open, oldest first.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionId> {
        self.lock().sessions()
    }

    /// Cuts a session: both ends find it disconnected, with whatever was under way lost.
    pub fn sever(&self, session: SessionId) {
        let reason = extent::Kind::Disconnected.error("the simulated network cut the session");
        self.lock().end(session, &reason);
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        lock(&self.0)
    }
}

/// A test that panicked while it held the lock has failed already; the others may go on.
fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}
