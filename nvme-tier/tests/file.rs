//! A tier on a real file or namespace: the same code path that a node runs.
#![allow(clippy::print_stdout, reason = "which namespaces were tested")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{EXTENT, name, pool, small_format, version};
use dma::{HugePages, Pool, SizeClass, Source};
use extent::{ExtentIndex, Kind, Result};
use forebay_nvme_tier::device::{
    Command, Device, DeviceIndex, Driver, Geometry, Location, Media, MediaOptions, Token,
};
use forebay_nvme_tier::{Done, Tier, TierOptions, check, format, recover};
use parking_lot::Mutex;
use std::sync::Arc;

const BYTES: u64 = (1 << 20) + 16 * (256 << 10);

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// A queue onto a device.
fn queue(path: &Path, driver: Driver) -> Result<Box<dyn Device>> {
    let options = MediaOptions { minimum_bytes: BYTES, ..MediaOptions::default() };
    let media = Media::open_by(&[(path.to_owned(), driver)], options)?;
    assert!(media.driver(DeviceIndex(0)).starts_with(&driver.to_string()), "{media:?}");
    media.queue(16)
}

#[test]
fn a_tier_on_a_file_survives_a_restart() {
    let path = std::env::temp_dir().join(format!("forebay-tier-{}.img", std::process::id()));
    let file = Scratch(path);
    std::fs::File::create(&file.0).and_then(|f| f.set_len(BYTES)).expect("a file");
    match queue(&file.0, Driver::IoUring) {
        Ok(device) => survives_a_restart(device, || queue(&file.0, Driver::IoUring)),
        // This kernel has no io_uring, or forbids it.
        Err(error) if matches!(error.kind(), Kind::Unsupported | Kind::Denied) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_tier_in_memory_survives_a_restart_by_either_driver() {
    let folder = Path::new("/dev/shm");
    let file = Scratch(folder.join(format!("forebay-tier-{}.img", std::process::id())));
    let anew = || {
        let _none = std::fs::remove_file(&file.0);
        std::fs::File::create(&file.0).and_then(|f| f.set_len(BYTES)).expect("/dev/shm is there");
    };
    anew();
    let has_ring = match queue(&file.0, Driver::IoUring) {
        Ok(_) => true,
        // This kernel has no io_uring, or forbids it.
        Err(error) if matches!(error.kind(), Kind::Unsupported | Kind::Denied) => false,
        Err(error) => panic!("{error}"),
    };
    for (before, after) in [
        (Driver::Memory, Driver::Memory),
        (Driver::Memory, Driver::IoUring),
        (Driver::IoUring, Driver::Memory),
    ] {
        if has_ring || (before, after) == (Driver::Memory, Driver::Memory) {
            anew();
            let device = queue(&file.0, before).expect("opens");
            let busy = queue(&file.0, after).err().expect("two cannot have it at once");
            assert_eq!(busy.kind(), Kind::Busy, "{busy}");
            survives_a_restart(device, || queue(&file.0, after));
        }
    }
}

#[test]
#[ignore = "needs NVMe namespaces that may be overwritten: ci/lab/tests names them"]
fn a_tier_on_a_namespace_survives_a_restart_by_either_driver() {
    let paths = std::env::var("FOREBAY_TEST_NAMESPACES").expect("paths, separated by commas");
    for path in paths.split(',').map(PathBuf::from) {
        let drivers = [Driver::IoUring, Driver::Passthrough];
        let geometries = drivers
            .map(|driver| queue(&path, driver).expect("the namespace").geometry(DeviceIndex(0)));
        println!("{}: {:?}", path.display(), geometries[1]);
        // Only one of them takes advice on freed space, which is nothing that a tier is made of.
        let [first, second] =
            geometries.map(|geometry| Geometry { deallocation: None, ..geometry });
        assert_eq!(first, second, "the tier must be the same by either");
        for (before, after) in [(0, 1), (1, 0), (1, 1)] {
            let mut device = queue(&path, drivers[before]).expect("the namespace");
            zero(&mut *device);
            survives_a_restart(device, || queue(&path, drivers[after]));
        }
    }
}

#[test]
#[ignore = "needs NVMe controllers under VFIO that may be overwritten: ci/lab/tests names them"]
fn a_tier_on_a_controller_of_our_own_survives_a_restart() {
    let names = std::env::var("FOREBAY_TEST_NVME").expect("PCI addresses, separated by commas");
    for path in names.split(',').map(PathBuf::from) {
        let mut device = queue(&path, Driver::Vfio).expect("the controller");
        println!("{}: {:?}", path.display(), device.geometry(DeviceIndex(0)));
        zero(&mut *device);
        survives_a_restart(device, || queue(&path, Driver::Vfio));
    }
}

/// Makes a namespace as new as a file.
fn zero(device: &mut dyn Device) {
    let piece = 256 << 10;
    let pool = Pool::new(&[SizeClass { bytes: piece, count: 1 }], HugePages::Never).expect("room");
    for offset in (0..BYTES).step_by(piece) {
        let length = piece.min(usize::try_from(BYTES - offset).expect("small"));
        let from = Source::Buffer(pool.take(piece).expect("it came back"), 0..length);
        let at = Location { device: DeviceIndex(0), offset };
        device.submit(Token(0), Command::Write { at, from }).expect("room");
        device.kick().expect("a sound queue");
        let mut completions = Vec::new();
        while completions.is_empty() {
            device.sleep(&[], None).expect("a sound queue");
            device.poll(&mut completions);
        }
        completions.remove(0).result.expect("a healthy device");
    }
}

fn survives_a_restart(
    mut device: Box<dyn Device>,
    again: impl FnOnce() -> Result<Box<dyn Device>>,
) {
    format(&mut *device, &pool(), &small_format()).expect("formats");
    let mut first = recover(&mut *device, &pool(), TierOptions::default()).expect("recovers");
    let tier = Arc::clone(&first.tier);
    let mut ask = |begin: &mut dyn FnMut(&Tier, Done<()>)| -> Result<()> {
        let answer = Arc::new(Mutex::new(None));
        let told = Arc::clone(&answer);
        begin(&tier, Done::new(move |result| *told.lock() = Some(result)));
        loop {
            if let Some(result) = answer.lock().take() {
                return result;
            }
            first.ledger.step(&mut *device);
        }
    };
    ask(&mut |tier, done| {
        let done = Done::new(move |result: Result<_>| done.call(result.map(drop)));
        tier.register(name("s/a"), EXTENT, version("v"), done);
    })
    .expect("registers");
    let generation = tier.file(name("s/a").id()).expect("known").newest();
    let slot = Arc::new(Mutex::new(None));
    ask(&mut |tier, done| {
        let slot = Arc::clone(&slot);
        let done = Done::new(move |result: Result<_>| {
            done.call(result.map(|reservation| *slot.lock() = Some(reservation)));
        });
        tier.reserve(&generation, ExtentIndex(0), done);
    })
    .expect("reserves");
    // The slot of a new file is zeroes, and so is what is published here.
    let sums = [extent::checksum::crc32c(&[0; 4096]); 16];
    ask(&mut |tier, done| {
        let slot = slot.lock().take().expect("reserved");
        tier.publish(slot, Box::new(sums), done);
    })
    .expect("publishes");
    ask(&mut |tier, done| tier.flush(done)).expect("flushes");
    // Its thread may sleep once there is nothing to do, and nothing stays readable for nothing.
    while first.ledger.step(&mut *device) {}
    let (_silent, quiet) = UnixStream::pair().expect("sockets");
    for _ in 0..3 {
        assert!(!device.sleep(&[quiet.as_fd()], Some(Duration::from_millis(1))).expect("sound"));
        assert!(!first.ledger.step(&mut *device), "a sleep ended for work that is none");
    }
    drop((generation, tier, first));
    assert_eq!(device.in_flight(), 0);
    drop(device);
    let mut device = again().expect("as before");
    let again = recover(&mut *device, &pool(), TierOptions::default()).expect("recovers");
    assert_eq!((again.report.files, again.report.extents), (1, 1));
    let report = check(&mut *device, &pool(), &mut |_, _| {}).expect("checks");
    assert!(report.is_sound() && report.bytes == EXTENT, "{report:?}");
}
