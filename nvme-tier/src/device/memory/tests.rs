#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dma::{HugePages, Pool, SizeClass, Source, Target};
use extent::{Kind, Result};

use crate::device::allocate::tests::TempFile;
use crate::device::{
    Command, Completion, Device, DeviceIndex, Driver, Location, Media, MediaOptions, Token,
    allocate_file,
};

const BYTES: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// A file of a tmpfs, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    /// One of nothing but holes.
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/dev/shm/forebay-{}-memory-{name}", std::process::id()));
        // What another run under the same number left, which somebody may have open.
        let _none = fs::remove_file(&path);
        File::create(&path).and_then(|file| file.set_len(BYTES)).expect("/dev/shm is there");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0);
    }
}

fn open(path: &Path, read_only: bool) -> Result<Media> {
    let options = MediaOptions { read_only, minimum_bytes: BYTES };
    Media::open_by(&[(path.to_owned(), Driver::Memory)], options)
}

fn pool() -> Pool {
    Pool::new(&[SizeClass { bytes: BLOCK, count: 8 }], HugePages::Never).expect("room")
}

fn at(offset: u64) -> Location {
    Location { device: DeviceIndex(0), offset }
}

fn write(pool: &Pool, offset: u64, byte: u8) -> Command {
    let mut buffer = pool.take(BLOCK).expect("a buffer");
    buffer.as_mut_slice().fill(byte);
    Command::Write { at: at(offset), from: Source::Buffer(buffer, 0..BLOCK) }
}

fn read(pool: &Pool, offset: u64) -> Command {
    let buffer = pool.take(BLOCK).expect("a buffer");
    Command::Read { at: at(offset), into: Target::Buffer(buffer, 0..BLOCK) }
}

fn run(queue: &mut dyn Device, command: Command) -> Completion {
    queue.submit(Token(7), command).expect("room");
    queue.kick().expect("nothing breaks");
    assert_eq!(queue.in_flight(), 1);
    assert!(!queue.sleep(&[], None).expect("returns at once"));
    let mut completions = Vec::new();
    queue.poll(&mut completions);
    assert_eq!((completions.len(), queue.in_flight()), (1, 0));
    let completion = completions.remove(0);
    assert_eq!(completion.token, Token(7));
    completion
}

#[test]
fn what_is_written_is_in_the_file_and_what_is_in_the_file_is_read() {
    let file = Scratch::new("memory");
    let media = open(&file.0, false).expect("opens");
    assert_eq!((media.driver(DeviceIndex(0)), media.why(DeviceIndex(0))), ("memory", None));
    let geometry = media.geometry(DeviceIndex(0));
    assert_eq!((geometry.capacity_bytes, geometry.block_bytes as usize), (BYTES, BLOCK));
    let (mut queue, pool) = (media.queue(4).expect("a queue"), pool());
    run(&mut *queue, write(&pool, 8192, 0xa5)).result.expect("written");
    run(&mut *queue, Command::Flush(DeviceIndex(0))).result.expect("flushed");
    let mut wanted = vec![0; usize::try_from(BYTES).expect("small")];
    wanted[8192..8192 + BLOCK].fill(0xa5);
    assert!(fs::read(&file.0).expect("readable") == wanted);
    let completion = run(&mut *queue, read(&pool, 8192));
    completion.result.expect("read");
    let Command::Read { into, .. } = completion.command else { panic!("it comes back") };
    let buffer = into.into_buffer().expect("a buffer");
    assert!(buffer.as_slice()[..BLOCK].iter().all(|byte| *byte == 0xa5));
}

#[test]
fn holes_are_filled_before_they_are_met() {
    let file = Scratch::new("holes");
    // What is allocated past the end fills none of them.
    let past = File::options().write(true).open(&file.0).expect("there");
    let (offset, length) = (BYTES.try_into().expect("small"), BYTES.try_into().expect("small"));
    // SAFETY: fallocate changes an open file and touches no memory of this process.
    let failed =
        unsafe { libc::fallocate(past.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, length) };
    assert_eq!(failed, 0);
    let blocks = || fs::metadata(&file.0).expect("there").blocks() * 512;
    assert_eq!(blocks(), BYTES);
    drop(open(&file.0, false).expect("opens"));
    assert!(blocks() >= 2 * BYTES, "{}", blocks());
}

