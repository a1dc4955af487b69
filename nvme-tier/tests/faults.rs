//! Every operation of a tier that may fail or find no room, one after the other.
//!
//! # Where room is taken, and what says no
//! | site | test below |
//! |---|---|
//! | a slot for a fill, everything dirty or pinned | `a_fill_finds_no_slot` |
//! | a slot for a fill before pins are known | `no_slot_is_taken_from_others_before_pins_are_known` |
//! | a slot for a draft | `a_draft_finds_no_slot` |
//! | a slab for a class that has none | `a_class_finds_no_slab` |
//! | a slot for a file's record | `a_record_finds_no_slot` |
//! | the ledger's queues | `a_full_queue_refuses` |
//! | a device for a tier | `a_device_too_small_is_refused` |
//! | a file for a device | `device::allocate` (its own unit test, on a full file system) |
//! | memory for the ledger's buffers and recovery's | from the system at start only: an error of the start |

mod common;

use std::sync::Arc;

use common::{EXTENT, NOW_MS, Rig, name, options, pool, small_disk, small_format, version};
use extent::{ExtentIndex, Kind};
use forebay_nvme_tier::device::DeviceIndex;
use forebay_nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, SimDisk, When};
use forebay_nvme_tier::{FormatOptions, State, TierOptions, format};

fn rig(slabs: u64) -> Rig {
    let rig = Rig::new(small_disk(slabs, 1, 4096, 7), &small_format());
    rig.tier.allow_eviction();
    rig
}

/// Dirty files until there is no room for another.
fn fill_with_dirty(rig: &mut Rig) -> (u64, Kind) {
    let mut number = 0;
    loop {
        match rig.write_file(&name(&format!("d/{number}")), EXTENT, &[], number) {
            Ok(_) => number += 1,
            Err(error) => return (number, error.kind()),
        }
    }
}

fn assert_all_there(rig: &Rig, files: u64) {
    for number in 0..files {
        let newest = rig.find(&name(&format!("d/{number}"))).expect("known").newest();
        assert!(rig.holds(&newest, 0, number) && newest.state() == State::Dirty, "d/{number}");
    }
}

#[test]
fn a_fill_finds_no_slot() {
    let mut rig = rig(6);
    let clean = rig.register(&name("s/c"), EXTENT, "v").expect("registers");
    let (files, _) = fill_with_dirty(&mut rig);
    let error = rig.fill(&clean, 0, 1).expect_err("nothing may go");
    assert_eq!(error.kind(), Kind::NoSpace);
    assert_all_there(&rig, files);
    let first = rig.find(&name("d/0")).expect("known").newest();
    rig.ask(|tier, done| tier.settle(&first, version("v"), done)).expect("settles");
    drop(first);
    // At once, while what was evicted is being erased.
    rig.fill(&clean, 0, 1).expect("what is clean may go");
}

#[test]
fn no_slot_is_taken_from_others_before_pins_are_known() {
    let mut rig = Rig::new(small_disk(4, 1, 4096, 7), &small_format());
    let many = rig.register(&name("s/c"), 100 * EXTENT, "v").expect("registers");
    let refused = (0..100).find_map(|index| rig.fill(&many, index, 1).err()).expect("full");
    assert_eq!(refused.kind(), Kind::Busy, "and not for good: {refused}");
    rig.tier.pin(&many, "job", NOW_MS.load(std::sync::atomic::Ordering::Relaxed) + 10_000);
    rig.tier.allow_eviction();
    assert_eq!(rig.fill(&many, 99, 1).expect_err("pinned").kind(), Kind::NoSpace);
    rig.tier.unpin(&many, "job");
    rig.fill(&many, 99, 1).expect("evicts");
}

