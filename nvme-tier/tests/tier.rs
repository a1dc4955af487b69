//! What a tier does, on simulated disks, without power cuts.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{EXTENT, NOW_MS, Rig, name, pattern, pool, small_disk, small_format, version};
use extent::{ExtentIndex, Generation, Kind};
use forebay_nvme_tier::device::sim::SimDisk;
use forebay_nvme_tier::{Mark, State, TierOptions, check, inspect};

fn rig(slabs: u64) -> Rig {
    let rig = Rig::new(small_disk(slabs, 1, 4096, 7), &small_format());
    rig.tier.allow_eviction();
    rig
}

#[test]
fn a_filled_extent_is_there_at_once_and_after_a_restart() {
    let mut rig = rig(8);
    let file = rig.register(&name("s/a"), 3 * EXTENT + 5000, "v1").expect("registers");
    for index in [0, 3] {
        rig.fill(&file, index, 1).expect("fills");
    }
    let generation = file.newest();
    assert!(rig.holds(&generation, 0, 1) && rig.holds(&generation, 3, 1));
    assert!(
        generation.extent(ExtentIndex(1)).is_none() && generation.extent(ExtentIndex(9)).is_none()
    );
    assert_eq!((generation.extent_count(), generation.extent_length(ExtentIndex(3))), (4, 5000));
    assert_eq!((generation.resident_extents(), generation.resident_bytes()), (2, EXTENT + 5000));
    let last = generation.extent(ExtentIndex(3)).expect("resident");
    assert_eq!((last.length(), last.checksums().map(|sums| sums.len())), (5000, Some(2)));
    drop((file, generation, last));
    let rig = rig.restart();
    assert_eq!((rig.report.files, rig.report.extents, rig.report.dirty_files), (1, 2, 0));
    let generation = rig.find(&name("s/a")).expect("known").newest();
    assert!(rig.holds(&generation, 0, 1) && rig.holds(&generation, 3, 1));
    assert_eq!(generation.version(), Some(version("v1")));
    let usage = rig.tier.usage();
    assert_eq!((usage.resident_extents, usage.resident_bytes), (2, EXTENT + 5000));
    assert_eq!(usage.slot_bytes, EXTENT + (16 << 10), "a short last extent takes a small slot");
}

#[test]
fn a_written_generation_is_dirty_until_it_is_settled() {
    let mut rig = rig(8);
    let written = rig.write_file(&name("s/w"), 3 * EXTENT, &[1], 5).expect("commits");
    assert_eq!((written.state(), written.number()), (State::Dirty, Generation(1)));
    assert_eq!((written.version(), written.base(), written.is_written()), (None, None, true));
    assert_eq!(rig.tier.usage().dirty_bytes, 3 * EXTENT);
    drop(written);
    let mut rig = rig.restart();
    let generation = rig.find(&name("s/w")).expect("known").newest();
    assert_eq!((generation.state(), generation.mark()), (State::Dirty, None));
    assert!(rig.holds(&generation, 0, 5) && rig.holds(&generation, 2, 5));
    assert!(generation.extent(ExtentIndex(1)).is_none(), "a hole");
    rig.ask(|tier, done| tier.settle(&generation, version("up"), done)).expect("settles");
    assert_eq!((generation.state(), generation.version()), (State::Clean, Some(version("up"))));
    assert_eq!(rig.tier.usage().dirty_files, 0);
    rig.settle();
    drop(generation);
    let mut rig = rig.restart();
    let file = rig.find(&name("s/w")).expect("known");
    assert_eq!(file.newest().version(), Some(version("up")));
    rig.fill(&file, 1, 5).expect("a hole is filled from the silo once it is clean");
    assert!(rig.holds(&file.newest(), 1, 5));
}

#[test]
fn settling_an_older_generation_moves_the_base_of_the_newer() {
    let mut rig = rig(12);
    let first = rig.write_file(&name("s/w"), EXTENT, &[], 1).expect("commits");
    let second = rig.write_file(&name("s/w"), EXTENT, &[], 2).expect("commits");
    assert!(rig.holds(&first, 0, 1), "who holds the older generation still reads it");
    rig.ask(|tier, done| tier.settle(&first, version("one"), done)).expect("settles");
    assert_eq!((second.state(), second.base()), (State::Dirty, Some(version("one"))));
    rig.ask(|tier, done| tier.settle(&second, version("two"), done)).expect("settles");
    let error =
        rig.ask(|tier, done| tier.settle(&first, version("x"), done)).expect_err("moved on");
    assert_eq!(error.kind(), Kind::Stale);
    drop((first, second));
    rig.settle();
    assert_eq!(rig.tier.usage().slot_bytes, EXTENT, "the older generation's slot came back");
    let rig = rig.restart();
    assert_eq!(rig.find(&name("s/w")).expect("known").newest().version(), Some(version("two")));
}

