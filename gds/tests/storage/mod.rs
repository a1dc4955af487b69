//! What cuFile's side must do, each as a function that panics if it does not: over a driver and a cuFile without a
//! GPU. What they do not show is what real ones do.

#[path = "../fakes/mod.rs"]
mod fakes;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use extent::Kind;
use fakes::Fakes;
use forebay_gds::{CuFile, Device, DeviceSpan, LocalFile, LocalRead, SoftwareDevice, Transfer};

pub(crate) const SCENES: &[(&str, fn())] = &[
    ("any_range_of_a_file_arrives_and_nothing_else", any_range_of_a_file_arrives_and_nothing_else),
    (
        "short_reads_go_on_and_a_file_that_shrinks_ends",
        short_reads_go_on_and_a_file_that_shrinks_ends,
    ),
    (
        "registered_memory_is_read_into_and_given_back",
        registered_memory_is_read_into_and_given_back,
    ),
    ("threads_share_a_file_and_a_library", threads_share_a_file_and_a_library),
    ("what_cannot_go_direct_is_not_called_direct", what_cannot_go_direct_is_not_called_direct),
    (
        "errors_are_told_apart_and_leave_nothing_behind",
        errors_are_told_apart_and_leave_nothing_behind,
    ),
    (
        "a_device_that_is_lost_keeps_what_is_written_to",
        a_device_that_is_lost_keeps_what_is_written_to,
    ),
    (
        "what_cufile_does_not_read_is_refused_with_a_reason",
        what_cufile_does_not_read_is_refused_with_a_reason,
    ),
];

/// Not a whole number of pages.
const LENGTH: usize = 3 * (64 << 10) + 1234;
const CALL_KIB: usize = 64;

struct World {
    fakes: Fakes,
    cufile: &'static CuFile,
    device: Device,
    bytes: Vec<u8>,
}

impl World {
    /// A world whose library was told some things before it was opened.
    fn new(knobs: &[(&str, i32)]) -> Self {
        let fakes = Fakes::new();
        fakes.turn("most_kib", i32::try_from(CALL_KIB).expect("small"));
        for (name, value) in knobs {
            fakes.turn(name, *value);
        }
        let bytes: Vec<u8> =
            (0..LENGTH).map(|i| u8::try_from((i * 7 + (i >> 9)) % 251).expect("small")).collect();
        std::fs::write(fakes.path("file"), &bytes).expect("written");
        let (device, cufile) = (fakes.device(), fakes.cufile().expect("a cuFile"));
        Self { fakes, cufile, device, bytes }
    }

    fn file(&self) -> LocalFile {
        self.cufile.file(self.fakes.path("file")).expect("there")
    }

    /// Reads all of the file and looks at every byte.
    fn check(&self, file: &LocalFile) -> LocalRead {
        let memory = self.device.allocate(LENGTH).expect("device memory");
        let read = file.read_into(0, &memory.all()).expect("read");
        assert_eq!(read.bytes, LENGTH as u64);
        assert!(memory.all().to_vec().expect("read back") == self.bytes);
        read
    }

    /// That nothing was done wrongly, and nothing is left but an open driver.
    fn check_clean(&self) {
        let left = self.fakes.left();
        assert_eq!(
            (left.files, left.buffers, left.drivers, left.violations),
            (0, 0, 1, 0),
            "{left:?}"
        );
        assert_eq!(self.fakes.device_bytes(), 0, "device memory is left");
    }
}

