//! The rules of proofs prove themselves: each of the mistakes of `bugs::Bug` is made, and a rule must
//! find it. While none is made, all of them hold.
//!
//! `cargo test -p forebay-control --features seeded-bugs --test bugs -- --nocapture`

#![expect(clippy::print_stdout, reason = "the table is for people")]

#[path = "grants/rules.rs"]
mod rules;

use std::panic::catch_unwind;

use forebay_control::bugs::{Bug, during};

fn holds() -> bool {
    let run = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(rules::all());
    };
    catch_unwind(run).is_ok()
}

#[test]
fn every_seeded_bug_is_caught_and_without_one_nothing_is() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().copied() {
        if during(Some(bug), holds) {
            missed.push(bug);
        } else {
            println!("| {bug:?} | rules of proofs | 1 |");
        }
    }
    let innocent = during(None, holds);
    let _quiet = std::panic::take_hook();
    assert!(missed.is_empty(), "nobody noticed: {missed:?}");
    assert!(innocent, "a rule fails although nothing is wrong");
}
