//! A node's and its clients' verbs over simulated devices that do what devices may do: whatever goes
//! wrong, bytes are right or an error, and in the end nothing is left.

mod common;
mod rough;

use std::collections::BTreeSet;

use extent::wire::Command;
use forebay_rdma::{SimVerbs, SimVerbsOptions, Transport as _};
use rough::{CREDITS, Client, Node, call, connect, node, play, settle, turn};

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

/// Looks that it takes to register memory, and answers that somebody else must have had by then.
const REGISTERING: u64 = 20_000;
const ANSWERS: usize = 100;

#[test]
fn nobody_waits_while_memory_is_registered_for_another_tenant() {
    let options = SimVerbsOptions { tenants: 2, ..SimVerbsOptions::default() };
    // Whoever comes is one tenant or the other.
    for seed in 0..8 {
        let network = SimVerbs::new(seed, options);
        let mut node = node(&network);
        let mut client = connect(&network, &mut node).expect("room");
        network.set_options(SimVerbsOptions { registering: REGISTERING, ..options });
        let mut answers = || {
            let mut connecting = network.connect(0, CREDITS).expect("there is a shard");
            for answers in 0.. {
                if connecting.poll().expect("room").is_some() {
                    return answers;
                }
                call(&mut client, Command::Ping, &mut node).expect("connected");
            }
            unreachable!("it goes on for ever before")
        };
        // Sooner or later one is of the other tenant.
        assert!((0..64).any(|_| answers() >= ANSWERS), "seed {seed}");
    }
}

/// How many seeds a test tries.
fn seeds(default: u64) -> u64 {
    std::env::var("FOREBAY_SIM_VERBS_SEEDS").map_or(default, |text| text.parse().expect("a number"))
}