fn any_range_of_a_file_arrives_and_nothing_else() {
    let world = World::new(&[]);
    let file = world.file();
    assert_eq!((file.length().expect("known"), world.fakes.left().files), (LENGTH as u64, 0));
    file.check(&world.device).expect("cuFile takes it");
    assert_eq!(world.fakes.left().files, 1);
    let memory = world.device.allocate(2 * LENGTH).expect("device memory");
    let mut expected = memory.all().to_vec().expect("read back");
    for (offset, at, length) in [
        (0, 0, 1),
        (0, 4096, 4096),
        (1, 13, 4095),
        (4095, 9000, 2),
        (777, 20_001, 150_003),
        (4096, 7, LENGTH),
        (LENGTH - 1, 0, 1),
        (LENGTH - 5, 3, 4096),
        (LENGTH, 100, 10),
        (10 * LENGTH, 100, 10),
        (50, 5, 0),
    ] {
        let into = memory.part(at..at + length).expect("inside");
        let read = file.read_into(offset as u64, &into).expect("read");
        let there = LENGTH.saturating_sub(offset).min(length);
        assert_eq!((read.bytes, read.is_registered), (there as u64, false), "{offset} {length}");
        let from = offset.min(LENGTH);
        expected[at..at + there].copy_from_slice(&world.bytes[from..from + there]);
        assert!(memory.all().to_vec().expect("read back") == expected, "{offset} {length}");
    }
    // Also where there is nothing on the disk.
    let holes = File::create(world.fakes.path("holes")).expect("made");
    holes.write_all_at(b"end", 200_000).expect("written");
    let into = memory.part(..200_003).expect("inside");
    let sparse = world.cufile.file(world.fakes.path("holes")).expect("there");
    assert_eq!(sparse.read_into(0, &into).expect("read").bytes, 200_003);
    let found = into.to_vec().expect("read back");
    assert!(found[..200_000].iter().all(|byte| *byte == 0) && found[200_000..] == *b"end");
    assert_eq!(
        world.fakes.left().longest,
        CALL_KIB << 10,
        "no call is longer than the library takes"
    );
    drop((file, sparse, into, memory));
    world.check_clean();
}

fn short_reads_go_on_and_a_file_that_shrinks_ends() {
    for most in [1000, 4096, 65_535] {
        let world = World::new(&[("short", most)]);
        let read = world.check(&world.file());
        assert!(
            read.calls >= (LENGTH / usize::try_from(most).expect("positive")) as u64,
            "{read:?}"
        );
        world.check_clean();
    }
    let world = World::new(&[]);
    let (file, memory) = (world.file(), world.device.allocate(LENGTH).expect("device memory"));
    // Behind the first call's bytes the file ends by now.
    world.fakes.turn("cut_file", 100_000);
    let read = file.read_into(0, &memory.all()).expect("what there is");
    assert_eq!(read.bytes, 100_000);
    let found = memory.part(..100_000).expect("inside").to_vec().expect("read back");
    assert!(found == world.bytes[..100_000]);
    world.fakes.turn("cut_file", 0);
    // A library that brings nothing of what is there is not asked for ever.
    world.fakes.turn("short", 0);
    let error = file.read_into(0, &memory.all()).expect_err("nothing comes");
    assert_eq!(error.kind(), Kind::Io, "{error}");
    assert!(error.to_string().contains("brings nothing at 0 of the file"), "{error}");
    drop((file, memory));
    world.check_clean();
}

fn registered_memory_is_read_into_and_given_back() {
    let world = World::new(&[]);
    let file = world.file();
    let memory = world.device.allocate(4 * LENGTH).expect("device memory");
    let middle = memory.part(1000..2 * LENGTH).expect("inside");
    let registration = world.cufile.register(&middle).expect("registered");
    assert_eq!((registration.span().len(), world.fakes.left().buffers), (middle.len(), 1));
    let registered = |range: std::ops::Range<usize>| {
        let into = memory.part(range).expect("inside");
        let read = file.read_into(5, &into).expect("read");
        assert!(into.to_vec().expect("read back") == world.bytes[5..5 + into.len()]);
        read.is_registered
    };
    assert!(
        registered(1000..1100) && registered(1001..100_001) && registered(LENGTH + 5..2 * LENGTH)
    );
    assert!(!registered(3 * LENGTH..4 * LENGTH - 5), "elsewhere");
    for partly in [0..1001, 2 * LENGTH - 1..2 * LENGTH + 1, 0..3 * LENGTH] {
        let error = file.read_into(0, &memory.part(partly).expect("inside"));
        assert_eq!(error.expect_err("the library knows half of it").kind(), Kind::Invalid);
    }
    let none = file.read_into(0, &memory.part(1500..1500).expect("inside")).expect("nothing");
    assert_eq!((none.bytes, none.calls), (0, 0));
    for overlapping in [0..1001, 1500..1600, 2 * LENGTH - 1..3 * LENGTH, 0..4 * LENGTH] {
        let error = world.cufile.register(&memory.part(overlapping).expect("inside"));
        assert_eq!(error.expect_err("twice").kind(), Kind::Invalid);
    }
    let after = world.cufile.register(&memory.part(2 * LENGTH..).expect("inside")).expect("beside");
    let none = world.cufile.register(&memory.part(..0).expect("inside"));
    assert_eq!(none.expect_err("no byte").kind(), Kind::Invalid);
    // What is registered last frees the memory, after it was given back.
    drop((memory, middle, registration));
    assert_eq!(world.fakes.left().buffers, 1);
    drop((after, file));
    world.check_clean();
}

