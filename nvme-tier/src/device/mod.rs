//! The seam to storage hardware: one shard's command queues over all devices of a tier.

mod admit;
mod allocate;
mod content;
mod deallocation;
mod driver;
mod foreign;
mod kernel_health;
mod media;
mod medium;
mod memory;
mod mixed;
mod nvme;
mod nvme_disk;
mod passthrough;
mod polled;
mod ring;
pub mod sim;
mod table;
mod timeouts;
mod uring;
mod vfio;
mod wait;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use dma::{Region, RegionId, Source, Target};
use extent::Result;

pub use allocate::{allocate_file, check_folder};
pub use deallocation::Deallocation;
pub use driver::{Driver, PciName};
pub use media::{HealthWatch, Media, MediaOptions};
pub use nvme::Health;
pub use timeouts::{Reach, Timeouts};
pub use uring::UringDevice;
pub use vfio::{NvmeFunction, NvmeNamespace, PciAddress};

/// How many descriptors a [`Device::sleep`] may be for, beside the device itself.
pub const MOST_OTHERS: usize = wait::MOST_DESCRIPTORS - 1;

/// What a command's completion is matched by. The shard packs a slot and a tag into it; a device
/// passes it through untouched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub u64);

/// Which device of the tier, from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DeviceIndex(pub u16);

/// A byte offset on a device; a multiple of its block size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Location {
    /// Which device.
    pub device: DeviceIndex,
    /// Bytes from its start.
    pub offset: u64,
}

/// What a device is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes it holds.
    pub capacity_bytes: u64,
    /// Bytes of a logical block: the unit of addressing, alignment and atomicity.
    pub block_bytes: u32,
    /// The most bytes one command may move.
    pub max_transfer_bytes: u32,
    /// Whether what was written may be lost in a power cut until it is flushed.
    pub volatile_cache: bool,
    /// How it takes advice on what is not needed any more; `None` if it takes none.
    pub deallocation: Option<Deallocation>,
}

/// One command. It owns its memory until its completion hands it back.
#[derive(Debug)]
pub enum Command {
    /// Reads as many bytes as `into` holds.
    Read {
        /// From where.
        at: Location,
        /// To where.
        into: Target,
    },
    /// Writes all of `from`.
    Write {
        /// To where.
        at: Location,
        /// From where.
        from: Source,
    },
    /// Makes durable every write of this device that completed before, on whichever queue.
    Flush(DeviceIndex),
    /// Says that nobody needs what stands there: until they are written again, each of these blocks
    /// reads as what it was, as zeroes or as anything else. Advice, which may be refused; taken only
    /// by devices with [`Geometry::deallocation`].
    Deallocate {
        /// From where.
        at: Location,
        /// How much: whole blocks, at most [`Deallocation::most_bytes`].
        bytes: u64,
    },
}

impl Command {
    /// The device it is for.
    #[must_use]
    #[inline]
    pub fn device(&self) -> DeviceIndex {
        match self {
            Self::Read { at, .. } | Self::Write { at, .. } | Self::Deallocate { at, .. } => {
                at.device
            }
            Self::Flush(device) => *device,
        }
    }

    /// Bytes it moves; zero for a flush and for advice.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::Read { into, .. } => into.length(),
            Self::Write { from, .. } => from.length(),
            Self::Flush(_) | Self::Deallocate { .. } => 0,
        }
    }
}

/// What a queue has handed to its devices.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HandedOver {
    /// Commands of the device's own protocol.
    pub commands: u64,
    /// Writes of a submission doorbell: a device is told of several commands at once.
    pub doorbells: u64,
}

/// A command's end.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// The command with its memory.
    pub command: Command,
    /// Whether all of it happened. A short read or write is an error.
    pub result: Result<()>,
}

/// One shard's queues. Commands complete in any order; a write that has not completed may or may
/// not have happened. Bounded: [`Device::submit`] gives a command back when the queue is full.
pub trait Device: Send {
    /// How many devices there are.
    fn count(&self) -> usize;

    /// What a device is like.
    fn geometry(&self, device: DeviceIndex) -> Geometry;

    /// Queues a command; it may wait there until [`Device::kick`].
    ///
    /// # Errors
    /// The command itself if the queue is full: poll, then submit it again.
    fn submit(&mut self, token: Token, command: Command) -> Result<(), Command>;

    /// Hands everything queued to the hardware, in one system call or doorbell where it can.
    ///
    /// # Errors
    /// If the queue itself is broken; the device must not be used any more.
    fn kick(&mut self) -> Result<()>;

    /// Appends what has completed since. Never blocks.
    fn poll(&mut self, completions: &mut Vec<Completion>);

    /// Commands submitted and not yet reported complete.
    fn in_flight(&self) -> usize;

    /// Hands over what is queued, then sleeps until a completion is there to poll, one of `others`
    /// is readable, a signal arrives, or `limit` has passed. Returns whether one of `others` may be
    /// readable. It may return early, for nothing; and a device that can only be polled does so at
    /// once.
    ///
    /// `others` are at most [`MOST_OTHERS`] descriptors, the same ones at every sleep, and stay open
    /// for as long as the device lives.
    ///
    /// # Errors
    /// As [`Device::kick`].
    fn sleep(&mut self, others: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<bool>;

    /// Hands over what is queued, then sleeps until `count` commands, or all of those in flight, are
    /// there to poll: for work of which only the whole matters, it spares a wake-up for each. It
    /// may return early.
    ///
    /// # Errors
    /// As [`Device::kick`].
    fn gather(&mut self, count: usize) -> Result<()> {
        let _ = count;
        self.sleep(&[], None).map(drop)
    }

    /// How much was handed to devices that are driven from here, since the queue was made; nothing
    /// for what the kernel drives.
    fn handed_over(&self) -> HandedOver {
        HandedOver::default()
    }

    /// Announces memory that commands will use, so that its pages are pinned once rather than
    /// for each command. Optional: commands on other memory work too, but cost more.
    ///
    /// # Errors
    /// If the kernel refuses, for example over its limit on locked memory.
    fn register(&mut self, region: &Arc<Region>) -> Result<()>;

    /// Forgets memory announced before. Commands in flight on it still complete.
    fn unregister(&mut self, region: RegionId);
}
