//! Scrubs as jobs: one at a time, asked for once, stopped, begun by themselves, remembered.

mod common;

use std::time::Duration;

use common::{Fake, Rig, mutation};
use dataplane::ScrubReport;
use extent::Kind;
use forebay_control::proto;

fn start(request_id: &str) -> proto::ScrubRequest {
    proto::ScrubRequest { mutation: Some(mutation(request_id)), ..Default::default() }
}

fn stop() -> proto::ScrubRequest {
    let mut request = proto::ScrubRequest::default();
    request.set_action(proto::ScrubAction::Stop);
    request
}

#[tokio::test]
async fn a_scrub_is_a_job_with_progress_and_a_report() {
    let mut rig = Rig::new().await;
    rig.fake.hold("scrub tier");
    let request = proto::ScrubRequest { rate_bytes_per_s: 5 << 20, ..start("one") };
    let job = rig.client.scrub(request.clone()).await.expect("accepted");
    assert_eq!((job.kind(), job.rate_bytes_per_s), (proto::JobKind::Scrub, 5 << 20));
    rig.fake.called("scrub tier").await;
    let again = rig.client.scrub(request).await.expect("the same request");
    assert_eq!(again.id, job.id, "one request, one effect");
    let busy = rig.client.scrub(start("two")).await.expect_err("one at a time");
    assert_eq!(busy.kind(), Kind::Busy);
    assert!(busy.to_string().contains(&job.id), "{busy}");
    let progress = rig.client.job(&job.id).await.expect("a job").progress.expect("runs");
    assert_eq!((progress.bytes_done, progress.bytes_total), (40, 100));
    let status = rig.client.status().await.expect("a status");
    assert_eq!((status.scrub_job, status.last_scrub), (job.id.clone(), None));
    rig.fake.let_go("scrub tier");
    let job = rig.finished(&job.id).await;
    let found = job.scrub.expect("a report");
    assert_eq!((job.state(), found.complete), (proto::JobState::Done, true));
    assert_eq!(found.rate_bytes_per_s, 5 << 20);
    let status = rig.client.status().await.expect("a status");
    assert_eq!((status.scrub_job.as_str(), status.last_scrub), ("", Some(found)));
    let rig = rig.restart(|_| {}).await;
    let status = rig.client.clone().status().await.expect("a status");
    assert_eq!(status.last_scrub, Some(found), "known after a restart");
}

#[tokio::test]
async fn damage_that_stays_fails_the_job_as_corrupt() {
    let mut rig = Rig::new().await;
    let found = ScrubReport { damaged: 3, repaired: 2, unrepaired: 1, ..ScrubReport::default() };
    rig.fake.change(|state| state.scrub = found);
    let job = rig.client.scrub(start("one")).await.expect("accepted");
    let job = rig.finished(&job.id).await;
    assert_eq!(job.state(), proto::JobState::Failed);
    assert_eq!(job.errors[0].error_kind, "corrupt");
    let report = job.scrub.expect("a report");
    assert_eq!((report.damaged, report.repaired, report.unrepaired), (3, 2, 1));
}

#[tokio::test]
async fn a_scrub_is_stopped_and_a_lower_epoch_may_not() {
    let mut rig = Rig::new().await;
    assert_eq!(rig.client.scrub(stop()).await.expect_err("none").kind(), Kind::NotFound);
    rig.fake.hold("scrub tier");
    let mut leader = rig.client.clone().with_epoch(7);
    let job = leader.scrub(proto::ScrubRequest::default()).await.expect("accepted");
    rig.fake.called("scrub tier").await;
    let fenced = rig.client.scrub(stop()).await.expect_err("an earlier controller");
    assert_eq!(fenced.kind(), Kind::Fenced);
    let stopped = leader.scrub(stop()).await.expect("stopped");
    assert_eq!(stopped.id, job.id);
    let job = rig.finished(&job.id).await;
    assert_eq!(job.state(), proto::JobState::Cancelled);
    assert!(!job.scrub.expect("how far it came").complete);
    let status = rig.client.status().await.expect("a status");
    assert_eq!(status.last_scrub, None, "only one that came to its end is the last");
}

#[tokio::test]
async fn a_scrub_that_a_restart_interrupts_begins_again() {
    let rig = Rig::new().await;
    rig.fake.hold("scrub tier");
    let job = rig.client.clone().scrub(start("one")).await.expect("accepted");
    rig.fake.called("scrub tier").await;
    let mut rig = rig.restart(|_| {}).await;
    rig.fake.called("scrub tier").await;
    rig.fake.let_go("scrub tier");
    let job = rig.finished(&job.id).await;
    assert_eq!((job.state(), job.restarts), (proto::JobState::Done, 1));
}

#[tokio::test]
async fn scrubs_begin_by_themselves_and_files_do_not_wait_for_them() {
    let fake = Fake::with_objects("f", 3, 1 << 20);
    fake.hold("scrub tier");
    let weekly = |options: &mut forebay_control::Options| {
        options.scrub_every = Some(Duration::from_secs(7 * 24 * 3600));
        options.limits.parallel_files = 1;
    };
    let mut rig = Rig::with(fake, weekly).await;
    // There never was one: it is due at once.
    rig.fake.called("scrub tier").await;
    let promoted = rig.promote(vec![common::prefix("data/")]).await;
    let promoted = rig.finished(&promoted.id).await;
    assert_eq!(promoted.state(), proto::JobState::Done, "while the scrub still runs");
    let scrub = rig.client.status().await.expect("a status").scrub_job;
    rig.fake.let_go("scrub tier");
    assert_eq!(rig.finished(&scrub).await.state(), proto::JobState::Done);
    let mut rig = rig.restart(weekly).await;
    // Whatever else the node does, the next one is not due for a week.
    let promoted = rig.promote(vec![common::prefix("data/")]).await;
    rig.finished(&promoted.id).await;
    assert!(rig.fake.calls("scrub").is_empty(), "the last one is remembered");
}
