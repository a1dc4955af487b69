//! What outlives a request, a restart and a crash.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Fake, Rig, database, file, mutation, options, pin, prefix};
use extent::{Epoch, Kind};
use forebay_control::proto::files_client::FilesClient;
use forebay_control::{Control, proto};

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

fn register(name: &str, id: &str) -> proto::RegisterRequest {
    proto::RegisterRequest { file: name.into(), mutation: Some(mutation(id)) }
}

fn promote(name: &str, id: &str) -> proto::PromoteRequest {
    proto::PromoteRequest {
        targets: vec![file(name)],
        mutation: Some(mutation(id)),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_repeated_request_has_one_effect_also_after_a_crash() {
    let mut rig = Rig::with(Fake::with_objects("a", 2, MIB), |_| {}).await;
    let first = rig.client.register(register("data/a00", "r1")).await.expect("in the silo");
    let job = rig.client.promote(promote("data/a00", "r2")).await.expect("accepted");
    let done = rig.finished(&job.id).await;
    let again = rig.client.register(register("data/a00", "r1")).await.expect("remembered");
    assert_eq!(again, first, "the first answer, although the file has been filled since");
    let again = rig.client.promote(promote("data/a00", "r2")).await.expect("remembered");
    assert_eq!(again, done, "the same job, as it stands now");
    assert_eq!(rig.fake.calls("register"), ["data/a00"]);
    assert_eq!(rig.fake.calls("promote"), ["data/a00"]);

    let mut raw = FilesClient::new(rig.channel().await);
    let replayed = raw.register(register("data/a00", "r1")).await.expect("remembered");
    assert_eq!(replayed.metadata().get("forebay-replayed").expect("it was"), "true");
    let fresh = raw.register(register("data/a00", "r3")).await.expect("in the silo");
    assert!(!fresh.metadata().contains_key("forebay-replayed"));

    let image = rig.crash_image();
    let mut rig = Rig::after_crash(image, Arc::clone(&rig.fake), |_| {}).await;
    let again = rig.client.register(register("data/a00", "r1")).await.expect("remembered");
    assert_eq!(again, first);
    let again = rig.client.promote(promote("data/a00", "r2")).await.expect("remembered");
    assert_eq!(again, done);
    assert!(rig.fake.look(|state| state.calls.is_empty()), "nothing was done twice");
}

#[tokio::test]
async fn a_request_id_belongs_to_one_request() {
    let mut rig = Rig::with(Fake::with_objects("a", 2, MIB), |_| {}).await;
    rig.client.register(register("data/a00", "r1")).await.expect("in the silo");
    let other = rig.client.register(register("data/a01", "r1")).await.expect_err("reused");
    assert_eq!(other.kind(), Kind::Invalid);
    let other = rig.client.promote(promote("data/a00", "r1")).await.expect_err("reused");
    assert_eq!(other.kind(), Kind::Invalid);
    // What failed had no effect, so its id is still free.
    rig.fake.fail("register data/a01", Kind::Io);
    let failed = rig.client.register(register("data/a01", "r2")).await.expect_err("told to");
    assert_eq!(failed.kind(), Kind::Io);
    rig.client.register(register("data/a01", "r2")).await.expect("the second try");
}

#[tokio::test]
async fn two_at_once_with_one_id_have_one_effect() {
    let rig = Rig::with(Fake::with_objects("a", 1, MIB), |_| {}).await;
    rig.fake.hold("register data/a00");
    let ask = || {
        let mut client = rig.client.clone();
        tokio::spawn(async move { client.register(register("data/a00", "r1")).await })
    };
    let first = ask();
    rig.fake.called("register data/a00").await;
    let others = [ask(), ask()];
    // Whoever asked first goes away; what was begun is finished and remembered all the same.
    first.abort();
    rig.fake.let_go("register data/a00");
    for other in others {
        other.await.expect("no panic").expect("in the silo");
    }
    assert_eq!(rig.fake.calls("register"), ["data/a00"]);
}

#[tokio::test]
async fn a_lower_epoch_is_refused_also_after_a_crash() {
    let mut rig = Rig::with(Fake::with_objects("a", 3, MIB), |_| {}).await;
    let at = |name: &str, id: &str, epoch| proto::RegisterRequest {
        file: name.into(),
        mutation: Some(proto::Mutation { controller_epoch: epoch, ..mutation(id) }),
    };
    rig.client.register(at("data/a00", "r1", 7)).await.expect("the first controller");
    let lower = rig.client.register(at("data/a01", "r2", 6)).await.expect_err("over");
    assert_eq!(lower.kind(), Kind::Fenced);
    assert_eq!(rig.fake.calls("register"), ["data/a00"]);
    // The next controller repeats a request of the one before, and it is known.
    rig.client.register(at("data/a00", "r1", 8)).await.expect("remembered");
    assert_eq!(rig.fake.calls("register"), ["data/a00"]);
    assert_eq!(rig.control.epoch(), Epoch(8));

    let image = rig.crash_image();
    let mut rig = Rig::after_crash(image, Arc::clone(&rig.fake), |_| {}).await;
    assert_eq!(rig.client.status().await.expect("up").controller_epoch, 8);
    let lower = rig.client.promote(proto::PromoteRequest {
        targets: vec![file("data/a00")],
        mutation: Some(proto::Mutation { controller_epoch: 7, ..mutation("r3") }),
        ..Default::default()
    });
    assert_eq!(lower.await.expect_err("over").kind(), Kind::Fenced);
    let mut client = rig.client.clone().with_epoch(9);
    let request = proto::RegisterRequest { file: "data/a02".into(), mutation: None };
    client.register(request).await.expect("the next controller");
    assert_eq!(rig.control.epoch(), Epoch(9));
}

#[tokio::test]
async fn a_pin_that_is_overtaken_by_a_higher_epoch_is_taken_back() {
    let mut rig = Rig::with(Fake::with_objects("a", 1, MIB), |_| {}).await;
    rig.client.register(register("data/a00", "r1")).await.expect("in the silo");
    let pinning = |owner: &str| proto::PinRequest {
        mutation: Some(proto::Mutation { controller_epoch: 2, ..mutation(owner) }),
        file: "data/a00".into(),
        pin: Some(pin(owner, HOUR)),
    };
    rig.client.pin(pinning("first")).await.expect("known");
    rig.fake.hold("pin data/a00");
    let slow = {
        let (mut client, request) = (rig.client.clone(), pinning("second"));
        tokio::spawn(async move { client.pin(request).await })
    };
    let is_twice =
        |calls: &[String]| calls.iter().filter(|call| *call == "pin data/a00").count() == 2;
    rig.fake.until(|state| is_twice(&state.calls)).await;
    let mut next = rig.client.clone().with_epoch(3);
    let request = proto::RegisterRequest { file: "data/a00".into(), mutation: None };
    next.register(request).await.expect("the next controller");
    rig.fake.let_go("pin data/a00");
    let overtaken = slow.await.expect("no panic").expect_err("its controller is over");
    assert_eq!(overtaken.kind(), Kind::Fenced);
    assert_eq!(rig.fake.pins("data/a00"), ["first"]);
    assert_eq!(rig.client.status().await.expect("up").pins, 1);
}

#[tokio::test]
async fn pins_are_back_before_the_node_may_evict() {
    let mut rig = Rig::with(Fake::with_objects("a", 4, MIB), |_| {}).await;
    for index in 0..3 {
        let name = format!("data/a{index:02}");
        rig.client.register(register(&name, &name)).await.expect("in the silo");
        let request = proto::PinRequest { mutation: None, file: name, pin: Some(pin("job", HOUR)) };
        rig.client.pin(request).await.expect("known");
    }
    let unpin =
        proto::UnpinRequest { mutation: None, file: "data/a01".into(), owner: "job".into() };
    rig.client.unpin(unpin).await.expect("pinned");
    let (image, second) = (rig.crash_image(), rig.crash_image());
    let fake = Arc::clone(&rig.fake);
    drop(rig);

    // The node cannot pin: the control plane does not start, or the file would be evicted.
    fake.forget();
    fake.fail("pin data/a00", Kind::Io);
    let start = Control::start(options(&database(second.path()), |_| {}), Arc::clone(&fake) as _);
    assert_eq!(start.await.err().expect("it must not start").kind(), Kind::Io);

    fake.forget();
    let options = options(&database(image.path()), |_| {});
    let control = Control::start(options, Arc::clone(&fake) as _).await.expect("it starts");
    assert_eq!(fake.pins("data/a00"), ["job"]);
    assert_eq!(fake.pins("data/a01"), [""; 0]);
    assert_eq!(fake.pins("data/a02"), ["job"]);
    control.stop().await;
}

#[tokio::test]
async fn a_pin_of_a_file_that_is_gone_is_dropped() {
    let mut rig = Rig::with(Fake::with_objects("a", 1, MIB), |_| {}).await;
    rig.client.register(register("data/a00", "r1")).await.expect("in the silo");
    let request =
        proto::PinRequest { mutation: None, file: "data/a00".into(), pin: Some(pin("job", HOUR)) };
    rig.client.pin(request).await.expect("known");
    rig.fake.fail("pin data/a00", Kind::NotFound);
    let mut rig = rig.restart(|_| {}).await;
    assert_eq!(rig.client.status().await.expect("up").pins, 0);
    let mut rig = rig.restart(|_| {}).await;
    assert!(rig.fake.calls("pin").is_empty(), "it is not tried for ever");
    assert_eq!(rig.client.status().await.expect("up").pins, 0);
}

#[tokio::test]
async fn jobs_start_again_after_a_crash() {
    let fake = Fake::with_objects("a", 10, 2 * MIB);
    for index in 5..10 {
        fake.hold(&format!("promote data/a{index:02}"));
    }
    let mut rig = Rig::with(fake, |options| options.limits.parallel_files = 2).await;
    let request = proto::PromoteRequest {
        targets: vec![prefix("data/")],
        pin: Some(pin("job", HOUR)),
        ..Default::default()
    };
    let job = rig.client.promote(request).await.expect("accepted");
    let queued = rig.promote(vec![file("data/a00")]).await;
    rig.fake.until(|state| state.running == 2 && state.calls.len() > 10).await;
    let image = rig.crash_image();
    let fake = Arc::clone(&rig.fake);
    drop(rig);

    let mut rig = Rig::after_crash(image, fake, |_| {}).await;
    let done = rig.finished(&job.id).await;
    assert_eq!((done.state(), done.restarts), (proto::JobState::Done, 1));
    let progress = done.progress.expect("it ran");
    assert_eq!((progress.files_done, progress.files_failed), (10, 0));
    assert!(progress.bytes_done < 20 * MIB, "what was there already was not moved again");
    assert_eq!(rig.finished(&queued.id).await.state(), proto::JobState::Done);
    for index in 0..10 {
        let name = format!("data/a{index:02}");
        assert_eq!(rig.fake.status_of(&name).resident_extents, 2);
        assert_eq!(rig.fake.pins(&name), ["job"]);
    }
    let next = rig.promote(vec![file("data/a00")]).await;
    assert!(next.id != job.id && next.id != queued.id, "numbers are not used again");
}

#[tokio::test]
async fn jobs_start_again_after_an_orderly_stop() {
    let fake = Fake::with_objects("a", 4, MIB);
    fake.hold("promote data/a01");
    fake.hold("discover data/b");
    let mut rig = Rig::with(fake, |_| {}).await;
    let job = rig.promote(vec![prefix("data/a")]).await;
    let expanding = rig.promote(vec![prefix("data/b")]).await;
    rig.fake.called("promote data/a01").await;
    rig.fake.called("discover data/b").await;
    let mut rig = rig.restart(|_| {}).await;
    let done = rig.finished(&job.id).await;
    assert_eq!((done.state(), done.restarts), (proto::JobState::Done, 1));
    assert_eq!(done.progress.expect("it ran").files_done, 4);
    let done = rig.finished(&expanding.id).await;
    assert_eq!(done.progress.expect("it ran").files_total, 0, "nothing has that prefix");
}

#[tokio::test]
async fn a_cancelled_job_stays_cancelled_after_a_crash() {
    let fake = Fake::with_objects("a", 1, MIB);
    fake.hold("promote data/a00");
    fake.change(|state| state.stubborn = true);
    let mut rig = Rig::with(fake, |_| {}).await;
    let job = rig.promote(vec![file("data/a00")]).await;
    rig.fake.called("promote data/a00").await;
    let request = proto::CancelJobRequest { mutation: Some(mutation("c1")), id: job.id.clone() };
    let asked = rig.client.cancel(request.clone()).await.expect("a job");
    assert!(asked.cancel_requested && asked.finished.is_none(), "the node does not stop");
    let image = rig.crash_image();
    let fake = Arc::clone(&rig.fake);
    let mut rig = Rig::after_crash(image, fake, |_| {}).await;
    let over = rig.finished(&job.id).await;
    assert_eq!(over.state(), proto::JobState::Cancelled);
    assert!(rig.fake.calls("promote").is_empty(), "it did not start again");
    let again = rig.client.cancel(request).await.expect("remembered");
    assert_eq!(again, over);
}

#[tokio::test]
async fn the_database_of_another_tier_is_refused() {
    let rig = Rig::with(Fake::new(), |options| options.expected_identity = Some(5)).await;
    assert_eq!(rig.control.identity(), 5);
    let (directory, fake, control) = rig.close().await;
    control.stop().await;
    let wrong = options(&database(directory.path()), |options| options.expected_identity = Some(6));
    let refused = Control::start(wrong, Arc::clone(&fake) as _).await.err().expect("refused");
    assert_eq!(refused.kind(), Kind::Denied);
    let right = options(&database(directory.path()), |options| options.expected_identity = Some(5));
    Control::start(right, fake).await.expect("its own").stop().await;
}
