//! Every service, over a real connection.

mod common;

use std::time::Duration;

use common::{Fake, Rig, file, moment, mutation, pin, prefix, range};
use extent::Kind;
use forebay_control::proto;
use forebay_control::proto::files_client::FilesClient;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const MIB: u64 = 1 << 20;

fn register(name: &str) -> proto::RegisterRequest {
    proto::RegisterRequest { file: name.into(), mutation: None }
}

#[tokio::test]
async fn files_are_registered_and_listed_page_by_page() {
    let mut rig = Rig::with(Fake::with_objects("a", 5, 3 * MIB), |_| {}).await;
    let missing = rig.client.get("data/a00").await.expect_err("not yet known");
    assert_eq!(missing.kind(), Kind::NotFound);
    for index in 0..5 {
        let name = format!("data/a{index:02}");
        let status = rig.client.register(register(&name)).await.expect("it is in the silo");
        assert_eq!((status.file.as_str(), status.length), (name.as_str(), 3 * MIB));
        assert_eq!(status.residency(), proto::Residency::Absent);
        assert_eq!((status.total_extents, status.version.as_deref()), (3, Some("v1")));
        assert_eq!(status, rig.client.get(&name).await.expect("known now"));
    }
    let mut request =
        proto::ListFilesRequest { prefix: "data/a".into(), page_size: 2, ..Default::default() };
    let mut names = Vec::new();
    let mut pages = 0;
    loop {
        let page = rig.client.list(request.clone()).await.expect("a page");
        assert!(page.files.len() <= 2);
        names.extend(page.files.into_iter().map(|file| file.file));
        pages += 1;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!((pages, names.len()), (3, 5));
    assert!(names.is_sorted());
    request.page_token = "not ours".into();
    let refused = rig.client.list(request).await.expect_err("a foreign token");
    assert_eq!(refused.kind(), Kind::Invalid);
    let gone = rig.client.register(register("data/none")).await.expect_err("not in the silo");
    assert_eq!(gone.kind(), Kind::NotFound);
    let bad = rig.client.register(register("no-slash")).await.expect_err("no name");
    assert_eq!(bad.kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_range_is_promoted_and_the_rest_follows() {
    let mut rig = Rig::with(Fake::with_objects("a", 1, 4 * MIB), |_| {}).await;
    let job = rig.promote(vec![range("data/a00", MIB, MIB + 1)]).await;
    assert_eq!((job.kind(), job.targets_total), (proto::JobKind::Promote, 1));
    let job = rig.finished(&job.id).await;
    assert_eq!(job.state(), proto::JobState::Done);
    assert_eq!(job.progress.expect("it ran").bytes_done, 2 * MIB);
    assert_eq!(rig.fake.status_of("data/a00").resident_extents, 2);
    let request = proto::PromoteRequest {
        targets: vec![file("data/a00")],
        durable: true,
        ..Default::default()
    };
    let job = rig.client.promote(request).await.expect("accepted");
    let job = rig.finished(&job.id).await;
    let progress = job.progress.expect("it ran");
    assert_eq!((progress.bytes_done, progress.bytes_total), (2 * MIB, 2 * MIB));
    assert_eq!((progress.files_total, progress.files_done, progress.expanded), (1, 1, true));
    let result = &job.results[0];
    assert_eq!((result.file.as_str(), result.resident_bytes), ("data/a00", 4 * MIB));
    assert_eq!((result.error_kind.as_str(), result.generation), ("", 1));
    assert_eq!(rig.fake.look(|state| state.durable), 1, "only the second asked for it");
}

#[tokio::test]
async fn conflicts_are_settled_once() {
    let mut rig = Rig::new().await;
    rig.fake.put_dirty("data/x", MIB);
    let mut request =
        proto::ResolveRequest { mutation: None, file: "data/x".to_owned(), ..Default::default() };
    let vague = rig.client.resolve(request.clone()).await.expect_err("keep what?");
    assert_eq!(vague.kind(), Kind::Invalid);
    request.set_keep(proto::Keep::Node);
    let kept = rig.client.resolve(request.clone()).await.expect("settled");
    assert_eq!(kept.residency(), proto::Residency::Dirty);
    request.set_keep(proto::Keep::Silo);
    request.mutation = Some(proto::Mutation {
        request_id: "the-same".to_owned(),
        expected_generation: Some(7),
        ..proto::Mutation::default()
    });
    let stale = rig.client.resolve(request.clone()).await.expect_err("another generation");
    assert_eq!(stale.kind(), Kind::Stale);
    let mutation = request.mutation.as_mut().expect("set above");
    (mutation.expected_generation, mutation.request_id) = (Some(1), "another".to_owned());
    for _ in 0..2 {
        // The second time it is remembered: it would be refused.
        let given_up = rig.client.resolve(request.clone()).await.expect("settled");
        assert_eq!(given_up.residency(), proto::Residency::Clean);
    }
}

#[tokio::test]
async fn dirty_files_are_written_back_and_let_go() {
    let mut rig = Rig::new().await;
    rig.fake.put_dirty("data/x", 3 * MIB);
    rig.fake.put_dirty("data/y", MIB);
    rig.fake.put_dirty("other/z", MIB);
    let release = |target| proto::ReleaseRequest { mutation: None, target: Some(target) };
    let denied = rig.client.release(release(file("data/x"))).await.expect_err("dirty");
    assert_eq!(denied.kind(), Kind::Denied);
    let request = proto::WritebackRequest { targets: vec![file("data/x")], mutation: None };
    let job = rig.client.writeback(request).await.expect("accepted");
    assert_eq!(rig.finished(&job.id).await.state(), proto::JobState::Done);
    let partly = rig.client.release(release(range("data/x", 0, 1))).await.expect("clean now");
    assert_eq!((partly.residency(), partly.resident_extents), (proto::Residency::Partial, 2));
    let invalid = rig.client.release(release(prefix("data/"))).await.expect_err("not a file");
    assert_eq!(invalid.kind(), Kind::Invalid);
    let request = proto::DemoteRequest { targets: vec![prefix("data/")], mutation: None };
    let job = rig.client.demote(request).await.expect("accepted");
    let job = rig.finished(&job.id).await;
    assert_eq!(job.progress.expect("it ran").files_done, 2);
    for name in ["data/x", "data/y"] {
        assert_eq!(rig.client.get(name).await.expect("known").resident_extents, 0);
    }
    let other = rig.client.get("other/z").await.expect("known");
    assert_eq!(other.residency(), proto::Residency::Dirty, "not under the prefix");
}

#[tokio::test]
async fn pins_hold_end_and_expire() {
    let mut rig = Rig::with(Fake::with_objects("a", 2, MIB), |_| {}).await;
    let hour = Duration::from_secs(3600);
    let pin_request = |name: &str, owner: &str, ttl| proto::PinRequest {
        mutation: None,
        file: name.into(),
        pin: Some(pin(owner, ttl)),
    };
    let unknown = rig.client.pin(pin_request("data/a00", "job", hour)).await;
    assert_eq!(unknown.expect_err("not registered").kind(), Kind::NotFound);
    rig.client.register(register("data/a00")).await.expect("in the silo");
    rig.client.register(register("data/a01")).await.expect("in the silo");
    let status = rig.client.pin(pin_request("data/a00", "job", hour)).await.expect("known");
    assert_eq!(status.pins, ["job"]);
    let status = rig.client.pin(pin_request("data/a00", "me", hour)).await.expect("known");
    assert_eq!(status.pins, ["job", "me"]);
    assert_eq!(rig.client.status().await.expect("up").pins, 2);
    // It ends by itself; the pin of an hour stays.
    let brief = pin_request("data/a01", "brief", Duration::from_millis(1));
    match rig.client.pin(brief).await {
        Ok(_) => rig.fake.called("unpin data/a01").await,
        Err(error) => assert_eq!(error.kind(), Kind::Stale, "it ran out at once"),
    }
    assert_eq!(rig.fake.pins("data/a01"), [""; 0]);
    assert_eq!(rig.fake.pins("data/a00"), ["job", "me"]);
    let unpin = |owner: &str| proto::UnpinRequest {
        mutation: None,
        file: "data/a00".into(),
        owner: owner.into(),
    };
    let status = rig.client.unpin(unpin("me")).await.expect("pinned");
    assert_eq!(status.pins, ["job"]);
    let twice = rig.client.unpin(unpin("me")).await.expect_err("ended");
    assert_eq!(twice.kind(), Kind::NotFound);
    assert_eq!(rig.fake.calls("unpin").iter().filter(|name| *name == "data/a00").count(), 2);
    // The owner pins again, for longer: one pin, renewed.
    rig.client.pin(pin_request("data/a00", "job", 2 * hour)).await.expect("known");
    assert_eq!(rig.client.status().await.expect("up").pins, 1);
    let endless = proto::PinRequest {
        mutation: None,
        file: "data/a00".into(),
        pin: Some(proto::PinOptions { owner: "x".into(), ttl: None }),
    };
    assert_eq!(rig.client.pin(endless).await.expect_err("no ttl").kind(), Kind::Invalid);
}

#[tokio::test]
async fn silos_are_listed_and_probed() {
    let mut rig = Rig::with(Fake::with_objects("a", 1, MIB), |_| {}).await;
    let silos = rig.client.silos().await.expect("up");
    let silo = &silos[0];
    assert_eq!((silo.name.as_str(), silo.kind.as_str(), silo.errors), ("data", "sim", 13));
    let probe = rig.client.probe("data").await.expect("a silo");
    assert!(probe.reachable && probe.latency.is_some() && probe.error.is_empty());
    rig.fake.fail("discover data/", Kind::Io);
    let probe = rig.client.probe("data").await.expect("a silo");
    assert_eq!((probe.reachable, probe.error_kind.as_str()), (false, "io"));
    assert!(probe.error.contains("told to fail"));
    assert_eq!(rig.client.probe("nope").await.expect_err("none").kind(), Kind::NotFound);
}

#[tokio::test]
async fn the_node_shows_itself() {
    let mut rig = Rig::new().await;
    let status = rig.client.status().await.expect("up");
    assert_eq!(status.identity, format!("{:032x}", rig.control.identity()));
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(status.sessions.get("tcp"), Some(&3));
    assert_eq!((status.buffers_used, status.buffers_total), (5, 9));
}

#[tokio::test]
async fn every_kind_of_error_crosses_the_wire() {
    let mut rig = Rig::new().await;
    let mut raw = FilesClient::new(rig.channel().await);
    for kind in Kind::ALL {
        rig.fake.fail("get data/a", kind);
        let error = rig.client.get("data/a").await.expect_err("told to fail");
        assert_eq!(error.kind(), kind);
        assert!(error.context().contains("told to fail"));
        rig.fake.fail("get data/a", kind);
        let request = proto::GetFileRequest { file: "data/a".into() };
        let status = raw.get(request).await.expect_err("told to fail");
        let header = |name| status.metadata().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("forebay-kind"), Some(kind.name()));
        let pushback = (kind == Kind::Busy).then_some("500");
        assert_eq!(header("grpc-retry-pushback-ms"), pushback);
        assert_eq!(status.details().is_empty(), kind != Kind::Busy);
        if kind == Kind::Corrupt {
            assert_eq!(status.code(), Code::DataLoss);
        }
    }
}

#[tokio::test]
async fn requests_out_of_bounds_are_refused() {
    let fake = Fake::with_objects("a", 1, MIB);
    let mut rig = Rig::with(fake, |options| options.limits.request_bytes = 64 << 10).await;
    let with = |mutation| proto::RegisterRequest { file: "data/a00".into(), mutation };
    let labels = |count: usize, key: usize, value: usize| {
        let label = |n| (format!("{n:0key$}"), "v".repeat(value));
        Some(proto::Mutation { labels: (0..count).map(label).collect(), ..mutation("id") })
    };
    let deadline = |seconds, nanos| {
        let deadline = Some(prost_types::Timestamp { seconds, nanos });
        Some(proto::Mutation { deadline, ..mutation("id") })
    };
    for bad in [
        Some(mutation("")),
        Some(mutation(&"x".repeat(129))),
        Some(mutation("a\tb")),
        labels(33, 2, 1),
        labels(1, 65, 1),
        labels(1, 1, 257),
        deadline(-1, 0),
        deadline(1, -1),
    ] {
        let refused = rig.client.register(with(bad.clone())).await.expect_err("out of bounds");
        assert_eq!(refused.kind(), Kind::Invalid, "{bad:?}");
    }
    assert!(rig.fake.calls("register").is_empty());
    rig.client.register(with(labels(32, 64, 256))).await.expect("just within");
    for targets in [vec![], vec![file("data/a00"); 1025], vec![prefix("data")]] {
        let request = proto::PromoteRequest { targets, ..Default::default() };
        let refused = rig.client.promote(request).await.expect_err("no such job");
        assert_eq!(refused.kind(), Kind::Invalid);
    }
    let huge = proto::GetFileRequest { file: "x".repeat(65 << 10) };
    let mut raw = FilesClient::new(rig.channel().await);
    let refused = raw.get(huge).await.expect_err("too large a message");
    assert_eq!(refused.code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_change_carries_its_conditions() {
    let mut rig = Rig::with(Fake::with_objects("a", 2, MIB), |_| {}).await;
    let expecting = |name: &str, id: &str, generation| proto::RegisterRequest {
        file: name.into(),
        mutation: Some(proto::Mutation { expected_generation: Some(generation), ..mutation(id) }),
    };
    let stale = rig.client.register(expecting("data/a00", "1", 1)).await.expect_err("unknown");
    assert_eq!(stale.kind(), Kind::Stale);
    rig.client.register(expecting("data/a00", "2", 0)).await.expect("unknown, as expected");
    let stale = rig.client.register(expecting("data/a00", "3", 0)).await.expect_err("known");
    assert_eq!(stale.kind(), Kind::Stale);
    rig.client.register(expecting("data/a00", "4", 1)).await.expect("as expected");
    let promoting = |id: &str, generation| proto::PromoteRequest {
        targets: vec![file("data/a00")],
        mutation: Some(proto::Mutation { expected_generation: Some(generation), ..mutation(id) }),
        ..Default::default()
    };
    let job = rig.client.promote(promoting("5", 2)).await.expect("accepted");
    let job = rig.finished(&job.id).await;
    assert_eq!((job.state(), job.errors.len()), (proto::JobState::Failed, 1));
    assert_eq!(job.errors[0].error_kind, "stale");
    let job = rig.client.promote(promoting("6", 1)).await.expect("accepted");
    assert_eq!(rig.finished(&job.id).await.state(), proto::JobState::Done);

    let deadline = |id: &str, seconds| {
        Some(proto::Mutation { deadline: Some(moment(seconds)), ..mutation(id) })
    };
    let late = |id: &str, seconds| proto::RegisterRequest {
        file: "data/a01".into(),
        mutation: deadline(id, seconds),
    };
    assert_eq!(rig.client.register(late("7", -60)).await.expect_err("late").kind(), Kind::Invalid);
    assert!(!rig.fake.calls("register").contains(&"data/a01".to_owned()));
    rig.client.register(late("8", 3600)).await.expect("in time");
    let request = proto::PromoteRequest {
        targets: vec![file("data/a01")],
        mutation: deadline("9", -60),
        ..Default::default()
    };
    let job = rig.client.promote(request).await.expect("late, and done all the same");
    let job = rig.finished(&job.id).await;
    assert_eq!((job.state(), job.deadline_missed), (proto::JobState::Done, true));
}

#[tokio::test]
async fn health_says_serving_until_the_end() {
    let rig = Rig::new().await;
    let mut health = HealthClient::new(rig.channel().await);
    let services =
        ["Files", "Jobs", "Silos", "Node", "Sessions"].map(|s| format!("forebay.v1.{s}"));
    for service in services.iter().map(String::as_str).chain([""]) {
        let request = HealthCheckRequest { service: service.into() };
        let answer = health.check(request).await.expect("known").into_inner();
        assert_eq!(answer.status, 1, "SERVING: {service}");
    }
    let request = HealthCheckRequest { service: "forebay.v1.Files".into() };
    let mut watch = health.watch(request).await.expect("known").into_inner();
    let first = watch.message().await.expect("a status").expect("a status");
    assert_eq!(first.status, 1);
    let closing = tokio::spawn(rig.close());
    let second = watch.message().await.expect("a status").expect("a status");
    assert_eq!(second.status, 2, "NOT_SERVING");
    drop(watch);
    closing.await.expect("it closes");
}

#[tokio::test]
async fn an_open_watch_does_not_keep_the_server_up() {
    let mut rig = Rig::with(Fake::with_objects("a", 1, MIB), |_| {}).await;
    rig.fake.hold("promote data/a00");
    let job = rig.promote(vec![file("data/a00")]).await;
    let mut watch = rig.client.watch(&job.id).await.expect("a job");
    watch.next().await.expect("a state").expect("a state");
    let closing = tokio::spawn(rig.close());
    let error = loop {
        match watch.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the job is not over"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), Kind::Disconnected);
    closing.await.expect("it closes");
}

#[tokio::test]
async fn nobody_there_is_disconnected() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let connect = |address: String| async move {
        forebay_control::ControlClient::connect(&address, Duration::from_secs(30)).await
    };
    assert_eq!(connect(address).await.expect_err("closed").kind(), Kind::Disconnected);
    assert_eq!(connect("no such:x".into()).await.expect_err("no address").kind(), Kind::Invalid);
}
