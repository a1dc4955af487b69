//! The simulation proves itself: each of the mistakes of `bugs::Bug` is made, and a run must fail,
//! within a bounded number of seeds. The same seeds pass while none is made.
//!
//! `cargo test -p forebay-dataplane --features seeded-bugs --test bugs -- --nocapture` prints which
//! seed caught which.

#![expect(clippy::print_stdout, reason = "the table is for people")]

extern crate forebay_dataplane as dataplane;

#[path = "sessions/crowd.rs"]
mod crowd;
#[path = "bad_input/lab.rs"]
mod lab;
#[path = "sim/model.rs"]
mod model;
#[path = "sim/network.rs"]
mod network;
#[path = "sim/player.rs"]
mod player;
#[path = "bad_input/twice.rs"]
mod twice;
#[path = "sim/wired.rs"]
mod wired;
#[path = "sim/world.rs"]
mod world;

use std::panic::catch_unwind;

use dataplane::bugs::{Bug, during};

/// How many seeds are tried.
const SEEDS: u64 = 12;

#[test]
fn every_seeded_bug_is_caught_and_without_one_nothing_is() {
    std::panic::set_hook(Box::new(|_| {}));
    let fails = |bug, seed: &u64| during(bug, || catch_unwind(|| world::run(*seed))).is_err();
    let costs_a_copy = || catch_unwind(|| lab::in_virtual_time(twice::either_is_enough())).is_err();
    let crowd = || lab::in_virtual_time(async { assert_ne!(crowd::serve(1000, 8).await.1, 0) });
    let is_unfair = || catch_unwind(crowd).is_err();
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().copied() {
        if matches!(bug, Bug::CopyIgnored | Bug::CopyUnwritten) {
            if during(Some(bug), costs_a_copy) {
                println!("| {bug:?} | two copies, one lost | 1 |");
            } else {
                missed.push(bug);
            }
            continue;
        }
        if bug == Bug::NewestFirst {
            if during(Some(bug), is_unfair) {
                println!("| {bug:?} | a thousand sessions | 1 |");
            } else {
                missed.push(bug);
            }
            continue;
        }
        match (0..SEEDS).find(|seed| fails(Some(bug), seed)) {
            Some(seed) => println!("| {bug:?} | node simulation | {} |", seed + 1),
            None => missed.push(bug),
        }
    }
    let innocent = (0..SEEDS).find(|seed| fails(None, seed));
    // The hook is gone again, so that this is heard.
    let _quiet = std::panic::take_hook();
    assert!(missed.is_empty(), "nobody noticed: {missed:?}");
    assert!(!costs_a_copy(), "a copy is lost although nothing is wrong");
    assert!(!is_unfair(), "a session is far ahead although nothing is wrong");
    assert_eq!(innocent, None, "a seed that fails although nothing is wrong");
}
