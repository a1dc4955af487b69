use super::connection::CmId;

/// How connections behave on the network; both ends may set theirs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerbsOptions {
    /// The traffic class of packets: DSCP in the upper six bits, ECN in the lower two. `None` leaves
    /// it to the system.
    pub traffic_class: Option<u8>,
    /// How long the device waits for an acknowledgement before it sends a packet again: 4.096 µs
    /// times two to this power, 0 to 31. `None` leaves it to RDMA CM.
    pub acknowledge_timeout: Option<u8>,
    /// How often a packet is sent again before the connection is given up: 0 to 7.
    pub retries: u8,
}

impl Default for VerbsOptions {
    /// The system's traffic class and timeout, seven retries.
    fn default() -> Self {
        Self { traffic_class: None, acknowledge_timeout: None, retries: 7 }
    }
}

impl VerbsOptions {
    pub(super) fn apply(&self, id: &CmId) {
        if let Some(class) = self.traffic_class {
            id.set_traffic_class(class);
        }
        if let Some(exponent) = self.acknowledge_timeout {
            id.set_acknowledge_timeout(exponent);
        }
    }
}
