mod sleeping;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use dma::{HugePages, Pool, SizeClass, Source, Target, Window};
use proptest::prelude::*;

use super::*;
use crate::device::allocate::tests::TempFile;
use crate::device::{Driver, Location, MediaOptions, allocate_file};

const BLOCK: usize = 4096;
const FILE_BYTES: u64 = 1 << 20;
const SLOTS: u64 = FILE_BYTES / BLOCK as u64;

fn open(files: &[&TempFile], read_only: bool) -> Media {
    let paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
    Media::open(&paths, MediaOptions { read_only, minimum_bytes: 0 }).expect("opens")
}

fn queue(files: &[&TempFile], read_only: bool, depth: usize) -> Result<UringDevice> {
    UringDevice::new(&open(files, read_only), depth)
}

fn new_file(name: &str) -> TempFile {
    let file = TempFile::new(name);
    allocate_file(file.path(), FILE_BYTES, Driver::Auto, &mut |_, _| {}).expect("room");
    file
}

fn pool(count: usize) -> Pool {
    let class = SizeClass { bytes: 8 * BLOCK, count };
    Pool::new(&[class], HugePages::Never).expect("memory")
}

fn at(block: u64) -> Location {
    Location { device: DeviceIndex(0), offset: block * BLOCK as u64 }
}

/// Runs until nothing is in flight.
fn drain(device: &mut UringDevice) -> Vec<Completion> {
    let mut completions = Vec::new();
    device.kick().expect("a sound queue");
    while device.in_flight() > 0 {
        device.poll(&mut completions);
        device.sleep(&[], Some(Duration::from_secs(10))).expect("a sound queue");
    }
    completions
}

fn only(device: &mut UringDevice, command: Command) -> (Command, Result<()>) {
    device.submit(Token(7), command).expect("room");
    let mut all = drain(device);
    assert_eq!((all.len(), all[0].token), (1, Token(7)));
    let Completion { command, result, .. } = all.remove(0);
    (command, result)
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        block: u64,
        blocks: usize,
        mark: u8,
        window: bool,
        queue: usize,
    },
    Read {
        block: u64,
        blocks: usize,
        window: bool,
        queue: usize,
    },
    Flush {
        queue: usize,
    },
    /// Everything in flight ends.
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0..SLOTS - 8, 1..=8usize, any::<bool>(), 0..2usize);
    let step = prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|((block, blocks, window, queue), mark)| {
            Step::Write { block, blocks, mark, window, queue }
        }),
        4 => place().prop_map(|(block, blocks, window, queue)| {
            Step::Read { block, blocks, window, queue }
        }),
        1 => (0..2usize).prop_map(|queue| Step::Flush { queue }),
        1 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 1..80)
}

/// Two queues over one file, against a vector of bytes. One queue has its memory registered.
struct Model {
    queues: Vec<UringDevice>,
    pool: Pool,
    region: Arc<Region>,
    windows: Vec<usize>,
    bytes: Vec<u8>,
    /// What a read must find, and the blocks that something in flight touches.
    expected: Vec<Option<Vec<u8>>>,
    touched: Vec<std::ops::Range<u64>>,
}

impl Model {
    fn new(media: &Media) -> Self {
        let mut queues: Vec<_> =
            (0..2).map(|_| UringDevice::new(media, 8).expect("a queue")).collect();
        let region = Region::anonymous(16 * 8 * BLOCK, HugePages::Never).expect("memory");
        let pool = pool(16);
        for memory in [&region, pool.region()] {
            queues[0].register(memory).expect("registers");
            assert!(queues[0].is_registered(memory) && !queues[1].is_registered(memory));
        }
        Self {
            queues,
            pool,
            windows: (0..16).collect(),
            region,
            bytes: vec![0; usize::try_from(FILE_BYTES).expect("small")],
            expected: Vec::new(),
            touched: Vec::new(),
        }
    }

    fn window(&mut self, length: usize) -> Window {
        let slot = self.windows.pop().expect("as many as both queues hold");
        let offset = (slot * 8 * BLOCK) as u64;
        Window::new(Arc::clone(&self.region), offset, length).expect("inside")
    }