#[test]
fn a_draft_finds_no_slot() {
    let mut rig = rig(6);
    let (files, kind) = fill_with_dirty(&mut rig);
    assert!(kind == Kind::NoSpace && files >= 12, "{kind:?} after {files}");
    assert_all_there(&rig, files);
    rig.settle();
    let rig = rig.restart();
    assert_eq!(rig.report.quarantined, []);
    assert_all_there(&rig, files);
}

#[test]
fn a_class_finds_no_slab() {
    let mut rig = rig(6);
    let (files, _) = fill_with_dirty(&mut rig);
    // Small slots would need a slab of their own, and each holds something dirty.
    let error = rig.write_file(&name("s/small"), 100, &[], 1).expect_err("no slab");
    assert_eq!(error.kind(), Kind::NoSpace);
    assert_all_there(&rig, files);
}

#[test]
fn a_record_finds_no_slot() {
    let mut rig = rig(3);
    // One slab for data, the others for records, each of 62 slots of 4 KiB.
    rig.write_file(&name("d/0"), EXTENT, &[], 0).expect("commits");
    let mut known = 0;
    let refused = loop {
        match rig.register(&name(&format!("s/{known}")), 0, "v") {
            Ok(_) => known += 1,
            Err(error) => break error,
        }
    };
    assert!(refused.kind() == Kind::NoSpace && known > 60, "{refused} after {known}");
    assert!(refused.to_string().contains("record"), "{refused}");
    // Whatever makes room, or says what is wrong, still finds some.
    let forgotten = rig.find(&name("s/0")).expect("known");
    rig.ask(|tier, done| tier.forget(&forgotten, done)).expect("forgets");
    let dirty = rig.find(&name("d/0")).expect("known").newest();
    rig.ask(|tier, done| tier.settle(&dirty, version("v"), done)).expect("settles");
    rig.settle();
    let rig = rig.restart();
    assert_eq!(rig.report.files, known);
}

#[test]
fn a_full_queue_refuses() {
    let disk = SimDisk::new(small_disk(6, 1, 4096, 7));
    format(&mut disk.queue(), &pool(), &small_format()).expect("formats");
    let limited = TierOptions { queue_limit: 2, ..options() };
    let mut rig = Rig::with(disk, limited).expect("recovers");
    let ask = |rig: &mut Rig, number: u64| {
        let file = name(&format!("s/{number}"));
        rig.post(|tier, done| tier.register(file, 0, version("v"), done))
    };
    let answers: Vec<_> = (0..5).map(|number| ask(&mut rig, number)).collect();
    let refused = answers.iter().filter(|answer| {
        let answer = answer.lock();
        answer.as_ref().is_some_and(|told| told.as_ref().is_err_and(|e| e.kind() == Kind::Busy))
    });
    assert_eq!(refused.count(), 3);
    rig.settle();
    assert!(answers[..2].iter().all(|answer| answer.lock().take().expect("told").is_ok()));
}

#[test]
fn a_device_too_small_is_refused() {
    let disk = SimDisk::new(small_disk(1, 1, 4096, 7));
    let error = format(&mut disk.queue(), &pool(), &small_format()).expect_err("one slab");
    assert_eq!(error.kind(), Kind::Invalid);
    let wide = FormatOptions { extent_bytes: 1 << 20, ..small_format() };
    let disk = SimDisk::new(small_disk(8, 1, 4096, 7));
    let error = format(&mut disk.queue(), &pool(), &wide).expect_err("no slot of that size fits");
    assert_eq!(error.kind(), Kind::Invalid);
}

