//! The power goes at every moment of short runs.
//!
//! A run does a few operations, some of them at once, on simulated disks that record every write and
//! flush. Then, for every moment of it, and for many choices of what of the unflushed writes
//! survives (each write whole, absent or torn at blocks), the disks are rebuilt and the tier is
//! recovered. What it holds is compared with a model: each file must be in the state after its last
//! acknowledged operation, or after one that had been asked for and not been acknowledged. Then
//! recovery's own clean-up runs and the power goes again, which must change nothing, and new
//! files are written over all that is free, which must harm nothing.
//!
//! The last test proves that this catches something: on disks that lie about flushes it must fail.

#[path = "../common/mod.rs"]
mod common;
mod driver;
mod model;

use common::{EXTENT, Rig, name, pattern, small_disk, small_format};
use driver::{run, run_on};
use forebay_nvme_tier::device::sim::{
    Fault, FaultPlan, FaultRule, Operation, SimDisk, SimOptions, Survival, When, WriteRecord,
};
use forebay_nvme_tier::device::{DeviceIndex, Location};
use model::{Run, judge, observe};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Recovers after a cut, then lets recovery clean up, cuts again, and fills what is free.
fn survive(run: &Run, disk: SimDisk, moment: usize, rng: &mut SmallRng) -> Result<(), String> {
    let rig = Rig::on(disk).map_err(|error| format!("no recovery: {error}"))?;
    let found = judge(run, &rig, moment)?;
    let unchanged = |rig: &Rig, when: &str| -> Result<(), String> {
        for (file, name) in run.names.iter().enumerate() {
            let now = observe(rig, name, None).map_err(|e| format!("{when}: {e}"))?;
            if now != found[file] {
                return Err(format!("{when}: {name} was {:?} and is {now:?}", found[file]));
            }
        }
        Ok(())
    };
    let mut rig = rig;
    for _ in 0..rng.random_range(0..30) {
        rig.step();
    }
    let again = rig.disk.crash(&mut |write| random_survival(write, rng));
    unchanged(&Rig::on(again).map_err(|e| e.to_string())?, "cut while cleaning up")?;
    rig.settle();
    unchanged(&rig, "after cleaning up")?;
    if rng.random_range(0..8) == 0 {
        let mut number = 0;
        while rig.write_file(&name(&format!("t/{number}")), EXTENT, &[], 999).is_ok() {
            number += 1;
        }
        // Clean files may be evicted by that, and their records stay.
        unchanged(&rig, "after filling the tier")?;
        let last = rig.disk.crash(&mut |_| Survival::Lost);
        unchanged(&Rig::on(last).map_err(|e| e.to_string())?, "after filling and a cut")?;
    }
    Ok(())
}

fn random_survival(write: &WriteRecord, rng: &mut SmallRng) -> Survival {
    match rng.random_range(0..3) {
        0 => Survival::Lost,
        1 => Survival::Whole,
        _ => {
            let blocks = u32::try_from(write.data.len() / 512).expect("small");
            Survival::Torn((0..blocks).filter(|_| rng.random_bool(0.5)).collect())
        }
    }
}

/// Every moment of a run; every subset of up to `all` unflushed writes, beyond that a sample.
/// The first thing that went wrong.
fn cut_everywhere(run: &Run, seed: u64, all: usize, sample: usize) -> Result<u64, String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut recorder = run.recorder.clone();
    let mut cuts = 0;
    for moment in 0..=recorder.moments() {
        let unflushed = recorder.unflushed_at(moment);
        let mut choices: Vec<Option<u64>> = Vec::new();
        if unflushed.len() <= all {
            choices.extend((0..1u64 << unflushed.len()).map(Some));
        } else {
            choices.extend([Some(0), Some(u64::MAX)]);
        }
        choices.extend(vec![None; sample]);
        for choice in choices {
            let mut number = 0;
            let mut survival = |write: &WriteRecord| {
                number += 1;
                match choice {
                    None => random_survival(write, &mut rng),
                    Some(subset) if subset >> ((number - 1) % 64) & 1 == 1 => Survival::Whole,
                    Some(_) => Survival::Lost,
                }
            };
            let disk = recorder.crash_at(moment, &mut survival);
            survive(run, disk, moment, &mut rng).map_err(|what| {
                format!("seed {seed}, cut at {moment} with choice {choice:?}: {what}")
            })?;
            cuts += 1;
        }
    }
    Ok(cuts)
}

/// How many seeds each of these tests tries; more in a longer run.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let more = std::env::var("FOREBAY_CRASH_SEEDS").ok().and_then(|text| text.parse().ok());
    0..more.unwrap_or(few)
}

#[test]
fn every_cut_of_a_few_operations_leaves_old_or_new() {
    for seed in seeds(3) {
        let sim = SimOptions { most_delay_polls: 2, ..small_disk(10, 1, 4096, seed) };
        let run = run(sim, 5, 0);
        if let Err(what) = cut_everywhere(&run, seed, 5, 3) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn small_blocks_tear_records_and_descriptors() {
    for seed in seeds(2) {
        let sim = small_disk(10, 1, 512, 1000 + seed);
        let disk = SimDisk::new(sim);
        // What was there before looks like anything but erased.
        for slab in 0..10 {
            let at = Location { device: DeviceIndex(0), offset: (1 << 20) + slab * (256 << 10) };
            disk.poke(at, &pattern(seed, 77, 256 << 10));
        }
        let run = run_on(Rig::over(disk, &small_format()), 6, 0);
        if let Err(what) = cut_everywhere(&run, seed, 2, 6) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn two_devices_commit_as_one() {
    for seed in seeds(2) {
        let sim = SimOptions { most_delay_polls: 8, ..small_disk(8, 2, 4096, 2000 + seed) };
        let run = run(sim, 6, 0);
        if let Err(what) = cut_everywhere(&run, seed, 2, 5) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn long_runs_reuse_slots_and_survive() {
    for seed in seeds(2) {
        let sim = small_disk(7, 1, 4096, 3000 + seed);
        let run = run(sim, 60, 0);
        if let Err(what) = cut_everywhere(&run, seed, 0, 0) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn what_a_new_process_found_survives_a_power_cut() {
    for seed in seeds(8) {
        let sim = SimOptions { most_delay_polls: 10, ..small_disk(10, 1, 4096, 4000 + seed) };
        let run = run(sim, 9, 3);
        if let Err(what) = cut_everywhere(&run, seed, 0, 1) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn disks_that_lie_about_flushes_are_caught() {
    let caught = (0..6u64).filter(|seed| {
        let sim = small_disk(10, 1, 4096, *seed);
        let rig = Rig::new(sim, &small_format());
        let lie = FaultRule::new(Operation::Flush, When::From(1), Fault::Lose);
        rig.disk.set_faults(FaultPlan::new().with(lie));
        let run = run_on(rig, 6, 0);
        cut_everywhere(&run, *seed, 0, 2).is_err()
    });
    assert!(caught.count() >= 4, "a tier on such disks must fail these tests");
}