#[test]
fn holes_are_read_as_zeroes() {
    let file = Scratch::new("read-only");
    let mut queue = open(&file.0, true).and_then(|media| media.queue(1)).expect("opens");
    let completion = run(&mut *queue, read(&pool(), 4096));
    completion.result.expect("read");
    let Command::Read { into, .. } = completion.command else { panic!("it comes back") };
    let buffer = into.into_buffer().expect("a buffer");
    assert!(buffer.as_slice()[..BLOCK].iter().all(|byte| *byte == 0));
}

#[test]
fn too_large_a_file_is_refused_and_takes_nothing() {
    let file = Scratch::new("too-large");
    File::options().write(true).open(&file.0).and_then(|f| f.set_len(1 << 43)).expect("sparse");
    let refused = open(&file.0, false).expect_err("8 TiB");
    assert_eq!(refused.kind(), Kind::NoSpace);
    assert!(refused.to_string().contains("make it smaller"), "{refused}");
    assert_eq!(fs::metadata(&file.0).expect("there").blocks(), 0);
}

#[test]
fn what_is_not_in_memory_is_refused_by_name_and_not_even_made() {
    // This very program is on a disk.
    let disk = std::env::current_exe().expect("it is known");
    let options = MediaOptions { read_only: true, minimum_bytes: 0 };
    let named = [(disk.clone(), Driver::Memory)];
    let refused = Media::open_by(&named, options).expect_err("a disk's file");
    assert_eq!(refused.kind(), Kind::Unsupported);
    assert!(refused.to_string().contains("takes files of a tmpfs"), "{refused}");
    let beside = disk.with_extension("img");
    let refused = allocate_file(&beside, 1 << 20, Driver::Memory, &mut |_, _| {});
    assert_eq!(refused.expect_err("no tmpfs").kind(), Kind::Unsupported);
    assert!(!beside.exists());
    let absent = open(Path::new("/dev/shm/forebay-none-such"), false).expect_err("absent");
    assert_eq!(absent.kind(), Kind::NotFound);
    let pci = open(Path::new("0000:00:04.0"), false).expect_err("a controller");
    assert!(pci.to_string().contains("driver memory does not take"), "{pci}");
}

#[test]
fn it_is_made_without_a_ring() {
    let file = Scratch::new("made");
    fs::remove_file(&file.0).expect("there");
    let mut told = 0;
    allocate_file(&file.0, BYTES, Driver::Memory, &mut |done, _| told = done).expect("made");
    assert_eq!(told, BYTES);
    assert!(fs::metadata(&file.0).expect("there").blocks() * 512 >= BYTES);
}

