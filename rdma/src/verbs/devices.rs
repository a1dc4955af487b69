//! Which RDMA devices a machine has, for operators.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::fs;
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::path::Path;

use extent::Result;

use super::adapter::{check, made, name_of};
use super::ffi::{self, Library};

/// Entries of a port's GID table that are looked at.
const MOST_GIDS: i32 = 256;

/// An RDMA device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RdmaDevice {
    /// The kernel's name for it, such as `mlx5_0`.
    pub name: String,
    /// Its firmware's version.
    pub firmware: String,
    /// Its ports.
    pub ports: Vec<RdmaPort>,
    /// The most queue pairs.
    pub queue_pairs: u32,
    /// The most entries of a completion queue.
    pub completions: u32,
    /// The most RDMA READs that a queue pair has under way.
    pub reads_out: u32,
}

/// One of its ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RdmaPort {
    /// From 1.
    pub number: u8,
    /// Whether its link is up.
    pub active: bool,
    /// Bytes of a packet, as they are and as the device could.
    pub mtu_bytes: (u32, u32),
    /// Whether it is Ethernet (`RoCE`) rather than InfiniBand.
    pub ethernet: bool,
    /// Its addresses.
    pub gids: Vec<Gid>,
}

/// An address of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: u32,
    /// As written like IPv6; IPv4 addresses are `::ffff:10.0.0.1`.
    pub address: Ipv6Addr,
    /// `IB/RoCE v1` or `RoCE v2`, as the kernel says.
    pub kind: String,
    /// The network interface that it comes from.
    pub interface: String,
}

impl RdmaDevice {
    /// All devices of this machine.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] if rdma-core is not installed; [`extent::Kind::Denied`] without
    /// rights on a device; [`extent::Kind::Io`] if it does not answer.
    pub fn all() -> Result<Vec<Self>> {
        let library = ffi::library()?;
        let mut count = 0;
        // SAFETY: `count` is written to.
        let list = unsafe { (library.ibv_get_device_list)(&raw mut count) };
        let list = made(list, "listing RDMA devices")?;
        let mut devices = Vec::new();
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the list has so many entries.
            let entry = unsafe { list.as_ptr().add(index) };
            // SAFETY: as above.
            let device = unsafe { *entry };
            // SAFETY: the device lives as long as the list.
            devices.push(unsafe { look_at(library, device) });
        }
        // SAFETY: it is given back once; open contexts keep their devices.
        unsafe { (library.ibv_free_device_list)(list.as_ptr()) };
        devices.into_iter().collect()
    }
}

/// Opens a device, asks, and closes it.
///
/// # Safety
/// `device` is on a list that was not given back.
unsafe fn look_at(library: &Library, device: *mut ffi::ibv_device) -> Result<RdmaDevice> {
    // SAFETY: the caller vouches for the device.
    let name = unsafe { name_of(library, device) };
    // SAFETY: likewise.
    let context = unsafe { (library.ibv_open_device)(device) };
    let context = made(context, &format!("opening RDMA device {name}"))?.as_ptr();
    // SAFETY: it was opened just now.
    let found = unsafe { describe(library, context, name) };
    // SAFETY: nothing was made on it.
    unsafe { (library.ibv_close_device)(context) };
    found
}

/// # Safety
/// `context` is open.
unsafe fn describe(
    library: &Library,
    context: *mut ffi::ibv_context,
    name: String,
) -> Result<RdmaDevice> {
    let mut attributes = MaybeUninit::<ffi::ibv_device_attr>::zeroed();
    // SAFETY: the caller vouches for the context; the place is large enough.
    let failed = unsafe { (library.ibv_query_device)(context, attributes.as_mut_ptr()) };
    check(failed, "asking an RDMA device for its limits")?;
    // SAFETY: it was filled, and zeroes would do as well.
    let attributes = unsafe { attributes.assume_init() };
    let mut ports = Vec::new();
    for number in 1..=attributes.phys_port_cnt {
        // SAFETY: the caller vouches for the context.
        ports.push(unsafe { port(library, context, &name, number) }?);
    }
    let narrow = |number: i32| u32::try_from(number).unwrap_or(0);
    Ok(RdmaDevice {
        firmware: text(&attributes.fw_ver),
        ports,
        queue_pairs: narrow(attributes.max_qp),
        completions: narrow(attributes.max_cqe),
        reads_out: narrow(attributes.max_qp_init_rd_atom),
        name,
    })
}

/// # Safety
/// `context` is open.
unsafe fn port(
    library: &Library,
    context: *mut ffi::ibv_context,
    device: &str,
    number: u8,
) -> Result<RdmaPort> {
    let mut attributes = MaybeUninit::<ffi::ibv_port_attr>::zeroed();
    // SAFETY: the caller vouches for the context; the place is large enough.
    let failed = unsafe { (library.ibv_query_port)(context, number, attributes.as_mut_ptr()) };
    check(failed, "asking an RDMA device for a port")?;
    // SAFETY: it was filled, and zeroes would do as well.
    let attributes = unsafe { attributes.assume_init() };
    let folder = Path::new("/sys/class/infiniband").join(device).join("ports");
    let folder = folder.join(number.to_string()).join("gid_attrs");
    let read = |kind: &str, index: i32| {
        let text = fs::read_to_string(folder.join(kind).join(index.to_string()));
        text.map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let mut gids = Vec::new();
    for index in 0..attributes.gid_tbl_len.min(MOST_GIDS) {
        let mut bytes = [0; 16];
        // SAFETY: the caller vouches for the context; a GID has 16 bytes.
        let failed = unsafe { (library.ibv_query_gid)(context, number, index, &raw mut bytes) };
        if failed == 0 && bytes != [0; 16] {
            gids.push(Gid {
                index: u32::try_from(index).unwrap_or(0),
                address: Ipv6Addr::from(bytes),
                kind: read("types", index),
                interface: read("ndevs", index),
            });
        }
    }
    let mtu = |code: u32| if (1..=5).contains(&code) { 128 << code } else { 0 };
    Ok(RdmaPort {
        number,
        active: attributes.state == ffi::IBV_PORT_ACTIVE,
        mtu_bytes: (mtu(attributes.active_mtu), mtu(attributes.max_mtu)),
        ethernet: attributes.link_layer == 2,
        gids,
    })
}

fn text(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> =
        bytes.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
