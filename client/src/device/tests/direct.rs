//! Reads that a node's RDMA device writes into a software device that exports its memory.

use super::*;

/// Whole pages of the host's, so that all of it goes directly.
const PAGES: usize = 20 * SLOT;

fn exporting(length: usize, options: &Options) -> World {
    World::over(SoftwareDevice::exporting(64 << 20, 7), Fabric::Verbs, length, options)
}

fn world(length: usize) -> World {
    exporting(length, &options(PATIENCE))
}

impl World {
    fn direct(&self, slots: usize) -> DeviceReader {
        let reader = self.reader_with(slots, Policy::Auto).expect("a reader");
        assert_eq!(self.registered(), 0, "nothing stays from trying");
        reader
    }

    fn strict(&self) -> DeviceReader {
        self.reader_with(4, Policy::Exactly(Path::GpuDirect)).expect("it registers memory")
    }

    /// How many allocations the node may write to.
    fn registered(&self) -> usize {
        let node = self.fake.node();
        node.devices.count(node.regions.keys())
    }

    fn read(&self, reader: &mut DeviceReader, memory: &DeviceMemory) -> Result<DeviceRead> {
        reader.read_into(&self.file, 0, &memory.all(), None)
    }

    fn check_bytes(&self, memory: &DeviceMemory) {
        let length = memory.len().min(self.bytes.len());
        let found = memory.part(..length).expect("inside").to_vec().expect("read back");
        assert!(found == self.bytes[..length]);
    }
}

fn why(reader: &DeviceReader) -> String {
    match reader.ladder().verdict(Path::GpuDirect) {
        Verdict::Works => "works".to_owned(),
        Verdict::Cannot(why) => why.clone(),
    }
}

#[test]
pub(crate) fn nothing_is_claimed_before_it_was_seen() {
    let world = world(PAGES);
    let mut reader = world.direct(4);
    assert_eq!((reader.path(), why(&reader).as_str()), (Path::Staged, "the first read tries it"));
    let copies = reader.stats().copies;
    assert_eq!(world.check(&mut reader).path, Path::GpuDirect);
    assert_eq!((reader.path(), why(&reader).as_str()), (Path::GpuDirect, "works"));
    assert_eq!(reader.stats().copies, copies, "no byte came through the ring");
    let stats = reader.direct_stats();
    assert_eq!((stats.registered, stats.registrations, stats.proofs), (1, 1, 1));
    assert_eq!((stats.reads, stats.bytes), (20, PAGES as u64));
    drop(reader);
    assert_eq!(world.registered(), 0, "all is given back");
    let (software, alive) = (world.software.clone(), world.client.clone());
    drop((world.file, world.device));
    assert_eq!(software.left_behind(), (0, 0, 0));
    drop(alive);
}

/// The front and the end of an allocation that are no whole page go through the ring.
#[test]
fn odd_ranges_arrive_directly_and_nowhere_else() {
    let world = world(100_003);
    let mut reader = world.direct(3);
    let memory = world.memory(90_001);
    let mut expected = memory.all().to_vec().expect("read back");
    let whole = 90_001 / dma::page_bytes() * dma::page_bytes();
    // These end where the memory does.
    let at_end = [(12_345, 13, 89_988), (7, 89_999, 2)];
    for (offset, at, length) in ODD_RANGES.into_iter().chain(at_end) {
        let into = memory.part(at..at + length).expect("inside");
        let read = reader.read_into(&world.file, offset, &into, None).expect("read");
        let begin = world.bytes.len().min(usize::try_from(offset).expect("small"));
        let there = (world.bytes.len() - begin).min(length);
        assert_eq!(read.bytes, there as u64, "{offset} {length}");
        if there > 0 {
            let way = if at + length <= whole { Path::GpuDirect } else { Path::Staged };
            assert_eq!(read.path, way, "{offset} {length}");
        }
        expected[at..at + there].copy_from_slice(&world.bytes[begin..begin + there]);
        let found = memory.all().to_vec().expect("read back");
        assert!(found == expected, "{offset} {length}");
    }
    assert_eq!(reader.direct_stats().registrations, 1, "one allocation");
    world.check_whole(&reader, 3);
}

