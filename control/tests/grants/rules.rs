//! What holds of proofs, each rule as something that panics where it does not. For a clock that stands
//! still unless it is moved.

use std::time::Duration;

use extent::wire::Refusal;
use extent::{Kind, Proof, TenantName};
use forebay_control::Grants;
use tokio::time::advance;

const SECOND: Duration = Duration::from_secs(1);

fn tenant(name: &str) -> TenantName {
    name.parse().expect("a name")
}

fn granted(grants: &Grants, connections: u32, ttl: Duration) -> Proof {
    grants.grant(tenant("t"), connections, ttl).expect("room")
}

fn is_refused(grants: &Grants, proof: &Proof) {
    let error = grants.redeem(proof).expect_err("let in");
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("forebay session grant"), "{error}");
    assert!(
        error.to_string().len() <= Refusal::SENTENCE_BYTES,
        "a refusal has room for so much: {error}"
    );
    assert!(!error.to_string().contains(&proof.expose_hex()));
}

/// All of them.
pub(crate) async fn all() {
    a_proof_is_good_for_as_many_connections_as_it_was_granted_for();
    one_that_was_never_granted_is_refused();
    a_proof_ends(false).await;
    a_proof_ends(true).await;
    every_tenant_keeps_its_name();
    outstanding_proofs_are_bounded_and_expired_ones_make_room().await;
    senseless_grants_are_refused();
}

fn a_proof_is_good_for_as_many_connections_as_it_was_granted_for() {
    let grants = Grants::new(10);
    for connections in [1, 3, Grants::MAX_CONNECTIONS] {
        let proof = granted(&grants, connections, SECOND);
        (0..connections).for_each(|_| drop(grants.redeem(&proof).expect("not used up")));
        is_refused(&grants, &proof);
        is_refused(&grants, &proof);
    }
}

fn one_that_was_never_granted_is_refused() {
    let grants = Grants::new(10);
    let proof = granted(&grants, 1, SECOND);
    for bit in 0..128 {
        let mut bytes = *proof.expose();
        bytes[bit / 8] ^= 1 << (bit % 8);
        is_refused(&grants, &Proof::from_bytes(bytes).expect("not zero"));
    }
    is_refused(&Grants::new(10), &proof);
    grants.redeem(&proof).expect("the right one");
}

/// Whether or not it was used before.
async fn a_proof_ends(used: bool) {
    let grants = Grants::new(10);
    let (short, long) = (granted(&grants, 5, SECOND), granted(&grants, 5, Grants::MAX_TTL));
    advance(SECOND - Duration::from_millis(1)).await;
    if used {
        grants.redeem(&short).expect("in time");
    }
    advance(Duration::from_millis(1)).await;
    is_refused(&grants, &short);
    grants.redeem(&long).expect("in time");
    advance(Grants::MAX_TTL).await;
    is_refused(&grants, &long);
}

fn every_tenant_keeps_its_name() {
    let grants = Grants::new(10);
    let names = ["a", "", "b"].map(tenant);
    let proofs = names.clone().map(|name| grants.grant(name, 1, SECOND).expect("room"));
    for (name, proof) in names.iter().zip(&proofs).rev() {
        assert_eq!(&grants.redeem(proof).expect("granted"), name);
    }
}

async fn outstanding_proofs_are_bounded_and_expired_ones_make_room() {
    let grants = Grants::new(3);
    let first = granted(&grants, 1, 9 * SECOND);
    let again = |grants: &Grants| grants.grant(TenantName::DEFAULT, 1, SECOND);
    granted(&grants, 1, SECOND);
    granted(&grants, 2, SECOND);
    let error = again(&grants).map(drop).expect_err("full");
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains("wait"), "{error}");
    grants.redeem(&first).expect("granted");
    again(&grants).expect("one was used up");
    assert!(again(&grants).is_err(), "full again");
    advance(SECOND).await;
    (0..3).for_each(|_| _ = again(&grants).expect("all have expired"));
}

fn senseless_grants_are_refused() {
    let grants = Grants::new(10);
    let (most, longest) = (Grants::MAX_CONNECTIONS, Grants::MAX_TTL);
    for (connections, ttl) in
        [(0, SECOND), (most + 1, SECOND), (1, Duration::ZERO), (1, longest + SECOND)]
    {
        let refused = grants.grant(TenantName::DEFAULT, connections, ttl).map(drop);
        assert_eq!(refused.expect_err("senseless").kind(), Kind::Invalid);
    }
}
