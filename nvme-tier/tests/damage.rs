//! What a tier does when devices fail and bits rot, on simulated disks.

mod common;

use std::sync::Arc;

use common::{EXTENT, Rig, name, narrow, pool, small_disk, small_format, version};
use extent::{ExtentIndex, Kind};
use forebay_nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, SimDisk, When};
use forebay_nvme_tier::device::{DeviceIndex, Location};
use forebay_nvme_tier::{Mark, State, check};

fn rig(slabs: u64) -> Rig {
    let rig = Rig::new(small_disk(slabs, 1, 4096, 7), &small_format());
    rig.tier.allow_eviction();
    rig
}

#[test]
fn a_device_that_fails_a_flush_is_distrusted_and_the_old_generation_stays() {
    for (operation, nth) in [(Operation::Flush, 1), (Operation::Flush, 2), (Operation::Write, 1)] {
        let mut rig = rig(8);
        let old = rig.write_file(&name("s/w"), EXTENT, &[], 1).expect("commits");
        rig.settle();
        let draft = rig.tier.begin(name("s/w"), EXTENT).expect("begins");
        let at = ExtentIndex(0);
        let slot = rig.ask(|tier, done| tier.reserve_draft(&draft, at, narrow(EXTENT), done));
        let slot = slot.expect("reserves");
        let sums = rig.write(&slot, 2);
        let rule = FaultRule::new(operation, When::Nth(nth), Fault::Fail);
        rig.disk.set_faults(FaultPlan::new().with(rule));
        let failed = rig.ask(|tier, done| tier.commit(draft, EXTENT, vec![(slot, sums)], done));
        assert_eq!(failed.expect_err("not durable").kind(), Kind::Io, "{operation:?} {nth}");
        assert!(rig.tier.usage().devices[0].failed);
        let newest = rig.find(&name("s/w")).expect("known").newest();
        assert!(Arc::ptr_eq(&newest, &old) && rig.holds(&newest, 0, 1));
        let refused = rig.write_file(&name("s/x"), EXTENT, &[], 1).expect_err("no device left");
        assert_eq!(refused.kind(), Kind::Io);
        drop((old, newest));
        let rig = rig.restart();
        let newest = rig.find(&name("s/w")).expect("known").newest();
        let seed = newest.number().0;
        assert_eq!((newest.mark(), rig.holds(&newest, 0, seed)), (None, true), "old or new, whole");
    }
}

#[test]
fn the_other_device_carries_on() {
    let mut rig = Rig::new(small_disk(8, 2, 4096, 7), &small_format());
    rig.tier.allow_eviction();
    for number in 0..8 {
        rig.write_file(&name(&format!("s/{number}")), 2 * EXTENT, &[], number).expect("commits");
    }
    let rule = FaultRule::new(Operation::Flush, When::From(1), Fault::Fail).on(DeviceIndex(1));
    rig.disk.set_faults(FaultPlan::new().with(rule));
    let mut failures = 0;
    for number in 8..20 {
        let written = rig.write_file(&name(&format!("s/{number}")), EXTENT, &[], number);
        failures += u32::from(written.is_err());
    }
    assert!(failures <= 2, "{failures}: after the first, everything goes to the healthy device");
    let usage = rig.tier.usage();
    assert!(usage.devices[1].failed && !usage.devices[0].failed);
    rig.settle();
}

#[test]
fn one_rotten_copy_is_nothing_and_two_are_a_quarantine() {
    let mut rig = rig(8);
    rig.write_file(&name("s/w"), 2 * EXTENT, &[], 5).expect("commits");
    rig.settle();
    let records = find_records(&rig.disk, b"w");
    assert_eq!(records.len(), 2, "a dirty record stands twice");
    assert_ne!(records[0] / 4096, records[1] / 4096, "in different pages");
    flip(&rig.disk, records[0] + 300);
    let mut rig = rig.restart();
    assert_eq!((rig.report.findings.damaged_records, rig.report.dirty_files), (1, 1));
    assert!(rig.report.quarantined.is_empty());
    assert!(rig.holds(&rig.find(&name("s/w")).expect("known").newest(), 1, 5));
    rig.settle();
    let records = find_records(&rig.disk, b"w");
    assert_eq!(records.len(), 2, "there are two sound copies again");
    records.iter().for_each(|at| flip(&rig.disk, at + 1000));
    let mut rig = rig.restart();
    assert_eq!(rig.report.quarantined, [name("s/w")]);
    let generation = rig.find(&name("s/w")).expect("known").newest();
    assert_eq!((generation.mark(), generation.state()), (Some(Mark::Quarantined), State::Dirty));
    let used = rig.tier.usage().slot_bytes;
    assert_eq!((used, rig.tier.usage().quarantined_files), (2 * EXTENT, 1));
    rig.settle();
    let error = rig.ask(|tier, done| tier.settle(&generation, version("v"), done));
    assert_eq!(error.expect_err("not whole").kind(), Kind::Denied);
    drop(generation);
    let rig = rig.restart();
    assert_eq!(
        (rig.report.quarantined.len(), rig.tier.usage().slot_bytes),
        (1, used),
        "nothing is freed"
    );
}

