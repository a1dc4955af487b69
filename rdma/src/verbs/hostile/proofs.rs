//! Proofs that are no good, and tenants that are too many.

use extent::{Kind, Proof};

use super::super::greeting::Hello;
use super::super::tenants::MAX_TENANTS;
use super::victim::{Guard, Victim};
use super::{Arc, Ask, Intruder, Ordering, reaches};

fn proof(seed: u8) -> Proof {
    Proof::from_bytes([seed; 16]).expect("not zero")
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn whoever_proves_nothing_never_gets_a_queue_pair() {
    let guard = Arc::new(Guard::default());
    let victim = Victim::behind(Arc::clone(&guard) as _);
    let refused = |proof: Option<Proof>, why: &str| {
        let ask = Ask { proof, ..Ask::default() };
        let error = Intruder::connect(victim.address, ask).map(drop).expect_err(why);
        assert_eq!(error.kind(), Kind::Denied, "{why}: {error}");
        error.to_string()
    };
    assert!(refused(None, "without a proof").contains("ask for one"));
    assert!(refused(Some(proof(9)), "with a wrong one").contains("no good"));
    guard.grant(&proof(1), 1, "a");
    for bit in [0, 7, 64, 127] {
        let mut bytes = *proof(1).expose();
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused(Proof::from_bytes(bytes), "with one of which a bit is wrong");
    }
    let first = Intruder::with_proof(victim.address, proof(1)).expect("a good one");
    refused(Some(proof(1)), "with one that is used up");
    drop(first);
    victim.closes(1);
    refused(Some(proof(1)), "with one that is used up, though its session is over");
    guard.grant(&proof(2), 5, "a");
    drop(Intruder::with_proof(victim.address, proof(2)).expect("a good one"));
    guard.revoke(&proof(2));
    refused(Some(proof(2)), "with one whose time is over");
    victim.closes(2);
    assert_eq!(victim.seen.opened.load(Ordering::Acquire), 2, "the shard saw those two only");
}

#[test]
fn a_greeting_without_a_proof_says_zeroes() {
    assert_eq!(Hello::new(4, None).encode()[16..32], [0; 16]);
    assert_eq!(Hello::new(4, Some(proof(3))).encode()[16..32], [3; 16]);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn tenants_are_bounded_and_those_without_sessions_make_room() {
    let guard = Arc::new(Guard::default());
    let victim = Victim::behind(Arc::clone(&guard) as _);
    let come = |number: usize| {
        let proof = proof(u8::try_from(number + 1).expect("few"));
        guard.grant(&proof, 1, &format!("t{number}"));
        Intruder::with_proof(victim.address, proof)
    };
    let mut all: Vec<_> = (0..MAX_TENANTS).map(|number| come(number).expect("room")).collect();
    let error = come(MAX_TENANTS).map(drop).expect_err("one too many");
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert!(come(3).is_ok(), "one that is here has room for more");
    victim.closes(1);
    drop(all.remove(5));
    victim.closes(2);
    let newcomer = come(MAX_TENANTS).expect("another has left");
    reaches(&victim.seen.opened, MAX_TENANTS + 2);
    victim.key_of(&format!("t{MAX_TENANTS}"));
    assert!(come(5).is_err(), "and has no place any more");
    drop((all, newcomer));
    victim.closes(MAX_TENANTS + 2);
}
