//! Jobs: order, progress, cancelling, failures, bounds.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Fake, Rig, file, moment, mutation, pin, prefix};
use extent::Kind;
use forebay_control::proto;
use proto::JobState;

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_watch_shows_progress_to_the_end() {
    let fake = Fake::with_objects("a", 2, 4 * MIB);
    fake.hold("promote data/a00");
    fake.hold("promote data/a01");
    let mut rig = Rig::with(fake, |_| {}).await;
    let job = rig.promote(vec![prefix("data/a")]).await;
    let mut watch = rig.client.watch(&job.id).await.expect("a job");
    let mut seen = Vec::new();
    while let Some(job) = watch.next().await.expect("a state") {
        let progress = job.progress.expect("always there");
        assert!(job.results.is_empty(), "in brief");
        if progress.bytes_done == 4 * MIB && progress.files_done == 0 {
            assert_eq!((job.state(), progress.bytes_total), (JobState::Running, 8 * MIB));
            assert_eq!((progress.files_total, progress.expanded), (2, true));
            rig.fake.let_go("promote data/a00");
        }
        if progress.files_done == 1 && progress.bytes_done == 6 * MIB {
            rig.fake.let_go("promote data/a01");
        }
        seen.push((progress.files_done, progress.bytes_done));
        if job.finished.is_some() {
            assert_eq!(job.state(), JobState::Done);
        }
    }
    assert!(seen.is_sorted(), "it only grows: {seen:?}");
    assert_eq!(seen.last(), Some(&(2, 8 * MIB)));
    // A watch of a job that is over tells its end and is over too.
    let mut watch = rig.client.watch(&job.id).await.expect("a job");
    assert_eq!(watch.next().await.expect("a state").expect("one").state(), JobState::Done);
    assert_eq!(watch.next().await.expect("the end"), None);
    let unknown = rig.client.watch("nonsense").await.expect_err("no such job");
    assert_eq!(unknown.kind(), Kind::NotFound);
}

#[tokio::test]
async fn who_watches_slowly_gets_the_latest() {
    let rig = Rig::with(Fake::with_objects("a", 3000, 0), |_| {}).await;
    let mut client = rig.client.clone();
    let label = |n: u32| (format!("{n}"), "x".repeat(256));
    let request = proto::PromoteRequest {
        targets: vec![prefix("data/a")],
        mutation: Some(proto::Mutation { labels: (0..32).map(label).collect(), ..mutation("r") }),
        ..Default::default()
    };
    rig.fake.hold("promote data/a00");
    let job = client.promote(request).await.expect("accepted");
    let mut watch = client.watch(&job.id).await.expect("a job");
    rig.fake.let_go("promote data/a00");
    // Not read until everything has happened.
    rig.fake.until(|state| state.calls.iter().any(|call| call == "promote data/a999")).await;
    let mut states = 0;
    let mut last = None;
    while let Some(job) = watch.next().await.expect("a state") {
        states += 1;
        last = Some(job);
    }
    let last = last.expect("some state");
    assert_eq!((last.state(), last.progress.expect("there").files_done), (JobState::Done, 3000));
    assert!(states < 2500, "{states} states for 3000 files");
}