#[test]
fn a_copy_whose_sequence_rots_does_not_pass_for_a_newer_record() {
    let mut rig = rig(8);
    rig.write_file(&name("s/w"), EXTENT, &[], 5).expect("commits");
    rig.settle();
    let copy = find_records(&rig.disk, b"w")[0];
    flip(&rig.disk, copy + 45);
    let rig = rig.restart();
    assert_eq!(rig.report.findings.damaged_records, 1);
    assert_eq!(rig.report.quarantined, [], "the other copy says the same and is sound");
    assert!(rig.holds(&rig.find(&name("s/w")).expect("known").newest(), 0, 5));
}

#[test]
fn no_id_is_given_twice_when_the_newer_superblock_rots() {
    for newer in [0, 64 << 10] {
        let mut rig = rig(8);
        if newer == 0 {
            rig = rig.restart();
        }
        let given = rig.tier.begin(name("s/w"), EXTENT).expect("begins").attempt();
        flip(&rig.disk, newer + 100);
        let rig = rig.restart();
        assert_eq!(rig.report.findings.bad_superblocks, 1);
        let next = rig.tier.begin(name("s/w"), EXTENT).expect("begins").attempt();
        assert!(next > given, "{next:?} after {given:?}");
    }
}

#[test]
fn a_lost_descriptor_of_a_dirty_file_is_a_quarantine_and_of_a_clean_one_a_miss() {
    let mut rig = rig(8);
    let dirty = rig.write_file(&name("s/w"), 2 * EXTENT, &[], 5).expect("commits");
    let clean = rig.register(&name("s/c"), 2 * EXTENT, "v").expect("registers");
    (0..2).for_each(|index| rig.fill(&clean, index, 6).expect("fills"));
    rig.settle();
    for generation in [&dirty, &clean.newest()] {
        let at = generation.extent(ExtentIndex(1)).expect("resident").at();
        flip(&rig.disk, descriptor_of(at.offset));
    }
    drop((dirty, clean));
    let mut rig = rig.restart();
    assert_eq!(rig.report.findings.damaged_descriptors, 2);
    assert_eq!(rig.report.quarantined, [name("s/w")]);
    let clean = rig.find(&name("s/c")).expect("known");
    assert!(rig.holds(&clean.newest(), 0, 6) && clean.newest().extent(ExtentIndex(1)).is_none());
    rig.fill(&clean, 1, 6).expect("fetched again");
    rig.settle();
    let dirty = rig.find(&name("s/w")).expect("known").newest();
    assert!(rig.holds(&dirty, 0, 5), "what is there stays there");
    assert!(dirty.extent(ExtentIndex(1)).is_none());
}

#[test]
fn damage_to_superblocks_and_headers_is_survived_and_repaired() {
    let mut rig = rig(8);
    rig.write_file(&name("s/w"), 2 * EXTENT, &[], 5).expect("commits");
    rig.settle();
    for copy in [0, 4096] {
        for slab in 0..8 {
            flip(&rig.disk, (1 << 20) + slab * (256 << 10) + copy + 30);
        }
        flip(&rig.disk, if copy == 0 { 17 } else { (64 << 10) + 17 });
        let mut next = rig.restart();
        assert_eq!(next.report.findings.bad_superblocks, 1);
        assert!(next.report.findings.repaired_slabs >= 2);
        assert!(next.holds(&next.find(&name("s/w")).expect("known").newest(), 1, 5));
        next.settle();
        rig = next;
    }
    for offset in [17, (64 << 10) + 17] {
        flip(&rig.disk, offset);
    }
    let disk = rig.disk.clone();
    drop(rig);
    assert_eq!(Rig::on(disk).err().expect("no superblock").kind(), Kind::Corrupt);
}

