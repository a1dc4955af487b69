//! Reads from a node of the test's own into a software device.

pub(crate) mod direct;
pub(crate) mod failures;
pub(crate) mod local;
mod warnings;

use std::time::Duration;

use extent::{FileName, Kind};
use gds::CopyStep;
use proptest::prelude::*;
use rdma::Fabric;

use super::*;
use crate::fake::Fake;
use crate::{Options, Reconnect, Session};

const FABRICS: [Fabric; 3] = [Fabric::Tcp, Fabric::SharedMemory, Fabric::Verbs];
const SLOT: usize = 8192;
/// Of a file of 100,003 bytes into memory of 90,001: where in the file, where in the memory, how many.
const ODD_RANGES: [(u64, usize, usize); 10] = [
    (0, 0, 1),
    (1, 1, SLOT),
    (SLOT as u64 - 1, 3, 2),
    (4095, 17, 4097),
    (12_345, 13, 70_001),
    (3 * SLOT as u64, 100, 2 * SLOT),
    (99_000, 7, 5000),
    (100_003, 0, 10),
    (5_000_000, 0, 10),
    (50, 5, 0),
];
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    fake: Fake,
    software: SoftwareDevice,
    device: Device,
    client: Client,
    bytes: Vec<u8>,
    file: File,
}

fn name(text: &str) -> FileName {
    text.parse().expect("a good name")
}

fn options(timeout: Duration) -> Options {
    let reconnect = Reconnect {
        first_pause: Duration::ZERO,
        longest_pause: Duration::ZERO,
        ..Reconnect::default()
    };
    Options { reconnect: Some(reconnect), timeout, ..Options::default() }
}

impl World {
    fn new(fabric: Fabric, length: usize) -> Self {
        Self::with(fabric, length, &options(PATIENCE))
    }

    fn with(fabric: Fabric, length: usize, options: &Options) -> Self {
        Self::over(SoftwareDevice::new(64 << 20, 7), fabric, length, options)
    }

    fn over(software: SoftwareDevice, fabric: Fabric, length: usize, options: &Options) -> Self {
        let fake = Fake::new();
        fake.node().max_transfer_bytes = 1 << 20;
        let bytes = fake.add_file("data/a", length);
        let device = Device::software(&software);
        let session = Session::connect(fake.channel(fabric), options).expect("a node");
        let session = session.reconnecting(fake.connector(fabric, 1), 0);
        let client = Client::over(session, options);
        let file = client.open(&name("data/a")).expect("there");
        Self { fake, software, device, client, bytes, file }
    }

    fn reader(&self, slots: usize) -> DeviceReader {
        self.reader_with(slots, Policy::AtLeast(Path::Staged)).expect("a reader")
    }

    fn reader_with(&self, slots: usize, policy: Policy) -> Result<DeviceReader> {
        let options = DeviceOptions { policy, ring_bytes: slots * SLOT, slot_bytes: SLOT };
        DeviceReader::new(&self.client, &self.device, &options)
    }

    fn memory(&self, bytes: usize) -> DeviceMemory {
        self.device.allocate(bytes).expect("device memory")
    }

    /// Reads all of the file, and looks at every byte.
    fn check(&self, reader: &mut DeviceReader) -> DeviceRead {
        let memory = self.memory(self.bytes.len());
        let read = reader.read_into(&self.file, 0, &memory.all(), None).expect("read");
        assert_eq!(read.bytes, self.bytes.len() as u64);
        assert!(memory.all().to_vec().expect("read back") == self.bytes);
        read
    }

    /// That no piece of the ring is missing, and none is used.
    fn check_whole(&self, reader: &DeviceReader, slots: usize) {
        let ring = &reader.ring;
        assert_eq!((ring.available(), ring.under_way(), ring.missing()), (slots, 0, 0));
        assert!(self.software.pinned_bytes().1 <= slots * SLOT, "never more than the ring");
        assert_eq!(self.software.overtaken_copies(), 0);
    }
}

