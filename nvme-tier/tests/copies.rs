//! What is kept on two devices: where it goes, what it takes, and what happens when there is no second
//! one.

mod common;

use common::{EXTENT, Rig, keeping, name, options, pool, small_disk, small_format, version};
use extent::{ExtentIndex, Kind};
use forebay_nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, SimDisk, When};
use forebay_nvme_tier::device::{DeviceIndex, Location};
use forebay_nvme_tier::{Copies, Mark, State, format};

const FIRST: DeviceIndex = DeviceIndex(0);
const SECOND: DeviceIndex = DeviceIndex(1);

fn disks(slabs: u64, devices: u16) -> SimDisk {
    let disk = SimDisk::new(small_disk(slabs, devices, 4096, 11));
    format(&mut disk.queue(), &pool(), &small_format()).expect("formats");
    disk
}

/// Two devices, two copies.
fn rig(slabs: u64) -> Rig {
    let rig = Rig::with(disks(slabs, 2), keeping(Copies::Two)).expect("recovers");
    rig.tier.allow_eviction();
    rig
}

/// The same disks as they are now, without what was done to these.
fn copy_of(disk: &SimDisk) -> SimDisk {
    SimDisk::from_images(disk.options(), disk.durable_image())
}

/// Where the first sector on a device is that begins like this.
fn find(disk: &SimDisk, device: DeviceIndex, magic: &[u8]) -> Location {
    let at = |offset| Location { device, offset };
    let offsets = (1 << 20..disk.options().capacity_bytes).step_by(512);
    offsets.map(at).find(|at| disk.peek(*at, magic.len()) == magic).expect("it is there")
}

fn flip(disk: &SimDisk, at: Location, byte: u64) {
    let at = Location { offset: at.offset + byte, ..at };
    disk.poke(at, &[disk.peek(at, 1)[0] ^ 1]);
}

#[test]
fn extents_and_counters_are_those_of_one_copy() {
    let mut rig = rig(8);
    let length = 2 * EXTENT + 100;
    let written = rig.write_file(&name("s/a"), length, &[], 5).expect("commits");
    for index in (0..3).map(ExtentIndex) {
        let first = written.extent(index).expect("resident");
        let second = written.copy(index).expect("and twice");
        assert_ne!(first.at().device, second.at().device);
        let bytes = |extent| rig.read(&written, extent);
        assert!(bytes(&first).is_some() && bytes(&first) == bytes(&second));
    }
    let usage = rig.tier.usage();
    assert_eq!((usage.resident_extents, usage.resident_bytes), (3, length));
    assert_eq!(usage.slot_bytes, 2 * (2 * EXTENT + (16 << 10)));
    rig.ask(|tier, done| tier.settle(&written, version("v"), done)).expect("settles");
    rig.settle();
    assert!(written.copy(ExtentIndex(0)).is_none(), "the silo is the second one");
    let usage = rig.tier.usage();
    assert_eq!((usage.resident_extents, usage.resident_bytes), (3, length));
    assert_eq!(usage.slot_bytes, 2 * EXTENT + (16 << 10));
}

#[test]
fn first_copies_alternate() {
    let mut rig = rig(8);
    let firsts: Vec<_> = (0..4)
        .map(|n| rig.write_file(&name(&format!("s/{n}")), EXTENT, &[], n).expect("commits"))
        .map(|written| written.extent(ExtentIndex(0)).expect("resident").at().device)
        .collect();
    assert_eq!(firsts.iter().filter(|device| **device == FIRST).count(), 2, "{firsts:?}");
}

#[test]
fn without_a_second_device_nothing_is_taken() {
    let mut rig = Rig::with(disks(8, 1), keeping(Copies::Two)).expect("recovers");
    let refused = rig.write_file(&name("s/a"), EXTENT, &[], 1).expect_err("one device");
    assert_eq!(refused.kind(), Kind::Io);
    assert!(refused.to_string().contains("dirty_copies"), "{refused}");
    // An empty file takes no slot, and its record needs two devices all the same.
    let refused = rig.write_file(&name("s/b"), 0, &[], 1).expect_err("one device");
    assert!(refused.to_string().contains("dirty_copies"), "{refused}");
    let clean = rig.register(&name("s/c"), EXTENT, "v").expect("what is clean is kept once");
    rig.fill(&clean, 0, 1).expect("fills");
}

