//! A node's and its clients' verbs over simulated devices that do what devices may do: whatever goes
//! wrong, bytes are right or an error, and in the end nothing is left.

mod common;
mod rough;

use std::collections::BTreeSet;

use extent::wire::Command;
use forebay_rdma::{SimVerbs, SimVerbsOptions, Transport as _};
use rough::{CREDITS, Client, Node, connect, node, play, settle, turn};

#[test]
fn bytes_are_right_or_an_error_and_nothing_is_left() {
    let (mut worked, mut told) = (0, BTreeSet::new());
    for seed in 0..seeds(32) {
        let options = SimVerbsOptions::rough(seed.is_multiple_of(2));
        let (network, done) = play(seed, options);
        worked += done;
        told.extend(network.statuses().into_keys());
    }
    assert!(worked > 200, "only {worked} things came to their end");
    // Each that there is, as rdma-core numbers them.
    assert_eq!(told, (0..=23).collect());
}

/// Bytes that a session may take for itself when nothing moves.
const SESSION_BYTES: usize = 1024;

#[test]
fn a_session_that_rests_takes_little_memory() {
    let network = SimVerbs::new(1, SimVerbsOptions::default());
    let mut node = node(&network);
    let sessions = 500;
    let mut clients: Vec<Client> =
        (0..sessions).map(|_| connect(&network, &mut node).expect("room")).collect();
    let burst = |clients: &mut Vec<Client>, node: &mut Node| {
        for client in clients {
            for _ in 0..CREDITS {
                client.send(Command::Ping, None);
            }
            client.finish(&mut || turn(node)).expect("connected");
        }
    };
    burst(&mut clients, &mut node);
    // Many ticks.
    (0..1000).for_each(|_| turn(&mut node));
    let at_rest = node.transport.session_bytes().expect("counted");
    assert!(at_rest / sessions <= SESSION_BYTES, "{at_rest} bytes of {sessions} sessions");
    // And it is what it was before.
    burst(&mut clients, &mut node);
    drop(clients);
    settle(&network, &mut node);
    assert_eq!(node.transport.session_bytes(), Some(0));
}

/// How many seeds a test tries.
fn seeds(default: u64) -> u64 {
    std::env::var("FOREBAY_SIM_VERBS_SEEDS").map_or(default, |text| text.parse().expect("a number"))
}
