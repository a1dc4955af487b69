//! The driver on real (or emulated) controllers under VFIO, which the environment names.

use std::time::Duration;

use dma::{HugePages, Pool, SizeClass, Source, Target};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clock;
use crate::device::mixed::{Driven, MixedDevice};
use crate::device::nvme_disk::{NvmeBus, NvmeDisk};
use crate::device::{
    Command, Completion, Device, DeviceIndex, Location, MediaOptions, PciName, Timeouts, Token,
};

const ZERO: DeviceIndex = DeviceIndex(0);

fn names() -> Vec<String> {
    let names = std::env::var("FOREBAY_TEST_NVME").expect("FOREBAY_TEST_NVME names PCI addresses");
    names.split(',').map(str::to_owned).collect()
}

fn open(bus: &mut NvmeBus, name: &str) -> NvmeDisk {
    let options = MediaOptions { read_only: false, minimum_bytes: 1 << 20 };
    bus.open(PciName::parse(name.as_ref()).expect("an address"), Timeouts::default(), &options)
        .expect("opens")
}

fn device(disk: &NvmeDisk, depth: usize) -> MixedDevice {
    let queue = disk.queue(depth).expect("a queue");
    MixedDevice::new(None, vec![Some(Driven::Polled(queue))], vec![disk.geometry()])
}

fn drain(device: &mut MixedDevice) -> Vec<Completion> {
    let mut done = Vec::new();
    let begin = clock::now();
    while device.in_flight() > 0 {
        device.kick().expect("kicks");
        device.poll(&mut done);
        assert!(begin.elapsed() < Duration::from_secs(60), "{} in flight", device.in_flight());
    }
    done
}

#[test]
#[ignore = "needs NVMe controllers under VFIO: ci/lab/tests runs it"]
fn what_is_written_is_read_back() {
    let mut bus = NvmeBus::default();
    for name in names() {
        let disk = open(&mut bus, &name);
        assert!(disk.health_watch().now().is_some(), "{disk:?}");
        let mut device = device(&disk, 16);
        let sizes = [SizeClass { bytes: 4 << 20, count: 8 }];
        let pool = Pool::new(&sizes, HugePages::Try).expect("memory");
        for is_registered in [false, true] {
            if is_registered {
                device.register(pool.region()).expect("registers");
            }
            let block = u64::from(disk.geometry().block_bytes);
            let mut rng = SmallRng::seed_from_u64(7);
            let mut written = Vec::new();
            let mut at = 0;
            for length in [block, 2 * block, 4096, 12288, 128 << 10, (1 << 20) + 8192, 3 << 20] {
                let skew =
                    usize::try_from(rng.random_range(0..4096 / block) * block).expect("small");
                let mut buffer = pool.take(4 << 20).expect("free");
                let length = usize::try_from(length).expect("small");
                rng.fill(&mut buffer.as_mut_slice()[skew..skew + length]);
                let bytes = buffer.as_slice()[skew..skew + length].to_vec();
                let from = Source::Buffer(buffer, skew..skew + length);
                let location = Location { device: ZERO, offset: at };
                device.submit(Token(at), Command::Write { at: location, from }).expect("room");
                written.push((at, bytes));
                at += (length as u64).next_multiple_of(4096) + 4096;
            }
            device.submit(Token(9), Command::Flush(ZERO)).expect("room");
            for completion in drain(&mut device) {
                completion.result.expect("written");
            }
            for (at, bytes) in &written {
                let into =
                    Target::Buffer(pool.take(4 << 20).expect("free"), 512..512 + bytes.len());
                let location = Location { device: ZERO, offset: *at };
                device.submit(Token(*at), Command::Read { at: location, into }).expect("room");
                for completion in drain(&mut device) {
                    completion.result.expect("read");
                    let Command::Read { into, .. } = completion.command else { unreachable!() };
                    let buffer = into.into_buffer().expect("a buffer");
                    assert!(buffer.as_slice()[512..512 + bytes.len()] == **bytes, "at {at}");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs NVMe controllers under VFIO that may be overwritten: ci/lab/tests names them"]
fn what_is_deallocated_reads_as_zeroes_and_its_neighbours_as_they_were() {
    let mut bus = NvmeBus::default();
    for name in names() {
        let disk = open(&mut bus, &name);
        let mut device = device(&disk, 4);
        let Some(takes) = disk.geometry().deallocation else {
            assert!(disk.describe().contains("T10 protection"), "{name}");
            assert_eq!(disk.geometry().block_bytes, 512, "{name}");
            continue;
        };
        let pool =
            Pool::new(&[SizeClass { bytes: 1 << 20, count: 1 }], HugePages::Never).expect("memory");
        let mut buffer = pool.take(1 << 20).expect("free");
        buffer.as_mut_slice().fill(0x5a);
        let at = |offset| Location { device: ZERO, offset };
        let from = Source::Buffer(buffer, 0..1 << 20);
        let told = takes.whole_units(4096..(512 << 10) + 512).expect("several units");
        let bytes = told.end - told.start;
        let commands =
            [Command::Write { at: at(0), from }, Command::Deallocate { at: at(told.start), bytes }];
        for command in commands {
            device.submit(Token(1), command).expect("room");
            drain(&mut device).remove(0).result.expect("taken");
        }
        let into = Target::Buffer(pool.take(1 << 20).expect("free"), 0..1 << 20);
        device.submit(Token(2), Command::Read { at: at(0), into }).expect("room");
        let completion = drain(&mut device).remove(0);
        completion.result.expect("read");
        let Command::Read { into, .. } = completion.command else { unreachable!() };
        let buffer = into.into_buffer().expect("a buffer");
        for (at, byte) in (0..).zip(buffer.as_slice()) {
            let expected = if told.contains(&at) { 0 } else { 0x5a };
            assert_eq!(*byte, expected, "byte {at} of {name}, {told:?} deallocated");
        }
    }
}

/// The last of these tests: afterwards its controller is gone.
#[test]
#[ignore = "needs an NVMe controller under VFIO, and takes it away: ci/lab/tests runs it"]
fn a_controller_may_be_removed_while_it_works() {
    let name = std::env::var("FOREBAY_TEST_NVME_REMOVED").expect("names a PCI address");
    let disk = open(&mut NvmeBus::default(), &name);
    let mut device = device(&disk, 8);
    let pool = Pool::new(&[SizeClass { bytes: 4096, count: 8 }], HugePages::Never).expect("memory");
    let remove = format!("/sys/bus/pci/devices/{name}/remove");
    // The kernel waits until the device is given back.
    let removal = std::thread::spawn(move || std::fs::write(remove, "1"));
    let begin = clock::now();
    let error = loop {
        let into = Target::Buffer(pool.take(4096).expect("free"), 0..4096);
        let at = Location { device: ZERO, offset: 0 };
        device.submit(Token(0), Command::Read { at, into }).expect("room");
        match drain(&mut device).remove(0).result {
            Ok(()) => assert!(begin.elapsed() < Duration::from_secs(30), "still there"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("the kernel takes it away"), "{error}");
    removal.join().expect("no panic").expect("removed");
    drop(device);
}
