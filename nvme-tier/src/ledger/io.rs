use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use dma::{Buffer, Frozen, HugePages, Pool, SizeClass, Source, Target};
use extent::{Error, Kind, Result};

use crate::Extent;
use crate::bugs::{self, Bug};
use crate::codec::{Descriptor, FileRecord, PAD, Place, SlabHeader, Superblock};
use crate::device::{Command, Completion, Deallocation, Device, DeviceIndex, Location, Token};
use crate::layout::{PAGE_BYTES, RECORD_BYTES, to_usize};

/// Bytes of the zeroes that erasures are written from.
pub(crate) const ZERO_BYTES: u64 = 1 << 20;

/// A set of at most 64 devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct DeviceSet(u64);

impl DeviceSet {
    pub(crate) const MOST: usize = 64;

    pub(crate) const fn of(device: DeviceIndex) -> Self {
        Self(1 << device.0)
    }

    /// One bit each.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether all of these are among others.
    pub(crate) const fn is_within(self, others: Self) -> bool {
        self.0 & !others.0 == 0
    }

    /// These without others.
    pub(crate) const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    pub(crate) fn insert(&mut self, device: DeviceIndex) {
        self.0 |= 1 << device.0;
    }

    pub(crate) const fn contains(self, device: DeviceIndex) -> bool {
        self.0 & (1 << device.0) != 0
    }

    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = DeviceIndex> {
        (0..64).filter(move |bit| self.0 & (1 << bit) != 0).map(DeviceIndex)
    }
}

/// Something to write, encoded only once there is a buffer for it.
#[derive(Debug)]
pub(crate) enum Job {
    Zero {
        at: Location,
        bytes: u64,
    },
    Superblock {
        at: Location,
        superblock: Superblock,
    },
    Header {
        place: Place,
        header: SlabHeader,
    },
    Descriptor {
        place: Place,
        stride: u32,
        descriptor: Descriptor,
        extent: Extent,
    },
    Record {
        place: Place,
        record: Arc<FileRecord>,
    },
    Flush(DeviceIndex),
    /// Something to look at, of at most 128 KiB. One that fails is no reason to distrust the device.
    Read {
        at: Location,
        bytes: usize,
    },
}

impl Job {
    fn device(&self) -> DeviceIndex {
        match self {
            Self::Zero { at, .. } | Self::Superblock { at, .. } | Self::Read { at, .. } => {
                at.device
            }
            Self::Header { place, .. }
            | Self::Descriptor { place, .. }
            | Self::Record { place, .. } => place.at.device,
            Self::Flush(device) => *device,
        }
    }
}

/// The writes and flushes of the batch that runs: a queue of jobs, and what is on its way. Once a
/// device fails one of them it is distrusted: its other jobs are dropped, and whoever depends on
/// it finds it in [`Io::failed`].
#[derive(Debug)]
pub(crate) struct Io {
    pool: Pool,
    zeroes: Frozen,
    jobs: VecDeque<Job>,
    /// A command that the device's queue had no room for.
    stuck: Option<(Token, Command)>,
    flying: HashMap<u64, DeviceIndex>,
    next_token: u64,
    failed: DeviceSet,
    /// Devices that were not there at the start. They count as failed.
    absent: DeviceSet,
    reasons: HashMap<DeviceIndex, String>,
    completions: Vec<Completion>,
    /// What was read, in any order: `None` where the device could not.
    reads: Vec<(Location, Option<Buffer>)>,
    /// Advice that devices have taken, or not.
    advised: Vec<(Token, Result<()>)>,
    deallocations: Vec<Option<Deallocation>>,
    block_bytes: Vec<u32>,
    max_transfer_bytes: Vec<u32>,
}

