//! Two RDMA devices of this machine that reach each other.

use std::net::{IpAddr, Ipv4Addr};

use extent::Result;
use rdma::RdmaDevice;

/// The node's processor: each end has one of its own, as two hosts would, and what is executed in user mode
/// there is theirs.
pub const NODE_CORE: usize = 0;
/// The clients'.
pub const CLIENT_CORE: usize = 1;

/// One end: a device's port with an address that RDMA CM and perftest both take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct End {
    /// The kernel's name for the device.
    pub device: String,
    /// Its port, from 1.
    pub port: u8,
    /// The place of the address in the port's table.
    pub gid_index: u32,
    /// The address.
    pub address: IpAddr,
}

/// What a node is reached over, and where its clients' connections leave from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cable {
    /// The node's end.
    pub node: End,
    /// The clients' end.
    pub client: End,
}

impl Cable {
    /// The first two devices whose links are up and that have IPv4 addresses of one network of 256
    /// addresses; `None` if there are no such two, or no RDMA at all.
    #[must_use]
    pub fn find() -> Option<Self> {
        let ends = Self::ends().ok()?;
        ends.iter().enumerate().find_map(|(index, node)| {
            let others = &ends[index + 1..];
            let client = others.iter().find(|other| is_near(node.address, other.address))?;
            Some(Self { node: node.clone(), client: client.clone() })
        })
    }

    fn ends() -> Result<Vec<End>> {
        let mut ends = Vec::new();
        for device in RdmaDevice::all()? {
            for port in device.ports.iter().filter(|port| port.active) {
                let routed = port.gids.iter().filter(|gid| gid.kind == "RoCE v2");
                let found =
                    routed.filter_map(|gid| Some((gid.index, gid.address.to_ipv4_mapped()?)));
                ends.extend(found.take(1).map(|(gid_index, address)| End {
                    device: device.name.clone(),
                    port: port.number,
                    gid_index,
                    address: address.into(),
                }));
            }
        }
        Ok(ends)
    }
}

fn is_near(one: IpAddr, other: IpAddr) -> bool {
    let network = |address| match address {
        IpAddr::V4(v4) => Some(Ipv4Addr::to_bits(v4) >> 8),
        IpAddr::V6(_) => None,
    };
    network(one).is_some() && network(one) == network(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_of_one_network() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(is_near(address("10.77.0.1"), address("10.77.0.2")));
        assert!(!is_near(address("10.77.0.1"), address("10.77.1.1")));
        assert!(!is_near(address("::1"), address("::1")), "perftest is told IPv4 addresses");
    }
}
