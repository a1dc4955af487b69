//! What every device must do, done by this machine's first GPU; and how fast its ring is. Without a GPU each
//! is skipped by name. `ci/gpu` runs it.

#![expect(clippy::print_stdout, reason = "figures are for people")]

mod figures;
mod harness;
mod suite;

use std::process::ExitCode;

use forebay_gds::{CudaDriver, Device, Ladder, Pinning, Wire};
use harness::Test;
use suite::{CHECKS, PATIENCE, Piece, bytes, finish, ring};

const SLOT: usize = 4 << 20;
const LONG_SLOT: usize = 64 << 20;

fn main() -> ExitCode {
    let state = CudaDriver::look();
    println!("{}", Ladder::new(state.first(), Wire::Unknown));
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
    harness::run(&tests, device.err().map(String::as_str))
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