fn threads_share_a_file_and_a_library() {
    let world = World::new(&[]);
    let file = world.file();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (world, file) = (&world, &file);
            scope.spawn(move || {
                for round in 0..20 {
                    let memory = world.device.allocate(LENGTH).expect("device memory");
                    let registers = (thread + round) % 2 == 0;
                    let registration = registers
                        .then(|| world.cufile.register(&memory.all()).expect("nobody else's"));
                    let offset = thread * 1000 + round;
                    let read = file.read_into(offset as u64, &memory.all()).expect("read");
                    assert_eq!(
                        (read.bytes, read.is_registered),
                        ((LENGTH - offset) as u64, registers)
                    );
                    let found = memory.part(..LENGTH - offset).expect("inside");
                    assert!(found.to_vec().expect("read back") == world.bytes[offset..]);
                    drop(registration);
                }
            });
        }
    });
    assert_eq!(world.fakes.left().files, 1, "one file for all");
    drop(file);
    world.check_clean();
}

fn what_cannot_go_direct_is_not_called_direct() {
    let nvme_p2p = 1 << 4 | 1 << 11;
    for (knobs, expected) in [
        // nvidia-fs counts each read, and compatibility mode is off.
        (&[("compatible", 0)][..], Transfer::Direct),
        // It may have been somebody else's.
        (&[("compatible", 1)][..], Transfer::Unknown),
        (&[("compatible", 1), ("direct", 0)][..], Transfer::Compatible),
        (&[("compatible", 1), ("module", 0)][..], Transfer::Compatible),
        (&[("compatible", 1), ("module", 0), ("flags", nvme_p2p)][..], Transfer::Unknown),
        (&[("compatible", 1), ("direct", 0), ("flags", nvme_p2p)][..], Transfer::Unknown),
    ] {
        let world = World::new(knobs);
        let read = world.check(&world.file());
        assert_eq!(read.transfer, expected, "{knobs:?} {:?}", world.cufile.info());
        world.check_clean();
    }
    // Where nobody counts, nobody knows.
    let world = World::new(&[("compatible", 0)]);
    std::fs::remove_file(world.fakes.path("stats")).expect("there");
    std::fs::create_dir(world.fakes.path("stats")).expect("made");
    assert_eq!(world.check(&world.file()).transfer, Transfer::Unknown);
    let info = world.cufile.info();
    assert_eq!((info.version, info.nvidia_fs), (Some(1140), Some((2, 0))));
    assert!(!info.allows_compatible && !info.has_p2p && info.all_is_counted);
}

fn errors_are_told_apart_and_leave_nothing_behind() {
    for (answer, errno, kind, words) in [
        (-1, 5, Kind::Io, "os error 5"),
        (-1, 116, Kind::Stale, "os error 116"),
        (-5008, 0, Kind::Unsupported, "CU_FILE_IO_NOT_SUPPORTED"),
        (-5022, 0, Kind::Invalid, "CU_FILE_INVALID_VALUE"),
        (-5999, 0, Kind::Io, "5999, unknown"),
        // Whatever the library claims, no more is taken for read than was asked for.
        (1 << 30, 0, Kind::Corrupt, "do not use this library"),
        // Signals are no error, and not waited out for ever.
        (-1, 4, Kind::Io, "brings nothing"),
    ] {
        let world = World::new(&[("fail_answer", answer), ("fail_errno", errno)]);
        let file = world.file();
        let memory = world.device.allocate(LENGTH).expect("device memory");
        for call in 0..3 {
            world.fakes.turn("fail_after", call);
            let error = file.read_into(0, &memory.all()).expect_err("it fails");
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.context().contains("into device memory by cuFile"), "{error}");
        }
        world.fakes.turn("fail_after", -1);
        drop(memory);
        world.check(&file);
        drop(file);
        world.check_clean();
    }
    let world = World::new(&[]);
    let (file, memory) = (world.file(), world.device.allocate(100).expect("device memory"));
    for offset in [u64::MAX, u64::MAX - 50, i64::MAX as u64 - 99] {
        assert_eq!(file.read_into(offset, &memory.all()).expect_err("far").kind(), Kind::Invalid);
    }
    assert_eq!(world.fakes.left().calls, 0, "nobody was asked for it");
}

