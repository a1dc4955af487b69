use dma::{Buffer, HugePages, Pool, SizeClass, Source, Target};
use extent::Kind;

use super::*;
use crate::device::{Command, Completion, Device, Token};

const BLOCK: usize = 4096;

struct Bench {
    disk: SimDisk,
    device: SimDevice,
    pool: Pool,
}

impl Bench {
    fn new(options: SimOptions) -> Self {
        let disk = SimDisk::new(options);
        let class = SizeClass { bytes: 4 * BLOCK, count: 64 };
        let pool = Pool::new(&[class], HugePages::Never).expect("memory");
        Self { device: disk.queue(), disk, pool }
    }

    fn buffer(&self, mark: u8) -> Buffer {
        let mut buffer = self.pool.take(1).expect("free");
        buffer.as_mut_slice().fill(mark);
        buffer
    }

    fn submit(&mut self, tag: u64, command: Command) {
        self.device.submit(Token(tag), command).expect("room");
        self.device.kick().expect("simulated queues do not break");
    }

    fn start_write(&mut self, block: u64, blocks: usize, mark: u8) {
        let from = Source::Buffer(self.buffer(mark), 0..blocks * BLOCK);
        self.submit(block, Command::Write { at: at(block), from });
    }

    fn run(&mut self) -> Vec<Completion> {
        let mut completions = Vec::new();
        for _ in 0..100 {
            self.device.poll(&mut completions);
        }
        completions
    }

    fn only(&mut self) -> Result<(), Kind> {
        let mut all = self.run();
        assert_eq!(all.len(), 1);
        all.remove(0).result.map_err(|error| error.kind())
    }

    fn write(&mut self, block: u64, blocks: usize, mark: u8) -> Result<(), Kind> {
        self.start_write(block, blocks, mark);
        self.only()
    }

    fn flush(&mut self) -> Result<(), Kind> {
        self.submit(0, Command::Flush(DeviceIndex(0)));
        self.only()
    }

    fn read(&mut self, block: u64) -> Result<Vec<u8>, Kind> {
        let into = Target::Buffer(self.buffer(0xaa), 0..BLOCK);
        self.submit(block, Command::Read { at: at(block), into });
        let Completion { command, result, .. } = self.run().remove(0);
        result.map_err(|error| error.kind())?;
        let Command::Read { into, .. } = command else { panic!("a read comes back as a read") };
        let buffer = into.into_buffer().expect("a buffer");
        Ok(buffer.as_slice()[..BLOCK].to_vec())
    }

    fn fault(&self, operation: Operation, fault: Fault) {
        self.disk.set_faults(FaultPlan::new().with(FaultRule::new(operation, When::Nth(1), fault)));
    }
}

fn at(block: u64) -> Location {
    Location { device: DeviceIndex(0), offset: block * BLOCK as u64 }
}

fn mark(disk: &SimDisk, block: u64) -> u8 {
    let bytes = disk.peek(at(block), BLOCK);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a block is never torn inside");
    bytes[0]
}

fn lost(_: &WriteRecord) -> Survival {
    Survival::Lost
}

fn whole(_: &WriteRecord) -> Survival {
    Survival::Whole
}

#[test]
fn only_what_completed_before_a_flush_is_durable() {
    // In some of these orders the write in flight ends before the flush does.
    for seed in 0..32 {
        let mut bench = Bench::new(SimOptions { seed, ..SimOptions::default() });
        bench.write(0, 1, 1).expect("healthy");
        bench.start_write(1, 1, 2);
        bench.submit(9, Command::Flush(DeviceIndex(0)));
        assert_eq!(bench.run().len(), 2);
        let cut = bench.disk.crash(&mut lost);
        assert_eq!((mark(&cut, 0), mark(&cut, 1)), (1, 0), "block 1 was still in flight");
        assert_eq!((mark(&bench.disk, 0), mark(&bench.disk, 1)), (1, 2));
        assert_eq!(bench.disk.unflushed().len(), 1);
        bench.flush().expect("healthy");
        assert_eq!(mark(&bench.disk.crash(&mut lost), 1), 2);
        assert!(bench.disk.unflushed().is_empty());
    }
}

#[test]
fn unflushed_writes_survive_in_any_subset_and_torn() {
    let mut bench = Bench::new(SimOptions::default());
    bench.write(0, 3, 1).expect("healthy");
    bench.write(2, 2, 2).expect("healthy");
    bench.start_write(7, 1, 3);
    let torn = bench.disk.crash(&mut |record| match record.id.0 {
        1 => Survival::Torn(vec![0, 2]),
        2 => Survival::Torn(vec![1]),
        _ if record.completed => Survival::Lost,
        _ => Survival::Whole,
    });
    assert_eq!([0, 1, 2, 3, 7].map(|block| mark(&torn, block)), [1, 0, 1, 2, 3]);
    let all = bench.disk.crash(&mut whole);
    assert_eq!([0, 1, 2, 3, 7].map(|block| mark(&all, block)), [1, 1, 2, 2, 3]);
}