    fn step(&mut self, step: &Step) {
        let room = |model: &Self, queue: usize| model.queues[queue].in_flight() < 8;
        match *step {
            Step::Settle => self.settle(),
            Step::Flush { queue } => {
                if !room(self, queue) {
                    self.settle();
                }
                self.submit(queue, Command::Flush(DeviceIndex(0)), None);
            }
            Step::Write { block, blocks, mark, window, queue } => {
                self.make_room(block, blocks, queue);
                let data: Vec<u8> =
                    (0..=255).cycle().map(|i: u8| i ^ mark).take(blocks * BLOCK).collect();
                let start = usize::try_from(block).expect("small") * BLOCK;
                self.bytes[start..start + data.len()].copy_from_slice(&data);
                let from = if window {
                    let window = self.window(data.len());
                    window.copy_in(&data);
                    Source::Window(window)
                } else {
                    let mut buffer = self.pool.take(1).expect("as many as both queues hold");
                    buffer.as_mut_slice()[..data.len()].copy_from_slice(&data);
                    Source::Buffer(buffer, 0..data.len())
                };
                self.submit(queue, Command::Write { at: at(block), from }, None);
            }
            Step::Read { block, blocks, window, queue } => {
                self.make_room(block, blocks, queue);
                let start = usize::try_from(block).expect("small") * BLOCK;
                let data = self.bytes[start..start + blocks * BLOCK].to_vec();
                let into = if window {
                    Target::Window(self.window(data.len()))
                } else {
                    let buffer = self.pool.take(1).expect("as many as both queues hold");
                    Target::Buffer(buffer, 0..data.len())
                };
                self.submit(queue, Command::Read { at: at(block), into }, Some(data));
            }
        }
    }

    /// Commands in flight together must not touch the same blocks: their order is not defined.
    fn make_room(&mut self, block: u64, blocks: usize, queue: usize) {
        let range = block..block + blocks as u64;
        let overlaps = self.touched.iter().any(|t| t.start < range.end && range.start < t.end);
        if overlaps || self.queues[queue].in_flight() == 8 {
            self.settle();
        }
        self.touched.push(range);
    }

    fn submit(&mut self, queue: usize, command: Command, expected: Option<Vec<u8>>) {
        let token = Token(self.expected.len() as u64);
        self.expected.push(expected);
        self.queues[queue].submit(token, command).expect("room was made");
        self.queues[queue].kick().expect("a sound queue");
    }