impl Io {
    /// An engine with buffers of its own, so that data never starves metadata.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if the memory is not there.
    pub(crate) fn new(device: &mut dyn Device) -> Result<Self> {
        let sizes = [
            SizeClass { bytes: 4096, count: 128 },
            SizeClass { bytes: 16 << 10, count: 64 },
            SizeClass { bytes: 128 << 10, count: 8 },
            SizeClass { bytes: to_usize(ZERO_BYTES), count: 1 },
        ];
        let pool = Pool::new(&sizes, HugePages::Never)?;
        // New memory is zeroed, and nobody ever writes to this buffer.
        let zeroes = pool.take(to_usize(ZERO_BYTES)).expect("the pool is new");
        if let Err(error) = device.register(pool.region()) {
            tracing::debug!(%error, "the ledger's buffers are not registered with the device");
        }
        let count = u16::try_from(device.count()).unwrap_or(u16::MAX);
        let geometries = || (0..count).map(|index| device.geometry(DeviceIndex(index)));
        Ok(Self {
            pool,
            zeroes: Arc::new(zeroes),
            jobs: VecDeque::new(),
            stuck: None,
            flying: HashMap::new(),
            next_token: 0,
            failed: DeviceSet::default(),
            absent: DeviceSet::default(),
            reasons: HashMap::new(),
            completions: Vec::new(),
            reads: Vec::new(),
            advised: Vec::new(),
            deallocations: geometries().map(|geometry| geometry.deallocation).collect(),
            block_bytes: geometries().map(|geometry| geometry.block_bytes).collect(),
            max_transfer_bytes: geometries().map(|geometry| geometry.max_transfer_bytes).collect(),
        })
    }

    pub(crate) fn push(&mut self, job: Job) {
        self.jobs.push_back(job);
    }

    /// What the reads of the last phase brought.
    pub(crate) fn take_reads(&mut self) -> Vec<(Location, Option<Buffer>)> {
        std::mem::take(&mut self.reads)
    }

    /// What became of advice since.
    pub(crate) fn take_advised(&mut self) -> Vec<(Token, Result<()>)> {
        std::mem::take(&mut self.advised)
    }

    /// How each device takes advice on what is not needed any more.
    pub(crate) fn deallocations(&self) -> Vec<Option<Deallocation>> {
        self.deallocations.clone()
    }

    /// The most bytes of one erasure.
    pub(crate) fn zero_bytes(&self, device: DeviceIndex) -> u64 {
        ZERO_BYTES.min(u64::from(self.max_transfer_bytes[usize::from(device.0)]))
    }

    /// Whether all jobs have ended.
    pub(crate) fn is_quiet(&self) -> bool {
        self.jobs.is_empty() && self.stuck.is_none() && self.flying.is_empty()
    }

    /// Devices that are distrusted.
    pub(crate) fn failed(&self) -> DeviceSet {
        self.failed
    }

    /// Why one of these devices is distrusted; `None` if none of them is.
    pub(crate) fn failure_of(&self, devices: DeviceSet) -> Option<Error> {
        let device = devices.iter().find(|device| self.failed.contains(*device))?;
        let reason = self.reasons.get(&device).map_or("it failed before", String::as_str);
        Some(Kind::Io.error(format!(
            "device {} of the tier is not trusted any more: {reason}. Replace it, or check it and \
             restart the node",
            device.0
        )))
    }

    /// Devices that were not there at the start.
    pub(crate) fn absent(&self) -> DeviceSet {
        self.absent
    }

    /// Does without devices.
    pub(crate) fn do_without(&mut self, absent: DeviceSet) {
        self.absent = absent;
        self.failed = self.failed.union(absent);
        let reason = "the node was started without it";
        self.reasons.extend(absent.iter().map(|device| (device, reason.to_owned())));
    }

    /// Distrusts a device. Reads from it may still succeed; nothing new is put on it.
    pub(crate) fn fail(&mut self, device: DeviceIndex, reason: String) {
        if !self.failed.contains(device) {
            tracing::error!(device = device.0, reason, "a device of the tier failed");
            self.failed.insert(device);
            self.reasons.insert(device, reason);
        }
    }

