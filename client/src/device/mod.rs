//! Files read into the memory of GPUs.
//!
//! A [`DeviceReader`] has a ring of host memory that both the node and the device reach. The node writes
//! into one piece of it while the device copies others away by itself; a file of any length goes through a
//! ring of a fixed one, and no byte is copied by the processor. Which way it is, and why not a better
//! one, [`DeviceReader::ladder`] and every [`DeviceRead`] say. Where the client's RDMA device takes memory of the
//! GPU, the node writes there by itself, without the ring.
//!
//! ```no_run
//! # fn main() -> extent::Result<()> {
//! use forebay_client::device::{Device, DeviceOptions, DeviceReader};
//! use forebay_client::{Client, Options};
//!
//! let client = Client::connect(&"auto".parse()?, &Options::default())?;
//! let gpu = Device::cuda(0)?;
//! let mut reader = DeviceReader::new(&client, &gpu, &DeviceOptions::default())?;
//! let file = client.open(&"weights/model.safetensors".parse()?)?;
//! let memory = gpu.allocate(1 << 30)?;
//! let read = reader.read_into(&file, 8, &memory.all(), None)?;
//! println!("{} bytes, {}, {:?}", read.bytes, read.path, read.total);
//! # Ok(())
//! # }
//! ```
//!
//! A [`LocalFile`] is one of this machine's own: [`DeviceReader::read_local`] has cuFile read it, or goes through the
//! ring.

mod direct;
mod directly;
mod driver;
mod fetch;
mod flight;
mod local;
mod slots;
mod staging;
#[cfg(test)]
pub(crate) mod tests;
mod under;

use std::ops::Range;
use std::time::Duration;

use extent::wire::{Landing, Served};
use extent::{Error, Kind, Result};

use crate::bugs::{self, Bug};
use crate::{Client, File, Memory};
use flight::Flight;

pub use direct::{Aim, Direct, DirectStats, Origin};
pub use driver::Driver;
pub use fetch::DeviceFetch;
pub use gds::{
    Begun, Copied, CopyId, CuFile, CuFileInfo, CudaDriver, CudaState, Device, DeviceInfo,
    DeviceMemory, DevicePointer, DeviceSpan, Ladder, Lent, LocalFile, LocalRead, Mark, Path,
    Pinning, Policy, Registration, Ring, RingStats, SoftwareDevice, Stream, Transfer, Verdict,
    Wire,
};
pub use local::LocalDeviceRead;
pub use staging::{Staging, within};

/// How a reader reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceOptions {
    /// Which ways into the device's memory are good enough.
    pub policy: Policy,
    /// Host memory for the ring, in bytes: never more than this is pinned, whatever is read.
    pub ring_bytes: usize,
    /// Bytes of a piece of the ring, a multiple of 4096: what is read and copied at once.
    pub slot_bytes: usize,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self { policy: Policy::Auto, ring_bytes: 64 << 20, slot_bytes: 4 << 20 }
    }
}

/// Who compared the bytes with their checksums. Nobody does once they are on their way to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verified {
    /// The node, with those that are stored beside them; not what came from a silo right now.
    ByNode,
    /// The node, and this client when they came into host memory: [`crate::Options::verify`].
    ByNodeAndClient,
}

/// What a read into a device's memory did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceRead {
    /// Bytes read: fewer than asked for only at the end of the file.
    pub bytes: u64,
    /// The way they took; of several pieces, the worst.
    pub path: Path,
    /// Where they came from.
    pub served: Served,
    /// How the node brought them into the ring.
    pub landing: Landing,
    /// Who compared them with their checksums.
    pub verified: Verified,
    /// From the call until the last of them was in host memory, or, without that, on the device.
    pub to_host: Duration,
    /// From the call until the last of them was on the device or, if a stream was named, handed to it.
    pub total: Duration,
}

/// Reads files into the memory of one device, through one client.
///
/// It is used by one thread at a time; several readers may share a client and a device. Dropping it
/// waits for its copies, at most five seconds, and keeps their memory for ever if they do not end.
pub struct DeviceReader {
    client: Client,
    ring: Ring<Memory>,
    direct: Option<Direct>,
    ladder: Ladder,
    options: DeviceOptions,
    path: Path,
    /// What the ring is.
    ring_path: Path,
    /// Whether a way without the host's memory was there, and is not any more.
    has_left_direct: bool,
    /// Whether worse was done once than the ladder promised.
    has_degraded: bool,
    /// What went wrong with a read that had been handed to a stream.
    late: Option<Error>,
}

impl DeviceReader {
    /// A reader, whose ring a pattern went through and came back from the device intact.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the policy allows none of the ways that there are, with the reason for each;
    /// [`Kind::Invalid`] for a ring of less than one piece, or pieces that are not whole pages; what
    /// allocating memory answers.
    pub fn new(client: &Client, device: &Device, options: &DeviceOptions) -> Result<Self> {
        let verifies = client.options().verify;
        let staging = Staging::new(client, client.fabric(), verifies, device, options)?;
        let Staging { ring, direct, ladder, path, ring_path } = staging;
        let mut reader = Self {
            client: client.clone(),
            ring,
            direct,
            ladder,
            options: *options,
            path,
            ring_path,
            has_left_direct: false,
            has_degraded: false,
            late: None,
        };
        if path == Path::Host && options.policy != Policy::Exactly(Path::Host) {
            reader.note_degraded();
        }
        Ok(reader)
    }

    /// The ways into the device's memory, and why not the better ones.
    #[must_use]
    pub fn ladder(&self) -> &Ladder {
        &self.ladder
    }

    /// The way that is taken.
    #[must_use]
    pub fn path(&self) -> Path {
        self.path
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.ring.device()
    }