#[test]
fn without_a_volatile_cache_completed_means_durable() {
    let options = SimOptions { volatile_cache: false, ..SimOptions::default() };
    let mut bench = Bench::new(options);
    bench.write(3, 1, 5).expect("healthy");
    bench.start_write(4, 1, 6);
    let cut = bench.disk.crash(&mut lost);
    assert_eq!((mark(&cut, 3), mark(&cut, 4)), (5, 0));
}

#[test]
fn after_a_failed_flush_none_vouches_for_its_writes() {
    let mut bench = Bench::new(SimOptions::default());
    bench.write(0, 2, 1).expect("healthy");
    bench.fault(Operation::Flush, Fault::Fail);
    assert_eq!(bench.flush(), Err(Kind::Io));
    bench.flush().expect("the second pretends that all is well");
    assert_eq!(mark(&bench.disk.crash(&mut lost), 0), 0);
    assert_eq!(mark(&bench.disk.crash(&mut whole), 0), 1);
    // Written again and flushed, the old write has no say in that block any more.
    bench.write(0, 1, 2).expect("healthy");
    bench.flush().expect("healthy");
    let cut = bench.disk.crash(&mut whole);
    assert_eq!((mark(&cut, 0), mark(&cut, 1)), (2, 1));
}

#[test]
fn each_fault_does_what_it_says() {
    let mut bench = Bench::new(SimOptions::default());
    bench.write(5, 1, 9).expect("healthy");
    bench.fault(Operation::Read, Fault::Fail);
    assert_eq!(bench.read(5), Err(Kind::Io));
    assert_eq!(bench.read(5).expect("only the first"), vec![9; BLOCK]);
    assert_eq!(bench.disk.faults_injected(), 1);

    bench.fault(Operation::Read, Fault::FlipBit);
    let bytes = bench.read(5).expect("reported as good");
    let flipped: u32 = bytes.iter().map(|byte| (byte ^ 9).count_ones()).sum();
    assert_eq!(flipped, 1);
    assert_eq!(mark(&bench.disk, 5), 9);

    bench.fault(Operation::Write, Fault::Lose);
    bench.write(5, 1, 10).expect("reported as good");
    assert_eq!(mark(&bench.disk, 5), 9);

    bench.write(6, 1, 7).expect("healthy");
    bench.write(6, 1, 8).expect("healthy");
    bench.fault(Operation::Read, Fault::Stale);
    assert_eq!(bench.read(6).expect("reported as good"), vec![7; BLOCK]);
    assert_eq!(bench.read(6).expect("only the first"), vec![8; BLOCK]);

    bench.fault(Operation::Write, Fault::Misdirect);
    bench.write(5, 1, 11).expect("reported as good");
    let landed = bench.disk.unflushed().last().expect("there").at;
    assert_ne!(landed, at(5));
    assert_eq!((mark(&bench.disk, 5), bench.disk.peek(landed, 1)[0]), (9, 11));

    bench.fault(Operation::Flush, Fault::Lose);
    bench.flush().expect("reported as good");
    assert_eq!(mark(&bench.disk.crash(&mut lost), 5), 0);

    bench.fault(Operation::Any, Fault::Vanish);
    assert_eq!(bench.read(5), Err(Kind::Io));
    assert_eq!(bench.write(5, 1, 1), Err(Kind::Io));
    assert_eq!(bench.flush(), Err(Kind::Io));
}

#[test]
fn a_stuck_command_holds_its_memory_until_released() {
    let mut bench = Bench::new(SimOptions::default());
    bench.fault(Operation::Write, Fault::Stick);
    bench.start_write(1, 1, 1);
    assert!(bench.run().is_empty());
    assert_eq!((bench.device.in_flight(), bench.pool.usage()[0].taken), (1, 1));
    // It may land at any time, even after a newer write was flushed.
    bench.write(1, 1, 2).expect("healthy");
    bench.flush().expect("healthy");
    assert_eq!(mark(&bench.disk.crash(&mut whole), 1), 1);
    bench.disk.release_stuck();
    bench.only().expect("completes after all");
    assert_eq!(bench.pool.usage()[0].taken, 0);
}

#[test]
fn rules_are_bounded_to_their_device_and_range() {
    let mut bench = Bench::new(SimOptions { devices: 2, ..SimOptions::default() });
    let rule = || FaultRule::new(Operation::Write, When::From(1), Fault::Fail);
    bench.disk.set_faults(
        FaultPlan::new().with(rule().on(DeviceIndex(1))).with(rule().within(4096..4097)),
    );
    bench.write(0, 1, 1).expect("next to it");
    bench.write(2, 1, 1).expect("next to it");
    assert_eq!(bench.write(0, 2, 1), Err(Kind::Io));
    let from = Source::Buffer(bench.buffer(1), 0..BLOCK);
    let other = Location { device: DeviceIndex(1), offset: 0 };
    bench.submit(1, Command::Write { at: other, from });
    assert_eq!(bench.only(), Err(Kind::Io));
}

