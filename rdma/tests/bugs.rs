//! The tests over simulated RDMA devices prove themselves: each of the mistakes of `bugs::Bug` is made,
//! and a run must fail, within a bounded number of seeds. The same seeds pass while none is made.
//!
//! `cargo test -p forebay-rdma --features seeded-bugs --test bugs -- --nocapture` prints which seed
//! caught which.

#![expect(clippy::print_stdout, reason = "the table is for people")]

mod common;
mod device;
mod rough;

use std::panic::catch_unwind;

use forebay_rdma::SimVerbsOptions;
use forebay_rdma::bugs::{Bug, during};

/// How many seeds are tried.
const SEEDS: u64 = 24;

#[test]
fn every_seeded_bug_is_caught_and_without_one_nothing_is() {
    std::panic::set_hook(Box::new(|_| {}));
    let play = |seed: u64| rough::play(seed, SimVerbsOptions::rough(seed.is_multiple_of(2)));
    let fails = |bug, seed: &u64| during(bug, || catch_unwind(|| play(*seed))).is_err();
    let scene = |bug| {
        let failing = |scene: fn()| during(bug, || catch_unwind(scene)).is_err();
        device::SCENES.iter().find(|(_, scene)| failing(*scene)).map(|(name, _)| *name)
    };
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().copied() {
        if let Some(seed) = (0..SEEDS).find(|seed| fails(Some(bug), seed)) {
            println!("| {bug:?} | rough devices | {} |", seed + 1);
        } else if let Some(name) = scene(Some(bug)) {
            println!("| {bug:?} | {name} | |");
        } else {
            missed.push(bug);
        }
    }
    let innocent = (0..SEEDS / 3).find(|seed| fails(None, seed));
    let innocent_scene = scene(None);
    // The hook is gone again, so that this is heard.
    let _quiet = std::panic::take_hook();
    assert!(missed.is_empty(), "nobody noticed: {missed:?}");
    assert_eq!(innocent_scene, None, "a scene that fails although nothing is wrong");
    assert_eq!(innocent, None, "a seed that fails although nothing is wrong");
}