#[test]
fn registering_again_changes_nothing_and_a_new_version_begins_anew() {
    let mut rig = rig(8);
    let file = rig.register(&name("s/a"), EXTENT, "v1").expect("registers");
    rig.fill(&file, 0, 1).expect("fills");
    let same = rig.register(&name("s/a"), EXTENT, "v1").expect("known");
    assert!(Arc::ptr_eq(&same, &file) && same.newest().number() == Generation(1));
    let old = file.newest();
    rig.register(&name("s/a"), 2 * EXTENT, "v2").expect("a new version");
    let new = file.newest();
    assert_eq!((new.number(), new.resident_extents()), (Generation(2), 0));
    assert!(rig.holds(&old, 0, 1), "who holds the old one still reads it");
    let error = rig.ask(|tier, done| tier.reserve(&old, ExtentIndex(0), done)).expect_err("old");
    assert_eq!(error.kind(), Kind::Stale);
    drop(old);
    rig.settle();
    assert_eq!(rig.tier.usage().slot_bytes, 0);
    rig.write_file(&name("s/a"), EXTENT, &[], 3).expect("commits");
    let error = rig.register(&name("s/a"), EXTENT, "v3").expect_err("a conflict");
    assert_eq!(error.kind(), Kind::Stale);
    let known = rig.register(&name("s/a"), 9, "v2").expect("what it was based on is no conflict");
    assert_eq!(known.newest().state(), State::Dirty);
}

#[test]
fn of_those_who_expect_the_same_generation_one_makes_the_next() {
    let mut rig = rig(8);
    for (at, versions) in [(0, ["v1", "w1"]), (1, ["v2", "w2"])] {
        let expected = Some(Generation(at));
        let mut ask = |v| {
            let (file, version) = (name("s/a"), version(v));
            rig.post(|tier, done| tier.register_at(file, EXTENT, version, expected, done))
        };
        let answers = versions.map(&mut ask);
        rig.settle();
        let kinds = answers.map(|answer| {
            let result = answer.lock().take().expect("the ledger came to rest");
            result.map(|file| file.newest().number()).map_err(|error| error.kind())
        });
        assert_eq!(kinds, [Ok(Generation(at + 1)), Err(Kind::Stale)]);
    }
    let file = rig.register(&name("s/a"), EXTENT, "v2").expect("known");
    assert_eq!(file.newest_at(Some(Generation(1))).expect_err("it moved on").kind(), Kind::Stale);
    assert_eq!(file.newest_at(Some(Generation(2))).expect("it is").number(), Generation(2));
}

#[test]
fn a_forgotten_file_stays_forgotten_and_gives_back_all_it_had() {
    let mut rig = rig(8);
    let file = rig.register(&name("s/a"), 2 * EXTENT, "v1").expect("registers");
    rig.fill(&file, 0, 1).expect("fills");
    rig.tier.pin(&file, "job", u64::MAX);
    let error = rig.ask(|tier, done| tier.forget(&file, done)).expect_err("pinned");
    assert_eq!(error.kind(), Kind::Denied);
    assert!(rig.tier.unpin(&file, "job"));
    rig.ask(|tier, done| tier.forget(&file, done)).expect("forgets");
    let again = rig.ask(|tier, done| tier.forget(&file, done)).expect_err("gone");
    assert_eq!(again.kind(), Kind::NotFound);
    assert!(rig.find(&name("s/a")).is_none());
    drop(file);
    rig.settle();
    let usage = rig.tier.usage();
    assert_eq!((usage.files, usage.slot_bytes, usage.resident_extents), (0, 0, 0));
    let disk = rig.disk.clone();
    drop(rig);
    let inspection = inspect(&mut disk.queue(), &pool()).expect("inspects");
    assert_eq!(inspection.devices[0].records.0, 0, "not even the tombstone is left");
    assert!(Rig::on(disk).expect("recovers").find(&name("s/a")).is_none());
}

#[test]
fn release_and_discard_let_clean_extents_go() {
    let mut rig = rig(8);
    let file = rig.register(&name("s/a"), 3 * EXTENT, "v1").expect("registers");
    (0..3).for_each(|index| rig.fill(&file, index, 1).expect("fills"));
    let generation = file.newest();
    let freed = rig.ask(|tier, done| tier.release(&generation, 1..3, done)).expect("releases");
    assert_eq!((freed, generation.resident_extents()), (2 * EXTENT, 1));
    let extent = generation.extent(ExtentIndex(0)).expect("resident");
    rig.tier.discard(&generation, &extent);
    assert!(generation.extent(ExtentIndex(0)).is_none());
    rig.settle();
    assert_eq!(rig.tier.usage().slot_bytes, EXTENT, "held by its reader");
    drop(extent);
    rig.settle();
    assert_eq!(rig.tier.usage().slot_bytes, 0);
    rig.tier.pin(&file, "job", u64::MAX);
    let error = rig.ask(|tier, done| tier.release(&generation, 0..9, done)).expect_err("pinned");
    assert_eq!(error.kind(), Kind::Denied);
    drop((file, generation));
    let rig = rig.restart();
    assert_eq!(rig.report.extents, 0, "released extents do not come back");
}

