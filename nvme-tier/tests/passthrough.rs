//! NVMe passthrough on real namespaces, and what must be refused. `ci/lab/tests` runs it.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::Arc;
use std::thread;

use dma::{HugePages, Pool, Region, SizeClass, Source, Target, Window};
use extent::{Kind, Result};
use forebay_nvme_tier::device::{
    Command, Completion, Device, DeviceIndex, Driver, Geometry, Location, Media, MediaOptions,
    Token,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Bytes of the part of the namespace that is written to.
const AREA_BYTES: usize = 4 << 20;
const LARGEST: usize = 1 << 20;

fn open(path: &Path, driver: Driver) -> Result<Media> {
    Media::open_by(&[(path.to_owned(), driver)], MediaOptions::default())
}

fn named(variable: &str) -> Vec<PathBuf> {
    let paths = std::env::var(variable).expect("paths, separated by commas: see ci/lab/tests");
    paths.split(',').map(PathBuf::from).collect()
}

/// The character device of a namespace that was named by its block device.
fn character(path: &Path) -> PathBuf {
    path.to_str().expect("plain").replace("/dev/nvme", "/dev/ng").into()
}

fn run(queue: &mut dyn Device, commands: Vec<Command>) -> Vec<Completion> {
    for (tag, command) in (0..).zip(commands) {
        queue.submit(Token(tag), command).expect("room");
    }
    queue.kick().expect("a sound queue");
    let mut completions = Vec::new();
    while queue.in_flight() > 0 {
        queue.poll(&mut completions);
        queue.sleep(&[], None).expect("a sound queue");
    }
    completions.sort_by_key(|completion| completion.token.0);
    completions
}

fn only(queue: &mut dyn Device, command: Command) -> (Command, Result<()>) {
    let Completion { command, result, .. } = run(queue, vec![command]).remove(0);
    (command, result)
}

fn at(offset: usize) -> Location {
    Location { device: DeviceIndex(0), offset: offset as u64 }
}

fn target(buffer: dma::Buffer, length: usize) -> Target {
    Target::Buffer(buffer, 0..length)
}

fn bytes_of(command: Command) -> Vec<u8> {
    let Command::Read { into, .. } = command else { panic!("a read comes back as a read") };
    let length = into.length();
    into.into_buffer().expect("a buffer").as_slice()[..length].to_vec()
}

/// Random writes of all sizes, several at a time, from buffers and a client's memory, registered and
/// not; each read back, by passthrough and through the kernel's block layer.
#[test]
#[ignore = "needs NVMe namespaces that may be overwritten: ci/lab/tests names them"]
fn what_is_written_is_read_by_either_driver() {
    for path in named("FOREBAY_TEST_NAMESPACES") {
        let mut area = vec![0; AREA_BYTES];
        let mut rng = SmallRng::seed_from_u64(11);
        let media = open(&character(&path), Driver::Passthrough).expect("the namespace");
        assert_eq!(media.driver(DeviceIndex(0)), "passthrough");
        let Geometry { block_bytes, .. } = media.geometry(DeviceIndex(0));
        let pool =
            Pool::new(&[SizeClass { bytes: LARGEST, count: 8 }], HugePages::Never).expect("memory");
        let shared = Region::anonymous(LARGEST, HugePages::Never).expect("memory");
        for is_registered in [true, false] {
            let mut queue = media.queue(8).expect("a queue");
            if is_registered {
                queue.register(pool.region()).expect("registers");
                queue.register(&shared).expect("registers");
            }
            write_area(&mut *queue, &pool, &shared, block_bytes as usize, &mut area, &mut rng);
            assert_eq!(read_area(&mut *queue, &pool), area, "{}", path.display());
        }
        drop(media);
        let media = open(&path, Driver::IoUring).expect("the block device");
        let mut queue = media.queue(8).expect("a queue");
        assert_eq!(read_area(&mut *queue, &pool), area, "{}", path.display());
        // And the other way: what the block layer writes, with its own protection information.
        write_area(&mut *queue, &pool, &shared, block_bytes as usize, &mut area, &mut rng);
        drop((queue, media));
        let media = open(&path, Driver::Passthrough).expect("the namespace");
        let mut queue = media.queue(8).expect("a queue");
        assert_eq!(read_area(&mut *queue, &pool), area, "{}", path.display());
    }
}

#[test]
#[ignore = "needs NVMe namespaces that may be overwritten: ci/lab/tests names them"]
fn what_is_deallocated_reads_as_zeroes_and_its_neighbours_as_they_were() {
    for path in named("FOREBAY_TEST_NAMESPACES") {
        let media = open(&character(&path), Driver::Passthrough).expect("the namespace");
        let geometry = media.geometry(DeviceIndex(0));
        let Some(takes) = geometry.deallocation else {
            let small =
                geometry.block_bytes == 512 && named("FOREBAY_TEST_PROTECTED").contains(&path);
            assert!(small, "{}: Dataset Management", path.display());
            continue;
        };
        let mut queue = media.queue(2).expect("a queue");
        let pool =
            Pool::new(&[SizeClass { bytes: LARGEST, count: 1 }], HugePages::Never).expect("memory");
        let mut buffer = pool.take(LARGEST).expect("free");
        buffer.as_mut_slice().fill(0x5a);
        let from = Source::Buffer(buffer, 0..LARGEST);
        only(&mut *queue, Command::Write { at: at(0), from }).1.expect("written");
        let told = takes.whole_units(4096..(512 << 10) + 512).expect("several units");
        let (offset, bytes) = (usize::try_from(told.start).expect("small"), told.end - told.start);
        only(&mut *queue, Command::Deallocate { at: at(offset), bytes }).1.expect("taken");
        let into = target(pool.take(LARGEST).expect("free"), LARGEST);
        let (command, result) = only(&mut *queue, Command::Read { at: at(0), into });
        result.expect("read");
        for (at, byte) in (0..).zip(bytes_of(command)) {
            let expected = if told.contains(&at) { 0 } else { 0x5a };
            assert_eq!(byte, expected, "byte {at} of {}, {told:?} deallocated", path.display());
        }
        let block = open(&path, Driver::IoUring);
        assert!(block.is_err(), "it is in use");
    }
    let media =
        open(&named("FOREBAY_TEST_NAMESPACES")[0], Driver::IoUring).expect("a block device");
    assert_eq!(media.geometry(DeviceIndex(0)).deallocation, None, "io_uring has no such entry");
}

/// Writes each part of the area once, in pieces of random sizes.
fn write_area(
    queue: &mut dyn Device,
    pool: &Pool,
    shared: &Arc<Region>,
    block: usize,
    area: &mut [u8],
    rng: &mut SmallRng,
) {
    let mut offset = 0;
    while offset < AREA_BYTES {
        let mut commands = Vec::new();
        for slot in 0..4 {
            let most = [block, 64 << 10, LARGEST][rng.random_range(0..3)];
            let length = rng.random_range(1..=most / block) * block;
            let length = length.min(AREA_BYTES - offset);
            if length == 0 {
                break;
            }
            let part = &mut area[offset..offset + length];
            rng.fill(part);
            let from = if slot == 0 {
                let window = Window::new(Arc::clone(shared), 0, length).expect("inside");
                window.copy_in(part);
                Source::Window(window)
            } else {
                let mut buffer = pool.take(length).expect("free");
                buffer.as_mut_slice()[..length].copy_from_slice(part);
                Source::Buffer(buffer, 0..length)
            };
            commands.push(Command::Write { at: at(offset), from });
            offset += length;
        }
        for completion in run(queue, commands) {
            completion.result.expect("a healthy device");
        }
    }
    only(queue, Command::Flush(DeviceIndex(0))).1.expect("a healthy device");
}

fn read_area(queue: &mut dyn Device, pool: &Pool) -> Vec<u8> {
    let parts = AREA_BYTES / LARGEST;
    let read = |part| {
        let buffer = pool.take(LARGEST).expect("free");
        Command::Read { at: at(part * LARGEST), into: target(buffer, LARGEST) }
    };
    let completions = run(queue, (0..parts).map(read).collect());
    let mut area = Vec::with_capacity(AREA_BYTES);
    for completion in completions {
        completion.result.expect("a healthy device");
        area.extend(bytes_of(completion.command));
    }
    area
}

#[test]
#[ignore = "needs NVMe namespaces that may be overwritten: ci/lab/tests names them"]
fn what_lies_outside_is_refused() {
    for path in named("FOREBAY_TEST_NAMESPACES") {
        let media = open(&path, Driver::Passthrough).expect("the namespace");
        let Geometry { capacity_bytes, block_bytes, .. } = media.geometry(DeviceIndex(0));
        let end = usize::try_from(capacity_bytes).expect("small");
        let block = block_bytes as usize;
        let pool =
            Pool::new(&[SizeClass { bytes: 1 << 16, count: 1 }], HugePages::Never).expect("memory");
        let mut queue = media.queue(4).expect("a queue");
        for (offset, length) in [(end, block), (end - block, 2 * block), (1, block), (0, block / 2)]
        {
            let from = Source::Buffer(pool.take(1).expect("free"), 0..length);
            let (_, result) = only(&mut *queue, Command::Write { at: at(offset), from });
            assert_eq!(result.expect_err("outside").kind(), Kind::Invalid, "{length} at {offset}");
        }
        let from = Source::Buffer(pool.take(1).expect("free"), 0..block);
        only(&mut *queue, Command::Write { at: at(end - block), from }).1.expect("the last block");
        let into = target(pool.take(1).expect("free"), block);
        only(&mut *queue, Command::Read { at: at(end - block), into }).1.expect("the last block");
        let twins = [(path.clone(), Driver::Auto), (character(&path), Driver::Auto)];
        let twice = Media::open_by(&twins, MediaOptions::default()).expect_err("twice");
        assert_eq!(twice.kind(), Kind::Invalid);
    }
}

#[test]
#[ignore = "needs NVMe namespaces that may be overwritten: ci/lab/tests names them"]
fn a_namespace_in_use_is_busy() {
    let path = named("FOREBAY_TEST_NAMESPACES").remove(0);
    for driver in [Driver::Auto, Driver::Passthrough, Driver::IoUring] {
        let first = open(&path, Driver::Passthrough).expect("free");
        let busy = open(&character(&path), driver).expect_err("taken");
        assert_eq!(busy.kind(), Kind::Busy, "{busy}");
        let mounted = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&path);
        assert_eq!(mounted.expect_err("claimed").raw_os_error(), Some(libc::EBUSY));
        drop(first);
    }
    let folder = tempfile(&path);
    let done = |program: &mut Program| {
        assert!(program.status().expect("starts").success(), "{program:?}");
    };
    done(Program::new("mkfs.ext4").arg("-q").arg("-F").arg(&path));
    {
        let media = open(&path, Driver::Passthrough).expect("free");
        let foreign = media.check_foreign(DeviceIndex(0)).expect_err("a file system");
        assert!(foreign.to_string().contains("ext4"), "{foreign}");
        assert!(!media.is_blank(DeviceIndex(0)).expect("readable"));
    }
    done(Program::new("mount").arg("-t").arg("ext4").arg(&path).arg(&folder));
    for named in [&path, &character(&path)] {
        let busy = open(named, Driver::Auto).expect_err("mounted");
        assert_eq!(busy.kind(), Kind::Busy);
        assert!(busy.to_string().contains(folder.to_str().expect("plain")), "{busy}");
    }
    done(Program::new("umount").arg(&folder));
    open(&path, Driver::Passthrough).expect("free again");
}

