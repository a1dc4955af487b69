//! Devices are told of freed space, and take their time: nothing that is there, or is found after a
//! cut, is harmed by that.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::sync::Arc;

use extent::{ExtentIndex, FileName};
use forebay_nvme_tier::device::sim::{SimDisk, SimOptions, WriteRecord};
use forebay_nvme_tier::{Discard, File, FileGeneration, State, TierOptions, format};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng};

use crate::common::{EXTENT, Rig, name, options, pool, small_disk, small_format, version};
use crate::cuts::{Effort, choices};
use crate::enumeration::{Failure, calmly};
use crate::model::observe;

const FILES: usize = 5;
const OPERATIONS: usize = 24;
const EFFORT: Effort = Effort { all_subsets_of: 2, samples: 2, torn: 1, nested_one_in: 1 };
/// One moment in so many is looked at, another one for each seed.
const STRIDE: usize = 7;

/// Plays seeds, every other with each way of telling devices. How many images were looked at.
pub fn play(seeds: u64) -> Result<u64, Failure> {
    let (mut images, mut told) = (0, [0; 2]);
    for seed in 0..seeds {
        let outcome = calmly(|| {
            let rig = run(seed)?;
            let way = usize::from(!seed.is_multiple_of(2));
            told[way] += rig.tier.usage().devices[0].deallocated_bytes;
            images += cut(&rig, seed)?;
            Ok(())
        });
        outcome.map_err(|what| Failure { what: format!("seed {seed}: {what}"), after: images })?;
    }
    assert!(told.iter().all(|bytes| *bytes > 0), "devices were told of slots and slabs: {told:?}");
    Ok(images)
}

fn names() -> Vec<FileName> {
    (0..FILES).map(|number| name(&format!("s/{number}"))).collect()
}

fn ways(seed: u64) -> TierOptions {
    let discard = if seed.is_multiple_of(2) { Discard::Slots } else { Discard::Slabs };
    TierOptions { discard, ..options() }
}

/// A few files come and go on a small tier. Whatever is written is flushed before it is described,
/// so that whatever is found there later has to be right.
fn run(seed: u64) -> Result<Rig, String> {
    let sim =
        SimOptions { deallocates: true, most_delay_polls: 12, ..small_disk(7, 1, 4096, seed) };
    let disk = SimDisk::new(sim);
    format(&mut disk.queue(), &pool(), &small_format()).expect("formats");
    let mut rig = Rig::with(disk, ways(seed)).expect("a new tier recovers");
    rig.tier.allow_eviction();
    rig.disk.record();
    let mut rng = SmallRng::seed_from_u64(seed);
    for number in 0..OPERATIONS {
        let file = rng.random_range(0..FILES);
        match rng.random_range(0..10) {
            0..4 => promote(&mut rig, &names()[file], number),
            4..7 => write(&mut rig, &names()[file], number),
            7..9 => release(&mut rig, &names()[file]),
            _ => forget(&mut rig, &names()[file]),
        }
        for _ in 0..rng.random_range(0..30) {
            rig.step();
        }
        let seen = observe(&rig, &names())?;
        if let Some(lost) = seen.files.iter().find(|file| !file.lost.is_empty()) {
            return Err(format!("after operation {number} bytes are gone: {lost:?}"));
        }
    }
    Ok(rig)
}

fn promote(rig: &mut Rig, name: &FileName, number: usize) {
    let Ok(file) = rig.register(name, 2 * EXTENT, &format!("v{number}")) else { return };
    let generation = file.newest();
    for index in 0..generation.extent_count() {
        let at = ExtentIndex(index);
        let Ok(slot) = rig.ask(|tier, done| tier.reserve(&generation, at, done)) else { return };
        let sums = rig.write(&slot, generation.attempt().0);
        rig.ask(|tier, done| tier.flush(done)).expect("a healthy disk");
        let _gone_meanwhile = rig.ask(|tier, done| tier.publish(slot, sums, done));
    }
}

fn write(rig: &mut Rig, name: &FileName, number: usize) {
    let Ok(draft) = rig.tier.begin(name.clone(), EXTENT + 9000) else { return };
    let attempt = draft.attempt().0;
    let mut parts = Vec::new();
    for (index, length) in [(0, 64 << 10), (1, 9000)] {
        let at = ExtentIndex(index);
        let slot = rig.ask(|tier, done| tier.reserve_draft(&draft, at, length, done));
        let Ok(slot) = slot else { return };
        let sums = rig.write(&slot, attempt);
        parts.push((slot, sums));
    }
    let committed = rig.ask(|tier, done| tier.commit(draft, EXTENT + 9000, parts, done));
    let Ok(generation): Result<Arc<FileGeneration>, _> = committed else { return };
    let v = version(&format!("w{number}"));
    rig.ask(|tier, done| tier.settle(&generation, v, done)).expect("it is the newest");
}

fn known(rig: &Rig, name: &FileName) -> Option<Arc<File>> {
    rig.find(name).filter(|file| file.newest().state() == State::Clean)
}

fn release(rig: &mut Rig, name: &FileName) {
    let Some(file) = known(rig, name) else { return };
    let generation = file.newest();
    rig.ask(|tier, done| tier.release(&generation, 0..9, done)).expect("it is clean");
}

fn forget(rig: &mut Rig, name: &FileName) {
    let Some(file) = known(rig, name) else { return };
    rig.ask(|tier, done| tier.forget(&file, done)).expect("there is room for a tombstone");
}

/// Cuts the power: what is found is right.
fn cut(rig: &Rig, seed: u64) -> Result<u64, String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut recorder = rig.disk.recorder().expect("it was recorded");
    let first = usize::try_from(seed).expect("few seeds") % STRIDE;
    let mut images = 0;
    for moment in (first..=recorder.moments()).step_by(STRIDE) {
        let unflushed = recorder.unflushed_at(moment);
        for choice in choices(&unflushed, 4096, EFFORT, &mut rng) {
            let mut each = choice.iter().cloned();
            let survival = &mut |_: &WriteRecord| each.next().expect("one for each write");
            let disk = recorder.crash_at(moment, survival);
            let found = Rig::with(disk, ways(seed)).map_err(|e| format!("no recovery: {e}"))?;
            images += 1;
            let seen = observe(&found, &names())?;
            if let Some(lost) = seen.files.iter().find(|file| !file.lost.is_empty()) {
                return Err(format!("cut at {moment} with {choice:?}: {lost:?}"));
            }
        }
    }
    Ok(images)
}
