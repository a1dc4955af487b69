//! Bits that rot on simulated disks.
#![allow(dead_code, reason = "each test file uses a part of it")]

use nvme_tier::device::sim::SimDisk;
use nvme_tier::device::{DeviceIndex, Location};

/// Flips a bit of the stretch of the first device that begins with these bytes.
pub(crate) fn rot(disk: &SimDisk, bytes: &[u8], at: u64) {
    flip(disk, find(disk, bytes) + at);
}

/// Where these bytes begin on the first device.
pub(crate) fn find(disk: &SimDisk, bytes: &[u8]) -> u64 {
    let probe = &bytes[..64];
    let found = places(disk, 4096, |there| there.starts_with(probe));
    assert_eq!(found.len(), 1, "the bytes are there once");
    found[0]
}

/// Where records that begin with these bytes stand, at multiples of `step` past the superblocks.
pub(crate) fn places_of(disk: &SimDisk, magic: &[u8], step: usize) -> Vec<u64> {
    places(disk, step, |there| there.starts_with(magic))
}

fn places(disk: &SimDisk, step: usize, is_it: impl Fn(&[u8]) -> bool) -> Vec<u64> {
    let offsets = (1 << 20..disk.options().capacity_bytes - 64).step_by(step);
    offsets.filter(|offset| is_it(&disk.peek(at(*offset), 64))).collect()
}

/// Flips a bit of a byte.
pub(crate) fn flip(disk: &SimDisk, offset: u64) {
    let byte = disk.peek(at(offset), 1)[0];
    disk.poke(at(offset), &[byte ^ 4]);
}

fn at(offset: u64) -> Location {
    Location { device: DeviceIndex(0), offset }
}
