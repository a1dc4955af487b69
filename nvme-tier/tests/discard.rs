//! What devices are told of freed space, and what becomes of a tier whose devices are slow to hear it or
//! refuse. Power cuts are in `crash/discard.rs`.

mod common;

use std::sync::Arc;

use common::{EXTENT, Rig, keeping, name, options, pool, small_disk, small_format, version};
use forebay_nvme_tier::device::DeviceIndex;
use forebay_nvme_tier::device::sim::{
    Fault, FaultPlan, FaultRule, Operation, SimDisk, SimOptions, When,
};
use forebay_nvme_tier::{Copies, Discard, File, FormatOptions, TierOptions, format};

/// Extents of a full size in a slab of these tests.
const SLAB_EXTENTS: u32 = 3;
/// Bytes at both ends of what is let go of at once that are less than a unit of the simulated disks.
const EDGES: u64 = 8192;
/// More steps than anything here takes.
const MANY: usize = 2000;

fn disk(slabs: u64) -> SimDisk {
    SimDisk::new(SimOptions { deallocates: true, ..small_disk(slabs, 1, 4096, 5) })
}

fn rig(slabs: u64, discard: Discard) -> Rig {
    let disk = disk(slabs);
    format(&mut disk.queue(), &pool(), &small_format()).expect("formats");
    let rig = Rig::with(disk, TierOptions { discard, ..options() }).expect("a new tier recovers");
    rig.tier.allow_eviction();
    rig
}

fn filled(rig: &mut Rig, text: &str, extents: u32) -> Arc<File> {
    let file = rig.register(&name(text), u64::from(extents) * EXTENT, "v").expect("registers");
    (0..extents).for_each(|index| rig.fill(&file, index, 1).expect("room"));
    file
}

fn release(rig: &mut Rig, file: &File) {
    let generation = file.newest();
    rig.ask(|tier, done| tier.release(&generation, 0..u32::MAX, done)).expect("clean");
}

fn rest(rig: &mut Rig) {
    (0..MANY).for_each(|_| {
        rig.step();
    });
}

fn told(rig: &Rig) -> u64 {
    rig.tier.usage().devices[0].deallocated_bytes
}

fn holds_all(rig: &Rig, file: &File, extents: u32) -> bool {
    let generation = file.newest();
    (0..extents).all(|index| rig.holds(&generation, index, 1))
}

#[test]
fn slabs_in_which_nothing_is_left_are_let_go_of_but_the_last() {
    let mut rig = rig(8, Discard::Slabs);
    let file = filled(&mut rig, "s/a", 3 * SLAB_EXTENTS);
    let kept = filled(&mut rig, "s/b", 1);
    rest(&mut rig);
    assert_eq!(told(&rig), 0);
    release(&mut rig, &file);
    rest(&mut rig);
    // A fourth slab is that of the other file, and has free slots.
    assert_eq!(told(&rig), 3 * (u64::from(SLAB_EXTENTS) * EXTENT - EDGES));
    assert!(holds_all(&rig, &kept, 1));
    let again = filled(&mut rig, "s/c", 3 * SLAB_EXTENTS);
    assert!(holds_all(&rig, &again, 3 * SLAB_EXTENTS) && holds_all(&rig, &kept, 1));
    drop((file, kept, again));
    let rig = rig.restart();
    assert_eq!((rig.report.files, rig.report.extents), (3, 3 * SLAB_EXTENTS as u64 + 1));

    let mut alone = self::rig(8, Discard::Slabs);
    let file = filled(&mut alone, "s/a", SLAB_EXTENTS);
    release(&mut alone, &file);
    rest(&mut alone);
    assert_eq!(told(&alone), 0, "the only slab that is ready for more is kept");
}

#[test]
fn slots_are_let_go_of_one_by_one_or_not_at_all() {
    let mut slots = rig(8, Discard::Slots);
    let file = filled(&mut slots, "s/a", 2);
    release(&mut slots, &file);
    rest(&mut slots);
    assert_eq!(told(&slots), 2 * EXTENT - EDGES, "neighbours together");
    let mut off = rig(8, Discard::Off);
    let file = filled(&mut off, "s/a", 4 * SLAB_EXTENTS);
    release(&mut off, &file);
    rest(&mut off);
    assert_eq!(told(&off), 0);
}

#[test]
fn a_device_that_is_slow_to_hear_it_delays_nobody_who_has_a_choice() {
    for discard in [Discard::Slots, Discard::Slabs] {
        let mut rig = rig(6, discard);
        // All data slabs but one are full, and then free.
        let file = filled(&mut rig, "s/a", 4 * SLAB_EXTENTS);
        let stick = FaultRule::new(Operation::Deallocate, When::From(1), Fault::Stick);
        rig.disk.set_faults(FaultPlan::new().with(stick));
        release(&mut rig, &file);
        rest(&mut rig);
        assert_eq!(rig.disk.faults_injected(), 1, "one command at a time");
        // What waits for its turn is given out untold; what is under way is not.
        let few = filled(&mut rig, "s/b", 3 * SLAB_EXTENTS);
        assert!(holds_all(&rig, &few, 3 * SLAB_EXTENTS), "{discard:?}");
        // Even beside it, clean extents make room.
        let more = filled(&mut rig, "s/c", 2 * SLAB_EXTENTS);
        assert!(holds_all(&rig, &more, 2 * SLAB_EXTENTS), "{discard:?}");
        assert_eq!(told(&rig), 0);
        rig.disk.set_faults(FaultPlan::new());
        rig.disk.release_stuck();
        rest(&mut rig);
        assert!(told(&rig) > 0);
        assert!(holds_all(&rig, &more, 2 * SLAB_EXTENTS), "{discard:?}: it came too late to harm");
    }
}

