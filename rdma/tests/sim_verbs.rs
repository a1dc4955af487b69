//! A node's and its clients' verbs over simulated devices that do what devices may do: whatever goes
//! wrong, bytes are right or an error, and in the end nothing is left.

mod common;
mod rough;

use std::collections::BTreeSet;

use forebay_rdma::SimVerbsOptions;
use rough::play;

#[test]
fn bytes_are_right_or_an_error_and_nothing_is_left() {
    let (mut worked, mut told) = (0, BTreeSet::new());
    for seed in 0..seeds(24) {
        let options = SimVerbsOptions::rough(seed.is_multiple_of(2));
        let (network, done) = play(seed, options);
        worked += done;
        told.extend(network.statuses().into_keys());
    }
    assert!(worked > 200, "only {worked} things came to their end");
    // Each that there is, as rdma-core numbers them.
    assert_eq!(told, (0..=23).collect());
}

/// How many seeds a test tries.
fn seeds(default: u64) -> u64 {
    std::env::var("FOREBAY_SIM_VERBS_SEEDS").map_or(default, |text| text.parse().expect("a number"))
}