#[test]
fn strict_readers_go_directly_or_not_at_all() {
    let world = world(PAGES + 99);
    let mut reader = world.strict();
    assert_eq!(reader.path(), Path::GpuDirect);
    let memory = world.memory(PAGES);
    assert_eq!(world.read(&mut reader, &memory).expect("read").path, Path::GpuDirect);
    world.check_bytes(&memory);
    let end = reader.read_into(&world.file, 1 << 30, &memory.all(), None).expect("past the end");
    assert_eq!(end.bytes, 0);
    // A part of a page is not exported.
    let odd = world.memory(PAGES + 99);
    let error = world.read(&mut reader, &odd).expect_err("not all of it");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("not all of one allocation's"), "{error}");
    assert_eq!((world.software.pinned_bytes().1, reader.stats().copies), (0, 0));
}

#[test]
pub(crate) fn writes_that_get_lost_are_noticed() {
    let world = world(PAGES);
    world.fake.node().devices.loses_writes = true;
    let mut strict = world.strict();
    let memory = world.memory(PAGES);
    let error = world.read(&mut strict, &memory).expect_err("nothing arrives");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("is not there"), "{error}");
    drop(strict);
    let mut reader = world.direct(4);
    let warned = warnings::during(|| {
        for _ in 0..2 {
            assert_eq!(world.read(&mut reader, &memory).expect("read").path, Path::Staged);
            world.check_bytes(&memory);
        }
    });
    assert_eq!((warned, reader.path()), (1, Path::Staged));
    assert!(why(&reader).contains("is not there"), "{}", reader.ladder());
    // Also when all is well later: it was wrong once.
    world.fake.node().devices.loses_writes = false;
    assert_eq!(world.check(&mut reader).path, Path::Staged);
    // Zeroes prove as much as anything.
    world.fake.node().put("data/a", vec![0; PAGES]);
    world.fake.node().devices.loses_writes = true;
    let zeroes = world.client.open(&name("data/a")).expect("there");
    let error = world.strict().read_into(&zeroes, 0, &memory.all(), None).expect_err("none arrive");
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[test]
pub(crate) fn other_memory_at_an_address_is_other_memory() {
    let world = world(PAGES);
    let mut reader = world.strict();
    let mut before = None;
    for round in 1..4 {
        let memory = world.memory(PAGES);
        assert_eq!(*before.get_or_insert(memory.pointer()), memory.pointer(), "used again");
        world.read(&mut reader, &memory).expect("read");
        world.check_bytes(&memory);
        let stats = reader.direct_stats();
        assert_eq!((stats.registrations, stats.registered), (round, 1), "the old one is let go");
    }
}

#[test]
pub(crate) fn a_node_that_goes_away_costs_time_only() {
    let world = world(PAGES);
    let mut reader = world.strict();
    for replies in [1, 3, 9] {
        world.fake.node().lose_after = Some(replies);
        assert_eq!(world.check(&mut reader).path, Path::GpuDirect);
        world.fake.node().write_late();
    }
    world.check(&mut reader);
    assert_eq!(world.client.stats().reconnections, 3);
    assert!(reader.direct_stats().proofs >= 4, "each connection was looked at");
}

#[test]
pub(crate) fn another_connection_is_looked_at_again() {
    for replies in 1..12 {
        let world = world(PAGES);
        let mut reader = world.direct(4);
        world.check(&mut reader);
        world.fake.node().devices.loses_writes_next = true;
        world.fake.node().lose_after = Some(replies);
        assert_eq!(world.check(&mut reader).path, Path::Staged, "{replies}");
        assert!(why(&reader).contains("is not there"), "{}", reader.ladder());
        world.check_whole(&reader, 4);
    }
}

/// What is found out over another connection is found out with bytes that the file has.
#[test]
fn the_end_of_a_file_proves_nothing() {
    for replies in 1..12 {
        for seed in 0..4 {
            let world = world(2 * SLOT + 5);
            world.fake.node().seed = seed;
            let mut reader = world.direct(6);
            let memory = world.memory(6 * SLOT);
            assert_eq!(world.read(&mut reader, &memory).expect("read").path, Path::GpuDirect);
            world.check_bytes(&memory);
            memory.all().fill(&vec![0; 6 * SLOT]).expect("filled");
            world.fake.node().devices.loses_writes_next = true;
            world.fake.node().lose_after = Some(replies);
            world.read(&mut reader, &memory).expect("read");
            world.check_bytes(&memory);
        }
    }
}

