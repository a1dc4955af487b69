//! The power goes at every moment of short runs.
//!
//! A run does a few operations on simulated disks that record every write and flush. Then, for
//! every moment of it, and for many choices of what of the unflushed writes survives (each write
//! whole, absent or torn at blocks), the disks are rebuilt and the tier is recovered. What it holds
//! is compared with a model: each file must be in the state after its last acknowledged operation,
//! or after one that had been asked for and not been acknowledged. The power goes during recovery,
//! too, which must change nothing, and new files are written over all that is free, which must harm
//! nothing. Equal images are recovered once.
//!
//! Runs come in two kinds: all workloads of up to three operations ([`workload`]), of which a plain
//! test takes a share, and random ones with several operations at once ([`driver`]).
//!
//! - `FOREBAY_CRASH_STEP=1` enumerates all of the first kind, `=10` every tenth.
//! - `FOREBAY_SIM_SEEDS=0..1000` plays as many of the second kind in each of their tests.

#![expect(clippy::print_stdout, reason = "an enumeration says how far it went")]

#[path = "../common/mod.rs"]
mod common;

mod apart;
mod cuts;
mod discard;
mod driver;
mod enumeration;
mod judge;
mod lost;
mod model;
mod player;
mod random;
mod rot;
mod stage;
mod workload;

use common::{Rig, small_disk, small_format};
use cuts::Effort;
use forebay_nvme_tier::Copies;
use forebay_nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, SimOptions, When};
use judge::{Counts, Judge};

#[test]
fn every_cut_of_every_short_workload_leaves_old_or_new() {
    let step = std::env::var("FOREBAY_CRASH_STEP").ok();
    let step = step.map(|text| text.parse().expect("FOREBAY_CRASH_STEP is a number"));
    let workloads = enumeration::share(step.unwrap_or(STEP));
    let told = |counts: &Counts| {
        let Counts { runs, prefixes, choices, images, nested } = counts;
        println!(
            "{runs} workloads, {prefixes} prefixes, {choices} choices of what survives: {images} \
             different images, and {nested} of cuts during their recovery: {} schedules",
            counts.schedules()
        );
    };
    let counts = enumeration::enumerate(&workloads, Effort::FULL, told);
    assert!(step.is_some() || counts.schedules() >= 10_000, "{counts:?}");
}

#[test]
fn every_cut_of_what_is_kept_twice_may_cost_a_device() {
    let step = std::env::var("FOREBAY_CRASH_STEP").ok();
    let step = step.map(|text| text.parse().expect("FOREBAY_CRASH_STEP is a number"));
    let told = |counts: &Counts| println!("twice: {counts:?}");
    let workloads = enumeration::share_twice(step.unwrap_or(TWICE_STEP));
    let counts = enumeration::enumerate(&workloads, TWICE_EFFORT, told);
    assert!(step.is_some() || counts.schedules() >= 5_000, "{counts:?}");
}

#[test]
fn every_cut_while_a_conflict_is_settled_leaves_old_or_new() {
    let step = std::env::var("FOREBAY_CRASH_STEP").ok();
    let step = step.map(|text| text.parse().expect("FOREBAY_CRASH_STEP is a number"));
    for (copies, effort, every) in
        [(Copies::One, Effort::FULL, SETTLING_STEP), (Copies::Two, TWICE_EFFORT, TWICE_STEP)]
    {
        let workloads = enumeration::settling(copies, step.unwrap_or(every));
        let told = |counts: &Counts| println!("settling, {copies:?}: {counts:?}");
        let counts = enumeration::enumerate(&workloads, effort, told);
        assert!(step.is_some() || counts.schedules() >= 500, "{counts:?}");
    }
}

#[test]
fn what_rots_brings_nothing_back_that_was_given_up() {
    let workloads = enumeration::settling(Copies::One, SETTLING_STEP);
    let ways = rot::damage_everything(&workloads);
    let ways = ways.unwrap_or_else(|failure| panic!("{}", failure.what));
    assert!(ways > 500, "{ways}");
}