#[test]
fn a_draft_that_is_given_up_leaves_nothing() {
    let mut rig = rig(8);
    let draft = rig.tier.begin(name("s/w"), EXTENT).expect("begins");
    let reserved = rig.ask(|tier, done| tier.reserve_draft(&draft, ExtentIndex(0), 100, done));
    let reserved = reserved.expect("reserves");
    assert_eq!((reserved.length(), reserved.capacity_bytes()), (100, 16 << 10));
    assert_eq!(rig.tier.usage().slot_bytes, 16 << 10);
    let sums = rig.write(&reserved, 1);
    let wrong = rig.ask(|tier, done| tier.commit(draft, EXTENT, vec![(reserved, sums)], done));
    assert_eq!(wrong.expect_err("100 bytes are no full extent").kind(), Kind::Invalid);
    rig.settle();
    assert_eq!(rig.tier.usage().slot_bytes, 0);
    assert!(rig.find(&name("s/w")).is_none() && rig.restart().report.files == 0);
}

#[test]
fn attempts_are_never_given_twice() {
    let mut rig = rig(4);
    let mut last = 0;
    for _ in 0..3 {
        for _ in 0..5 {
            let attempt = rig.tier.begin(name("s/w"), 1).expect("begins").attempt().0;
            assert!(attempt > last, "{attempt} after {last}");
            last = attempt;
        }
        rig = rig.restart();
    }
}

#[test]
fn a_full_tier_evicts_clean_extents_and_never_pinned_or_dirty_ones() {
    let mut rig = rig(10);
    let pinned = rig.register(&name("s/pinned"), 4 * EXTENT, "v").expect("registers");
    (0..4).for_each(|index| rig.fill(&pinned, index, 1).expect("fills"));
    let until = NOW_MS.load(Ordering::Relaxed) + 1_000_000_000;
    rig.tier.pin(&pinned, "job", until);
    let dirty = rig.write_file(&name("s/dirty"), 4 * EXTENT, &[], 2).expect("commits");
    let cold = rig.register(&name("s/cold"), 200 * EXTENT, "v").expect("registers");
    for index in 0..200 {
        rig.fill(&cold, index, 3).expect("room is made");
    }
    assert!((0..4).all(|index| rig.holds(&pinned.newest(), index, 1)));
    assert!((0..4).all(|index| rig.holds(&dirty, index, 2)));
    let usage = rig.tier.usage();
    assert!(usage.evicted_extents > 150, "{usage:?}");
    assert_eq!(usage.pinned_files, 1);
    let resident = (0..200).filter(|i| cold.newest().extent(ExtentIndex(*i)).is_some()).count();
    assert!(
        resident > 0
            && (0..200).all(|i| {
                cold.newest().extent(ExtentIndex(i)).is_none() || rig.holds(&cold.newest(), i, 3)
            })
    );
    rig.tier.pin(&cold, "job", until);
    let error = (0..200).find_map(|index| rig.fill(&cold, index, 3).err()).expect("full");
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(rig.tier.unpin(&cold, "job"));
    rig.fill(&pinned, 0, 1).expect("filling again what is there is no error");
    rig.settle();
    assert!((0..4).all(|index| rig.holds(&pinned.newest(), index, 1)));
}

#[test]
fn nothing_is_evicted_before_pins_are_loaded_nor_while_read() {
    let mut rig = Rig::new(small_disk(4, 1, 4096, 3), &small_format());
    let file = rig.register(&name("s/a"), 50 * EXTENT, "v").expect("registers");
    let full = (0..50).find_map(|index| rig.fill(&file, index, 1).err()).expect("full");
    assert_eq!(full.kind(), Kind::Busy);
    let generation = file.newest();
    let readers: Vec<_> = (0..50).filter_map(|i| generation.extent(ExtentIndex(i))).collect();
    assert_eq!(readers.len(), 9, "three slabs of three slots");
    rig.tier.allow_eviction();
    let busy = rig.ask(|tier, done| tier.reserve(&generation, ExtentIndex(40), done));
    assert_eq!(busy.expect_err("all are read").kind(), Kind::NoSpace);
    assert!(readers.iter().all(|extent| rig.read(&generation, extent).is_some()));
    drop(readers);
    rig.fill(&file, 40, 1).expect("now one goes");
}