#[test]
fn a_way_that_connections_end_over_is_left_alone() {
    let world = world(PAGES);
    let mut reader = world.direct(4);
    world.fake.node().devices.breaks = true;
    assert_eq!(world.check(&mut reader).path, Path::Staged);
    let lost = world.client.stats().reconnections;
    assert!((2..=20).contains(&lost), "{lost}");
    assert!(why(&reader).contains("connections end"), "{}", reader.ladder());
    assert_eq!(world.check(&mut reader).path, Path::Staged);
    assert_eq!(world.client.stats().reconnections, lost, "it costs nobody another one");
}

#[test]
pub(crate) fn what_a_stream_still_does_comes_first() {
    let world = exporting(PAGES, &options(Duration::from_millis(300)));
    let other = world.fake.add_file("data/b", 3 * PAGES)[PAGES..2 * PAGES].to_vec();
    assert!(other != world.bytes);
    let other = world.client.open(&name("data/b")).expect("there");
    let mut staged = world.reader_with(32, Policy::Exactly(Path::Staged)).expect("staged");
    let mut reader = world.direct(32);
    let memory = world.memory(PAGES);
    world.read(&mut reader, &memory).expect("read");
    let stream = world.device.stream().expect("a stream");
    world.software.stall_after(0);
    staged.read_into(&other, PAGES as u64, &memory.all(), Some(&stream)).expect("handed over");
    // The stream does not go on: what the node wrote now would be overwritten later.
    let read = reader.read_into(&world.file, 0, &memory.all(), Some(&stream)).expect("handed over");
    assert_eq!(read.path, Path::Staged);
    world.software.resume();
    staged.settle().expect("copied");
    reader.settle().expect("copied");
    stream.finish(PATIENCE).expect("done");
    world.check_bytes(&memory);
    // It goes on.
    let read = reader.read_into(&world.file, 0, &memory.all(), Some(&stream)).expect("read");
    assert_eq!(read.path, Path::GpuDirect);
    world.check_bytes(&memory);
}

#[test]
pub(crate) fn the_device_is_told_of_what_was_written() {
    let world = world(PAGES);
    let mut reader = world.strict();
    let memory = world.memory(PAGES);
    for _ in 0..3 {
        let before = world.software.flushes();
        world.read(&mut reader, &memory).expect("read");
        assert!(world.software.flushes() > before);
    }
}

#[test]
fn what_is_refused_has_its_reason() {
    let world = world(PAGES);
    let why_not = |world: &World| {
        let error = world.reader_with(4, Policy::AtLeast(Path::GpuDirect)).err().expect("refused");
        assert_eq!(error.kind(), Kind::Unsupported);
        let mut reader = world.direct(4);
        assert_eq!(world.check(&mut reader).path, Path::Staged);
        assert_eq!(reader.direct_stats(), DirectStats::default());
        why(&reader)
    };
    world.fake.node().devices.refuses = Some("rxe0 registers no dma-buf (EOPNOTSUPP)");
    assert!(why_not(&world).contains("rxe0 registers no dma-buf"));
    world.fake.node().devices.refuses = None;
    world.software.refuse_exports(true);
    assert!(why_not(&world).contains("exports none"));
    world.software.refuse_exports(false);
    assert_eq!(world.check(&mut world.strict()).path, Path::GpuDirect);

    let verifying = exporting(PAGES, &Options { verify: true, ..options(PATIENCE) });
    assert!(why_not(&verifying).contains("Options::verify"));
    let staged = world.reader_with(4, Policy::Exactly(Path::Staged)).expect("staged");
    assert!(why(&staged).contains("policy"), "{}", staged.ladder());
}