    /// What its ring did.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        self.ring.stats()
    }

    /// What went into the device without the host's memory; nothing where that was never to be tried.
    #[must_use]
    pub fn direct_stats(&self) -> DirectStats {
        self.direct.as_ref().map_or_else(DirectStats::default, Direct::stats)
    }

    /// Reads from `offset` of a file into device memory, until that is full or the file ends.
    ///
    /// Without a stream it waits until the bytes are there. With one it waits only for room in the ring:
    /// the copies come after what is in the stream now, and before what comes into it later. What goes
    /// wrong with them afterwards the next call says, or [`DeviceReader::settle`]. All copies of a reader are in
    /// one order, so what is read next waits for that stream, too: make a reader for each stream. By
    /// [`Path::GpuDirect`] the call waits for the stream, and the bytes are there when it returns.
    ///
    /// # Errors
    /// What the node or the device answers. What is in the memory is then anything. [`Kind::Disconnected`]
    /// if the device is lost, or the session. [`Kind::Busy`] if the device finished no copy within the
    /// client's timeout: it may still write to the memory. [`Kind::Unsupported`] if a strict policy's way is not
    /// to be had any more.
    pub fn read_into(
        &mut self,
        file: &File,
        offset: u64,
        into: &DeviceSpan,
        stream: Option<&Stream>,
    ) -> Result<DeviceRead> {
        let fetch = DeviceFetch::new(file, offset, into);
        self.read_all([fetch], stream).pop().expect("one read, one end")
    }

    /// Does many reads at once, as [`DeviceReader::read_into`] does one. How each ended, in their order.
    pub fn read_all(
        &mut self,
        fetches: impl IntoIterator<Item = DeviceFetch>,
        stream: Option<&Stream>,
    ) -> Vec<Result<DeviceRead>> {
        let fetches: Vec<DeviceFetch> = fetches.into_iter().collect();
        let count = fetches.len();
        let begun = self.ready().and_then(|()| self.order(stream, Ring::follow));
        if let Err(error) = begun {
            return (0..count).map(|_| Err(error.duplicate())).collect();
        }
        let ends = Flight::new(self, fetches, stream).run();
        // Also after errors: a part of the copies may be on its way.
        match self.order(stream, Ring::lead) {
            Ok(()) => ends,
            Err(error) => ends.into_iter().map(|end| end.and(Err(error.duplicate()))).collect(),
        }
    }

    /// Waits until everything that was handed to streams has been copied.
    ///
    /// # Errors
    /// What went wrong with any of it; [`Kind::Busy`] if it takes longer than the client's timeout.
    pub fn settle(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        while self.ring.under_way() > 0 {
            self.ring.wait(self.client.options().timeout, &mut ended);
            if ended.is_empty() {
                return Err(self.stalled());
            }
            self.take_late(ended.drain(..));
        }
        self.late.take().map_or(Ok(()), Err)
    }

    /// Takes in what became of earlier copies.
    fn ready(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        self.ring.poll(&mut ended);
        self.take_late(ended.drain(..));
        self.late.take().map_or(Ok(()), Err)
    }

    fn order(
        &mut self,
        stream: Option<&Stream>,
        act: impl FnOnce(&mut Ring<Memory>, &Stream) -> Result<()>,
    ) -> Result<()> {
        stream.map_or(Ok(()), |stream| act(&mut self.ring, stream))
    }

    /// Nobody waits for these copies any more.
    fn take_late(&mut self, ended: impl Iterator<Item = Copied>) {
        for copied in ended {
            if let Err(error) = copied.result
                && !bugs::is(Bug::LateFailureForgotten)
            {
                self.late.get_or_insert_with(|| staging::late(error));
            }
        }
    }

    /// Where a read goes without the host's memory; the ladder has what became of it.
    fn aim(
        &mut self,
        connection: u64,
        origin: Origin,
        into: &DeviceSpan,
        todo: &[Range<usize>],
    ) -> Result<Aim> {
        let Some(direct) = &mut self.direct else {
            return Err(Kind::Unsupported.error("it was not there when the reader was made"));
        };
        let aimed = direct.aim(&self.client, connection, origin, into, todo);
        match &aimed {
            Ok(aim) if aim.is_proven => {
                self.ladder.admit(Path::GpuDirect);
                self.path = Path::GpuDirect;
            }
            Ok(_) => {}
            Err(_) => {
                if let Some(why) = direct.obstacle(connection).map(ToString::to_string) {
                    self.leave_direct(why);
                }
            }
        }
        aimed
    }

    /// Nothing goes into the device without the host's memory, for now. Said once.
    fn leave_direct(&mut self, why: String) {
        self.ladder.deny(Path::GpuDirect, why);
        if !self.stages() {
            return;
        }
        self.path = self.ring_path;
        if !std::mem::replace(&mut self.has_left_direct, true) {
            tracing::warn!(
                device = self.device().info().name,
                ladder = %self.ladder,
                "reads into device memory go through the host's memory"
            );
        }
    }

    /// Whether the policy lets reads go through the ring.
    fn stages(&self) -> bool {
        self.options.policy.allows(self.ring_path)
    }

    fn stalled(&self) -> Error {
        staging::stalled(self.device(), self.client.options().timeout)
    }

    /// Something was copied from memory that is not pinned. Said once.
    fn note_degraded(&mut self) {
        if !std::mem::replace(&mut self.has_degraded, true) {
            tracing::warn!(
                device = self.device().info().name,
                ladder = %self.ladder,
                "reads into device memory go through host memory that is not pinned"
            );
        }
    }
}

impl Drop for DeviceReader {
    fn drop(&mut self) {
        if let Some(direct) = &mut self.direct {
            direct.end(&self.client);
        }
    }
}