fn tempfile(path: &Path) -> PathBuf {
    let name = path.file_name().expect("a device").to_str().expect("plain");
    let folder = std::env::temp_dir().join(format!("forebay-mount-{name}"));
    fs::create_dir_all(&folder).expect("writable");
    folder
}

#[test]
#[ignore = "needs NVMe namespaces that may be overwritten: ci/lab/tests names them"]
fn without_the_right_auto_falls_back_and_says_why() {
    let path = named("FOREBAY_TEST_NAMESPACES").pop().expect("one");
    let ordinary = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("root may");
    };
    let as_nobody = |driver: Driver| {
        thread::scope(|scope| {
            let attempt = || {
                // SAFETY: the call takes numbers; made directly, it is for this thread alone.
                let status = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
                assert_eq!(status, 0, "root may");
                let media = open(&path, driver)?;
                let why = media.why(DeviceIndex(0)).map(str::to_owned);
                Ok((media.driver(DeviceIndex(0)), why))
            };
            scope.spawn(attempt).join().expect("the thread ends well")
        })
    };
    // The nodes may be opened, but before Linux 6.2 only root may send commands.
    ordinary(&path, 0o666);
    ordinary(&character(&path), 0o666);
    let denied: Result<_> = as_nobody(Driver::Passthrough);
    let denied = denied.expect_err("not root");
    assert_eq!(denied.kind(), Kind::Denied);
    assert!(denied.to_string().contains("CAP_SYS_ADMIN"), "{denied}");
    let (driver, why) = as_nobody(Driver::Auto).expect("the block device may be read");
    assert_eq!(driver, "io_uring");
    assert!(why.expect("a reason").contains("run as root"));
    ordinary(&character(&path), 0o600);
    let (driver, _) = as_nobody(Driver::Auto).expect("the block device may be read");
    assert_eq!(driver, "io_uring");
    ordinary(&path, 0o600);
    assert_eq!(as_nobody(Driver::Auto).expect_err("neither").kind(), Kind::Denied);
}