#[test]
fn a_device_that_comes_back_brings_nothing_old_back() {
    let workloads = enumeration::dirty_twice(20);
    let counts = enumeration::come_back_everywhere(&workloads, FEW);
    let counts = counts.unwrap_or_else(|failure| panic!("{}", failure.what));
    assert!(counts.schedules() > 500, "{counts:?}");
}

#[test]
fn of_three_devices_any_may_be_lost() {
    random::play(3, random::three_devices).unwrap_or_else(|failure| panic!("{}", failure.what));
}

/// Of so many workloads that settle conflicts a plain test takes one.
const SETTLING_STEP: usize = 397;

/// Of so many workloads with two copies a plain test takes one.
const TWICE_STEP: usize = 997;
const TWICE_EFFORT: Effort = Effort { all_subsets_of: 6, samples: 32, torn: 1, nested_one_in: 4 };

/// Of so many workloads a plain test takes one.
const STEP: usize = 211;

#[test]
fn a_device_that_fails_takes_back_nothing() {
    let counts = enumeration::fail_everywhere(&enumeration::committing(97), FEW);
    let counts = counts.unwrap_or_else(|failure| panic!("{}", failure.what));
    assert!(counts.schedules() > 500, "{counts:?}");
}

#[test]
fn a_device_that_fails_takes_back_nothing_that_is_kept_twice() {
    let counts = enumeration::fail_everywhere(&enumeration::committing_twice(197), FEW);
    let counts = counts.unwrap_or_else(|failure| panic!("{}", failure.what));
    assert!(counts.schedules() > 500, "{counts:?}");
}

const FEW: Effort = Effort { all_subsets_of: 3, samples: 4, torn: 1, nested_one_in: 16 };

#[test]
fn what_rots_or_lands_elsewhere_is_never_believed() {
    let ways = rot::damage_everything(&enumeration::share(397));
    let ways = ways.unwrap_or_else(|failure| panic!("{}", failure.what));
    assert!(ways > 500, "{ways}");
}

#[test]
fn what_was_written_here_is_not_replaced_by_who_did_not_know_it() {
    apart::ask_without().unwrap_or_else(|failure| panic!("{}", failure.what));
}

#[test]
fn a_device_that_failed_and_one_that_went_on_are_not_put_together() {
    apart::fail_and_go_on().unwrap_or_else(|failure| panic!("{}", failure.what));
}

#[test]
fn a_descriptor_of_an_earlier_use_is_not_believed() {
    lost::lose_writes().unwrap_or_else(|failure| panic!("{}", failure.what));
}

#[test]
fn every_cut_of_a_few_operations_leaves_old_or_new() {
    random::play(3, random::few_operations).unwrap_or_else(|failure| panic!("{}", failure.what));
}

#[test]
fn small_blocks_tear_records_and_descriptors() {
    random::play(2, random::small_blocks).unwrap_or_else(|failure| panic!("{}", failure.what));
}

#[test]
fn two_devices_commit_as_one() {
    random::play(2, random::two_devices).unwrap_or_else(|failure| panic!("{}", failure.what));
}

#[test]
fn long_runs_reuse_slots_and_survive() {
    random::play(2, random::long_run).unwrap_or_else(|failure| panic!("{}", failure.what));
}

#[test]
fn what_a_new_process_found_survives_a_power_cut() {
    random::play(8, random::new_process).unwrap_or_else(|failure| panic!("{}", failure.what));
}

#[test]
fn telling_devices_of_freed_space_harms_nothing() {
    let images = discard::play(6).unwrap_or_else(|failure| panic!("{}", failure.what));
    assert!(images > 1000, "{images}");
}

#[test]
fn disks_that_lie_about_flushes_are_caught() {
    let caught = (0..6u64).filter(|seed| {
        let rig = Rig::new(SimOptions { ..small_disk(10, 1, 4096, *seed) }, &small_format());
        let lie = FaultRule::new(Operation::Flush, When::From(1), Fault::Lose);
        rig.disk.set_faults(FaultPlan::new().with(lie));
        let run = driver::run_on(rig, 6, 0);
        let effort = Effort { all_subsets_of: 0, samples: 2, torn: 1, nested_one_in: 8 };
        Judge::new(effort).cut_everywhere(&run, *seed).is_err()
    });
    assert!(caught.count() >= 4, "a tier on such disks must fail these tests");
}
