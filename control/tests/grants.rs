//! Proofs for data sessions: what they are good for, and how they are had.

mod common;
#[path = "grants/rules.rs"]
mod rules;

use std::time::Duration;

use common::{Fake, Rig};
use extent::Kind;
use forebay_control::proto;

#[tokio::test(start_paused = true)]
async fn proofs_are_good_for_what_they_were_granted_for_and_no_more() {
    rules::all().await;
}

#[tokio::test]
async fn the_control_plane_grants_proofs_and_shows_none() {
    let mut rig = Rig::with(Fake::new(), |options| options.limits.grants = 3).await;
    let grants = rig.control.grants();
    let (proof, grant) = rig.client.grant(proto::GrantRequest::default()).await.expect("granted");
    assert_eq!((grant.connections, grant.tenant.as_str()), (1, ""));
    let seconds = |grant: &proto::SessionGrant| grant.expires.expect("a moment").seconds;
    assert_eq!(grants.redeem(&proof).expect("as granted").as_str(), "");
    assert_eq!(grants.redeem(&proof).expect_err("used up").kind(), Kind::Denied);

    let ttl = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    let request = proto::GrantRequest { tenant: "team-7".into(), connections: 2, ttl };
    let (proof, longer) = rig.client.grant(request.clone()).await.expect("granted");
    assert!(seconds(&longer) >= seconds(&grant) + 570);
    let shown = format!("{longer:?}");
    assert!(shown.contains("team-7"), "{shown}");
    let secret = format!("{:?}", proof.expose());
    assert!(
        !shown.contains(secret.trim_matches(['[', ']'])) && !shown.contains("proof"),
        "{shown}"
    );
    assert!(!format!("{grants:?}").contains(secret.trim_matches(['[', ']'])));
    for _ in 0..2 {
        assert_eq!(grants.redeem(&proof).expect("as granted").as_str(), "team-7");
    }

    let client = rig.client.clone();
    let refused = |request: &proto::GrantRequest| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.grant(request).await.map(drop).expect_err("refused").kind() }
    };
    for (seconds, nanos) in [(601, 0), (0, 0), (-1, 0)] {
        let ttl = Some(prost_types::Duration { seconds, nanos });
        let late = proto::GrantRequest { ttl, ..request.clone() };
        assert_eq!(refused(&late).await, Kind::Invalid, "{seconds} s");
    }
    let crowd = proto::GrantRequest { connections: 65, ..request.clone() };
    assert_eq!(refused(&crowd).await, Kind::Invalid);
    let nameless = proto::GrantRequest { tenant: "a/b".into(), ..request.clone() };
    assert_eq!(refused(&nameless).await, Kind::Invalid);
    for _ in 0..3 {
        rig.client.grant(request.clone()).await.expect("room");
    }
    assert_eq!(refused(&request).await, Kind::Busy);
}

#[tokio::test]
async fn a_restart_voids_what_was_granted() {
    let mut rig = Rig::new().await;
    let request = proto::GrantRequest {
        ttl: prost_types::Duration::try_from(Duration::from_secs(600)).ok(),
        ..proto::GrantRequest::default()
    };
    let (proof, _) = rig.client.grant(request).await.expect("granted");
    let rig = rig.restart(|_| {}).await;
    assert_eq!(rig.control.grants().redeem(&proof).expect_err("void").kind(), Kind::Denied);
}