#[test]
fn who_has_no_choice_waits_and_is_not_refused() {
    let mut rig = rig(4, Discard::Slots);
    let file = filled(&mut rig, "s/a", 1);
    let mut dirty = 0;
    // Everything else is dirty: nothing but the slot under way can be had.
    while rig.write_file(&name(&format!("d/{dirty}")), EXTENT, &[], 1).is_ok() {
        dirty += 1;
    }
    drop(file);
    let last = rig.find(&name("d/0")).expect("known");
    let stick = FaultRule::new(Operation::Deallocate, When::From(1), Fault::Stick);
    rig.disk.set_faults(FaultPlan::new().with(stick));
    let newest = last.newest();
    rig.ask(|tier, done| tier.settle(&newest, version("v"), done)).expect("it is the newest");
    drop(newest);
    release(&mut rig, &last);
    rest(&mut rig);
    assert_eq!(rig.disk.faults_injected(), 1);
    let draft = rig.tier.begin(name("d/next"), EXTENT).expect("begins");
    let slot = rig.post(|tier, done| {
        tier.reserve_draft(&draft, extent::ExtentIndex(0), 64 << 10, done);
    });
    rest(&mut rig);
    assert!(slot.lock().is_none(), "neither granted nor refused");
    rig.disk.release_stuck();
    rest(&mut rig);
    slot.lock().take().expect("answered").expect("the slot that was under way");
}

#[test]
fn a_device_that_refuses_is_not_asked_again_and_is_trusted() {
    let mut rig = rig(8, Discard::Slots);
    let file = filled(&mut rig, "s/a", 2 * SLAB_EXTENTS);
    let refuse = FaultRule::new(Operation::Deallocate, When::From(1), Fault::Fail);
    rig.disk.set_faults(FaultPlan::new().with(refuse));
    release(&mut rig, &file);
    rest(&mut rig);
    let again = filled(&mut rig, "s/b", 4 * SLAB_EXTENTS);
    release(&mut rig, &again);
    rest(&mut rig);
    assert_eq!((rig.disk.faults_injected(), told(&rig)), (1, 0));
    assert!(!rig.tier.usage().devices[0].failed);
    assert_eq!(rig.tier.usage().slot_bytes, 0, "nothing is withheld");
    let last = filled(&mut rig, "s/c", 4 * SLAB_EXTENTS);
    assert!(holds_all(&rig, &last, 4 * SLAB_EXTENTS));
}

#[test]
fn a_new_tier_needs_nothing_of_what_was_there() {
    let told = |disk: &SimDisk, options: &FormatOptions| {
        let report = format(&mut disk.queue(), &pool(), options).expect("formats");
        report.deallocated_bytes
    };
    let layout = small_format();
    let all = disk(8);
    assert_eq!(told(&all, &layout), [all.options().capacity_bytes / 8192 * 8192]);
    Rig::on(all).expect("a new tier recovers over rubbish");
    assert_eq!(told(&disk(8), &FormatOptions { deallocate: false, ..layout }), [0]);
    assert_eq!(told(&SimDisk::new(small_disk(8, 1, 4096, 5)), &layout), [0], "it takes no advice");
    let refusing = disk(8);
    let refuse = FaultRule::new(Operation::Deallocate, When::Nth(2), Fault::Fail);
    refusing.set_faults(FaultPlan::new().with(refuse));
    assert_eq!(told(&refusing, &layout), [128 << 10], "up to what it refused");
    Rig::on(refusing).expect("a new tier all the same");
}

#[test]
fn a_start_tells_devices_nothing_on_a_queue_that_goes_with_it() {
    let disk = SimDisk::new(SimOptions { deallocates: true, ..small_disk(8, 2, 4096, 5) });
    format(&mut disk.queue(), &pool(), &small_format()).expect("formats");
    let options = TierOptions { discard: Discard::Slots, ..keeping(Copies::Two) };
    let mut rig = Rig::with(disk, options).expect("a new tier recovers");
    let written = rig.write_file(&name("s/a"), EXTENT, &[], 1).expect("commits");
    rig.settle();
    let disk = SimDisk::from_images(rig.disk.options(), rig.disk.durable_image());
    drop((rig, written));
    let second = DeviceIndex(1);
    let mut rig = Rig::without(disk.clone(), options, pool(), &[second]).expect("recovers");
    let file = rig.find(&name("s/a")).expect("known");
    let newest = file.newest();
    rig.ask(|tier, done| tier.settle(&newest, version("v"), done)).expect("settles");
    rig.ask(|tier, done| tier.forget(&file, done)).expect("clean");
    rig.settle();
    let disk = SimDisk::from_images(disk.options(), disk.durable_image());
    drop((rig, file, newest));
    // What the start would begin to tell would not end while it lasts.
    let stick = FaultRule::new(Operation::Deallocate, When::From(1), Fault::Stick);
    disk.set_faults(FaultPlan::new().with(stick));
    let mut rig = Rig::with(disk, options).expect("recovers");
    assert_eq!(rig.disk.faults_injected(), 0);
    rig.disk.set_faults(FaultPlan::new());
    rig.queue = rig.disk.queue();
    rest(&mut rig);
    assert!(rig.tier.usage().devices[1].deallocated_bytes > 0, "it is told once the node runs");
    assert_eq!(rig.tier.usage().slot_bytes, 0);
}

#[test]
fn the_last_slab_that_records_could_have_is_not_let_go_of() {
    // One slab of records, and five of data.
    let mut rig = rig(6, Discard::Slabs);
    let file = filled(&mut rig, "s/a", 5 * SLAB_EXTENTS);
    release(&mut rig, &file);
    rest(&mut rig);
    assert_eq!(told(&rig), 0);
}