#[test]
fn another_way_to_the_node_takes_another_way_into_the_device() {
    let world = world(PAGES);
    let options = options(PATIENCE);
    let session = Session::connect(world.fake.channel(Fabric::Verbs), &options).expect("a node");
    let session = session.reconnecting(world.fake.connector(Fabric::Tcp, 1), 0);
    let client = Client::over(session, &options);
    let file = client.open(&name("data/a")).expect("there");
    let device =
        DeviceOptions { ring_bytes: 4 * SLOT, slot_bytes: SLOT, ..DeviceOptions::default() };
    let mut reader = DeviceReader::new(&client, &world.device, &device).expect("a reader");
    let memory = world.memory(PAGES);
    let mut read = || {
        let read = reader.read_into(&file, 0, &memory.all(), None).expect("read");
        world.check_bytes(&memory);
        read.path
    };
    assert_eq!(read(), Path::GpuDirect);
    world.fake.node().lose_after = Some(5);
    let warned = warnings::during(|| {
        assert_eq!(read(), Path::Staged);
        assert_eq!(read(), Path::Staged);
    });
    assert_eq!(warned, 1);
    assert!(why(&reader).contains("not over RDMA"), "{}", reader.ladder());
}

#[test]
fn registrations_are_bounded() {
    const ALLOCATIONS: usize = 100;
    let world = world(PAGES);
    let mut reader = world.direct(4);
    let memories: Vec<_> = (0..ALLOCATIONS).map(|_| world.memory(SLOT)).collect();
    for memory in &memories {
        assert_eq!(world.read(&mut reader, memory).expect("read").path, Path::GpuDirect);
        world.check_bytes(memory);
        assert!(world.registered() <= 65, "{}", world.registered());
    }
    assert_eq!(reader.direct_stats().registered, 64);
    // What is used stays.
    let before = reader.direct_stats().registrations;
    world.read(&mut reader, &memories[ALLOCATIONS - 64]).expect("read");
    assert_eq!(reader.direct_stats().registrations, before);
    // All at once: more than may be registered.
    let fetch = |memory: &DeviceMemory| DeviceFetch::new(&world.file, 5, &memory.all());
    let ends = reader.read_all(memories.iter().map(fetch), None);
    let paths: Vec<Path> = ends.into_iter().map(|end| end.expect("read").path).collect();
    assert_eq!(paths.iter().filter(|path| **path == Path::GpuDirect).count(), 64);
    for memory in &memories {
        assert!(memory.all().to_vec().expect("read back") == world.bytes[5..5 + SLOT]);
    }
    assert!(world.registered() <= 65);
}

#[test]
fn what_a_node_fails_to_read_is_an_error() {
    let world = world(6 * SLOT);
    let mut reader = world.strict();
    let memory = world.memory(6 * SLOT);
    world.read(&mut reader, &memory).expect("read");
    for piece in 0..6 {
        world.fake.node().fail = Some((piece, Kind::Corrupt, "rotten"));
        assert_eq!(world.read(&mut reader, &memory).expect_err("failed").kind(), Kind::Corrupt);
        world.fake.node().fail = Some((piece, Kind::Busy, "later"));
        world.read(&mut reader, &memory).expect("asked again");
        world.check_bytes(&memory);
    }
}

#[test]
fn a_read_that_is_given_up_is_cut_off_from_the_device() {
    let world = exporting(6 * SLOT, &options(Duration::from_millis(300)));
    let mut reader = world.strict();
    let memory = world.memory(6 * SLOT);
    world.read(&mut reader, &memory).expect("read");
    world.fake.node().hold_reads = Some(Box::new(|_| true));
    world.fake.node().dead_rails.insert(0);
    let error = world.read(&mut reader, &memory).expect_err("no answer");
    assert_eq!(error.kind(), Kind::Disconnected);
    assert_eq!((world.registered(), world.fake.node().channels), (0, 0), "nobody can write there");
    drop(memory);
    drop(reader);
    assert_eq!(world.software.left_behind().0, 0, "and nobody keeps it");
}

#[test]
fn memory_of_another_device_is_refused() {
    let world = world(PAGES);
    let elsewhere = Device::software(&SoftwareDevice::exporting(64 << 20, 7));
    let (here, there) = (world.memory(PAGES), elsewhere.allocate(PAGES).expect("device memory"));
    assert_eq!(here.pointer(), there.pointer(), "devices count alike");
    for policy in [Policy::Auto, Policy::Exactly(Path::GpuDirect)] {
        let mut reader = world.reader_with(4, policy).expect("a reader");
        world.read(&mut reader, &here).expect("read");
        world.fake.node().put("data/a", vec![7; PAGES]);
        let other = world.client.open(&name("data/a")).expect("there");
        let error = reader.read_into(&other, 0, &there.all(), None).expect_err("another device's");
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        world.check_bytes(&here);
        assert!(there.all().to_vec().expect("read back").iter().all(|byte| *byte == 0xA5));
    }
}