#[test]
fn a_scan_does_not_drive_out_what_is_used() {
    let mut rig = rig(22);
    let hot = rig.register(&name("s/hot"), 6 * EXTENT, "v").expect("registers");
    let scan = rig.register(&name("s/scan"), 400 * EXTENT, "v").expect("registers");
    (0..6).for_each(|index| rig.fill(&hot, index, 1).expect("fills"));
    for index in 0..400 {
        rig.fill(&scan, index, 2).expect("fills");
        let generation = hot.newest();
        assert!((0..6).all(|i| generation.extent(ExtentIndex(i)).is_some()), "at {index}");
    }
    assert!(rig.tier.usage().evicted_extents > 300);
}

#[test]
fn slabs_change_their_purpose_when_another_size_needs_room() {
    let mut rig = rig(6);
    let small = rig.register(&name("s/small"), 16384, "v").expect("registers");
    let mut names = vec![small];
    for number in 0..60 {
        let file = rig.register(&name(&format!("s/{number}")), 16384, "v").expect("registers");
        rig.fill(&file, 0, number).expect("fills");
        names.push(file);
    }
    let large = rig.register(&name("s/large"), 9 * EXTENT, "v").expect("registers");
    (0..9).for_each(|index| rig.fill(&large, index, 7).expect("takes over slabs"));
    assert!((0..9).any(|index| rig.holds(&large.newest(), index, 7)));
    rig.settle();
    drop((names, large));
    let disk = rig.disk.clone();
    drop(rig);
    let inspection = inspect(&mut disk.queue(), &pool()).expect("inspects");
    assert!(inspection.devices[0].classes.contains_key(&EXTENT), "{inspection:?}");
    let report = check(&mut disk.queue(), &pool(), &mut |_, _| {}).expect("checks");
    assert!(report.is_sound() && report.extents > 9, "{report:?}");
}

#[test]
fn too_much_at_once_is_busy() {
    let disk = SimDisk::new(small_disk(8, 1, 4096, 7));
    forebay_nvme_tier::format(&mut disk.queue(), &pool(), &small_format()).expect("formats");
    let few = TierOptions { queue_limit: 3, ..common::options() };
    let mut rig = Rig::with(disk, few).expect("recovers");
    let answers: Vec<_> = (0..5)
        .map(|n| rig.post(|t, d| t.register(name(&format!("s/{n}")), 1, version("v"), d)))
        .collect();
    rig.settle();
    let kinds = answers.iter().map(|a| a.lock().take().expect("told").err().map(|e| e.kind()));
    assert_eq!(kinds.flatten().collect::<Vec<_>>(), [Kind::Busy, Kind::Busy]);
    let waiting = rig.post(|tier, done| tier.flush(done));
    let tier = Arc::clone(&rig.tier);
    drop(rig);
    let told = waiting.lock().take().expect("the ledger tells whoever waits when it ends");
    assert_eq!(told.expect_err("ended").kind(), Kind::Disconnected);
    tier.flush(forebay_nvme_tier::Done::new(|r| {
        assert_eq!(r.expect_err("ended").kind(), Kind::Disconnected)
    }));
}

#[test]
fn marks_are_durable() {
    let mut rig = rig(8);
    let written = rig.write_file(&name("s/w"), EXTENT, &[], 5).expect("commits");
    rig.ask(|tier, done| tier.mark(&written, Some(Mark::Conflict), done)).expect("marks");
    assert_eq!(written.mark(), Some(Mark::Conflict));
    drop(written);
    let mut rig = rig.restart();
    let written = rig.find(&name("s/w")).expect("known").newest();
    assert_eq!((written.mark(), written.state()), (Some(Mark::Conflict), State::Dirty));
    rig.ask(|tier, done| tier.mark(&written, None, done)).expect("unmarks");
    drop(written);
    assert_eq!(rig.restart().find(&name("s/w")).expect("known").newest().mark(), None);
}

#[test]
fn files_are_listed_in_byte_order() {
    let mut rig = rig(8);
    for text in ["s/b", "s-t/a", "s/a/2", "s/a", "t/a"] {
        rig.register(&name(text), 1, "v").expect("registers");
    }
    let list = |prefix, after, limit| -> Vec<String> {
        rig.tier.list(prefix, after, limit).iter().map(|f| f.name().to_string()).collect()
    };
    assert_eq!(list("", None, 9), ["s-t/a", "s/a", "s/a/2", "s/b", "t/a"]);
    assert_eq!(list("s/", Some("s/a"), 1), ["s/a/2"]);
}

#[test]
fn patterns_differ() {
    assert_ne!(pattern(1, 0, 100), pattern(2, 0, 100));
    assert_ne!(pattern(1, 0, 100), pattern(1, 1, 100));
}
