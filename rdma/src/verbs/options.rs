use std::net::IpAddr;

use super::provider::{CmId, Provider};

/// How connections behave on the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerbsOptions {
    /// The traffic class of packets, of both directions: DSCP in the upper six bits, ECN in the lower
    /// two. `None` leaves it to the system. The client's counts, and a node's nothing.
    pub traffic_class: Option<u8>,
    /// How long this side's device waits for an acknowledgement before it sends a packet again, up to
    /// six times: 4.096 µs times two to this power, 1 to 31.
    pub acknowledge_timeout: u8,
    /// The address of this machine that a client connects from, and so its device, where several reach
    /// the node. `None` leaves it to the system's routes. A node takes no notice of it.
    pub source: Option<IpAddr>,
}

impl Default for VerbsOptions {
    /// The system's traffic class and routes, and about a second.
    fn default() -> Self {
        Self { traffic_class: None, acknowledge_timeout: 18, source: None }
    }
}

impl VerbsOptions {
    /// For how many seconds a device tries, at the most: eight times as long as it waits.
    pub(super) fn patience_s(&self) -> u64 {
        ((4096 * 8) << self.acknowledge_timeout.clamp(1, 31)) / 1_000_000_000
    }

    pub(super) fn apply<P: Provider>(&self, id: &P::CmId) {
        if let Some(class) = self.traffic_class {
            id.set_traffic_class(class);
        }
        id.set_acknowledge_timeout(self.acknowledge_timeout.clamp(1, 31));
    }
}
