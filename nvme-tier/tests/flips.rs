//! Every bit of the metadata, flipped in turn, on a small tier with clean and dirty files.
//!
//! After each flip the tier is recovered and judged; then it settles, so that recovery's own
//! clean-up has happened, takes new writes, is recovered again and judged again. What must hold:
//!
//! - no extent that matches its checksums holds anything but the file's bytes, and a file that was
//!   written twice never shows its older bytes;
//! - a dirty file is whole, or it is reported and quarantined, and what is left of it is kept;
//! - where there are two copies (superblocks, slab headers, records of dirty files) one flip costs
//!   nothing;
//! - a clean file may lose extents, or be forgotten: its silo has it.

mod common;
#[path = "flips/specimen.rs"]
mod specimen;

use forebay_nvme_tier::device::sim::SimDisk;
use forebay_nvme_tier::device::{DeviceIndex, Location};
use specimen::{Area, Kind, Specimen};

/// Of the bits that are padding, and of those of free entries, one in so many is flipped, unless
/// FOREBAY_FLIPS=all is set.
const OF_PADDING: u64 = 17;
const OF_FREE: u64 = 997;

#[test]
fn no_flipped_bit_of_a_superblock_costs_anything() {
    flip_all(Kind::Superblock);
}

#[test]
fn no_flipped_bit_of_a_slab_header_costs_anything() {
    flip_all(Kind::Header);
}

#[test]
fn no_flipped_bit_of_a_dirty_files_record_costs_anything() {
    flip_all(Kind::DirtyRecord);
}

#[test]
fn a_flipped_bit_of_a_clean_files_record_costs_at_most_a_fetch() {
    flip_all(Kind::CleanRecord);
}

#[test]
fn a_flipped_bit_of_a_dirty_descriptor_is_a_quarantine_that_keeps_the_rest() {
    flip_all(Kind::DirtyDescriptor);
}

#[test]
fn a_flipped_bit_of_a_clean_descriptor_costs_at_most_a_fetch() {
    flip_all(Kind::CleanDescriptor);
}

#[test]
fn flipped_bits_of_free_entries_and_padding_cost_nothing() {
    let (specimen, all) = (Specimen::new(), is_all());
    for area in specimen.areas(Kind::Free) {
        area.bits().filter(|bit| all || bit.is_multiple_of(OF_FREE)).for_each(|bit| {
            judge(&specimen, &area, bit);
        });
    }
}

#[test]
fn a_sample_of_data_bits_is_noticed_and_never_served() {
    let specimen = Specimen::new();
    let mut noticed = 0;
    for area in specimen.areas(Kind::Data) {
        for bit in area.bits().step_by(499) {
            let disk = specimen.disk();
            flip(&disk, bit);
            noticed += u64::from(specimen.notices_damage(disk, &area));
        }
    }
    assert!(noticed >= 200, "{noticed}");
}

#[test]
fn what_is_left_of_a_dirty_file_is_kept_if_both_copies_are_damaged() {
    let specimen = Specimen::new();
    // Not the bit that says that it is dirty: who flips that in both copies makes it clean.
    lose_both(&specimen, &specimen.areas(Kind::DirtyRecord), |bit| bit != 100 * 8);
    let headers = specimen.areas(Kind::Header);
    headers.chunks(2).for_each(|pair| lose_both(&specimen, pair, |_| true));
}

#[test]
fn a_device_with_two_damaged_superblocks_is_not_taken_for_an_empty_one() {
    let specimen = Specimen::new();
    let [a, b] = &specimen.areas(Kind::Superblock)[..] else { panic!("there are two") };
    for (bit, other) in a.bits().zip(b.bits()).step_by(61) {
        let disk = specimen.disk();
        flip(&disk, bit);
        flip(&disk, other);
        let error = common::Rig::on(disk).err().expect("refused");
        assert_eq!(error.kind(), extent::Kind::Corrupt);
    }
}

/// Flips the same bit of two copies.
fn lose_both(specimen: &Specimen, pair: &[Area], wanted: impl Fn(u64) -> bool) {
    let [a, b] = pair else { panic!("there are two copies, not {}", pair.len()) };
    for number in (0..a.bits().end - a.bits().start).step_by(61).filter(|bit| wanted(*bit)) {
        let disk = specimen.disk();
        flip(&disk, a.bits().start + number);
        flip(&disk, b.bits().start + number);
        if let Err(what) = specimen.judge_lost(disk) {
            panic!("{:?}: bit {number} of both: {what}", a.kind);
        }
    }
}

fn flip_all(kind: Kind) {
    let (specimen, all) = (Specimen::new(), is_all());
    let areas = specimen.areas(kind);
    assert!(!areas.is_empty(), "there is nothing of that kind to flip");
    for area in areas {
        let wanted =
            |bit: &u64| all || bit.is_multiple_of(OF_PADDING) || !specimen.is_padding(bit / 8);
        area.bits().filter(wanted).for_each(|bit| judge(&specimen, &area, bit));
    }
}

fn is_all() -> bool {
    std::env::var("FOREBAY_FLIPS").is_ok_and(|text| text == "all")
}

fn judge(specimen: &Specimen, area: &Area, bit: u64) {
    let disk = specimen.disk();
    flip(&disk, bit);
    // The longer examination for a few bits of each byte's neighbourhood.
    let thorough = bit.is_multiple_of(127);
    if let Err(what) = specimen.judge(disk, area.kind, thorough) {
        let (byte, within) = (bit / 8, bit - area.bits().start);
        panic!("{:?}: bit {} of byte {byte} ({within} of the area): {what}", area.kind, bit % 8);
    }
}

fn flip(disk: &SimDisk, bit: u64) {
    let at = Location { device: DeviceIndex(0), offset: bit / 8 };
    let byte = disk.peek(at, 1)[0];
    disk.poke(at, &[byte ^ (1 << (bit % 8))]);
}