    fn settle(&mut self) {
        let done: Vec<_> = self.queues.iter_mut().flat_map(drain).collect();
        for Completion { token, command, result } in done {
            result.expect("a healthy file");
            let expected = self.expected[usize::try_from(token.0).expect("small")].take();
            let window = match command {
                Command::Read { into: Target::Buffer(buffer, range), .. } => {
                    assert_eq!(buffer.as_slice()[range], expected.expect("a read")[..]);
                    continue;
                }
                Command::Read { into: Target::Window(window), .. } => {
                    let mut bytes = vec![0; window.length()];
                    window.copy_out(&mut bytes);
                    assert_eq!(bytes, expected.expect("a read"));
                    window
                }
                Command::Write { from: Source::Window(window), .. } => window,
                _ => continue,
            };
            let address = Target::Window(window).address().addr().get();
            self.windows.push((address - self.region.base().addr().get()) / (8 * BLOCK));
        }
        self.touched.clear();
        assert!(self.expected.iter().all(Option::is_none), "every read came back");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_queues_do_what_a_vector_does(steps in steps()) {
        let file = new_file("model");
        let media = open(&[&file], false);
        let mut model = Model::new(&media);
        for step in &steps {
            model.step(step);
        }
        model.settle();
        prop_assert_eq!(model.pool.usage()[0].taken, 0);
        prop_assert!(fs::read(file.path()).expect("readable") == model.bytes);
    }
}

#[test]
fn a_full_queue_gives_the_command_back() {
    let file = new_file("full");
    let mut device = queue(&[&file], false, 3).expect("a queue");
    let pool = pool(4);
    let mut write = |tag| {
        let from = Source::Buffer(pool.take(1).expect("free"), 0..BLOCK);
        device.submit(Token(tag), Command::Write { at: at(tag), from })
    };
    for tag in 0..3 {
        write(tag).expect("room");
    }
    let Err(back) = write(3) else { panic!("the queue holds three") };
    assert_eq!((device.in_flight(), back.length()), (3, BLOCK));
    assert_eq!(drain(&mut device).len(), 3);
    only(&mut device, back).1.expect("room again");
}

#[test]
fn senseless_commands_fail_through_the_ring() {
    let file = new_file("refused");
    let mut device = queue(&[&file], false, 4).expect("a queue");
    let pool = pool(1);
    for (device_index, offset, length) in [
        (1, 0, BLOCK),
        (0, 1, BLOCK),
        (0, 0, BLOCK - 1),
        (0, 0, 0),
        (0, FILE_BYTES, BLOCK),
        (0, u64::MAX - 4095, BLOCK),
    ] {
        let at = Location { device: DeviceIndex(device_index), offset };
        let into = Target::Buffer(pool.take(1).expect("it came back"), 0..length);
        let (_, result) = only(&mut device, Command::Read { at, into });
        assert_eq!(result.expect_err("senseless").kind(), Kind::Invalid);
    }
    let mut reader = {
        drop(device);
        queue(&[&file], true, 4).expect("a queue")
    };
    let from = Source::Buffer(pool.take(1).expect("it came back"), 0..BLOCK);
    let (_, result) = only(&mut reader, Command::Write { at: at(0), from });
    assert_eq!(result.expect_err("for reading only").kind(), Kind::Denied);
}

#[test]
fn a_truncated_file_is_an_error_and_not_a_short_read() {
    let file = new_file("truncated");
    let mut device = queue(&[&file], false, 4).expect("a queue");
    let pool = pool(1);
    let outside = OpenOptions::new().write(true).open(file.path()).expect("opens");
    outside.set_len(3 * BLOCK as u64).expect("shrinks");
    // Half of it is there (the rest is asked for again, and is not), and none of it.
    for block in [2, 8] {
        let into = Target::Buffer(pool.take(1).expect("it came back"), 0..2 * BLOCK);
        let (_, result) = only(&mut device, Command::Read { at: at(block), into });
        let error = result.expect_err("short");
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.to_string().contains("truncated"), "{error}");
    }
}

#[test]
fn several_files_and_large_transfers() {
    let files = [new_file("first"), new_file("second")];
    let mut device = queue(&[&files[0], &files[1]], false, 2).expect("a queue");
    let class = SizeClass { bytes: 1 << 20, count: 1 };
    let pool = Pool::new(&[class], HugePages::Never).expect("memory");
    device.register(pool.region()).expect("registers");
    let mut buffer = pool.take(1).expect("free");
    buffer.as_mut_slice().fill(9);
    let second = Location { device: DeviceIndex(1), offset: 0 };
    let from = Source::Buffer(buffer, 0..1 << 20);
    only(&mut device, Command::Write { at: second, from }).1.expect("healthy");
    only(&mut device, Command::Flush(DeviceIndex(1))).1.expect("healthy");
    assert!(fs::read(files[1].path()).expect("readable").iter().all(|byte| *byte == 9));
    assert!(fs::read(files[0].path()).expect("readable").iter().all(|byte| *byte == 0));
    device.unregister(pool.region().id());
    assert!(!device.is_registered(pool.region()));
    let into = Target::Buffer(pool.take(1).expect("it came back"), 0..1 << 20);
    let (command, result) = only(&mut device, Command::Read { at: second, into });
    result.expect("unregistered memory works too");
    let Command::Read { into, .. } = command else { panic!("a read comes back as a read") };
    let buffer = into.into_buffer().expect("a buffer");
    assert!(buffer.as_slice().iter().all(|byte| *byte == 9));
}

