//! Keys of memory that is not theirs: of the node, of other tenants, of other clients; and of their own
//! memory where it ends, or no longer is.

use extent::Proof;

use super::super::completion::WorkStatus;
use super::super::send_queue::{Local, Remote, Work};
use super::victim::{FILLING, Guard, HONEST, MIXED_UP, Victim};
use super::{Arc, Intruder, MEMORY_BYTES, Ordering, eventually, reaches};

/// Keys that are tried, around those that the node's memory has, unless `FOREBAY_TEST_GUESSES` says
/// another number: each costs a connection.
const GUESSES: u32 = 300;
/// "Remote access error" and "remote invalid request error".
const REFUSED: [WorkStatus; 2] = [WorkStatus(10), WorkStatus(9)];
/// "Local protection error", and what soft-RoCE makes of it, "local queue pair operation error".
const NOT_OF_THIS_DOMAIN: [WorkStatus; 2] = [WorkStatus(4), WorkStatus(2)];

fn proof(seed: u8) -> Proof {
    Proof::from_bytes([seed; 16]).expect("not zero")
}

/// A node with two tenants, and proofs for many sessions of each.
fn two_tenants() -> (Victim, [Proof; 2]) {
    let guard = Arc::new(Guard::default());
    let proofs = [proof(1), proof(2)];
    guard.grant(&proofs[0], 1000, "a");
    guard.grant(&proofs[1], 1000, "b");
    (Victim::behind(guard), proofs)
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn no_key_opens_the_memory_of_a_node() {
    let victim = Victim::new();
    // The client knows where the node's memory is, which one elsewhere would not, and its very key.
    let target = victim.pool.region().base().addr().get() as u64;
    drop(Intruder::new(victim.address));
    victim.closes(1);
    let real = victim.key_of("");
    let guesses = std::env::var("FOREBAY_TEST_GUESSES");
    let guesses = guesses.map_or(GUESSES, |number| number.parse().expect("a number"));
    for guess in 0..guesses {
        // Keys are an index and eight bits that change.
        let key = match guess {
            0 => real,
            _ if guess % 4 == 0 => real.wrapping_sub(guess),
            _ => ((real >> 8).wrapping_sub(guess / 16) << 8) | ((guess * 7) % 256),
        };
        let mut intruder = Intruder::new(victim.address);
        let remote = Remote { address: target, key };
        let local = intruder.local();
        // An RDMA READ would never leave: the node answers none, and said so when it was connected.
        let work = Work::Write { from: local, to: remote, immediate: None, end: None };
        let status = intruder.try_out(work);
        assert!(REFUSED.contains(&status), "key {key:#x}: {status:?}");
    }
    assert!(victim.is_untouched());
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn no_tenants_key_opens_the_memory_of_a_node_to_another() {
    let (victim, proofs) = two_tenants();
    let both = [0, 1].map(|i| Intruder::with_proof(victim.address, proofs[i].clone()));
    let keys = ["a", "b"].map(|tenant| victim.key_of(tenant));
    assert_ne!(keys[0], keys[1], "each tenant has registrations of its own");
    drop(both);
    victim.closes(2);
    let target = victim.pool.region().base().addr().get() as u64;
    for (count, (proof, key)) in [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().enumerate() {
        let proof = proofs[proof].clone();
        let mut intruder = Intruder::with_proof(victim.address, proof).expect("let in");
        let (from, to) = (intruder.local(), Remote { address: target, key: keys[key] });
        let status = intruder.try_out(Work::Write { from, to, immediate: None, end: None });
        assert!(REFUSED.contains(&status), "{status:?}");
        drop(intruder);
        victim.closes(3 + count);
    }
    assert!(victim.is_untouched());
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn even_a_node_that_mixed_its_tenants_up_could_not_send_one_the_memory_of_another() {
    let (victim, proofs) = two_tenants();
    let mut own = Intruder::with_proof(victim.address, proofs[0].clone()).expect("let in");
    let mut other = Intruder::with_proof(victim.address, proofs[1].clone()).expect("let in");
    for tenant in ["a", "b"] {
        victim.key_of(tenant);
    }
    let [(key_of_a, _), (key_of_b, _)] = MIXED_UP;
    // Of tenant b, with the key of its own: this is how bytes come.
    let (address, key) = (other.address(), other.key());
    other.ask_for(key_of_b, address, key);
    eventually(|| other.bytes()[..64].iter().all(|byte| *byte == FILLING), "its bytes");
    assert!(other.bytes()[64..].iter().all(|byte| *byte == 0));
    // Of tenant a, with the key of tenant b: the device refuses, and the session ends.
    let (address, key) = (own.address(), own.key());
    own.ask_for(key_of_b, address, key);
    victim.closes(1);
    assert!(own.is_untouched(), "not a byte");
    // And the other way round, once more.
    let (address, key) = (other.address() + 128, other.key());
    other.ask_for(key_of_a, address, key);
    victim.closes(2);
    assert!(other.bytes()[64..].iter().all(|byte| *byte == 0), "not a byte more");
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_key_of_another_domain_is_none_on_this_side_either() {
    let victim = Victim::new();
    let (mut thief, owner) = (Intruder::new(victim.address), Intruder::new(victim.address));
    let to = Remote { address: thief.address(), key: thief.key() };
    let work =
        Work::Write { from: Local { length: 64, ..owner.local() }, to, immediate: None, end: None };
    let status = thief.try_out(work);
    assert!(NOT_OF_THIS_DOMAIN.contains(&status), "{status:?}");
    assert!(thief.is_untouched());
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn requests_reach_the_memory_of_whoever_sends_them_while_it_is_theirs_and_no_other() {
    let (victim, proofs) = two_tenants();
    let owner = Intruder::with_proof(victim.address, proofs[0].clone()).expect("let in");
    let mut bystander = Intruder::with_proof(victim.address, proofs[1].clone()).expect("let in");
    let last = MEMORY_BYTES as u64 - 64;
    type Target = fn(&Intruder, &Intruder) -> (u64, u32);
    let cases: [(&str, Target); 7] = [
        ("memory of another tenant", |_, owner| (owner.address(), owner.key())),
        ("its key for one's own memory", |own, owner| (own.address(), owner.key())),
        ("its memory with one's own key", |own, owner| (owner.address(), own.key())),
        ("beyond the end by a byte", |own, _| {
            (own.address() + MEMORY_BYTES as u64 - 63, own.key())
        }),
        ("before the beginning", |own, _| (own.address() - 1, own.key())),
        ("where no memory is", |own, _| (u64::MAX - 127, own.key())),
        ("a key that never was", |own, _| (own.address(), own.key() ^ 0xFFFF_FF00)),
    ];
    for (count, (case, target)) in cases.into_iter().enumerate() {
        let mut intruder = Intruder::with_proof(victim.address, proofs[1].clone()).expect("let in");
        let (address, key) = target(&intruder, &owner);
        intruder.ask_for(HONEST, address, key);
        victim.closes(count + 1);
        assert!(intruder.is_untouched() && owner.is_untouched(), "{case}");
        assert_eq!(victim.seen.unwritten.load(Ordering::Acquire), count + 1, "{case}");
    }
    // Memory that was theirs, and is registered no longer.
    let mut intruder = Intruder::with_proof(victim.address, proofs[1].clone()).expect("let in");
    let (address, key) = (intruder.address(), intruder.key());
    intruder.ask_for(HONEST, address + last, key);
    reaches(&victim.seen.written, 1);
    intruder.memory = None;
    intruder.ask_for(HONEST, address, key);
    victim.closes(cases.len() + 1);
    let bytes = intruder.bytes();
    assert!(bytes[..MEMORY_BYTES - 64].iter().all(|byte| *byte == 0));
    assert!(bytes[MEMORY_BYTES - 64..].iter().all(|byte| *byte == FILLING), "while it was theirs");
    // None of this concerned anybody else.
    let (address, key) = (bystander.address(), bystander.key());
    bystander.ask_for(HONEST, address, key);
    reaches(&victim.seen.written, 2);
    assert_eq!(victim.seen.closed.load(Ordering::Acquire), cases.len() + 1);
    assert!(owner.is_untouched() && victim.is_untouched());
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn whoever_takes_keys_back_takes_nobody_elses() {
    let (victim, proofs) = two_tenants();
    let let_in =
        |who: usize| Intruder::with_proof(victim.address, proofs[who].clone()).expect("let in");
    let mut bystanders = [let_in(0), let_in(1)];
    let keys = ["a", "b"].map(|tenant| victim.key_of(tenant));
    let mut written = 0;
    let mut serves_both = |victim: &Victim| {
        for bystander in &mut bystanders {
            let (address, key) = (bystander.address(), bystander.key());
            bystander.ask_for(HONEST, address, key);
            written += 1;
            reaches(&victim.seen.written, written);
        }
    };
    serves_both(&victim);
    // The node's, by a message, of either tenant by either.
    for (who, key) in [(0, keys[0]), (0, keys[1]), (1, keys[0]), (1, keys[1])] {
        let intruder = let_in(who);
        assert!(intruder.invalidate(key, true).is_some(), "the device has sent it");
        serves_both(&victim);
    }
    // One's own: a device that does so (soft-RoCE does not, since no work request made that key) knows it no more.
    let mut intruder = let_in(1);
    let (address, key) = (intruder.address(), intruder.key());
    if intruder.invalidate(key, false) == Some(WorkStatus::SUCCESS) {
        let unwritten = victim.seen.unwritten.load(Ordering::Acquire);
        intruder.ask_for(HONEST, address, key);
        reaches(&victim.seen.unwritten, unwritten + 1);
    }
    assert!(intruder.is_untouched());
    serves_both(&victim);
    assert!(victim.is_untouched());
}
