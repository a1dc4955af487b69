//! Looking at the metadata of a tier that runs, and writing again what does not hold.

mod common;

use std::sync::Arc;

use common::{EXTENT, Rig, name, small_disk, small_format};
use extent::ExtentIndex;
use forebay_nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, When};
use forebay_nvme_tier::device::{DeviceIndex, Location};
use forebay_nvme_tier::{File, FileGeneration, Looked};

const DEVICE: DeviceIndex = DeviceIndex(0);

fn furnished() -> Rig {
    let mut rig = Rig::new(small_disk(8, 1, 4096, 7), &small_format());
    let clean = rig.register(&name("s/c"), 2 * EXTENT, "v").expect("registers");
    (0..2).for_each(|index| rig.fill(&clean, index, 6).expect("fills"));
    rig.write_file(&name("s/w"), 2 * EXTENT, &[], 5).expect("commits");
    rig.settle();
    rig
}

fn device(rig: &mut Rig) -> Looked {
    rig.ask(|tier, done| tier.look_at_device(DEVICE, 0, done)).expect("looked")
}

fn records(rig: &mut Rig, file: &Arc<File>) -> Looked {
    rig.ask(|tier, done| tier.look_at_records(file, done)).expect("looked")
}

fn descriptors(rig: &mut Rig, generation: &Arc<FileGeneration>) -> Looked {
    rig.ask(|tier, done| tier.look_at_descriptors(generation, 0..9, done)).expect("looked")
}

fn places(rig: &Rig, magic: &[u8; 4]) -> Vec<u64> {
    let end = rig.disk.options().capacity_bytes;
    let offsets = (1 << 20..end).step_by(2048);
    let there = |offset: &u64| rig.disk.peek(Location { device: DEVICE, offset: *offset }, 4);
    offsets.filter(|offset| there(offset) == magic).collect()
}

fn flip(rig: &Rig, offset: u64) {
    let at = Location { device: DEVICE, offset };
    let byte = rig.disk.peek(at, 1)[0];
    rig.disk.poke(at, &[byte ^ 4]);
}

#[test]
fn a_sound_tier_looks_sound() {
    let mut rig = furnished();
    let found = device(&mut rig);
    assert_eq!((found.entries, found.damaged, found.next_slab), (2 + 2 * 3, 0, None), "{found:?}");
    for (file, copies) in [("s/c", 1), ("s/w", 2)] {
        let file = rig.find(&name(file)).expect("known");
        let (found, table) = (records(&mut rig, &file), descriptors(&mut rig, &file.newest()));
        assert_eq!((found.entries, found.damaged), (copies, 0));
        assert_eq!((table.entries, table.damaged), (2, 0));
    }
}

#[test]
fn a_damaged_header_or_superblock_is_written_again_and_the_sound_one_is_not_touched() {
    for copy in [0, 1] {
        let mut rig = furnished();
        // More than once: whichever of the two superblocks is the newer one.
        for _ in 0..3 {
            let headers = places(&rig, b"4bSH");
            flip(&rig, headers[copy] + 30);
            flip(&rig, if copy == 0 { 9 } else { (64 << 10) + 9 });
            assert_eq!(device(&mut rig).damaged, 2);
            rig.ask(|tier, done| tier.flush(done)).expect("flushes");
            assert_eq!(device(&mut rig).damaged, 0);
        }
        let rig = rig.restart();
        let findings = rig.report.findings;
        assert_eq!((findings.bad_superblocks, findings.repaired_slabs), (0, 0));
        assert_eq!((rig.report.files, rig.report.extents), (2, 4));
    }
}

#[test]
fn a_damaged_copy_of_a_record_goes_to_a_fresh_place() {
    let mut rig = furnished();
    for (file, copies) in [("s/c", 1), ("s/w", 2)] {
        let file = rig.find(&name(file)).expect("known");
        let before = places(&rig, b"4bFR");
        let own = before.iter().copied().filter(|at| {
            let id = rig.disk.peek(Location { device: DEVICE, offset: at + 48 }, 16);
            id == file.id().0.to_le_bytes()
        });
        let own: Vec<u64> = own.collect();
        assert_eq!(own.len(), copies);
        own.iter().for_each(|at| flip(&rig, at + 1500));
        assert_eq!(records(&mut rig, &file).damaged, copies as u64, "all of them");
        rig.ask(|tier, done| tier.rewrite_record(&file, done)).expect("rewritten");
        let found = records(&mut rig, &file);
        assert_eq!((found.entries, found.damaged), (copies as u64, 0));
        rig.settle();
        let after = places(&rig, b"4bFR");
        assert!(own.iter().all(|at| !after.contains(at)), "nothing is overwritten where it stands");
    }
    let rig = rig.restart();
    assert_eq!((rig.report.files, rig.report.findings.damaged_records), (2, 0));
    assert!(rig.holds(&rig.find(&name("s/w")).expect("known").newest(), 1, 5));
}