#[test]
#[ignore = "needs NVMe namespaces that may be overwritten: ci/lab/tests names them"]
fn what_the_kernel_drives_tells_of_its_health_or_why_not() {
    let path = named("FOREBAY_TEST_NAMESPACES").remove(0);
    let told = |driver| {
        let media = open(&path, driver).expect("free");
        let watch = media.health();
        loop {
            if watch.of(0).is_some() || watch.why_not(0).is_some() {
                return (watch.of(0), watch.why_not(0));
            }
            thread::yield_now();
        }
    };
    for driver in [Driver::Passthrough, Driver::IoUring] {
        let (health, why_not) = told(driver);
        let health = health.unwrap_or_else(|| panic!("{why_not:?}"));
        assert_eq!((health.temperature_celsius, why_not), (50, None), "as QEMU has it");
    }
    for node in [&path, &character(&path)] {
        fs::set_permissions(node, Permissions::from_mode(0o666)).expect("root may");
    }
    let (health, why_not) = thread::scope(|scope| {
        let attempt = || {
            // SAFETY: the call takes numbers; made directly, it is for this thread alone.
            let status = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(status, 0, "root may");
            told(Driver::IoUring)
        };
        scope.spawn(attempt).join().expect("the thread ends well")
    });
    let why_not = why_not.expect("a reason");
    assert!(health.is_none() && why_not.contains("no rights"), "{why_not}");
    for node in [&path, &character(&path)] {
        fs::set_permissions(node, Permissions::from_mode(0o600)).expect("root may");
    }
}

