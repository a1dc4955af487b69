//! What is between a simulated node and its clients.

use std::sync::{Arc, Mutex};

use dataplane::Stepped;
use extent::{Kind, Result};
use rdma::{Fabric, SessionId, SimFabric, SimVerbs, SimVerbsOptions, Transport};

use crate::wired::Wired;

/// Requests that a client has in flight.
const CREDITS: u16 = 16;
/// How often a client looks whether it is connected.
const LOOKS: u32 = 200_000;

/// A simulated fabric.
#[derive(Clone)]
pub(crate) enum Network {
    /// The plain one.
    Plain(SimFabric),
    /// Verbs on simulated devices: the code that runs on real ones.
    Verbs(SimVerbs),
}

impl Network {
    /// Verbs in a third of the worlds, on devices of either kind.
    pub(crate) fn new(world: u64, seed: u64, windows: bool) -> Self {
        if world % 3 == 1 {
            let rough = SimVerbsOptions::rough(world.is_multiple_of(2));
            Self::Verbs(SimVerbs::new(seed, rough))
        } else {
            Self::Plain(SimFabric::new(seed).with_windows(windows))
        }
    }

    pub(crate) fn transport(&self, shard: u16) -> Box<dyn Transport> {
        match self {
            Self::Plain(fabric) => Box::new(fabric.transport()),
            Self::Verbs(network) => {
                let base = SessionId::base(Fabric::Verbs, shard);
                Box::new(network.transport(base).expect("simulated"))
            }
        }
    }

    /// A client's channel; the node goes on while it waits for that.
    pub(crate) fn connect(&self, shard: u16, node: &Arc<Mutex<Stepped>>) -> Result<Wired> {
        let network = match self {
            Self::Plain(fabric) => return Ok(Wired::new(fabric.connect(shard), Arc::clone(node))),
            Self::Verbs(network) => network,
        };
        let mut connecting = network.connect(shard, CREDITS)?;
        for _ in 0..LOOKS {
            if let Some(channel) = connecting.poll()? {
                return Ok(Wired::new(channel, Arc::clone(node)));
            }
            node.lock().expect("nobody panics under the lock").step(0);
        }
        Err(Kind::Disconnected.error("the node takes nobody"))
    }

    /// Sessions that are open.
    pub(crate) fn sessions(&self) -> usize {
        match self {
            Self::Plain(fabric) => fabric.sessions().len(),
            Self::Verbs(network) => network.connections(),
        }
    }

    /// Cuts one of them, counted from the oldest.
    pub(crate) fn sever(&self, nth: usize) {
        match self {
            Self::Plain(fabric) => {
                if let Some(session) = fabric.sessions().get(nth) {
                    fabric.sever(*session);
                }
            }
            Self::Verbs(network) => network.cut(nth),
        }
    }

    /// Nothing goes wrong any more.
    pub(crate) fn calm(&self) {
        if let Self::Verbs(network) = self {
            let rough = SimVerbsOptions::rough(true);
            network.set_options(SimVerbsOptions {
                completions: rough.completions,
                shared_receives: rough.shared_receives,
                ..SimVerbsOptions::default()
            });
        }
    }

    /// That nobody is connected, and all receives and all room are back; of a node of so many shards.
    pub(crate) fn assert_at_rest(&self, shards: usize) {
        let Self::Verbs(network) = self else { return };
        let usage = network.usage();
        assert_eq!((usage.queue_pairs, usage.ids), (0, shards), "{usage:?}");
        assert_eq!(usage.due, usage.receives, "completions that nobody takes: {usage:?}");
        let each = SimVerbsOptions::rough(true).shared_receives as usize;
        assert_eq!(usage.receives, usage.completion_queues * each, "receives are lost: {usage:?}");
    }
}