    /// Looks for completions. Whether there were any. With nothing in flight it looks all the same: a
    /// device is only at rest once it was polled after a sleep.
    pub(crate) fn reap(&mut self, device: &mut dyn Device) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        device.poll(&mut completions);
        let any = !completions.is_empty();
        for Completion { token, command, result } in completions.drain(..) {
            if matches!(command, Command::Deallocate { .. }) {
                self.advised.push((token, result));
                continue;
            }
            let Some(on) = self.flying.remove(&token.0) else { continue };
            let doing = match command {
                Command::Read { at, into } => {
                    self.reads.push((at, into.into_buffer().filter(|_| result.is_ok())));
                    continue;
                }
                Command::Flush(_) => "a flush",
                Command::Write { .. } | Command::Deallocate { .. } => "a write",
            };
            if let Err(error) = result {
                let flush = doing == "a flush";
                if flush && bugs::is(Bug::FailedFlushRetried) {
                    self.push(Job::Flush(on));
                    continue;
                }
                if bugs::is(if flush { Bug::FailedFlushIgnored } else { Bug::FailedWriteIgnored }) {
                    continue;
                }
                self.fail(on, format!("{doing} failed: {error}"));
            }
        }
        self.completions = completions;
        any
    }

    /// Submits as much as buffers and the queue allow. Whether anything was.
    pub(crate) fn pump(&mut self, device: &mut dyn Device) -> bool {
        let mut any = false;
        loop {
            let Some((token, command)) = self.next_command() else { break };
            let on = command.device();
            match device.submit(token, command) {
                Ok(()) => {
                    self.flying.insert(token.0, on);
                    any = true;
                }
                Err(command) => {
                    self.stuck = Some((token, command));
                    break;
                }
            }
        }
        if !self.flying.is_empty()
            && let Err(error) = device.kick()
        {
            self.give_up(&error);
            return true;
        }
        any
    }

    /// The queue itself is broken: nothing submitted will be heard of again.
    fn give_up(&mut self, error: &Error) {
        for device in 0..u16::try_from(self.block_bytes.len()).unwrap_or(u16::MAX) {
            self.fail(DeviceIndex(device), format!("its command queue broke: {error}"));
        }
        self.flying.clear();
        self.jobs.clear();
        self.stuck = None;
    }

    fn next_command(&mut self) -> Option<(Token, Command)> {
        if let Some(stuck) = self.stuck.take() {
            return Some(stuck);
        }
        loop {
            let job = self.jobs.pop_front()?;
            if self.failed.contains(job.device()) {
                continue;
            }
            match self.command_for(job) {
                Ok(command) => {
                    self.next_token += 1;
                    return Some((Token(self.next_token), command));
                }
                Err(job) => {
                    self.jobs.push_front(job);
                    return None;
                }
            }
        }
    }

    /// The command of a job; the job itself while no buffer is free for it.
    #[expect(clippy::result_large_err, reason = "a job that goes back to its queue")]
    fn command_for(&mut self, job: Job) -> Result<Command, Job> {
        let block = to_usize(u64::from(self.block_bytes[usize::from(job.device().0)]));
        match job {
            Job::Flush(device) => Ok(Command::Flush(device)),
            Job::Read { at, bytes } => match self.pool.take(bytes) {
                Some(buffer) => Ok(Command::Read { at, into: Target::Buffer(buffer, 0..bytes) }),
                None => Err(job),
            },
            Job::Zero { at, bytes } => {
                let part = bytes.min(self.zero_bytes(at.device));
                if part < bytes {
                    let at = Location { offset: at.offset + part, ..at };
                    self.jobs.push_front(Job::Zero { at, bytes: bytes - part });
                }
                let from = Source::Frozen(Arc::clone(&self.zeroes), 0..to_usize(part));
                Ok(Command::Write { at, from })
            }
            Job::Superblock { at, superblock } => {
                let encode = |bytes: &mut [u8]| {
                    bytes.fill(0);
                    superblock.encode(at.offset, bytes);
                };
                self.write(at, to_usize(PAGE_BYTES), encode).ok_or(job)
            }
            Job::Header { place, header } => {
                let encode = |bytes: &mut [u8]| header.encode(&place, bytes);
                self.write(place.at, SlabHeader::BYTES.max(block), encode).ok_or(job)
            }
            Job::Descriptor { place, stride, descriptor, ref extent } => {
                let checksums = extent.checksums().expect("they stay until they are written");
                let checksums: Vec<u32> = checksums.collect();
                let bytes = Descriptor::bytes(stride, checksums.len());
                let encode = |into: &mut [u8]| descriptor.encode(&place, stride, &checksums, into);
                self.write(place.at, bytes, encode).ok_or(job)
            }
            Job::Record { place, ref record } => {
                let encode = |bytes: &mut [u8]| record.encode(&place, bytes);
                self.write(place.at, RECORD_BYTES.max(block), encode).ok_or(job)
            }
        }
    }

    fn write(&self, at: Location, bytes: usize, encode: impl FnOnce(&mut [u8])) -> Option<Command> {
        let mut buffer: Buffer = self.pool.take(bytes)?;
        let into = &mut buffer.as_mut_slice()[..bytes];
        into.fill(PAD);
        encode(into);
        Some(Command::Write { at, from: Source::Buffer(buffer, 0..bytes) })
    }
}