fn a_device_that_is_lost_keeps_what_is_written_to() {
    let world = World::new(&[("fail_answer", -5011), ("fail_after", 1)]);
    let (file, memory) = (world.file(), world.device.allocate(LENGTH).expect("device memory"));
    let error = file.read_into(0, &memory.all()).expect_err("lost");
    assert_eq!(error.kind(), Kind::Disconnected, "{error}");
    assert!(error.to_string().contains("start it anew"), "{error}");
    drop((file, memory));
    assert_eq!(world.fakes.device_bytes(), LENGTH, "storage may still write to it");
    assert_eq!(world.fakes.left().violations, 0);

    let world = World::new(&[]);
    let (file, memory) = (world.file(), world.device.allocate(LENGTH).expect("device memory"));
    let registration = world.cufile.register(&memory.all()).expect("registered");
    world.fakes.lose(true);
    assert_eq!(file.read_into(0, &memory.all()).expect_err("lost").kind(), Kind::Disconnected);
    drop((registration, file, memory));
    world.fakes.lose(false);
    let left = world.fakes.left();
    assert_eq!((left.files, left.violations, world.fakes.device_bytes()), (0, 0, LENGTH));
}

fn what_cufile_does_not_read_is_refused_with_a_reason() {
    let refused = |knobs: &[(&str, i32)]| {
        let fakes = Fakes::new();
        knobs.iter().for_each(|(name, value)| fakes.turn(name, *value));
        let error = fakes.cufile().err().expect("useless");
        assert_eq!((error.kind(), fakes.left().drivers), (Kind::Unsupported, 0), "{error}");
        error.to_string()
    };
    let said = refused(&[("open_answer", 5001)]);
    assert!(
        said.starts_with("libcufile, but cuFileDriverOpen: 5001 CU_FILE_DRIVER_NOT_INIT"),
        "{said}"
    );
    assert!(refused(&[("open_answer", 5011), ("open_cuda", 100)]).contains("(CUDA: 100)"));
    assert!(refused(&[("properties_answer", 5002)]).contains("cuFileDriverGetProperties: 5002"));
    let absent = CuFile::open("libcufile-that-nobody-has.so.0", Path::new("/nowhere"));
    let absent = absent.err().expect("absent");
    assert_eq!(absent.kind(), Kind::NotFound);
    assert!(absent.to_string().starts_with("no libcufile-that-nobody-has.so.0"), "{absent}");

    // A driver that something else in the process has opened serves as well.
    let fakes = Fakes::new();
    fakes.cufile().expect("the first");
    fakes.turn("open_answer", 5026);
    fakes.cufile().expect("opened by another");
    fakes.turn("properties_answer", 5002);
    fakes.cufile().err().expect("useless");
    assert_eq!(fakes.left().drivers, 1, "what another opened stays open");

    let world = World::new(&[("register_answer", 5008)]);
    let memory = world.device.allocate(10).expect("device memory");
    let reason = |file: &LocalFile, into: &DeviceSpan| {
        let error = file.read_into(0, into).expect_err("refused");
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        error.to_string()
    };
    assert!(reason(&world.file(), &memory.all()).contains("cuFileHandleRegister: 5008"));
    // The library's word for a container without /run/udev.
    world.fakes.turn("register_answer", 5030);
    assert!(reason(&world.file(), &memory.all()).contains("is /run/udev there?"));
    world.fakes.turn("register_answer", 5011);
    let lost = world.file().check(&world.device).expect_err("lost");
    assert_eq!(lost.kind(), Kind::Disconnected);
    // It is still a file.
    let mut host = [0; 10];
    assert_eq!(world.file().read_at(LENGTH as u64 - 4, &mut host).expect("read"), 4);
    assert!(host[..4] == world.bytes[LENGTH - 4..]);
    world.fakes.turn("register_answer", 0);
    let proc = world.cufile.file("/proc/version").expect("a regular file");
    assert!(reason(&proc, &memory.all()).contains("takes no O_DIRECT"));
    let software = Device::software(&SoftwareDevice::new(1 << 20, 1));
    let elsewhere = software.allocate(10).expect("memory");
    assert!(reason(&world.file(), &elsewhere.all()).contains("not a device of CUDA's"));
    let error = world.cufile.register(&elsewhere.all()).expect_err("not CUDA's");
    assert_eq!(error.kind(), Kind::Unsupported);
    for (path, kind) in [("nothing", Kind::NotFound), ("", Kind::Invalid)] {
        let error = world.cufile.file(world.fakes.path(path)).expect_err("no file");
        assert_eq!(error.kind(), kind, "{error}");
    }
    assert_eq!(world.fakes.left().violations, 0);
}
