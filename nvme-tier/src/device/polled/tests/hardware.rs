//! The driver on real (or emulated) controllers under VFIO, which the environment names.

use std::time::Duration;

use dma::{HugePages, Pool, SizeClass, Source, Target};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clock;
use crate::device::mixed::MixedDevice;
use crate::device::nvme_disk::{NvmeBus, NvmeDisk, NvmeName};
use crate::device::{Command, Completion, Device, DeviceIndex, Location, MediaOptions, Token};

const ZERO: DeviceIndex = DeviceIndex(0);

fn names() -> Vec<String> {
    let names = std::env::var("FOREBAY_TEST_NVME").expect("FOREBAY_TEST_NVME names PCI addresses");
    names.split(',').map(str::to_owned).collect()
}

fn open(bus: &mut NvmeBus, name: &str) -> NvmeDisk {
    let options = MediaOptions { read_only: false, minimum_bytes: 1 << 20 };
    bus.open(NvmeName::parse(name).expect("an address"), &options).expect("opens")
}

fn device(disk: &NvmeDisk, depth: usize) -> MixedDevice {
    let queue = disk.queue(depth).expect("a queue");
    MixedDevice::new(None, vec![Some(queue)], vec![disk.geometry()])
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
        println!("{name}: {} {:?} {:?}", disk.describe(), disk.geometry(), disk.health());
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
#[ignore = "needs NVMe controllers under VFIO, and only prints a number"]
fn speed() {
    let mut bus = NvmeBus::default();
    for name in names() {
        let disk = open(&mut bus, &name);
        let mut device = device(&disk, 32);
        let sizes = [SizeClass { bytes: 4096, count: 64 }];
        let pool = Pool::new(&sizes, HugePages::Try).expect("memory");
        device.register(pool.region()).expect("registers");
        let blocks = disk.geometry().capacity_bytes / 4096;
        let mut rng = SmallRng::seed_from_u64(7);
        let mut done = Vec::with_capacity(64);
        for _ in 0..32 {
            let into = Target::Buffer(pool.take(4096).expect("free"), 0..4096);
            let at = Location { device: ZERO, offset: rng.random_range(0..blocks) * 4096 };
            device.submit(Token(0), Command::Read { at, into }).expect("room");
        }
        let (begin, mut count, mut kicks) = (clock::now(), 0u64, 0u64);
        while begin.elapsed() < Duration::from_secs(4) {
            for _ in 0..64 {
                device.kick().expect("kicks");
                device.poll(&mut done);
                kicks += u64::from(!done.is_empty());
                for completion in done.drain(..) {
                    count += 1;
                    completion.result.expect("read");
                    let Command::Read { into, .. } = completion.command else { unreachable!() };
                    let at = Location { device: ZERO, offset: rng.random_range(0..blocks) * 4096 };
                    device.submit(Token(0), Command::Read { at, into }).expect("room");
                }
            }
        }
        println!("{name}: {} reads/s, {:.1} per doorbell", count / 4, count as f64 / kicks as f64);
        drain(&mut device);
    }
}