#[test]
fn a_drained_queue_moves_between_threads() {
    let file = new_file("moves");
    let mut device = queue(&[&file], false, 4).expect("a queue");
    let pool = pool(2);
    device.register(pool.region()).expect("registers");
    let write = |mut device: UringDevice, pool: &Pool| {
        let from = Source::Buffer(pool.take(1).expect("free"), 0..BLOCK);
        only(&mut device, Command::Write { at: at(1), from }).1.expect("healthy");
        device
    };
    // Made here, used there, then elsewhere, then here, with a command queued on the way.
    for _ in 0..2 {
        device = thread::scope(|scope| {
            scope.spawn(|| write(device, &pool)).join().expect("the thread ends well")
        });
    }
    let from = Source::Buffer(pool.take(1).expect("free"), 0..BLOCK);
    device.submit(Token(1), Command::Write { at: at(2), from }).expect("room");
    assert_eq!(drain(&mut device).len(), 1);
    assert!(device.is_registered(pool.region()));
    let other = self::pool(1);
    device = thread::scope(|scope| {
        let register = || {
            device.register(other.region()).expect("registers from another thread");
            device
        };
        scope.spawn(register).join().expect("the thread ends well")
    });
    assert!(device.is_registered(pool.region()) && device.is_registered(other.region()));
}

#[test]
fn a_move_with_commands_in_flight_is_reported() {
    let file = new_file("moved-busy");
    let mut device = queue(&[&file], false, 8).expect("a queue");
    let pool = pool(8);
    let read = |device: &mut UringDevice| {
        let into = Target::Buffer(pool.take(1).expect("free"), 0..BLOCK);
        device.submit(Token(1), Command::Read { at: at(1), into }).expect("room");
    };
    read(&mut device);
    device.kick().expect("binds it to this thread");
    let result = thread::scope(|scope| {
        let elsewhere = || {
            read(&mut device);
            device.kick().map_err(|error| error.kind())
        };
        scope.spawn(elsewhere).join().expect("the thread ends well")
    });
    assert_eq!(result, Err(Kind::Invalid));
    // Back home nothing is lost.
    assert_eq!(drain(&mut device).len(), 2);
}

#[test]
fn dropping_with_commands_in_flight_gives_their_memory_back() {
    let file = new_file("dropped");
    let pool = pool(8);
    for kicked in [true, false] {
        let mut device = queue(&[&file], false, 8).expect("a queue");
        for tag in 0..8 {
            let from = Source::Buffer(pool.take(1).expect("free"), 0..8 * BLOCK);
            device.submit(Token(tag), Command::Write { at: at(8 * tag), from }).expect("room");
        }
        if kicked {
            device.kick().expect("a sound queue");
        }
        drop(device);
        assert_eq!(pool.usage()[0].taken, 0);
    }
}

/// Eight writes by a thread that is gone before they are over: how many cannot be reaped, and how many
/// buffers are still taken once their queue is dropped.
fn orphans(file: &TempFile) -> (usize, usize) {
    let pool = pool(8);
    let mut device = queue(&[file], false, 8).expect("a queue");
    device = thread::scope(|scope| {
        let kick = || {
            for tag in 0..8 {
                let from = Source::Buffer(pool.take(1).expect("free"), 0..8 * BLOCK);
                device.submit(Token(tag), Command::Write { at: at(8 * tag), from }).expect("room");
            }
            device.kick().expect("a sound queue");
            device
        };
        scope.spawn(kick).join().expect("the thread ends well")
    });
    let mut posted = Vec::new();
    device.poll(&mut posted);
    let left = device.in_flight();
    drop(device);
    drop(posted);
    (left, pool.usage()[0].taken)
}

#[test]
fn what_cannot_be_reaped_is_leaked_and_never_reused() {
    let file = new_file("orphan");
    // What was over when it was kicked is posted; the rest only the thread that is gone could have posted.
    let all_reaped = |_: &usize| {
        let (left, taken) = orphans(&file);
        assert_eq!(taken, left);
        left == 0
    };
    assert_ne!((0..100).take_while(all_reaped).count(), 100, "no write outlived its kick");
}

#[test]
fn depths_out_of_range_are_refused() {
    let file = new_file("depth");
    let media = open(&[&file], false);
    for depth in [0, LARGEST_DEPTH + 1, usize::MAX] {
        let error = UringDevice::new(&media, depth).err().expect("out of range");
        assert_eq!(error.kind(), Kind::Invalid);
    }
    let mut device = UringDevice::new(&media, LARGEST_DEPTH).expect("the largest");
    only(&mut device, Command::Flush(DeviceIndex(0))).1.expect("healthy");
}

/// Longer than any test may take: a sleep that lasts so long has missed something.
const FOREVER: Duration = Duration::from_secs(3600);