#[test]
fn a_full_device_refuses_what_is_to_be_on_both() {
    // Both hold the same, and are full at the same time; the files are dirty, so nothing goes.
    let mut rig = rig(5);
    let mut files = 0;
    let refused = loop {
        match rig.write_file(&name(&format!("d/{files}")), EXTENT, &[], files) {
            Ok(_) => files += 1,
            Err(error) => break error,
        }
    };
    assert!(refused.kind() == Kind::NoSpace && files > 5, "{refused} after {files}");
    for number in 0..files {
        let newest = rig.find(&name(&format!("d/{number}"))).expect("known").newest();
        assert!(rig.holds(&newest, 0, number) && newest.copy(ExtentIndex(0)).is_some());
    }
    let first = rig.find(&name("d/0")).expect("known").newest();
    rig.ask(|tier, done| tier.settle(&first, version("v"), done)).expect("settles");
    drop(first);
    rig.write_file(&name("d/new"), EXTENT, &[], 99).expect("what is clean may go on either");
}

#[test]
fn clean_extents_go_only_where_room_is_wanted() {
    let mut rig = rig(6);
    let clean = rig.register(&name("s/clean"), 100 * EXTENT, "v").expect("registers");
    for index in 0..100 {
        if rig.fill(&clean, index, 1).is_err() {
            break;
        }
    }
    for number in 0..10 {
        rig.write_file(&name(&format!("d/{number}")), EXTENT, &[], number).expect("evicts");
    }
}

#[test]
fn what_was_committed_once_stays_as_it_is() {
    let disk = disks(8, 2);
    let mut rig = Rig::with(disk, keeping(Copies::One)).expect("recovers");
    rig.write_file(&name("s/once"), EXTENT, &[], 1).expect("commits");
    rig.settle();
    let mut rig = Rig::with(rig.disk.clone(), keeping(Copies::Two)).expect("recovers");
    let once = rig.find(&name("s/once")).expect("known").newest();
    assert!(!once.is_twice() && once.copy(ExtentIndex(0)).is_none() && rig.holds(&once, 0, 1));
    rig.write_file(&name("s/twice"), EXTENT, &[], 2).expect("commits");
    rig.settle();
    let mut rig = Rig::with(rig.disk.clone(), keeping(Copies::One)).expect("recovers");
    let twice = rig.find(&name("s/twice")).expect("known").newest();
    assert!(twice.is_twice() && twice.copy(ExtentIndex(0)).is_some());
    assert_eq!(rig.report.findings.missing_copies, 0);
    for file in ["s/once", "s/twice"] {
        let newest = rig.find(&name(file)).expect("known").newest();
        rig.ask(|tier, done| tier.settle(&newest, version("v"), done)).expect("settles");
    }
    rig.settle();
    let rig = rig.restart();
    assert_eq!((rig.report.dirty_files, rig.report.extents), (0, 2));
}

#[test]
fn damage_to_one_descriptor_costs_a_copy_and_to_both_the_file() {
    let mut rig = rig(8);
    rig.write_file(&name("s/a"), EXTENT, &[], 5).expect("commits");
    rig.settle();
    let disk = rig.disk.clone();
    for byte in [9, 30, 60, 75, 85, 101, 200] {
        for device in [FIRST, SECOND] {
            let one = copy_of(&disk);
            flip(&one, find(&one, device, b"4bED"), byte);
            let rig = Rig::with(one.clone(), keeping(Copies::Two)).expect("recovers");
            let newest = rig.find(&name("s/a")).expect("known").newest();
            assert!(newest.mark().is_none() && rig.holds(&newest, 0, 5), "byte {byte}");
            assert_eq!(rig.report.findings.missing_copies, 1);
            assert_eq!((rig.report.quarantined.len(), rig.tier.usage().files_missing_copy), (0, 1));
        }
        let both = copy_of(&disk);
        for device in [FIRST, SECOND] {
            flip(&both, find(&both, device, b"4bED"), byte);
        }
        let rig = Rig::with(both, keeping(Copies::Two)).expect("recovers");
        assert_eq!(rig.report.quarantined, [name("s/a")]);
    }
}

