//! What this machine and a ring offer.

use rdma::{Fabric, RdmaDevice};

use crate::abi::{self, Caps};
use crate::core::Core;

impl Caps {
    /// What the machine offers.
    pub(crate) fn of_machine() -> Self {
        // A machine without rdma-core has no RDMA devices.
        let devices = RdmaDevice::all().unwrap_or_default();
        let ports = devices.iter().flat_map(|device| &device.ports);
        Self {
            size: 0,
            abi: abi::ABI,
            features: 0,
            fabric: abi::FABRIC_NONE,
            entries: 0,
            credits: 0,
            block_bytes: 0,
            max_transfer_bytes: 0,
            reconnections: 0,
            repeated_requests: 0,
            rdma_devices: count(devices.len()),
            rdma_ports_up: count(ports.filter(|port| port.active).count()),
        }
    }

    /// The same, with what a ring offers.
    pub(crate) fn of_ring(self, core: &Core) -> Self {
        let session = &core.session;
        let (fabric, zero_copy) = match session.fabric() {
            Fabric::SharedMemory => (abi::FABRIC_SHARED_MEMORY, true),
            Fabric::Tcp => (abi::FABRIC_TCP, false),
            Fabric::Verbs => (abi::FABRIC_RDMA, true),
            Fabric::Simulated => (abi::FABRIC_NONE, true),
        };
        let features = [
            (zero_copy, abi::CAP_ZERO_COPY),
            (session.is_connected(), abi::CAP_CONNECTED),
            (session.connects_again(), abi::CAP_RECONNECTS),
            (core.settings.session.verify, abi::CAP_VERIFIES),
        ];
        let (hello, stats) = (session.hello(), session.stats());
        Self {
            features: features.iter().filter(|(has, _)| *has).map(|(_, bit)| bit).sum(),
            fabric,
            entries: count(core.settings.entries),
            credits: u32::from(hello.credits),
            block_bytes: hello.block_bytes,
            max_transfer_bytes: hello.max_transfer_bytes,
            reconnections: stats.connections.saturating_sub(1),
            repeated_requests: stats.repeated,
            ..self
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