#[test]
fn a_poll_ends_after_so_many_bytes() {
    let file = Scratch::new("turns");
    let media = open(&file.0, false).expect("opens");
    let mut queue = media.queue(8).expect("a queue");
    let bytes = 192 << 10;
    let class = SizeClass { bytes, count: 4 };
    let pool = Pool::new(&[class], HugePages::Never).expect("room");
    for number in 0..4 {
        let buffer = pool.take(bytes).expect("a buffer");
        let into = Target::Buffer(buffer, 0..bytes);
        let command = Command::Read { at: at(0), into };
        queue.submit(Token(number), command).expect("room");
    }
    let mut completions = Vec::new();
    for done in [2, 4, 4] {
        queue.poll(&mut completions);
        assert_eq!((completions.len(), queue.in_flight()), (done, 4 - done));
    }
    let order: Vec<u64> = completions.iter().map(|completion| completion.token.0).collect();
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn one_process_has_it_and_auto_says_that_there_is_this_driver() {
    let file = Scratch::new("claimed");
    let media = open(&file.0, false).expect("opens");
    assert_eq!(open(&file.0, false).expect_err("taken").kind(), Kind::Busy);
    let queue = media.queue(1).expect("a queue");
    drop(media);
    assert_eq!(open(&file.0, false).expect_err("the queue keeps it").kind(), Kind::Busy);
    drop(queue);
    let options = MediaOptions { read_only: false, minimum_bytes: BYTES };
    let media = Media::open(std::slice::from_ref(&file.0), options).expect("free again");
    assert!(media.driver(DeviceIndex(0)).starts_with("io_uring"));
    assert!(media.why(DeviceIndex(0)).expect("said").contains("driver memory"));
}

#[test]
fn a_full_queue_and_senseless_commands_are_answered() {
    let file = Scratch::new("bad");
    let media = open(&file.0, false).expect("opens");
    assert_eq!(media.queue(0).err().expect("no depth").kind(), Kind::Invalid);
    let (mut queue, pool) = (media.queue(2).expect("a queue"), pool());
    let error = run(&mut *queue, read(&pool, BYTES)).result.expect_err("past the end");
    assert!(error.to_string().contains("past the end"), "{error}");
    let error = run(&mut *queue, write(&pool, 512, 0)).result.expect_err("odd");
    assert!(error.to_string().contains("whole blocks"), "{error}");
    let advice = Command::Deallocate { at: at(0), bytes: 4096 };
    let error = run(&mut *queue, advice).result.expect_err("it takes none");
    assert_eq!(error.kind(), Kind::Unsupported);
    let elsewhere = Command::Flush(DeviceIndex(1));
    let error = run(&mut *queue, elsewhere).result.expect_err("no such device");
    assert_eq!(error.kind(), Kind::Invalid);
    for _ in 0..2 {
        queue.submit(Token(1), read(&pool, 0)).expect("room");
    }
    let back = queue.submit(Token(1), read(&pool, 0)).expect_err("full");
    assert_eq!(back.length(), BLOCK);
    let mut completions = Vec::new();
    queue.poll(&mut completions);
    assert!(completions.iter().all(|completion| completion.result.is_ok()));
    assert_eq!(completions.len(), 2);

    drop((queue, media));
    let mut queue = open(&file.0, true).and_then(|media| media.queue(1)).expect("a reader");
    let error = run(&mut *queue, write(&pool, 0, 1)).result.expect_err("a reader");
    assert_eq!(error.kind(), Kind::Denied);
    run(&mut *queue, read(&pool, 0)).result.expect("it reads");
}

#[test]
fn devices_of_both_kinds_are_one_tier() {
    let (file, disk) = (Scratch::new("both"), TempFile::new("both"));
    fs::write(disk.path(), vec![0; 1 << 20]).expect("writable");
    let options = MediaOptions { read_only: false, minimum_bytes: BYTES };
    let named = [(file.0.clone(), Driver::Memory), (disk.path().to_owned(), Driver::IoUring)];
    let mut queue = match Media::open_by(&named, options).expect("opens").queue(4) {
        Ok(queue) => queue,
        // This kernel has no io_uring, or forbids it.
        Err(error) => return assert!(matches!(error.kind(), Kind::Unsupported | Kind::Denied)),
    };
    let pool = pool();
    for (device, byte) in [(0, 1), (1, 2)] {
        let mut command = write(&pool, 4096, byte);
        if let Command::Write { at, .. } = &mut command {
            at.device = DeviceIndex(device);
        }
        queue.submit(Token(device.into()), command).expect("room");
    }
    let mut completions = Vec::new();
    while completions.len() < 2 {
        queue.gather(2).expect("sound");
        queue.poll(&mut completions);
    }
    assert!(completions.iter().all(|completion| completion.result.is_ok()), "{completions:?}");
    assert_eq!(fs::read(&file.0).expect("readable")[4096], 1);
    assert_eq!(fs::read(disk.path()).expect("readable")[4096], 2);
}
