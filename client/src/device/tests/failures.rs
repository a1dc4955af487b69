//! What goes wrong under a read, or is not to be had.

use super::*;

#[test]
pub(crate) fn what_a_device_fails_to_copy_is_an_error() {
    for piece in 0..6 {
        let world = World::new(Fabric::SharedMemory, 6 * SLOT);
        let mut reader = world.reader(2);
        let memory = world.memory(6 * SLOT);
        for refused in [false, true] {
            if refused {
                world.software.refuse_copy(piece);
            } else {
                world.software.fail_copy(piece);
            }
            let error = reader.read_into(&world.file, 0, &memory.all(), None).expect_err("failed");
            assert!([Kind::Io, Kind::Invalid].contains(&error.kind()), "{error}");
            assert!(error.context().starts_with("reading data/a at 0 into device"), "{error}");
            world.check_whole(&reader, 2);
        }
        world.check(&mut reader);
        assert_eq!(reader.stats().failures, 2);
    }
}

#[test]
pub(crate) fn what_a_node_fails_to_read_is_an_error_and_costs_no_piece() {
    for fabric in FABRICS {
        let world = World::new(fabric, 6 * SLOT);
        let mut reader = world.reader(2);
        let memory = world.memory(6 * SLOT);
        for piece in 0..6 {
            world.fake.node().fail = Some((piece, Kind::Corrupt, "rotten"));
            let error = reader.read_into(&world.file, 0, &memory.all(), None).expect_err("failed");
            assert_eq!(error.kind(), Kind::Corrupt);
            world.check_whole(&reader, 2);
        }
        // One bad read of several is one error.
        world.fake.node().fail = Some((1, Kind::Stale, "gone"));
        let fetch = |_| DeviceFetch::new(&world.file, 0, &memory.part(..100).expect("inside"));
        let ends = reader.read_all((0..4).map(fetch), None);
        assert_eq!(ends.iter().filter(|end| end.is_err()).count(), 1);
        world.check(&mut reader);
    }
}

#[test]
fn what_is_damaged_on_the_way_goes_no_further() {
    let options = Options { verify: true, ..options(PATIENCE) };
    let world = World::with(Fabric::Tcp, 3 * SLOT, &options);
    let mut reader = world.reader(2);
    let memory = world.memory(3 * SLOT);
    world.fake.node().damage = true;
    let copies = reader.stats().copies;
    let error = reader.read_into(&world.file, 0, &memory.all(), None).expect_err("damaged");
    assert_eq!((error.kind(), reader.stats().copies), (Kind::Corrupt, copies));
    world.fake.node().damage = false;
    assert_eq!(world.check(&mut reader).verified, Verified::ByNodeAndClient);
}

#[test]
pub(crate) fn a_busy_node_is_asked_again_and_nothing_is_left_out() {
    for piece in 0..4 {
        let world = World::new(Fabric::Tcp, 3 * SLOT + 5);
        let mut reader = world.reader(4);
        world.fake.node().fail = Some((piece, Kind::Busy, "later"));
        let memory = world.memory(5 * SLOT);
        let read = reader.read_into(&world.file, 0, &memory.all(), None).expect("read");
        assert_eq!(read.bytes, 3 * SLOT as u64 + 5);
        let found = memory.part(..3 * SLOT + 5).expect("inside").to_vec().expect("read back");
        assert!(found == world.bytes, "{piece}");
    }
}

#[test]
pub(crate) fn a_node_that_goes_away_costs_time_only() {
    for fabric in FABRICS {
        let world = World::new(fabric, 20 * SLOT + 99);
        let mut reader = world.reader(4);
        for replies in [1, 3, 9] {
            world.fake.node().lose_after = Some(replies);
            world.check(&mut reader);
            world.fake.node().write_late();
        }
        world.check(&mut reader);
        assert_eq!(world.client.stats().reconnections, 3);
        let stats = reader.stats();
        assert_eq!(stats.unpinned_copies, 0, "what another connection brought is pinned, too");
        assert!(stats.peak_pinned_bytes <= 4 * SLOT);
        world.check_whole(&reader, 4);
    }
}