#[test]
#[ignore = "needs a namespace with metadata that is not supported: ci/lab/tests names it"]
fn unsupported_metadata_is_refused_by_name() {
    for path in named("FOREBAY_TEST_UNSUPPORTED") {
        let error = open(&path, Driver::Passthrough).expect_err("its metadata");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("16 bytes of metadata"), "{error}");
    }
}

/// `struct nvme_passthru_cmd` of `linux/nvme_ioctl.h`.
#[repr(C)]
#[derive(Default)]
struct PassthroughCommand {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: [u32; 2],
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

/// Writes one block with this protection information, which the device is not to check.
fn write_unchecked(path: &Path, lba: u32, data: &[u8], tuple: [u8; 8]) {
    let node = File::options().read(true).write(true).open(path).expect("the namespace");
    let mut command = PassthroughCommand {
        opcode: 1,
        nsid: 1,
        metadata: tuple.as_ptr().expose_provenance() as u64,
        addr: data.as_ptr().expose_provenance() as u64,
        metadata_len: 8,
        data_len: u32::try_from(data.len()).expect("a block"),
        cdw10: [lba, 0, 0, 0, 0, 0],
        ..PassthroughCommand::default()
    };
    const NVME_IOCTL_IO_CMD: libc::Ioctl = 0xc048_4e43_u32 as libc::Ioctl;
    // SAFETY: data and tuple are borrowed for the length of the call, which only reads them.
    let status = unsafe { libc::ioctl(node.as_raw_fd(), NVME_IOCTL_IO_CMD, &raw mut command) };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}

#[test]
#[ignore = "needs a namespace with protection type 1: ci/lab/tests names it"]
fn a_block_that_belongs_elsewhere_or_is_damaged_is_corrupt() {
    for path in named("FOREBAY_TEST_PROTECTED") {
        let media = open(&path, Driver::Passthrough).expect("the namespace");
        let class = SizeClass { bytes: 1 << 16, count: 1 };
        let pool = Pool::new(&[class], HugePages::Never).expect("memory");
        let block = media.geometry(DeviceIndex(0)).block_bytes as usize;
        let mut queue = media.queue(4).expect("a queue");
        let mut read = |length| {
            let into = target(pool.take(1).expect("free"), length);
            only(&mut *queue, Command::Read { at: at(8 * block), into }).1
        };
        // Zeroes have a guard of zero.
        let data = vec![0; block];
        let character = character(&path);
        write_unchecked(&character, 8, &data, [0, 0, 0, 0, 0, 0, 0, 8]);
        read(block).expect("as it should be");
        for (tuple, expected) in
            [([0, 0, 0, 0, 0, 0, 0, 9], "eference"), ([0, 1, 0, 0, 0, 0, 0, 8], "uard")]
        {
            write_unchecked(&character, 8, &data, tuple);
            let error = read(block).expect_err("protected");
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        // A whole write mends it.
        let from = Source::Buffer(pool.take(1).expect("free"), 0..2 * block);
        only(&mut *queue, Command::Write { at: at(8 * block), from }).1.expect("healthy");
    }
}