#[test]
fn senseless_commands_are_refused_and_a_full_queue_gives_them_back() {
    let mut bench = Bench::new(SimOptions { queue_depth: 1, ..SimOptions::default() });
    let end = 64 << 20;
    for offset in [1, end, end - 4096, u64::MAX - 4095] {
        let from = Source::Buffer(bench.buffer(1), 0..2 * BLOCK);
        let at = Location { device: DeviceIndex(0), offset };
        bench.submit(1, Command::Write { at, from });
        assert_eq!(bench.only(), Err(Kind::Invalid), "at {offset}");
    }
    bench.submit(1, Command::Flush(DeviceIndex(0)));
    let again = bench.device.submit(Token(2), Command::Flush(DeviceIndex(0)));
    assert!(matches!(again, Err(Command::Flush(DeviceIndex(0)))));
}

#[test]
fn nothing_moves_before_the_kick_and_the_seed_decides_the_order() {
    let order = |seed| {
        let mut bench = Bench::new(SimOptions { seed, ..SimOptions::default() });
        for tag in 0..32 {
            let command =
                Command::Write { at: at(tag), from: Source::Buffer(bench.buffer(1), 0..BLOCK) };
            bench.device.submit(Token(tag), command).expect("room");
        }
        assert!(bench.run().is_empty(), "not kicked");
        bench.device.kick().expect("healthy");
        bench.run().iter().map(|completion| completion.token.0).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    assert_ne!(order(1), (0..32).collect::<Vec<_>>());
}

#[test]
fn a_recording_gives_every_cut_of_the_run() {
    let mut bench = Bench::new(SimOptions::default());
    bench.write(0, 1, 1).expect("healthy");
    bench.flush().expect("healthy");
    bench.disk.record();
    let mut acknowledged = Vec::new();
    for version in 2..6 {
        bench.write(0, 1, version).expect("healthy");
        bench.flush().expect("healthy");
        acknowledged.push((bench.disk.now(), version));
    }
    let mut recorder = bench.disk.recorder().expect("recording");
    assert_eq!(recorder.moments(), 16);
    for moment in 0..=recorder.moments() {
        let before = acknowledged.iter().rev().find(|(at, _)| *at <= moment);
        let least = before.map_or(1, |(_, version)| *version);
        assert_eq!(mark(&recorder.crash_at(moment, &mut lost), 0), least);
        let most = mark(&recorder.crash_at(moment, &mut whole), 0);
        assert!(most == least || most == least + 1);
    }
    let last = recorder.crash_at(16, &mut lost).durable_image();
    let mut bytes = [0; 1];
    last[0].read(0, &mut bytes);
    assert_eq!(bytes, [5]);
    assert_eq!(mark(&recorder.crash_at(1, &mut whole), 0), 2, "back in time");
}

#[test]
fn rot_is_durable_and_needs_no_alignment() {
    let bench = Bench::new(SimOptions::default());
    bench.disk.poke(Location { device: DeviceIndex(0), offset: 77 }, &[1, 2]);
    let cut = bench.disk.crash(&mut lost);
    assert_eq!(cut.peek(Location { device: DeviceIndex(0), offset: 76 }, 4), [0, 1, 2, 0]);
}

#[test]
fn the_fingerprint_of_what_a_crash_leaves_is_known_before_it_is_made() {
    let mut bench = Bench::new(SimOptions { capacity_bytes: 1 << 20, ..SimOptions::default() });
    bench.disk.record();
    bench.write(3, 2, 1).expect("healthy");
    bench.flush().expect("healthy");
    bench.write(4, 4, 2).expect("healthy");
    bench.start_write(20, 1, 3);
    let mut recorder = bench.disk.recorder().expect("it was recorded");
    let moment = recorder.moments();
    let prints = recorder.fingerprints_at(moment);
    assert!(prints.are_apart());
    let torn = || Survival::Torn(vec![0, 3]);
    let mut seen = Vec::new();
    for first in [Survival::Lost, Survival::Whole, torn()] {
        for second in [Survival::Lost, Survival::Whole] {
            let choice = [first.clone(), second];
            let mut each = choice.iter().cloned();
            let disk = recorder.crash_at(moment, &mut |_| each.next().expect("two writes"));
            assert_eq!(prints.of(&choice), Some(disk.fingerprint()), "{choice:?}");
            assert!(!seen.contains(&disk.fingerprint()), "{choice:?} is like no other");
            seen.push(disk.fingerprint());
        }
    }
    bench.start_write(21, 1, 4);
    bench.start_write(20, 2, 5);
    let mut recorder = bench.disk.recorder().expect("it was recorded");
    assert!(!recorder.fingerprints_at(recorder.moments()).are_apart(), "two want block 20");
}