#[test]
fn damage_to_one_record_is_mended_before_anything_is_served() {
    let mut rig = rig(8);
    rig.write_file(&name("s/a"), EXTENT, &[], 5).expect("commits");
    rig.settle();
    let disk = rig.disk.clone();
    for byte in [9, 41, 50, 65, 73, 100, 120] {
        for device in [FIRST, SECOND] {
            let one = copy_of(&disk);
            flip(&one, find(&one, device, b"4bFR"), byte);
            drop(Rig::with(one.clone(), keeping(Copies::Two)).expect("recovers"));
            // Whichever is lost now, the other one has it.
            for lost in [FIRST, SECOND] {
                let left = copy_of(&one);
                let rig = Rig::without(left, keeping(Copies::Two), pool(), &[lost]);
                let rig = rig.expect("recovers");
                let newest = rig.find(&name("s/a")).expect("known").newest();
                assert!(newest.state() == State::Dirty && rig.holds(&newest, 0, 5), "byte {byte}");
            }
        }
    }
}

#[test]
fn a_damaged_descriptor_of_either_copy_is_found_and_written_again() {
    let mut rig = rig(8);
    let written = rig.write_file(&name("s/a"), EXTENT, &[], 5).expect("commits");
    rig.settle();
    for device in [FIRST, SECOND] {
        flip(&rig.disk, find(&rig.disk, device, b"4bED"), 75);
        let look = |rig: &mut Rig| {
            rig.ask(|tier, done| tier.look_at_descriptors(&written, 0..1, done)).expect("looks")
        };
        let found = look(&mut rig);
        assert_eq!((found.entries, found.damaged), (2, 1));
        assert_eq!(found.extents.len() + found.copies.len(), 1);
        let bad = if found.copies.is_empty() {
            written.extent(ExtentIndex(0))
        } else {
            written.copy(ExtentIndex(0))
        };
        let bad = bad.expect("here");
        assert_eq!(bad.at().device, device);
        rig.ask(|tier, done| tier.rewrite_descriptor(&written, &bad, done)).expect("writes");
        assert_eq!(look(&mut rig).damaged, 0);
    }
    rig.ask(|tier, done| tier.flush(done)).expect("flushes");
    let rig = rig.restart();
    assert_eq!(rig.report.findings.missing_copies, 0);
}

#[test]
fn what_is_only_on_an_absent_device_waits_for_it() {
    let mut rig = Rig::with(disks(8, 2), keeping(Copies::One)).expect("recovers");
    let files: Vec<_> = (0..12).map(|number| name(&format!("s/{number}"))).collect();
    for (seed, file) in (0..).zip(&files) {
        rig.write_file(file, EXTENT, &[], seed).expect("commits");
    }
    rig.settle();
    let disk = rig.disk.clone();
    drop(rig);
    for lost in [FIRST, SECOND] {
        let images = disk.durable_image();
        let disk = SimDisk::from_images(disk.options(), images);
        let mut rig = Rig::without(disk.clone(), options(), pool(), &[lost]).expect("recovers");
        assert!(rig.tier.is_incomplete(), "before anything is asked of it");
        let known = files.iter().filter_map(|file| rig.find(file)).map(|file| file.newest());
        let (set_aside, whole): (Vec<_>, Vec<_>) =
            known.partition(|newest| newest.mark() == Some(Mark::Quarantined));
        assert!(!set_aside.is_empty() && set_aside.len() + whole.len() < files.len());
        for newest in &set_aside {
            assert!(rig.tier.is_waiting(newest) && rig.tier.untrusted() == [lost]);
            let file = rig.tier.file(newest.file_id()).expect("known");
            let looked = rig.ask(|tier, done| tier.look_at_records(&file, done)).expect("looks");
            assert!(looked.entries > 0 && looked.damaged == 0, "nothing is wrong with its record");
        }
        rig.tier.allow_eviction();
        // What is left is filled to the brim: nothing of what waits is written over.
        let mut number = 0;
        while rig.write_file(&name(&format!("t/{number}")), EXTENT, &[], 9).is_ok() {
            number += 1;
        }
        rig.settle();
        assert_eq!(disk.faults_injected(), 0, "the one that is absent is left alone");
        let disk = SimDisk::from_images(disk.options(), disk.durable_image());
        drop((rig, set_aside, whole));
        let rig = Rig::on(disk).expect("recovers");
        for (seed, file) in (0..).zip(&files) {
            let newest = rig.find(file).expect("known again").newest();
            assert!(newest.mark().is_none() && rig.holds(&newest, 0, seed), "{file}");
        }
    }
}