#[test]
pub(crate) fn a_node_that_stays_away_is_an_error() {
    for fabric in FABRICS {
        let mut options = options(PATIENCE);
        options.reconnect =
            options.reconnect.map(|old| Reconnect { give_up_after: Duration::ZERO, ..old });
        let world = World::with(fabric, 20 * SLOT, &options);
        let mut reader = world.reader(4);
        let memory = world.memory(20 * SLOT);
        world.fake.node().dead_rails.insert(0);
        world.fake.node().lose_after = Some(5);
        let error = reader.read_into(&world.file, 0, &memory.all(), None).expect_err("away");
        assert_eq!(error.kind(), Kind::Disconnected, "{error}");
        world.fake.node().dead_rails.clear();
        // Memory that the lost node may still write to was not used again: other memory came for it.
        world.fake.node().write_late();
        world.check(&mut reader);
        world.check_whole(&reader, 4);
    }
}

#[test]
pub(crate) fn a_device_that_is_lost_is_an_error() {
    let world = World::new(Fabric::Tcp, 20 * SLOT);
    let mut reader = world.reader(4);
    let memory = world.memory(20 * SLOT);
    let software = world.software.clone();
    world.fake.node().hold_reads = Some(Box::new(move |offset| {
        if offset == 10 * SLOT as u64 {
            software.lose();
        }
        false
    }));
    for _ in 0..2 {
        let error = reader.read_into(&world.file, 0, &memory.all(), None).expect_err("lost");
        assert_eq!(error.kind(), Kind::Disconnected);
    }
    world.client.ping().expect("the node is there");
    assert!(world.reader_with(4, Policy::Auto).is_err());
}

#[test]
pub(crate) fn a_device_that_hangs_is_not_waited_for_for_ever() {
    let world = World::with(Fabric::Tcp, 20 * SLOT, &options(Duration::from_millis(300)));
    let mut reader = world.reader(4);
    let memory = world.memory(20 * SLOT);
    world.software.stall_after(6);
    let error = reader.read_into(&world.file, 0, &memory.all(), None).expect_err("stuck");
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.context().contains("may still write"), "{error}");
    assert_eq!(reader.settle().expect_err("still").kind(), Kind::Busy);
    world.software.resume();
    reader.settle().expect("done after all");
    // Also what only waited for room.
    world.software.stall_after(3);
    let small = |i: usize| memory.part(i * 10..i * 10 + 10).expect("inside");
    let fetches = (0..9).map(|i| DeviceFetch::new(&world.file, i as u64 * 10, &small(i)));
    let ends = reader.read_all(fetches, None);
    assert_eq!(ends.iter().filter(|end| end.is_ok()).count(), 3);
    world.software.resume();
    reader.settle().expect("done after all");
    world.check(&mut reader);
    world.check_whole(&reader, 4);
}

#[test]
pub(crate) fn late_failures_are_told_once() {
    let world = World::new(Fabric::Tcp, 4 * SLOT);
    let mut reader = world.reader(4);
    let memory = world.memory(4 * SLOT);
    let stream = world.device.stream().expect("a stream");
    for settles in [true, false] {
        world.software.stall_after(0);
        world.software.fail_copy(2);
        reader.read_into(&world.file, 0, &memory.all(), Some(&stream)).expect("handed over");
        world.software.resume();
        stream.finish(PATIENCE).expect("the stream goes on");
        let told = if settles {
            reader.settle()
        } else {
            reader.read_into(&world.file, 0, &memory.all(), None).map(drop)
        };
        let error = told.expect_err("one piece is not there");
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.context().contains("an earlier read"), "{error}");
        reader.settle().expect("told once");
        world.check(&mut reader);
    }
    let elsewhere = Device::software(&SoftwareDevice::new(1 << 20, 1));
    let foreign = elsewhere.stream().expect("a stream");
    let error = reader.read_into(&world.file, 0, &memory.all(), Some(&foreign));
    assert_eq!(error.expect_err("another device's").kind(), Kind::Invalid);
}