#[test]
fn whichever_read_of_a_start_fails_once_all_is_found() {
    let mut rig = rig(8);
    rig.write_file(&name("d/0"), 2 * EXTENT, &[], 0).expect("commits");
    let clean = rig.register(&name("s/c"), EXTENT, "v").expect("registers");
    rig.fill(&clean, 0, 1).expect("fills");
    rig.settle();
    let disk = rig.disk.clone();
    drop((clean, rig));
    let mut nth = 0;
    loop {
        nth += 1;
        let rule = FaultRule::new(Operation::Read, When::Nth(nth), Fault::Fail);
        disk.set_faults(FaultPlan::new().with(rule));
        let found = Rig::on(disk.clone());
        if disk.faults_injected() == 0 {
            break;
        }
        let rig = found.unwrap_or_else(|error| panic!("read {nth}: {error}"));
        let dirty = rig.find(&name("d/0")).expect("known").newest();
        assert_eq!((dirty.mark(), dirty.resident_extents()), (None, 2), "read {nth}");
        // A clean file may be missed by a start, and comes back with the next.
        assert!(rig.holds(&dirty, 1, 0), "read {nth}");
    }
    assert!(nth > 5, "{nth}");
    disk.set_faults(FaultPlan::new());
    let rig = Rig::on(disk).expect("recovers");
    assert_eq!((rig.report.files, rig.report.extents, rig.report.dirty_files), (2, 3, 1));
}

#[test]
fn whichever_write_or_flush_of_a_start_fails_the_start_fails_or_serves_all() {
    for operation in [Operation::Write, Operation::Flush] {
        let mut rig = rig(8);
        rig.write_file(&name("d/0"), 2 * EXTENT, &[], 0).expect("commits");
        rig.settle();
        let disk = rig.disk.clone();
        drop(rig);
        let mut nth = 0;
        loop {
            nth += 1;
            let rule = FaultRule::new(operation, When::Nth(nth), Fault::Fail);
            disk.set_faults(FaultPlan::new().with(rule));
            let found = Rig::on(disk.clone());
            if disk.faults_injected() == 0 {
                break;
            }
            let error = found.err().expect("it must not run on what is not durable");
            assert_eq!(error.kind(), Kind::Io, "{operation:?} {nth}");
            disk.set_faults(FaultPlan::new());
            let rig = Rig::on(disk.clone()).expect("recovers");
            let dirty = rig.find(&name("d/0")).expect("known").newest();
            assert!(dirty.mark().is_none() && rig.holds(&dirty, 1, 0), "{operation:?} {nth}");
        }
        assert!(nth > 2, "{nth} of {operation:?}");
    }
}

#[test]
fn after_a_failed_flush_nothing_is_acknowledged_on_that_device_again() {
    let mut rig = Rig::new(small_disk(8, 2, 4096, 7), &small_format());
    rig.tier.allow_eviction();
    // Once, and then it works again: it is not believed.
    let rule = FaultRule::new(Operation::Flush, When::Nth(1), Fault::Fail).on(DeviceIndex(0));
    rig.disk.set_faults(FaultPlan::new().with(rule));
    let mut acknowledged = Vec::new();
    for number in 0..20 {
        if let Ok(written) = rig.write_file(&name(&format!("d/{number}")), EXTENT, &[], number) {
            acknowledged.push((number, written));
        }
    }
    assert!(acknowledged.len() >= 15, "{}: the other one carries on", acknowledged.len());
    for (number, written) in &acknowledged {
        let extent = written.extent(ExtentIndex(0)).expect("resident");
        assert_eq!(extent.at().device, DeviceIndex(1), "d/{number}");
    }
    let error = rig.ask(|tier, done| tier.flush(done)).expect_err("not all of it is durable");
    assert_eq!(error.kind(), Kind::Io);
    rig.settle();
    // The power goes: whatever the distrusted one had not flushed is lost.
    let disk = rig.disk.crash(&mut |_| forebay_nvme_tier::device::sim::Survival::Lost);
    let numbers: Vec<u64> = acknowledged.into_iter().map(|(number, _)| number).collect();
    drop(rig);
    let rig = Rig::on(disk).expect("recovers");
    for number in numbers {
        let newest = rig.find(&name(&format!("d/{number}"))).expect("acknowledged").newest();
        assert!(Arc::strong_count(&newest) > 0 && rig.holds(&newest, 0, number), "d/{number}");
    }
}
