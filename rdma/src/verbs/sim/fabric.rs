use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use extent::{Kind, Result};

use crate::SessionId;

use super::super::channel::VerbsChannel;
use super::super::connection::CmEventKind;
use super::super::listener::VerbsListener;
use super::super::options::VerbsOptions;
use super::super::provider::Provider as _;
use super::super::transport::VerbsTransport;
use super::connection::Told;
use super::handles::{SimId, Simulated};
use super::options::SimVerbsOptions;
use super::transport::{SimVerbsConnecting, SimVerbsTransport};
use super::world::{Due, World, lock};

/// A simulated network of simulated RDMA devices: makes the nodes' and the clients' ends.
#[derive(Clone, Debug)]
pub struct SimVerbs(Simulated);

/// What there is of everything that a device has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SimVerbsUsage {
    /// Queue pairs.
    pub queue_pairs: usize,
    /// Ends of connections, and of what listens.
    pub ids: usize,
    /// Completion queues.
    pub completion_queues: usize,
    /// Protection domains.
    pub domains: usize,
    /// Regions of memory.
    pub regions: usize,
    /// Receives that are shared and wait for a message.
    pub receives: usize,
    /// Completions that nobody has taken, or that may come of what is posted.
    pub due: usize,
}

impl SimVerbs {
    /// A network where everything happens in an order that follows from `seed`.
    #[must_use]
    pub fn new(seed: u64, options: SimVerbsOptions) -> Self {
        Self(Simulated(Arc::new(Mutex::new(World::new(seed, options)))))
    }

    /// The endpoint of the next shard, the first being shard 0, with sessions numbered from `base`.
    ///
    /// # Errors
    /// As [`VerbsTransport::new`].
    pub fn transport(&self, base: SessionId) -> Result<SimVerbsTransport> {
        let channel = self.0.event_channel()?;
        let mut world = lock(&self.0.0);
        let id = world.make_id(channel.number, None);
        world.listeners.push(id.number);
        drop(world);
        let id = SimId { channel: Arc::clone(&channel), id };
        let inner = VerbsTransport::over(&self.0, base, VerbsOptions::default())?;
        let listener = VerbsListener::over(channel, id);
        Ok(SimVerbsTransport::new(Arc::clone(&self.0.0), listener, inner))
    }

    /// Has a client ask a shard for a connection, with room for so many requests in flight.
    ///
    /// # Errors
    /// [`Kind::Disconnected`] if [`SimVerbs::transport`] was not called for that shard.
    pub fn connect(&self, shard: u16, credits: u16) -> Result<SimVerbsConnecting> {
        let events = self.0.event_channel()?;
        let mut world = lock(&self.0.0);
        let listener = world.listeners.get(usize::from(shard)).copied();
        let listener = listener.filter(|listener| world.ids.contains_key(listener));
        let listener =
            listener.ok_or_else(|| Kind::Disconnected.error("no such shard on this network"))?;
        let id = world.make_id(events.number, Some(listener));
        drop(world);
        let id = SimId { channel: Arc::clone(&events), id };
        let channel = VerbsChannel::ask(id, events, credits, None)?;
        Ok(SimVerbsConnecting::new(Arc::clone(&self.0.0), channel))
    }

    /// Sets what goes wrong from now on.
    pub fn set_options(&self, options: SimVerbsOptions) {
        lock(&self.0.0).options = options;
    }

    /// Lets time pass, as a look at a completion queue does.
    pub fn step(&self) {
        super::world::step(&self.0.0);
    }

    /// How many connections nodes have accepted and not let go of.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.0.0).accepted().len()
    }

    /// Cuts the network under one of them, counted from the oldest: nothing that is sent arrives, and
    /// its ends are told long after, or never.
    pub fn cut(&self, nth: usize) {
        let mut world = lock(&self.0.0);
        if let Some(id) = world.accepted().get(nth).copied() {
            world.cut(id);
        }
    }

    /// Pulls out the device: everybody is told, and every connection breaks.
    pub fn remove_device(&self) {
        lock(&self.0.0).remove_device();
    }

    /// Has RDMA CM tell a node of every connection that something failed that it has no name for.
    pub fn tell_nonsense(&self) {
        let mut world = lock(&self.0.0);
        for id in world.accepted() {
            let soon = world.soon();
            world.schedule(soon, Due::Tell(id, Told::of(CmEventKind::Other(77))));
        }
    }

    /// What there is of everything.
    #[must_use]
    pub fn usage(&self) -> SimVerbsUsage {
        let world = lock(&self.0.0);
        SimVerbsUsage {
            queue_pairs: world.pairs.len(),
            ids: world.ids.len(),
            completion_queues: world.queues.len(),
            domains: world.domains,
            regions: world.memory.len(),
            receives: world.shared.values().map(|shared| shared.posted.len()).sum(),
            due: world.queues.values().map(super::queue::Queue::due).sum(),
        }
    }

    /// How often each status of a work completion was told (InfiniBand specification, volume 1,
    /// section 11.6.2), by rdma-core's number.
    #[must_use]
    pub fn statuses(&self) -> BTreeMap<u32, u64> {
        lock(&self.0.0).statuses.clone()
    }
}
