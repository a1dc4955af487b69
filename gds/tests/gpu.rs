//! What every device must do, done by this machine's first GPU; how fast its ring is; and a local file, read by
//! cuFile. Without a GPU each is skipped by name. `ci/gpu` runs it.

#![expect(clippy::print_stdout, reason = "figures are for people")]

mod figures;
mod harness;
mod suite;

use std::process::ExitCode;

use forebay_gds::{CuFile, CudaDriver, Device, Ladder, LocalFile, Pinning, Wire};
use harness::Test;
use suite::{CHECKS, PATIENCE, Piece, bytes, finish, ring};

const SLOT: usize = 4 << 20;
const LONG_SLOT: usize = 64 << 20;
/// Names a directory that cuFile has to read, if it is set.
const LOCAL_FILES: &str = "FOREBAY_LOCAL_FILES";

fn main() -> ExitCode {
    let state = CudaDriver::look();
    let mut ladder = Ladder::new(state.first(), Wire::Unknown);
    ladder.look_for_cufile();
    println!("{ladder}");
    let device = match state.first() {
        Ok(info) => {
            println!("GPU {}: {}, {} MiB", info.ordinal, info.name, info.memory_bytes >> 20);
            Device::cuda(info.ordinal).map_err(|error| error.to_string())
        }
        Err(why) => Err(why.to_owned()),
    };
    let device = device.as_ref();
    let on_device = |check: fn(&Device)| move || check(device.expect("not skipped"));
    let mut tests: Vec<Test<'_>> = CHECKS
        .iter()
        .map(|(name, check)| (*name, Box::new(on_device(*check)) as Box<dyn Fn()>))
        .collect();
    tests.push(("copies_overlap_what_fills_the_ring", Box::new(on_device(overlap))));
    tests.push(("ring_to_gpu", Box::new(on_device(ring_to_gpu))));
    let with_gpu = harness::run(&tests, device.err().map(String::as_str));
    let without = device.map_err(Clone::clone).and_then(storage_reads).err();
    let storage: Vec<Test<'_>> =
        vec![("a_local_file_is_read_by_cufile", Box::new(on_device(local_file)))];
    let with_storage = harness::run_required_by(LOCAL_FILES, &storage, without.as_deref());
    if with_gpu == ExitCode::SUCCESS { with_storage } else { with_gpu }
}

/// A directory of a file system that cuFile reads: named by the variable, or else the build's.
fn local_files() -> tempfile::TempDir {
    let named = std::env::var_os(LOCAL_FILES);
    let parent = named.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    tempfile::TempDir::new_in(parent).expect("a directory")
}

/// Whether cuFile reads local files, or why not.
fn storage_reads(device: &Device) -> Result<(), String> {
    let directory = local_files();
    let path = directory.path().join("probe");
    std::fs::write(&path, [0; 4096]).expect("written");
    let file = LocalFile::open(&path).expect("there");
    file.check(device).map_err(|error| error.to_string())
}

/// Odd ranges, into memory that is registered and that is not.
fn local_file(device: &Device) {
    const LENGTH: usize = (40 << 20) + 4321;
    let directory = local_files();
    let path = directory.path().join("file");
    let content = bytes(LENGTH, 3);
    std::fs::write(&path, &content).expect("written");
    std::fs::File::open(&path).expect("there").sync_all().expect("on the disk");
    let cufile = CuFile::system().expect("not skipped");
    println!("cuFile: {:?}", cufile.info());
    let file = LocalFile::open(&path).expect("there");
    let memory = device.allocate(LENGTH).expect("device memory");
    for registers in [false, true] {
        let registration = registers.then(|| cufile.register(&memory.all()).expect("registered"));
        for (offset, at, length) in [
            (0, 0, LENGTH),
            (0, 4096, 1 << 20),
            (777, 13, 123_457),
            (4096, 1, 8191),
            (LENGTH - 9, 0, 99),
        ] {
            let into = memory.part(at..at + length).expect("inside");
            let read = file.read_into(offset as u64, &into).expect("read");
            let there = length.min(LENGTH - offset);
            assert_eq!((read.bytes, read.is_registered), (there as u64, registers));
            let found = memory.part(at..at + there).expect("inside").to_vec().expect("read back");
            assert!(found == content[offset..offset + there], "{offset} {at} {length}");
            println!("cuFile: {there} bytes at {offset}, {}, {} calls", read.transfer, read.calls);
        }
        drop(registration);
    }
}

/// Bytes copied in each round of a figure: 1 GiB, or what a small GPU has room for.
fn round_bytes(device: &Device) -> usize {
    let quarter = usize::try_from(device.info().memory_bytes / 4).expect("fits");
    quarter.min(1 << 30).next_multiple_of(LONG_SLOT)
}

/// Fills and copies slices, waiting for each copy or not. How often a piece began to be filled while another
/// was being copied, and of how many.
fn pass(device: &Device, waits: bool) -> (usize, usize) {
    let mut ring = ring(device, 8, SLOT, Pinning::Require);
    let memory = device.allocate(round_bytes(device) / 4).expect("device memory");
    let content = bytes(SLOT, 1);
    let (mut overlapped, mut ended) = (0, Vec::new());
    let slices = memory.len() / SLOT;
    for slice in 0..slices {
        let (lent, mut piece) = lend(&mut ring);
        ring.poll(&mut ended);
        overlapped += usize::from(ring.under_way() > 0);
        piece.fill(0, &content);
        let to = memory.part(slice * SLOT..(slice + 1) * SLOT).expect("inside");
        ring.copy(lent, piece, 0..SLOT, &to).expect("begun");
        if waits {
            finish(&mut ring);
        }
    }
    finish(&mut ring);
    (overlapped, slices)
}

fn lend(ring: &mut forebay_gds::Ring<Piece>) -> (forebay_gds::Lent, Piece) {
    loop {
        match ring.lend() {
            Some(lent) => return lent,
            None => ring.wait(PATIENCE, &mut Vec::new()),
        }
    }
}

fn overlap(device: &Device) {
    assert_eq!(pass(device, true).0, 0, "what waits for each copy overlaps none");
    let (overlapped, slices) = pass(device, false);
    println!(
        "overlap: {overlapped} of {slices} pieces began to be filled while another was copied"
    );
    assert!(overlapped > 0, "no piece was filled while another was copied");
    let compared = figures::compare(|| pass(device, false), || pass(device, true));
    println!("overlap: time of a ring over that of one that waits for each copy: {compared}");
}

/// The ring's copies beside the same bytes in sixteen times longer ones, which is as fast as a GPU takes them.
fn ring_to_gpu(device: &Device) {
    let memory = device.allocate(round_bytes(device)).expect("device memory");
    let copy_all = |slots: usize, slot: usize| {
        let mut ring = ring(device, slots, slot, Pinning::Require);
        let memory = &memory;
        move || {
            for slice in 0..memory.len() / slot {
                let (lent, piece) = lend(&mut ring);
                let to = memory.part(slice * slot..(slice + 1) * slot).expect("inside");
                ring.copy(lent, piece, 0..slot, &to).expect("begun");
            }
            finish(&mut ring);
        }
    };
    let compared = figures::compare(copy_all(16, SLOT), copy_all(4, LONG_SLOT));
    println!(
        "ring-to-gpu: {} MiB, time by copies of 4 MiB over that by copies of 64 MiB: {compared}",
        memory.len() >> 20
    );
}
