//! What gets bytes past the processor: IOMMU, RDMA, GPUs; and the loopback that replaces a network.

use std::net::{Ipv6Addr, TcpListener};
use std::path::Path;

use gds::{CudaDriver, CudaState, DeviceInfo, Ladder, Verdict, Wire};
use rdma::RdmaDevice;
use rdma::verbs::RdmaPort;

use super::{Finding, names_in};
use crate::system::library_opens;
use crate::units;

pub(super) fn iommu() -> Finding {
    const NAME: &str = "VFIO";
    let groups = names_in("/sys/kernel/iommu_groups").len();
    let vfio = Path::new("/dev/vfio/vfio").exists();
    match (groups, vfio) {
        (0, _) => Finding::missing(
            NAME,
            "no IOMMU groups",
            "turn the IOMMU on (intel_iommu=on or amd_iommu=on) to drive NVMe from user space",
        ),
        (groups, false) => Finding::missing(
            NAME,
            format!("{groups} IOMMU groups, no /dev/vfio/vfio"),
            "modprobe vfio-pci to drive NVMe from user space",
        ),
        (groups, true) => Finding::ok(NAME, format!("{groups} IOMMU groups")),
    }
}

pub(super) fn rdma_devices() -> Finding {
    const NAME: &str = "RDMA devices";
    let names = names_in("/sys/class/infiniband");
    if names.is_empty() {
        return Finding::missing(
            NAME,
            "none",
            "other machines reach this node over TCP; `rdma link add rxe0 type rxe netdev DEV` \
             makes one of any network card",
        );
    }
    let devices = match RdmaDevice::all() {
        Ok(devices) => devices,
        Err(error) => return Finding::warn(NAME, names.join(", "), error.to_string()),
    };
    let found: Vec<String> = devices.iter().flat_map(describe).collect();
    let advice: Vec<String> = devices.iter().flat_map(advise).collect();
    if advice.is_empty() {
        return Finding::ok(NAME, found.join("; "));
    }
    Finding::warn(NAME, found.join("; "), advice.join("; "))
}

/// Its ports: link, packet size, addresses.
fn describe(device: &RdmaDevice) -> Vec<String> {
    let port = |port: &RdmaPort| {
        let link = if port.active { "up" } else { "down" };
        let mut addresses: Vec<String> = port.gids.iter().map(|gid| address(gid.address)).collect();
        addresses.dedup();
        format!(
            "{}/{} {link}, MTU {} of {}, {}",
            device.name,
            port.number,
            port.mtu_bytes.0,
            port.mtu_bytes.1,
            addresses.join(" ")
        )
    };
    device.ports.iter().map(port).collect()
}

fn advise(device: &RdmaDevice) -> Vec<String> {
    let mut advice = Vec::new();
    for port in &device.ports {
        let name = format!("{}/{}", device.name, port.number);
        if !port.active {
            advice.push(format!("{name} is down: look at its cable and `rdma link`"));
        } else if port.mtu_bytes.0 < port.mtu_bytes.1 {
            advice.push(format!(
                "{name} sends packets of {} bytes where it could send {}: raise its interface's \
                 MTU, on the switch as well",
                port.mtu_bytes.0, port.mtu_bytes.1
            ));
        }
        if port.ethernet && !port.gids.iter().any(|gid| gid.kind == "RoCE v2") {
            advice.push(format!("{name} has no RoCE v2 address: give its interface one"));
        }
    }
    advice
}

/// An address as people write it.
fn address(gid: Ipv6Addr) -> String {
    gid.to_ipv4_mapped().map_or_else(|| gid.to_string(), |address| address.to_string())
}

pub(super) fn rdma_libraries() -> Finding {
    const NAME: &str = "RDMA libraries";
    let lacking: Vec<&str> = ["libibverbs.so.1", "librdmacm.so.1"]
        .into_iter()
        .filter(|library| !library_opens(library))
        .collect();
    if lacking.is_empty() {
        return Finding::ok(NAME, "libibverbs, librdmacm");
    }
    Finding::missing(
        NAME,
        format!("no {}", lacking.join(", ")),
        "install rdma-core (Debian: ibverbs-providers librdmacm1)",
    )
}

/// GPUs, and each way into their memory.
pub(super) fn gpus() -> Vec<Finding> {
    let state = CudaDriver::look();
    let mut ladder = Ladder::new(state.first(), Wire::Unknown);
    ladder.look_for_cufile();
    let rungs = ladder.rungs().map(|(path, verdict)| rung(path, verdict));
    std::iter::once(cuda(&state)).chain(rungs).collect()
}

fn cuda(state: &CudaState) -> Finding {
    const NAME: &str = "CUDA";
    match state {
        CudaState::NoLibrary => Finding::missing(
            NAME,
            "no libcuda.so.1",
            "only clients on GPU servers need it; a node does not",
        ),
        CudaState::Useless(why) => Finding::warn(NAME, why, "look at nvidia-smi and dmesg"),
        CudaState::Devices(devices) => {
            let name = |gpu: &DeviceInfo| {
                format!("GPU {}: {}, {}", gpu.ordinal, gpu.name, units::bytes(gpu.memory_bytes))
            };
            Finding::ok(NAME, devices.iter().map(name).collect::<Vec<_>>().join("; "))
        }
    }
}

fn rung(path: gds::Path, verdict: &Verdict) -> Finding {
    let (name, works) = match path {
        gds::Path::GpuDirect => ("GPUDirect RDMA", "the node's RDMA device writes into the GPU"),
        gds::Path::Staged => ("GPU, staged", "through a pinned ring; each reader tries it first"),
        gds::Path::CuFile => ("cuFile", "local files, where their file system lets it"),
        gds::Path::Host => ("GPU, host", "through host memory that is not pinned: always"),
    };
    match verdict {
        Verdict::Works => Finding::ok(name, works),
        Verdict::Cannot(why) => {
            Finding::missing(name, why, "clients take the next way: see docs/gpu.md")
        }
    }
}

pub(super) fn loopback() -> Finding {
    const NAME: &str = "loopback";
    match TcpListener::bind("127.0.0.1:0") {
        Ok(_) => Finding::ok(NAME, "127.0.0.1"),
        Err(error) => Finding::warn(
            NAME,
            format!("127.0.0.1: {error}"),
            "ip link set lo up: the control plane listens there",
        ),
    }
}
