//! The tests of the ring and of cuFile prove themselves: each of the mistakes of `bugs::Bug` is made, and one of them must
//! fail. None does while no mistake is made.
//!
//! `cargo test -p forebay-gds --features seeded-bugs --test bugs -- --nocapture` prints which caught which.

#![expect(clippy::print_stdout, reason = "the table is for people")]

mod scenes;
mod storage;

use std::panic::catch_unwind;

use forebay_gds::bugs::{Bug, during};
use scenes::SCENES as RING;
use storage::SCENES as STORAGE;

#[test]
fn every_seeded_bug_is_caught_and_without_one_nothing_is() {
    std::panic::set_hook(Box::new(|_| {}));
    let scenes = || RING.iter().chain(STORAGE);
    let fails = |bug, scene: fn()| during(bug, || catch_unwind(scene)).is_err();
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().copied() {
        match scenes().find(|(_, scene)| fails(Some(bug), *scene)) {
            Some((name, _)) => println!("| {bug:?} | {name} |"),
            None => missed.push(bug),
        }
    }
    let innocent = scenes().find(|(_, scene)| fails(None, *scene)).map(|(name, _)| *name);
    // The hook is gone again, so that this is heard.
    let _quiet = std::panic::take_hook();
    assert!(missed.is_empty(), "nobody noticed: {missed:?}");
    assert_eq!(innocent, None, "fails although nothing is wrong");
}