/// Nobody waits for a read that is under way, and nobody has its memory any more but the session.
#[test]
fn what_is_being_read_into_stays_until_it_is_not() {
    let world = world(6 * SLOT);
    let memory = world.memory(6 * SLOT);
    let exported =
        world.device.export(&memory.all().allocation().expect("there")).expect("exported");
    let handle = world.file.handle().number;
    let mut state = world.client.lock();
    let session = &mut state.session;
    let part = memory.part(SLOT..3 * SLOT).expect("inside");
    let error = session.submit_read_to_device(handle, 5, &exported, &part).expect_err("unknown");
    assert_eq!(error.kind(), Kind::Invalid);
    session.register_device(&exported).expect("registered");
    session.register_device(&exported).expect("it is already");
    let other = world.memory(SLOT);
    let outside = session.submit_read_to_device(handle, 5, &exported, &other.all());
    assert_eq!(outside.expect_err("other memory").kind(), Kind::Invalid);
    world.fake.node().hold_reads = Some(Box::new(|_| true));
    session.submit_read_to_device(handle, 5, &exported, &part).expect("begun");
    session.kick();
    let shared = dma::Region::sealed_memfd(exported.file(), 6 * SLOT).expect("what the device has");
    drop((memory, part, other, exported));
    let mut completed = Vec::new();
    for _ in 0..3 {
        session.release_devices();
        session.poll(&mut completed);
        assert!(completed.is_empty());
        assert_eq!((world.registered(), world.software.left_behind().0), (1, 1), "it is used");
    }
    world.fake.node().hold_reads = None;
    while completed.is_empty() {
        session.poll(&mut completed);
    }
    assert_eq!(completed.pop().expect("just seen").bytes, 2 * SLOT as u64);
    let mut found = vec![0; 2 * SLOT];
    let window = dma::Window::new(shared, SLOT as u64, found.len()).expect("inside");
    window.copy_out(&mut found);
    assert!(found == world.bytes[5..5 + 2 * SLOT]);
    session.poll(&mut completed);
    assert_eq!((world.registered(), world.software.left_behind().0), (0, 0), "nobody uses it");
}

#[test]
fn a_device_that_is_lost_is_an_error() {
    let world = world(PAGES);
    let mut reader = world.strict();
    let memory = world.memory(PAGES);
    world.read(&mut reader, &memory).expect("read");
    world.software.lose();
    let error = world.read(&mut reader, &memory).expect_err("lost");
    assert_eq!(error.kind(), Kind::Disconnected, "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_ranges_arrive_whole_and_nowhere_else(
        ranges in proptest::collection::vec((0..70_000_usize, 0..30_000_usize, 0..64_usize), 1..6),
        slots in 1..5_usize, seed: u64, lost in 0..40_usize, loses: bool,
    ) {
        let world = world(60_000);
        let mut reader = world.direct(slots);
        world.fake.node().seed = seed;
        world.fake.node().max_transfer_bytes = 4096;
        world.fake.restart();
        world.fake.node().lose_after = Some(lost + 1);
        world.fake.node().devices.loses_writes_next = loses;
        // Each in memory of its own, not from its front on.
        let memories: Vec<_> =
            ranges.iter().map(|(_, length, gap)| world.memory(length + gap + 1)).collect();
        let fetch = |((offset, length, gap), memory): (&(usize, usize, usize), &DeviceMemory)| {
            let into = memory.part(*gap..gap + length).expect("inside");
            DeviceFetch::new(&world.file, *offset as u64, &into)
        };
        let ends = reader.read_all(ranges.iter().zip(&memories).map(fetch), None);
        for ((end, memory), (offset, length, gap)) in ends.into_iter().zip(&memories).zip(&ranges) {
            let begin = world.bytes.len().min(*offset);
            let there = (world.bytes.len() - begin).min(*length);
            prop_assert_eq!(end.expect("read").bytes, there as u64);
            let found = memory.all().to_vec().expect("read back");
            prop_assert!(found[*gap..gap + there] == world.bytes[begin..begin + there]);
            prop_assert!(found[..*gap].iter().chain(&found[gap + there..]).all(|byte| *byte == 0xA5));
        }
        world.check_whole(&reader, slots);
    }
}