#[test]
pub(crate) fn odd_ranges_arrive() {
    for fabric in FABRICS {
        let world = World::new(fabric, 100_003);
        let mut reader = world.reader(3);
        assert_eq!(reader.path(), Path::Staged);
        let memory = world.memory(90_001);
        let mut expected = memory.all().to_vec().expect("read back");
        for (offset, at, length) in ODD_RANGES {
            let into = memory.part(at..at + length).expect("inside");
            let read = reader.read_into(&world.file, offset, &into, None).expect("read");
            let begin = world.bytes.len().min(usize::try_from(offset).expect("small"));
            let there = (world.bytes.len() - begin).min(length);
            assert_eq!((read.bytes, read.path), (there as u64, Path::Staged), "{offset} {length}");
            assert!(read.to_host <= read.total && read.verified == Verified::ByNode);
            expected[at..at + there].copy_from_slice(&world.bytes[begin..begin + there]);
            let found = memory.all().to_vec().expect("read back");
            assert!(found == expected, "{fabric:?} {offset} {length}");
        }
        world.check_whole(&reader, 3);
    }
}

#[test]
pub(crate) fn many_destinations_are_under_way_at_once() {
    let world = World::new(Fabric::Tcp, 300_000);
    let mut reader = world.reader(4);
    world.fake.node().credits = 64;
    let memories: Vec<_> = (0..40).map(|i| world.memory(1 + i * 331)).collect();
    let fetches: Vec<_> = memories
        .iter()
        .enumerate()
        .map(|(i, memory)| DeviceFetch::new(&world.file, i as u64 * 7001, &memory.all()))
        .collect();
    for (i, end) in reader.read_all(fetches, None).into_iter().enumerate() {
        let (from, length) = (i * 7001, memories[i].len());
        assert_eq!(end.expect("read").bytes, length as u64);
        let found = memories[i].all().to_vec().expect("read back");
        assert!(found == world.bytes[from..from + length], "{i}");
    }
    assert!(reader.stats().peak_slots > 1, "{:?}", reader.stats());
    world.check_whole(&reader, 4);
}

#[test]
pub(crate) fn a_ring_bounds_what_a_long_file_takes() {
    const SLOTS: usize = 16;
    for fabric in FABRICS {
        let world = World::new(fabric, 20 * SLOTS * SLOT + 4321);
        let mut reader = world.reader(SLOTS);
        world.check(&mut reader);
        let stats = reader.stats();
        assert!(stats.peak_pinned_bytes <= SLOTS * SLOT, "{stats:?}");
        assert!(stats.peak_slots <= SLOTS && stats.waits > 0, "{stats:?}");
        assert!(stats.copied_bytes > 20 * (SLOTS * SLOT) as u64 && stats.unpinned_copies == 0);
        let node = world.fake.node();
        let known: usize = node.regions.values().map(|region| region.length()).sum();
        // A session asks for memory by 4 MiB; names are in one such region, too.
        assert!(known <= 8 << 20, "{known} bytes of host memory");
        drop(node);
        world.check_whole(&reader, SLOTS);
        let (software, alive) = (world.software.clone(), world.client.clone());
        drop((reader, world.file, world.device));
        assert_eq!(software.pinned_bytes().0, 0, "all is given back");
        assert_eq!(software.left_behind(), (0, 0, 0));
        drop(alive);
    }
}

/// A node answers a READ only when the copy of the one before has begun.
#[test]
pub(crate) fn copies_begin_before_the_next_read_ends() {
    let world = World::with(Fabric::Tcp, 16 * SLOT, &options(Duration::from_secs(5)));
    let mut reader = world.reader(3);
    let before = world.software.copies_begun();
    let software = world.software.clone();
    world.fake.node().hold_reads =
        Some(Box::new(move |offset| software.copies_begun() - before < offset / SLOT as u64));
    world.check(&mut reader);
    world.check_whole(&reader, 3);
}

/// The device does nothing before the node has been asked for all that the ring has room for.
#[test]
pub(crate) fn reads_go_on_while_copies_do_not() {
    let world = World::with(Fabric::Tcp, 3 * SLOT, &options(Duration::from_secs(5)));
    let mut reader = world.reader(3);
    world.software.stall_after(0);
    let software = world.software.clone();
    world.fake.node().hold_reads = Some(Box::new(move |offset| {
        if offset == 2 * SLOT as u64 {
            software.resume();
        }
        false
    }));
    world.check(&mut reader);
    let queued = |step: &CopyStep| matches!(step, CopyStep::Queued { is_pinned: true, .. });
    // One of them is the pattern's.
    assert_eq!(world.software.steps().iter().filter(|step| queued(step)).count(), 4);
}

