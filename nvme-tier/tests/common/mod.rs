//! A tier on simulated disks, driven step by step from the test's own thread.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unreachable_pub, reason = "shared by several test crates")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dma::{HugePages, Pool, SizeClass, Source};
use extent::checksum::crc32c_blocks;
use extent::{ExtentIndex, FileName, Result, SourceVersion};
use forebay_nvme_tier::device::sim::{
    Fault, FaultPlan, FaultRule, Operation, SimDevice, SimDisk, SimOptions, When,
};
use forebay_nvme_tier::device::{Command, Completion, Device, DeviceIndex, Location, Token};
use forebay_nvme_tier::{
    Copies, Discard, Done, Extent, File, FileGeneration, FormatOptions, Ledger, RecoveryReport,
    Reservation, Tier, TierOptions, format, recover_without,
};
use parking_lot::Mutex;

/// Bytes that one checksum covers, in all tests.
pub const BLOCK: usize = 4096;
/// Bytes of a full extent, in all tests.
pub const EXTENT: u64 = 64 << 10;
/// The test's clock, in milliseconds. Only ever advanced.
pub static NOW_MS: AtomicU64 = AtomicU64::new(1000);

/// Steps after which something that was to end is taken to hang.
const PATIENCE: usize = 200_000;

pub fn small_format() -> FormatOptions {
    FormatOptions {
        slab_bytes: Some(256 << 10),
        extent_bytes: EXTENT,
        checksum_block_bytes: 4096,
        min_class_bytes: 16 << 10,
        deallocate: true,
    }
}

/// Disks with room for a number of small slabs.
pub fn small_disk(slabs: u64, devices: u16, block_bytes: u32, seed: u64) -> SimOptions {
    SimOptions {
        devices,
        capacity_bytes: (1 << 20) + slabs * (256 << 10),
        block_bytes,
        seed,
        ..SimOptions::default()
    }
}

pub fn pool() -> Pool {
    let sizes =
        [SizeClass { bytes: 256 << 10, count: 4 }, SizeClass { bytes: 64 << 10, count: 32 }];
    Pool::new(&sizes, HugePages::Never).expect("memory")
}

/// A recovered tier and what it takes to drive it.
pub struct Rig {
    pub disk: SimDisk,
    pub queue: SimDevice,
    pub data: SimDevice,
    pub pool: Pool,
    pub tier: Arc<Tier>,
    pub ledger: Ledger,
    pub report: RecoveryReport,
    pub options: TierOptions,
}

pub fn options() -> TierOptions {
    TierOptions { now_unix_ms: || NOW_MS.load(Ordering::Relaxed), ..TierOptions::default() }
}

/// The same with memory for the checksums of one extent or two.
pub fn tight() -> TierOptions {
    TierOptions { checksum_memory_bytes: 400, most_checksums_beside: 0, ..options() }
}

/// One or the other.
pub fn options_for(number: u64) -> TierOptions {
    if number.is_multiple_of(2) { tight() } else { options() }
}

/// With so many copies of what is written.
pub fn keeping(dirty_copies: Copies) -> TierOptions {
    TierOptions { dirty_copies, ..options() }
}

impl Rig {
    /// A new tier on new disks.
    pub fn new(sim: SimOptions, layout: &FormatOptions) -> Self {
        Self::over(SimDisk::new(sim), layout)
    }

    /// A new tier over whatever was on the disks.
    pub fn over(disk: SimDisk, layout: &FormatOptions) -> Self {
        format(&mut disk.queue(), &pool(), layout).expect("formats");
        Self::on(disk).expect("a new tier recovers")
    }

    /// The tier that is on some disks; on those of an even seed with little memory for checksums.
    pub fn on(disk: SimDisk) -> Result<Self> {
        // Of disks that take advice on freed space, two of four are told of each slot.
        let seed = disk.options().seed;
        let discard = if (seed / 2).is_multiple_of(2) { Discard::Slots } else { Discard::Slabs };
        Self::with(disk, TierOptions { discard, ..options_for(seed) })
    }

