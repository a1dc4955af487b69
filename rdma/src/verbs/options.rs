use super::provider::{CmId, Provider};

/// How connections behave on the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerbsOptions {
    /// The traffic class of packets, of both directions: DSCP in the upper six bits, ECN in the lower
    /// two. `None` leaves it to the system. The client's counts, and a node's nothing.
    pub traffic_class: Option<u8>,
    /// How long this side's device waits for an acknowledgement before it sends a packet again, up to
    /// seven times: 4.096 µs times two to this power, 1 to 31.
    pub acknowledge_timeout: u8,
}

impl Default for VerbsOptions {
    /// The system's traffic class, and about a second.
    fn default() -> Self {
        Self { traffic_class: None, acknowledge_timeout: 18 }
    }
}

impl VerbsOptions {
    pub(super) fn apply<P: Provider>(&self, id: &P::CmId) {
        if let Some(class) = self.traffic_class {
            id.set_traffic_class(class);
        }
        id.set_acknowledge_timeout(self.acknowledge_timeout.clamp(1, 31));
    }
}