#[test]
pub(crate) fn a_read_is_over_when_the_device_has_the_bytes() {
    let world = World::with(Fabric::Tcp, 4 * SLOT, &options(Duration::from_millis(100)));
    let mut reader = world.reader(8);
    let memory = world.memory(4 * SLOT);
    for copied in 0..4 {
        world.software.stall_after(copied);
        let error = reader.read_into(&world.file, 0, &memory.all(), None).expect_err("not all");
        assert_eq!(error.kind(), Kind::Busy);
        world.software.resume();
        reader.settle().expect("now it is");
        assert!(memory.all().to_vec().expect("read back") == world.bytes);
    }
}

#[test]
pub(crate) fn a_stream_waits_and_the_caller_does_not() {
    let world = World::new(Fabric::Tcp, 4 * SLOT);
    let mut reader = world.reader(4);
    let memory = world.memory(4 * SLOT);
    let stream = world.device.stream().expect("a stream");
    world.software.stall_after(0);
    let read = reader.read_into(&world.file, 0, &memory.all(), Some(&stream)).expect("handed over");
    assert_eq!(read.bytes, 4 * SLOT as u64);
    let short = Duration::from_millis(20);
    assert_eq!(stream.finish(short).expect_err("not yet").kind(), Kind::Busy);
    world.software.resume();
    stream.finish(PATIENCE).expect("copied");
    assert!(memory.all().to_vec().expect("read back") == world.bytes);
    reader.settle().expect("all is well");
    world.check_whole(&reader, 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_ranges_arrive_whole_and_nowhere_else(
        ranges in proptest::collection::vec((0..70_000_usize, 0..30_000_usize, 0..64_usize), 1..6),
        slots in 1..5_usize, fabric in 0..3_usize, seed: u64, lost in 0..20_usize,
    ) {
        let world = World::new(FABRICS[fabric], 60_000);
        let mut reader = world.reader(slots);
        world.fake.node().seed = seed;
        // From the next connection on, several requests a piece.
        world.fake.node().max_transfer_bytes = 4096;
        world.fake.restart();
        // Often enough it goes away meanwhile, and is found again.
        world.fake.node().lose_after = Some(lost + 1);
        let total: usize = ranges.iter().map(|(_, length, gap)| length + gap).sum();
        let memory = world.memory(total + 1);
        let mut expected = memory.all().to_vec().expect("read back");
        let (mut at, mut fetches) = (0, Vec::new());
        for (offset, length, gap) in &ranges {
            at += gap;
            let into = memory.part(at..at + length).expect("inside");
            fetches.push(DeviceFetch::new(&world.file, *offset as u64, &into));
            let begin = world.bytes.len().min(*offset);
            let there = (world.bytes.len() - begin).min(*length);
            expected[at..at + there].copy_from_slice(&world.bytes[begin..begin + there]);
            at += length;
        }
        for (end, (offset, length, _)) in reader.read_all(fetches, None).into_iter().zip(&ranges) {
            let there = world.bytes.len().saturating_sub(*offset).min(*length);
            prop_assert_eq!(end.expect("read").bytes, there as u64);
        }
        prop_assert!(memory.all().to_vec().expect("read back") == expected);
        world.check_whole(&reader, slots);
    }
}

#[test]
fn readers_share_a_client_and_a_device() {
    let world = World::new(Fabric::Tcp, 30 * SLOT + 7);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut reader = world.reader(2);
                for _ in 0..5 {
                    world.check(&mut reader);
                }
            });
        }
    });
    assert_eq!(world.software.overtaken_copies(), 0);
}

#[test]
fn rings_that_make_no_sense_are_refused() {
    let world = World::new(Fabric::Tcp, 10);
    for (ring_bytes, slot_bytes) in [(SLOT, 0), (SLOT, 100), (SLOT, 2 * SLOT), (0, SLOT)] {
        let options = DeviceOptions { policy: Policy::Auto, ring_bytes, slot_bytes };
        let error = DeviceReader::new(&world.client, &world.device, &options);
        assert_eq!(error.err().expect("nonsense").kind(), Kind::Invalid);
    }
    let memory = world.memory(2 * SLOT);
    let mut reader = world.reader(1);
    let error = reader.read_into(&world.file, u64::MAX - 5, &memory.all(), None);
    assert_eq!(error.expect_err("past the end").kind(), Kind::Invalid);
    world.check(&mut reader);
}