#[test]
pub(crate) fn strict_readers_do_not_degrade() {
    let world = World::new(Fabric::SharedMemory, 3 * SLOT);
    let refused = |policy| {
        let error = world.reader_with(2, policy).err().expect("not to be had");
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        error.to_string()
    };
    assert!(refused(Policy::Exactly(Path::GpuDirect)).contains("does not export dma-buf"));
    assert!(refused(Policy::AtLeast(Path::GpuDirect)).contains("gpudirect"));
    assert!(refused(Policy::Exactly(Path::CuFile)).contains("own files only"));
    let mut host = world.reader_with(2, Policy::Exactly(Path::Host)).expect("asked for");
    assert_eq!((host.path(), world.check(&mut host).path), (Path::Host, Path::Host));
    assert_eq!((host.has_degraded, world.software.pinned_bytes().1), (false, 0));

    world.software.refuse_pins(true);
    assert!(refused(Policy::AtLeast(Path::Staged)).contains("takes no host memory"));
    assert!(refused(Policy::Exactly(Path::Staged)).contains("takes no host memory"));
    let mut reader = world.reader_with(2, Policy::Auto).expect("degraded");
    assert_eq!((reader.path(), reader.has_degraded), (Path::Host, true));
    assert!(reader.ladder().to_string().contains("staged: pinning"), "{}", reader.ladder());
    assert_eq!(world.check(&mut reader).path, Path::Host);
}

#[test]
pub(crate) fn a_ring_that_can_no_longer_be_pinned_is_no_secret() {
    let world = World::new(Fabric::SharedMemory, 3 * SLOT);
    let mut strict = world.reader_with(2, Policy::AtLeast(Path::Staged)).expect("staged");
    let mut easy = world.reader_with(2, Policy::Auto).expect("staged");
    assert_eq!((strict.path(), easy.path()), (Path::Staged, Path::Staged));
    // Over shared memory another connection brings other memory.
    world.software.refuse_pins(true);
    world.fake.restart();
    assert_eq!(world.check(&mut easy).path, Path::Host);
    assert!(easy.has_degraded);
    let memory = world.memory(3 * SLOT);
    let error = strict.read_into(&world.file, 0, &memory.all(), None).expect_err("not staged");
    assert_eq!(error.kind(), Kind::Unsupported);
    world.software.refuse_pins(false);
    assert_eq!(world.check(&mut strict).path, Path::Staged);
}

#[test]
fn a_reader_that_degrades_warns_once() {
    let world = World::new(Fabric::SharedMemory, 3 * SLOT);
    let warned = warnings::during(|| {
        let mut good = world.reader_with(2, Policy::Auto).expect("staged");
        world.check(&mut good);
        drop(world.reader_with(2, Policy::Exactly(Path::Host)).expect("asked for"));
        world.software.refuse_pins(true);
        assert!(world.reader_with(2, Policy::AtLeast(Path::Staged)).is_err());
    });
    assert_eq!(warned, 0);
    let warned = warnings::during(|| {
        let mut reader = world.reader_with(2, Policy::Auto).expect("degraded");
        world.check(&mut reader);
        world.check(&mut reader);
    });
    assert_eq!(warned, 1);
    world.software.refuse_pins(false);
    let mut reader = world.reader_with(2, Policy::Auto).expect("staged");
    world.software.refuse_pins(true);
    world.fake.restart();
    let warned = warnings::during(|| {
        world.check(&mut reader);
        world.check(&mut reader);
    });
    assert_eq!(warned, 1, "also under way");
}