#[test]
fn a_check_names_what_is_rotten() {
    let mut rig = rig(8);
    let clean = rig.register(&name("s/c"), 3 * EXTENT, "v").expect("registers");
    (0..3).for_each(|index| rig.fill(&clean, index, 6).expect("fills"));
    let dirty = rig.write_file(&name("s/w"), EXTENT + 10, &[], 5).expect("commits");
    rig.settle();
    let (mut calls, disk) = (0, rig.disk.clone());
    let report = check(&mut disk.queue(), &pool(), &mut |done, total| {
        calls += 1;
        assert!(done <= total);
    });
    let report = report.expect("checks");
    assert!(report.is_sound() && calls > 0, "{report:?}");
    assert_eq!((report.files, report.extents, report.bytes), (2, 5, 4 * EXTENT + 4096));
    let extents = [(clean.newest(), 2, 70), (dirty, 1, 9)];
    for (generation, index, byte) in &extents {
        let extent = generation.extent(ExtentIndex(*index)).expect("resident");
        flip(&rig.disk, extent.at().offset + byte);
        assert_eq!(rig.read(generation, &extent), None);
    }
    let report = check(&mut disk.queue(), &pool(), &mut |_, _| {}).expect("checks");
    let bad: Vec<_> =
        report.bad_extents.iter().map(|b| (b.name.to_string(), b.index.0, b.dirty)).collect();
    let mut expected = vec![("s/c".to_owned(), 2, false), ("s/w".to_owned(), 1, true)];
    expected.sort_by_key(|(name, ..)| bad.iter().position(|(n, ..)| n == name));
    assert_eq!((bad, report.is_sound(), report.bad_extent_count), (expected, false, 2));
}

#[test]
fn another_formats_leftovers_are_never_believed() {
    let mut rig = rig(8);
    for number in 0..5 {
        rig.write_file(&name(&format!("s/{number}")), EXTENT, &[], number).expect("commits");
    }
    rig.settle();
    let disk = rig.disk.clone();
    drop(rig);
    forebay_nvme_tier::format(&mut disk.queue(), &pool(), &small_format()).expect("formats again");
    let mut rig = Rig::on(disk).expect("recovers");
    assert_eq!((rig.report.files, rig.report.extents), (0, 0));
    rig.write_file(&name("s/1"), 2 * EXTENT, &[], 77).expect("commits");
    let rig = rig.restart();
    assert_eq!((rig.report.files, rig.report.extents), (1, 2));
    assert!(rig.holds(&rig.find(&name("s/1")).expect("known").newest(), 1, 77));
}

#[test]
fn devices_of_another_tier_or_order_are_refused() {
    let sim = small_disk(4, 2, 4096, 1);
    let rig = Rig::new(sim, &small_format());
    let images = rig.disk.durable_image();
    drop(rig);
    let swapped = SimDisk::from_images(sim, images.iter().rev().cloned().collect());
    assert_eq!(Rig::on(swapped).err().expect("swapped").kind(), Kind::Invalid);
    let one = common::small_disk(4, 1, 4096, 1);
    let alone = SimDisk::from_images(one, images[..1].to_vec());
    assert_eq!(Rig::on(alone).err().expect("one missing").kind(), Kind::Invalid);
    let empty = SimDisk::new(one);
    assert_eq!(Rig::on(empty).err().expect("unformatted").kind(), Kind::NotFound);
}

/// Offsets of the file records of a key on the only device.
fn find_records(disk: &SimDisk, key: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    let end = disk.options().capacity_bytes;
    for at in (1 << 20..end).step_by(2048) {
        let at = Location { device: DeviceIndex(0), offset: at };
        let bytes = disk.peek(at, 2048);
        let is_record = &bytes[..4] == b"4bFR"
            && bytes.windows(2 + key.len()).any(|w| w[0] == b's' && w[1..=key.len()] == *key);
        if is_record {
            found.push(at.offset);
        }
    }
    found
}

/// Where the descriptor of a 64 KiB slot at an offset stands, on 4 KiB blocks.
fn descriptor_of(slot: u64) -> u64 {
    let slab = (slot - (1 << 20)) / (256 << 10) * (256 << 10) + (1 << 20);
    // 3 slots of 64 KiB, behind two headers and three descriptors of 4 KiB.
    let number = (slot - slab - 5 * 4096) / EXTENT;
    slab + 2 * 4096 + number * 4096 + 90
}

fn flip(disk: &SimDisk, offset: u64) {
    let at = Location { device: DeviceIndex(0), offset };
    let byte = disk.peek(at, 1)[0];
    disk.poke(at, &[byte ^ 4]);
}