    pub fn with(disk: SimDisk, options: TierOptions) -> Result<Self> {
        Self::pooled(disk, options, pool())
    }

    /// With buffers that were there already.
    pub fn pooled(disk: SimDisk, options: TierOptions, pool: Pool) -> Result<Self> {
        Self::without(disk, options, pool, &[])
    }

    /// Without some of the disks, on which whatever is done fails.
    pub fn without(
        disk: SimDisk,
        options: TierOptions,
        pool: Pool,
        absent: &[DeviceIndex],
    ) -> Result<Self> {
        if !absent.is_empty() {
            let gone = |device: &DeviceIndex| {
                FaultRule::new(Operation::Any, When::From(1), Fault::Vanish).on(*device)
            };
            let plan = absent.iter().map(gone).fold(FaultPlan::new(), FaultPlan::with);
            disk.set_faults(plan);
        }
        let (mut queue, data) = (disk.queue(), disk.queue());
        let recovered = recover_without(&mut queue, &pool, options, absent)?;
        let (tier, ledger, report) = (recovered.tier, recovered.ledger, recovered.report);
        Ok(Self { disk, queue, data, pool, tier, ledger, report, options })
    }

    /// The tier as another process would find it, with everything written so far.
    pub fn restart(self) -> Self {
        let (disk, options) = (self.disk.clone(), self.options);
        drop(self);
        Self::with(disk, options).expect("a tier that ran recovers")
    }

    pub fn step(&mut self) -> bool {
        self.ledger.step(&mut self.queue)
    }

    /// Until the ledger has nothing left to do.
    pub fn settle(&mut self) {
        for _ in 0..PATIENCE {
            self.step();
            if self.ledger.is_idle() {
                return;
            }
        }
        panic!("the ledger never comes to rest: {:?}", self.ledger);
    }