#[tokio::test]
async fn a_job_is_cancelled_midway() {
    let fake = Fake::with_objects("a", 20, 2 * MIB);
    for index in 3..20 {
        fake.hold(&format!("promote data/a{index:02}"));
    }
    let mut rig = Rig::with(fake, |options| options.limits.parallel_files = 2).await;
    let job = rig.promote(vec![prefix("data/a")]).await;
    rig.fake.called("promote data/a04").await;
    let cancel = proto::CancelJobRequest { mutation: None, id: job.id.clone() };
    let asked = rig.client.cancel(cancel.clone()).await.expect("a job");
    assert!(asked.cancel_requested);
    let over = rig.finished(&job.id).await;
    assert_eq!(over.state(), JobState::Cancelled);
    let progress = over.progress.expect("it ran");
    assert_eq!((progress.files_done, progress.files_failed), (3, 0), "being stopped is no failure");
    assert!(over.errors.is_empty());
    assert_eq!(rig.fake.look(|state| (state.cancelled, state.running)), (2, 0));
    assert_eq!(rig.fake.calls("promote").len(), 5, "nothing new was begun");
    assert_eq!(rig.client.cancel(cancel).await.expect("a job"), over, "it stays as it is");
    let nobody = proto::CancelJobRequest { mutation: None, id: "00000000-1".into() };
    assert_eq!(rig.client.cancel(nobody).await.expect_err("none").kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_job_is_cancelled_while_it_waits_or_lists() {
    let fake = Fake::with_objects("a", 2, MIB);
    fake.hold("promote data/a00");
    fake.hold("discover data/b");
    let mut rig = Rig::with(fake, |options| options.limits.parallel_files = 1).await;
    let listing = rig.promote(vec![prefix("data/b")]).await;
    rig.fake.called("discover data/b").await;
    let running = rig.promote(vec![file("data/a00")]).await;
    rig.fake.called("promote data/a00").await;
    let waiting = rig.promote(vec![file("data/a01")]).await;
    assert_eq!(rig.client.status().await.expect("up").jobs_running, 2);
    for id in [&listing.id, &waiting.id] {
        let cancel = proto::CancelJobRequest { mutation: None, id: id.clone() };
        rig.client.cancel(cancel).await.expect("a job");
        assert_eq!(rig.finished(id).await.state(), JobState::Cancelled);
    }
    rig.fake.let_go("promote data/a00");
    assert_eq!(rig.finished(&running.id).await.state(), JobState::Done);
    assert_eq!(rig.fake.calls("promote"), ["data/a00"]);
    let status = rig.client.status().await.expect("up");
    assert_eq!((status.jobs_running, status.jobs_queued), (0, 0));
}

#[tokio::test]
async fn urgent_jobs_go_first() {
    let fake = Fake::with_objects("a", 6, MIB);
    fake.put_dirty("data/w", MIB);
    fake.hold("promote data/a00");
    let mut rig = Rig::with(fake, |options| options.limits.parallel_files = 1).await;
    // Holds the only place, and has three more files to come.
    let long =
        rig.promote(vec![file("data/a00"), file("data/a01"), file("data/a02"), file("data/a03")]);
    let mut jobs = vec![long.await.id];
    rig.fake.called("promote data/a00").await;
    let request = proto::WritebackRequest { targets: vec![file("data/w")], mutation: None };
    jobs.push(rig.client.writeback(request).await.expect("accepted").id);
    for (name, seconds) in [("data/a04", 7200), ("data/a05", 3600)] {
        let deadline = Some(moment(seconds));
        let request = proto::PromoteRequest {
            targets: vec![file(name)],
            mutation: Some(proto::Mutation { deadline, ..mutation(name) }),
            ..Default::default()
        };
        jobs.push(rig.client.promote(request).await.expect("accepted").id);
    }
    rig.fake.let_go("promote data/a00");
    for id in &jobs {
        assert_eq!(rig.finished(id).await.state(), JobState::Done);
    }
    let order: Vec<_> = rig.fake.look(|state| {
        let moves = |call: &&String| call.starts_with("promote") || call.starts_with("writeback");
        state.calls.iter().filter(moves).cloned().collect()
    });
    assert_eq!(
        order,
        [
            "promote data/a00",
            "promote data/a05",
            "promote data/a04",
            "writeback data/w",
            "promote data/a01",
            "promote data/a02",
            "promote data/a03",
        ]
    );
}

#[tokio::test]
async fn places_are_used_and_not_exceeded() {
    let fake = Fake::with_objects("a", 12, MIB);
    for index in 0..12 {
        fake.hold(&format!("promote data/a{index:02}"));
    }
    let mut rig = Rig::with(fake, |options| {
        options.limits.parallel_files = 3;
        options.limits.expand_page = 2;
    })
    .await;
    let job = rig.promote(vec![prefix("data/a")]).await;
    rig.fake.until(|state| state.running == 3).await;
    for index in 0..12 {
        rig.fake.let_go(&format!("promote data/a{index:02}"));
    }
    let done = rig.finished(&job.id).await;
    let progress = done.progress.expect("it ran");
    assert_eq!((progress.files_total, progress.files_done), (12, 12));
    assert_eq!(rig.fake.look(|state| state.most_running), 3);
    assert!(rig.fake.calls("discover").len() >= 7, "six pages of two, and an empty one");
}

#[tokio::test]
async fn what_fails_is_told_and_the_rest_is_done() {
    let fake = Fake::with_objects("a", 50, MIB);
    for index in 0..40 {
        fake.fail(&format!("promote data/a{index:02}"), Kind::Stale);
    }
    fake.fail("discover data/b", Kind::Denied);
    let mut rig = Rig::with(fake, |_| {}).await;
    let job = rig.promote(vec![prefix("data/b"), prefix("data/a"), file("data/none")]).await;
    let over = rig.finished(&job.id).await;
    assert_eq!(over.state(), JobState::Failed);
    let progress = over.progress.expect("it ran");
    assert_eq!((progress.files_done, progress.files_failed), (10, 41));
    assert_eq!((progress.targets_failed, progress.files_total), (1, 51));
    assert_eq!(over.errors.len(), 32, "the first ones");
    assert_eq!((over.errors[0].file.as_str(), &*over.errors[0].error_kind), ("data/b", "denied"));
    assert_eq!(over.errors[1].error_kind, "stale");
    assert!(over.errors[1].error.contains("told to fail"));
    assert_eq!(over.results.len(), 51);
    assert_eq!(over.results.iter().filter(|result| result.error_kind.is_empty()).count(), 10);
}

#[tokio::test]
async fn a_busy_node_is_asked_again() {
    let fake = Fake::with_objects("a", 2, MIB);
    for _ in 0..2 {
        fake.fail("promote data/a00", Kind::Busy);
    }
    for _ in 0..3 {
        fake.fail("promote data/a01", Kind::Busy);
    }
    let mut rig = Rig::with(fake, |options| options.limits.busy_tries = 3).await;
    let job = rig.promote(vec![file("data/a00")]).await;
    assert_eq!(rig.finished(&job.id).await.state(), JobState::Done);
    let job = rig.promote(vec![file("data/a01")]).await;
    let over = rig.finished(&job.id).await;
    assert_eq!((over.state(), &*over.errors[0].error_kind), (JobState::Failed, "busy"));
}

#[tokio::test]
async fn a_promote_pins_before_it_fills() {
    let mut rig = Rig::with(Fake::with_objects("a", 3, MIB), |_| {}).await;
    rig.fake.fail("promote data/a01", Kind::NoSpace);
    rig.fake.fail("promote data/a02", Kind::NoSpace);
    let request = proto::RegisterRequest { mutation: None, file: "data/a02".into() };
    rig.client.register(request).await.expect("in the silo");
    let request =
        proto::PinRequest { mutation: None, file: "data/a02".into(), pin: Some(pin("job", HOUR)) };
    rig.client.pin(request).await.expect("known");
    let request = proto::PromoteRequest {
        targets: vec![prefix("data/a")],
        pin: Some(pin("job", 2 * HOUR)),
        ..Default::default()
    };
    let job = rig.client.promote(request).await.expect("accepted");
    assert_eq!(rig.finished(&job.id).await.state(), JobState::Failed);
    let place = |call: &str| {
        rig.fake.look(|state| state.calls.iter().position(|made| made == call).expect("made"))
    };
    assert!(place("register data/a00") < place("pin data/a00"));
    assert!(place("pin data/a00") < place("promote data/a00"));
    assert_eq!(rig.fake.pins("data/a00"), ["job"]);
    assert_eq!(rig.fake.pins("data/a01"), [""; 0], "its fill failed");
    assert_eq!(rig.fake.pins("data/a02"), ["job"], "it was pinned before");
    let bad = proto::PromoteRequest {
        targets: vec![prefix("data/a")],
        pin: Some(pin("", HOUR)),
        ..Default::default()
    };
    assert_eq!(rig.client.promote(bad).await.expect_err("nobody").kind(), Kind::Invalid);
}

#[tokio::test]
async fn jobs_are_found_by_label_state_and_kind() {
    let fake = Fake::with_objects("a", 6, MIB);
    fake.hold("promote data/a05");
    let mut rig = Rig::with(fake, |_| {}).await;
    let mut ids = Vec::new();
    for index in 0..6 {
        let user = if index % 2 == 0 { "even" } else { "odd" };
        let labels = BTreeMap::from([
            ("user".to_owned(), user.to_owned()),
            ("all".to_owned(), "yes".to_owned()),
        ]);
        let request = proto::PromoteRequest {
            targets: vec![file(&format!("data/a{index:02}"))],
            mutation: Some(proto::Mutation { labels, ..mutation(&index.to_string()) }),
            ..Default::default()
        };
        let job = rig.client.promote(request).await.expect("accepted");
        assert_eq!((job.labels["user"].as_str(), &*job.request_id), (user, &*index.to_string()));
        ids.push(job.id);
    }
    for id in &ids[..5] {
        rig.finished(id).await;
    }
    let request = proto::DemoteRequest { targets: vec![file("data/a00")], mutation: None };
    let demote = rig.client.demote(request).await.expect("accepted").id;
    rig.finished(&demote).await;
    let mut all = async |request: proto::ListJobsRequest| {
        let (mut found, mut request) = (Vec::new(), request);
        loop {
            let page = rig.client.jobs(request.clone()).await.expect("a page");
            assert!(page.jobs.len() <= 2);
            found.extend(page.jobs.into_iter().map(|job| job.id));
            if page.next_page_token.is_empty() {
                return found;
            }
            request.page_token = page.next_page_token;
        }
    };
    let base = proto::ListJobsRequest { page_size: 2, ..Default::default() };
    let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    let mut with_demote = vec![demote.clone()];
    with_demote.extend(newest_first.clone());
    assert_eq!(all(base.clone()).await, with_demote);
    let odd = proto::ListJobsRequest { labels: label("user", "odd"), ..base.clone() };
    assert_eq!(all(odd.clone()).await, [&*ids[5], &*ids[3], &*ids[1]]);
    let running = vec![JobState::Running.into(), JobState::Queued.into()];
    let odd_running = proto::ListJobsRequest { states: running, ..odd };
    assert_eq!(all(odd_running).await, [&*ids[5]]);
    let demotes = proto::ListJobsRequest { kind: proto::JobKind::Demote.into(), ..base.clone() };
    assert_eq!(all(demotes).await, [demote]);
    let none = proto::ListJobsRequest { labels: label("user", "none"), ..base };
    assert!(all(none).await.is_empty());
}

#[tokio::test]
async fn a_full_queue_is_busy_until_a_job_is_over() {
    let fake = Fake::with_objects("a", 3, MIB);
    fake.hold("promote data/a00");
    let mut rig = Rig::with(fake, |options| options.limits.active_jobs = 2).await;
    let first = rig.promote(vec![file("data/a00")]).await;
    let request = |id: &str| proto::PromoteRequest {
        targets: vec![file("data/a00")],
        mutation: Some(mutation(id)),
        ..Default::default()
    };
    let second = rig.client.promote(request("r2")).await.expect("room for two");
    let full = rig.client.promote(request("r3")).await.expect_err("full");
    assert_eq!(full.kind(), Kind::Busy);
    let again = rig.client.promote(request("r2")).await.expect("known, so it takes no room");
    assert_eq!(again.id, second.id);
    rig.fake.let_go("promote data/a00");
    rig.finished(&first.id).await;
    rig.finished(&second.id).await;
    let third = rig.client.promote(request("r3")).await.expect("room again");
    rig.finished(&third.id).await;
}

#[tokio::test]
async fn only_so_many_finished_jobs_are_kept() {
    let mut rig = Rig::with(Fake::with_objects("a", 1, MIB), |options| {
        options.limits.finished_jobs = 3;
    })
    .await;
    let mut ids = Vec::new();
    for index in 0..5 {
        let request = proto::PromoteRequest {
            targets: vec![file("data/a00")],
            mutation: Some(mutation(&format!("r{index}"))),
            ..Default::default()
        };
        let job = rig.client.promote(request).await.expect("accepted");
        rig.finished(&job.id).await;
        ids.push(job.id);
    }
    for _ in 0..2 {
        for id in &ids[..2] {
            assert_eq!(rig.client.job(id).await.expect_err("dropped").kind(), Kind::NotFound);
        }
        for id in &ids[2..] {
            assert_eq!(rig.client.job(id).await.expect("kept").state(), JobState::Done);
        }
        let request = proto::PromoteRequest {
            targets: vec![file("data/a00")],
            mutation: Some(mutation("r0")),
            ..Default::default()
        };
        // Its answer is gone, but it is still not done twice.
        let repeated = rig.client.promote(request).await.expect_err("its job is not kept");
        assert_eq!(repeated.kind(), Kind::NotFound);
        rig = rig.restart(|_| {}).await;
    }
    assert!(rig.fake.calls("promote").is_empty());
}
