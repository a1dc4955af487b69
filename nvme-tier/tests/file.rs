//! A tier on a real file or namespace, through io_uring: the same code path that a node runs.
#![allow(clippy::print_stdout, reason = "which namespaces were tested")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use common::{EXTENT, name, pool, small_format, version};
use extent::{ExtentIndex, Kind, Result};
use forebay_nvme_tier::device::{Device, DeviceIndex, Media, MediaOptions, UringDevice};
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

/// A queue onto a device, or `None` where the kernel offers no io_uring.
fn queue(path: &PathBuf) -> Option<UringDevice> {
    let options = MediaOptions { minimum_bytes: BYTES, ..MediaOptions::default() };
    let opened = Media::open(std::slice::from_ref(path), options).and_then(|media| media.queue(16));
    match opened {
        Ok(queue) => Some(queue),
        Err(error) if error.kind() == Kind::Unsupported || error.kind() == Kind::Denied => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_tier_on_a_file_survives_a_restart() {
    let path = std::env::temp_dir().join(format!("forebay-tier-{}.img", std::process::id()));
    let file = Scratch(path);
    std::fs::File::create(&file.0).and_then(|f| f.set_len(BYTES)).expect("a file");
    if let Some(device) = queue(&file.0) {
        survives_a_restart(&file.0, device);
    }
}

#[test]
#[ignore = "needs NVMe namespaces that may be overwritten: ci/lab/tests names them"]
fn a_tier_on_a_namespace_survives_a_restart() {
    let paths = std::env::var("FOREBAY_TEST_NAMESPACES").expect("paths, separated by commas");
    for path in paths.split(',').map(PathBuf::from) {
        let device = queue(&path).expect("io_uring");
        println!("{}: {:?}", path.display(), device.geometry(DeviceIndex(0)));
        survives_a_restart(&path, device);
    }
}

fn survives_a_restart(path: &PathBuf, mut device: UringDevice) {
    format(&mut device, &pool(), &small_format()).expect("formats");
    let mut first = recover(&mut device, &pool(), TierOptions::default()).expect("recovers");
    let tier = Arc::clone(&first.tier);
    let mut ask = |begin: &mut dyn FnMut(&Tier, Done<()>)| -> Result<()> {
        let answer = Arc::new(Mutex::new(None));
        let told = Arc::clone(&answer);
        begin(&tier, Done::new(move |result| *told.lock() = Some(result)));
        loop {
            if let Some(result) = answer.lock().take() {
                return result;
            }
            first.ledger.step(&mut device);
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
    while first.ledger.step(&mut device) {}
    let (_silent, quiet) = UnixStream::pair().expect("sockets");
    for _ in 0..3 {
        assert!(!device.sleep(&[quiet.as_fd()], Some(Duration::from_millis(1))).expect("sound"));
        assert!(!first.ledger.step(&mut device), "a sleep ended for work that is none");
    }
    drop((generation, tier, first));
    assert_eq!(device.in_flight(), 0);
    drop(device);
    let mut device = queue(path).expect("as before");
    let again = recover(&mut device, &pool(), TierOptions::default()).expect("recovers");
    assert_eq!((again.report.files, again.report.extents), (1, 1));
    let report = check(&mut device, &pool(), &mut |_, _| {}).expect("checks");
    assert!(report.is_sound() && report.bytes == EXTENT, "{report:?}");
}
