//! Local files where cuFile does not read them: a software device is none of CUDA's.

use std::os::unix::fs::FileExt as _;

use gds::LocalFile;
use tempfile::NamedTempFile;

use super::*;

/// A file of this machine with a node's bytes, and more than a ring holds.
fn local(world: &World) -> (NamedTempFile, LocalFile) {
    let file = NamedTempFile::new().expect("made");
    file.as_file().write_all_at(&world.bytes, 0).expect("written");
    let local = LocalFile::open(file.path()).expect("there");
    (file, local)
}

fn why(reader: &DeviceReader) -> String {
    match reader.ladder().verdict(Path::CuFile) {
        Verdict::Works => "works".to_owned(),
        Verdict::Cannot(why) => why.clone(),
    }
}

#[test]
fn local_files_go_through_the_ring_where_cufile_cannot() {
    let world = World::new(Fabric::SharedMemory, 9 * SLOT + 77);
    let (_kept, local) = local(&world);
    for slots in [1, 3] {
        let mut reader = world.reader(slots);
        assert!(why(&reader).contains("not looked for"), "{}", why(&reader));
        let memory = world.memory(10 * SLOT);
        let mut expected = memory.all().to_vec().expect("read back");
        for (offset, at, length) in [
            (0, 0, 1),
            (SLOT as u64 - 1, 3, 2),
            (5, 17, 8 * SLOT),
            (3 * SLOT as u64, 100, 9 * SLOT),
            (9 * SLOT as u64 + 77, 0, 10),
            (1 << 40, 0, 10),
            (50, 5, 0),
        ] {
            let into = memory.part(at..at + length).expect("inside");
            let read = reader.read_local(&local, offset, &into, Policy::Auto).expect("read");
            let begin = world.bytes.len().min(usize::try_from(offset).expect("fits"));
            let there = (world.bytes.len() - begin).min(length);
            assert_eq!((read.bytes, read.path), (there as u64, Path::Staged), "{offset} {length}");
            assert_eq!(read.transfer, None);
            expected[at..at + there].copy_from_slice(&world.bytes[begin..begin + there]);
            assert!(memory.all().to_vec().expect("read back") == expected, "{offset} {length}");
        }
        assert!(why(&reader).contains("not a device of CUDA's"), "{}", why(&reader));
        let error = reader.read_local(&local, u64::MAX - 5, &memory.all(), Policy::Auto);
        assert_eq!(error.expect_err("past the end").kind(), Kind::Invalid);
        // A node's files go on as before.
        world.check(&mut reader);
        world.check_whole(&reader, slots);
    }
}

#[test]
pub(crate) fn strict_policies_hold_for_local_files() {
    let world = World::new(Fabric::Tcp, 3 * SLOT);
    let (_kept, local) = local(&world);
    let memory = world.memory(3 * SLOT);
    let mut reader = world.reader_with(2, Policy::Auto).expect("staged");
    for policy in [Policy::Exactly(Path::Staged), Policy::AtLeast(Path::Staged)] {
        let read = reader.read_local(&local, 0, &memory.all(), policy).expect("allowed");
        assert_eq!(read.path, Path::Staged);
        assert!(why(&reader).contains("not looked for"), "nobody asked for cuFile");
    }
    for (policy, reasons) in [
        (Policy::Exactly(Path::CuFile), "not a device of CUDA's; the reader's ring is staged"),
        (Policy::Exactly(Path::Host), "the reader's ring is staged"),
        (Policy::AtLeast(Path::GpuDirect), "the reader's ring is staged"),
    ] {
        let error = reader.read_local(&local, 0, &memory.all(), policy).expect_err("strict");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(reasons), "{error}");
    }
    // What another connection brings may be worse than what was there.
    let mut reader = world.reader_with(2, Policy::Exactly(Path::Host)).expect("asked for");
    let read = reader.read_local(&local, 0, &memory.all(), Policy::Auto).expect("allowed");
    assert_eq!(read.path, Path::Host);
    assert!(memory.all().to_vec().expect("read back") == world.bytes);
    let error = reader.read_local(&local, 0, &memory.all(), Policy::AtLeast(Path::Staged));
    assert_eq!(error.expect_err("strict").kind(), Kind::Unsupported);
    let other = Device::software(&SoftwareDevice::new(1 << 20, 1)).allocate(10).expect("memory");
    let error = reader.read_local(&local, 0, &other.all(), Policy::Auto).expect_err("another's");
    assert_eq!(error.kind(), Kind::Invalid);
}

#[test]
pub(crate) fn a_local_read_is_over_when_the_device_has_the_bytes() {
    let world = World::with(Fabric::Tcp, 4 * SLOT, &options(Duration::from_millis(100)));
    let (_kept, local) = local(&world);
    let mut reader = world.reader(8);
    let memory = world.memory(4 * SLOT);
    for copied in 0..4 {
        world.software.stall_after(copied);
        let error = reader.read_local(&local, 0, &memory.all(), Policy::Auto).expect_err("not all");
        assert_eq!(error.kind(), Kind::Busy, "{error}");
        world.software.resume();
        reader.settle().expect("now it is");
        assert!(memory.all().to_vec().expect("read back") == world.bytes);
    }
    // What fails to be copied is an error, and costs no piece of the ring.
    for piece in 0..4 {
        world.software.fail_copy(piece);
        let error = reader.read_local(&local, 0, &memory.all(), Policy::Auto).expect_err("failed");
        assert_eq!(error.kind(), Kind::Io, "{error}");
        world.check_whole(&reader, 8);
    }
    world.check(&mut reader);
}
