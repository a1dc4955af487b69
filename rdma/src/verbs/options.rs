use std::net::{IpAddr, SocketAddr};

use extent::Result;

use super::connection::CmId;

/// How connections behave on the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerbsOptions {
    /// The traffic class of packets, of both directions: DSCP in the upper six bits, ECN in the lower
    /// two. `None` leaves it to the system. The client's counts, and a node's nothing.
    pub traffic_class: Option<u8>,
    /// How long this side's device waits for an acknowledgement before it sends a packet again, up to
    /// seven times: 4.096 µs times two to this power, 1 to 31.
    pub acknowledge_timeout: u8,
    /// The address that a client's connections leave from, and with it the device, where the system's
    /// routes would choose another one or several reach the node. Of no meaning for a node.
    pub source: Option<IpAddr>,
}

impl Default for VerbsOptions {
    /// The system's traffic class and routes, and about a second.
    fn default() -> Self {
        Self { traffic_class: None, acknowledge_timeout: 18, source: None }
    }
}

impl VerbsOptions {
    pub(super) fn apply(&self, id: &CmId) {
        if let Some(class) = self.traffic_class {
            id.set_traffic_class(class);
        }
        id.set_acknowledge_timeout(self.acknowledge_timeout.clamp(1, 31));
    }

    /// Has a connection leave from where it should.
    pub(super) fn bind_source(&self, id: &CmId) -> Result<()> {
        self.source.map_or(Ok(()), |source| id.bind(SocketAddr::new(source, 0)))
    }
}