#[test]
fn devices_that_were_used_apart_are_not_mixed() {
    let mut rig = rig(8);
    rig.write_file(&name("s/a"), EXTENT, &[], 5).expect("commits");
    rig.settle();
    let whole = rig.disk.clone();
    let halves = [FIRST, SECOND].map(|lost| {
        let disk = copy_of(&whole);
        let mut rig = Rig::without(disk.clone(), options(), pool(), &[lost]).expect("recovers");
        let newest = rig.find(&name("s/a")).expect("known").newest();
        rig.ask(|tier, done| tier.settle(&newest, version("v"), done)).expect("settles");
        rig.settle();
        disk.durable_image()
    });
    let [without_first, without_second] = halves;
    // The first device of the run without the second, and the other way round.
    let mut mixed = without_second.clone();
    mixed[1] = without_first[1].clone();
    let mixed = SimDisk::from_images(whole.options(), mixed);
    let refused = Rig::on(mixed.clone()).err().expect("they differ");
    assert_eq!(refused.kind(), Kind::Invalid);
    assert!(refused.to_string().contains("used without the other"), "{refused}");
    for lost in [FIRST, SECOND] {
        let one = Rig::without(copy_of(&mixed), options(), pool(), &[lost]);
        one.expect("each is a tier of its own");
    }
    let all = Rig::without(copy_of(&whole), options(), pool(), &[FIRST, SECOND]);
    assert_eq!(all.err().expect("nothing is left").kind(), Kind::Invalid);
    // One that was left out and comes back is part of it again, and may be left out again.
    let back = SimDisk::from_images(whole.options(), without_second);
    drop(Rig::on(back.clone()).expect("it comes back"));
    Rig::without(copy_of(&back), options(), pool(), &[FIRST]).expect("either may go now");
}

#[test]
fn a_write_back_is_noted_although_a_device_fails() {
    for device in [FIRST, SECOND] {
        let mut rig = rig(8);
        let written = rig.write_file(&name("s/a"), EXTENT, &[], 5).expect("commits");
        rig.settle();
        let rule = FaultRule::new(Operation::Any, When::From(1), Fault::Vanish).on(device);
        rig.disk.set_faults(FaultPlan::new().with(rule));
        rig.ask(|tier, done| tier.settle(&written, version("v"), done)).expect("one is left");
        assert_eq!(written.state(), State::Clean);
        rig.settle();
    }
}

#[test]
fn what_is_newer_than_an_absent_device_stands_on_two_others() {
    let mut rig = Rig::with(disks(8, 3), keeping(Copies::One)).expect("recovers");
    let files: Vec<_> = (0..9).map(|number| name(&format!("s/{number}"))).collect();
    for file in &files {
        rig.register(file, EXTENT, "v1").expect("registers");
    }
    rig.settle();
    let third = DeviceIndex(2);
    let disk = copy_of(&rig.disk);
    let mut rig = Rig::without(disk, options(), pool(), &[third]).expect("recovers");
    for file in &files {
        rig.register(file, EXTENT, "v2").expect("registers");
    }
    rig.settle();
    for lost in [FIRST, SECOND] {
        let disk = copy_of(&rig.disk);
        let rig = Rig::without(disk, options(), pool(), &[lost]).expect("recovers");
        for file in &files {
            let newest = rig.find(file).expect("known").newest();
            assert_eq!(newest.version(), Some(version("v2")), "{file} without {lost:?}");
        }
    }
}

#[test]
fn what_was_settled_meanwhile_is_not_quarantined() {
    let mut rig = rig(8);
    let written = rig.write_file(&name("s/a"), EXTENT, &[], 5).expect("commits");
    rig.ask(|tier, done| tier.settle(&written, version("v"), done)).expect("settles");
    let mark = Some(Mark::Quarantined);
    rig.ask(|tier, done| tier.mark(&written, mark, done)).expect("nothing is lost");
    assert_eq!((written.mark(), rig.tier.usage().quarantined_files), (None, 0));
    let rig = rig.restart();
    assert!(rig.find(&name("s/a")).expect("known").newest().mark().is_none());
}
