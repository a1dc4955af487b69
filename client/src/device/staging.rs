use std::ops::Range;
use std::time::Duration;

use extent::{Error, Kind, Result};
use gds::{Device, Ladder, Path, Ring, Wire};
use rdma::Fabric;

use super::{DeviceOptions, Direct, Driver, slots, under};
use crate::Memory;

/// The ways into a device's memory that a session has: for programs that drive a [`crate::Session`] by themselves.
/// A [`super::DeviceReader`] has them, too.
pub struct Staging {
    /// A ring, whose pieces are all `slot_bytes` long. Where no read may go through it, it only says with its number of
    /// pieces how many reads are under way at a time.
    pub ring: Ring<Memory>,
    /// What needs no ring, if that may be to be had: the first read sees.
    pub direct: Option<Direct>,
    /// The ways into the device's memory, and why not the better ones.
    pub ladder: Ladder,
    /// The way that reads take.
    pub path: Path,
    /// The way that the ring is.
    pub ring_path: Path,
}

impl Staging {
    /// A ring of a session's memory, through which a pattern went, and came back from the device intact. `verifies` says
    /// that the session compares checksums, for which it has to see the bytes.
    ///
    /// # Errors
    /// As [`super::DeviceReader::new`].
    pub fn new(
        driver: &impl Driver,
        fabric: Fabric,
        verifies: bool,
        device: &Device,
        options: &DeviceOptions,
    ) -> Result<Self> {
        let mut ladder = ladder(fabric, device);
        let direct = Direct::begin(driver, verifies, device, options.policy, &mut ladder);
        let allocate = |bytes| driver.when_connected(|session| session.allocate(bytes));
        let is_only = direct.is_some() && !options.policy.allows(Path::Staged);
        let (ring, ring_path) = if is_only {
            (slots::unused(allocate, device, options)?, Path::Host)
        } else {
            slots::choose(allocate, device, options, &mut ladder)?
        };
        let path = if is_only { Path::GpuDirect } else { ring_path };
        Ok(Self { ring, direct, ladder, path, ring_path })
    }

    /// What to say of a device that has finished no copy for so long.
    #[must_use]
    pub fn stalled(&self, timeout: Duration) -> Error {
        stalled(self.ring.device(), timeout)
    }

    /// What to say of a copy that failed after its read was over.
    #[must_use]
    pub fn late(error: Error) -> Error {
        late(error)
    }
}

pub(super) fn stalled(device: &Device, timeout: Duration) -> Error {
    Kind::Busy.error(format!(
        "{} finished no copy within {timeout:?}, and may still write to the memory: keep that, and look at the \
         device",
        device.info().name
    ))
}

pub(super) fn late(error: Error) -> Error {
    error.while_doing("an earlier read, which had been handed to a stream")
}

/// What a device, and the way to the node, allow.
pub(super) fn ladder(fabric: Fabric, device: &Device) -> Ladder {
    let wire = match fabric {
        Fabric::Verbs => Wire::Rdma,
        Fabric::SharedMemory => Wire::Other("shared memory"),
        Fabric::Tcp => Wire::Other("TCP"),
        Fabric::Simulated => Wire::Other("a simulated fabric"),
    };
    Ladder::new(Ok(device.info()), wire)
}

/// How much of a read of `left` bytes from `offset` of a file to ask for at once, and where in a piece of the
/// ring it goes: no further than to where the offset is a multiple of the pieces' length, and as far into
/// the piece as it lies into a page of the file, so that the node's devices write whole blocks by themselves.
#[must_use]
pub fn within(offset: u64, left: usize, slot_bytes: usize) -> Range<usize> {
    let head = under::head(offset);
    head..head + under::piece(offset, left, slot_bytes)
}