    /// Asks for something and steps until it is done.
    pub fn ask<T: Send + 'static>(&mut self, begin: impl FnOnce(&Tier, Done<T>)) -> Result<T> {
        let answer = self.post(begin);
        for _ in 0..PATIENCE {
            if let Some(result) = answer.lock().take() {
                return result;
            }
            self.step();
        }
        panic!("an operation never ends: {:?}", self.ledger);
    }

    /// Asks for something without waiting.
    pub fn post<T: Send + 'static>(
        &mut self,
        begin: impl FnOnce(&Tier, Done<T>),
    ) -> Arc<Mutex<Option<Result<T>>>> {
        let answer = Arc::new(Mutex::new(None));
        let told = Arc::clone(&answer);
        begin(&self.tier, Done::new(move |result| *told.lock() = Some(result)));
        answer
    }

    pub fn register(&mut self, file: &FileName, length: u64, v: &str) -> Result<Arc<File>> {
        let file = file.clone();
        self.ask(|tier, done| tier.register(file, length, version(v), done))
    }

    /// Fills one extent of the newest generation, as a promote would.
    pub fn fill(&mut self, file: &File, index: u32, seed: u64) -> Result<()> {
        let generation = file.newest();
        let index = ExtentIndex(index);
        let reservation = self.ask(|tier, done| tier.reserve(&generation, index, done))?;
        let sums = self.write(&reservation, seed);
        self.ask(|tier, done| tier.publish(reservation, sums, done))
    }

    /// Writes a whole file, without the extents in `holes`.
    pub fn write_file(
        &mut self,
        name: &FileName,
        length: u64,
        holes: &[u32],
        seed: u64,
    ) -> Result<Arc<FileGeneration>> {
        let draft = self.tier.begin(name.clone(), length)?;
        let mut extents = Vec::new();
        for index in 0..narrow(length.div_ceil(EXTENT)) {
            if holes.contains(&index) {
                continue;
            }
            let bytes = narrow((length - u64::from(index) * EXTENT).min(EXTENT));
            let at = ExtentIndex(index);
            let reservation = self.ask(|tier, done| tier.reserve_draft(&draft, at, bytes, done))?;
            let sums = self.write(&reservation, seed);
            extents.push((reservation, sums));
        }
        self.ask(|tier, done| tier.commit(draft, length, extents, done))
    }

    /// Writes an extent's pattern to its slot and waits for that.
    pub fn write(&mut self, reservation: &Reservation, seed: u64) -> Box<[u32]> {
        self.try_write(reservation, seed).expect("data writes succeed")
    }

    /// The same on devices that may fail.
    pub fn try_write(&mut self, reservation: &Reservation, seed: u64) -> Result<Box<[u32]>> {
        let length = reservation.length() as usize;
        let bytes = pattern(seed, reservation.index().0, length);
        self.write_at(reservation.at(), &bytes)?;
        if let Some(copy) = reservation.copy_at() {
            self.write_at(copy, &bytes)?;
        }
        Ok(crc32c_blocks(&bytes, BLOCK).collect())
    }

    fn write_at(&mut self, at: Location, bytes: &[u8]) -> Result<()> {
        let mut buffer = self.pool.take(bytes.len()).expect("a buffer");
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        let from = Source::Buffer(buffer, 0..bytes.len());
        self.data.submit(Token(0), Command::Write { at, from }).expect("room in the queue");
        let mut done: Vec<Completion> = Vec::new();
        while done.is_empty() {
            self.data.kick().expect("the queue works");
            self.data.poll(&mut done);
        }
        done.remove(0).result
    }

    /// An extent of a generation with its checksums, from its descriptor if they are not in memory.
    pub fn believe(&self, generation: &FileGeneration, extent: &Extent) -> Result<Extent> {
        if extent.has_checksums() {
            return Ok(extent.clone());
        }
        let (at, bytes) = extent.descriptor();
        let extent = generation.believe(extent, &self.disk.peek(at, bytes))?;
        extent.keep_checksums();
        Ok(extent)
    }

    /// An extent's bytes as they are on the disks, if they match their checksums.
    pub fn read(&self, generation: &FileGeneration, extent: &Extent) -> Option<Vec<u8>> {
        let extent = self.believe(generation, extent).ok()?;
        let length = (extent.length() as usize).next_multiple_of(BLOCK);
        let mut bytes = self.disk.peek(extent.at(), length);
        let sums: Vec<u32> = crc32c_blocks(&bytes, BLOCK).collect();
        bytes.truncate(extent.length() as usize);
        extent.checksums()?.eq(sums).then_some(bytes)
    }

    /// Whether a generation's extent is here and holds the pattern of `seed`.
    pub fn holds(&self, generation: &FileGeneration, index: u32, seed: u64) -> bool {
        let Some(extent) = generation.extent(ExtentIndex(index)) else { return false };
        let length = extent.length() as usize;
        self.read(generation, &extent)
            .is_some_and(|bytes| bytes == pattern(seed, index, length)[..length])
    }

    pub fn find(&self, name: &FileName) -> Option<Arc<File>> {
        self.tier.file(name.id())
    }
}

/// What an extent is filled with, padded with zeroes to whole checksum blocks. Kept, since tests
/// compare with the same ones over and over.
pub fn pattern(seed: u64, index: u32, length: usize) -> Arc<Vec<u8>> {
    type Made = HashMap<(u64, u32, usize), Arc<Vec<u8>>>;
    thread_local! {
        static MADE: RefCell<Made> = RefCell::default();
    }
    let make = || Arc::new(make_pattern(seed, index, length));
    MADE.with_borrow_mut(|made| Arc::clone(made.entry((seed, index, length)).or_insert_with(make)))
}

fn make_pattern(seed: u64, index: u32, length: usize) -> Vec<u8> {
    let mut state = (seed << 32 | u64::from(index)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length.next_multiple_of(BLOCK));
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.resize(length.next_multiple_of(BLOCK), 0);
    bytes
}

/// A small number of bytes or extents.
pub fn narrow(value: u64) -> u32 {
    u32::try_from(value).expect("tests are small")
}

pub fn name(text: &str) -> FileName {
    text.parse().expect("a good name")
}

pub fn version(text: &str) -> SourceVersion {
    SourceVersion::new(text).expect("a short version")
}