#[test]
fn a_damaged_or_lost_descriptor_is_written_again() {
    let mut rig = furnished();
    for (file, seed) in [("s/c", 6), ("s/w", 5)] {
        let generation = rig.find(&name(file)).expect("known").newest();
        let all = places(&rig, b"4bED");
        let own: Vec<u64> = all
            .into_iter()
            .filter(|at| {
                let id = rig.disk.peek(Location { device: DEVICE, offset: at + 56 }, 16);
                id == generation.file_id().0.to_le_bytes()
            })
            .collect();
        flip(&rig, own[0] + 300);
        rig.disk.poke(Location { device: DEVICE, offset: own[1] }, &[0; 4096]);
        let found = descriptors(&mut rig, &generation);
        assert_eq!((found.damaged, found.extents.len()), (2, 2), "{found:?}");
        for index in found.extents {
            let extent = generation.extent(index).expect("resident");
            let rewrite = |tier: &forebay_nvme_tier::Tier, done| {
                tier.rewrite_descriptor(&generation, &extent, done);
            };
            rig.ask(rewrite).expect("rewritten");
        }
        assert_eq!(descriptors(&mut rig, &generation).damaged, 0);
        assert!(rig.holds(&generation, 0, seed));
    }
    rig.ask(|tier, done| tier.flush(done)).expect("flushes");
    let rig = rig.restart();
    assert_eq!((rig.report.extents, rig.report.quarantined.len()), (4, 0));
    let dirty = rig.find(&name("s/w")).expect("known").newest();
    assert!(dirty.extent(ExtentIndex(1)).is_some() && rig.holds(&dirty, 1, 5));
}

#[test]
fn what_cannot_be_read_is_told_and_no_reason_to_distrust_the_device() {
    let mut rig = furnished();
    let rule = FaultRule::new(Operation::Read, When::From(1), Fault::Fail);
    rig.disk.set_faults(FaultPlan::new().with(rule));
    let file = rig.find(&name("s/w")).expect("known");
    let found = records(&mut rig, &file);
    assert_eq!((found.damaged, found.unreadable), (2, 2));
    assert!(!rig.tier.usage().devices[0].failed);
    rig.write_file(&name("s/x"), EXTENT, &[], 1).expect("it still takes writes");
}

#[test]
fn a_look_in_the_middle_of_commits_sees_nothing_half_written() {
    let mut rig = Rig::new(small_disk(12, 1, 512, 7), &small_format());
    rig.tier.allow_eviction();
    let mut looked = 0;
    for round in 0..60u64 {
        let file = name(&format!("s/{}", round % 3));
        rig.write_file(&file, EXTENT + 100, &[], round).expect("commits");
        let known = rig.find(&file).expect("known");
        let generation = known.newest();
        let answers = [
            rig.post(|tier, done| tier.look_at_descriptors(&generation, 0..2, done)),
            rig.post(|tier, done| tier.look_at_records(&known, done)),
            rig.post(|tier, done| tier.look_at_device(DEVICE, 0, done)),
        ];
        for _ in 0..round % 7 {
            rig.step();
        }
        let other = name(&format!("s/{}", (round + 1) % 3));
        rig.write_file(&other, EXTENT, &[], round).expect("commits");
        rig.settle();
        for answer in answers {
            let found = answer.lock().take().expect("told").expect("looked");
            assert_eq!(found.damaged, 0, "round {round}: {found:?}");
            looked += found.entries;
        }
        if round % 3 == 0 {
            let version = common::version(&format!("v{round}"));
            let newest = rig.find(&other).expect("known").newest();
            rig.ask(|tier, done| tier.settle(&newest, version, done)).expect("settles");
        }
    }
    assert!(looked > 300, "{looked}");
}
