//! S3, against a real server, with a proxy in between that breaks things.
//!
//! `ci/seaweedfs` installs the server. Without it this test is skipped, unless
//! `FOREBAY_REQUIRE_S3=1` asks for it.

mod support;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use extent::Kind;
use forebay_silo::{Condition, LimitOptions, Mount, Place, S3, Silo, SiloConfig, open};
use support::proxy::{Fault, Head, Proxy};
use support::server::{BUCKET, Server};
use support::{pattern, read, read_all, refusal, store, tags};

/// Bytes of somebody who counts who has them.
struct Lent(Arc<Vec<u8>>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The server, and what reaches it with and without a proxy.
struct Bench {
    server: Server,
    proxy: Proxy,
    /// Somebody else's way to the server.
    direct: Mount,
    /// The way through the proxy.
    mount: Mount,
}

fn settings(server: &Server, port: u16) -> S3 {
    S3 {
        bucket: BUCKET.to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: Some("us-east-1".to_owned()),
        allow_http: true,
        virtual_hosted: false,
        conditional_writes: true,
        credentials_file: Some(server.credentials()),
        profile: None,
    }
}

/// Patient enough for the busiest machine: what is counted must not depend on time.
fn mount(settings: S3) -> Mount {
    mount_with(settings, Duration::from_secs(90))
}

fn mount_with(settings: S3, stall: Duration) -> Mount {
    let limits = LimitOptions { stall, retries: 4, ..LimitOptions::default() };
    let place = Place::S3(settings, "in/".to_owned());
    open("s3", &SiloConfig { place, limits, read_only: false }).expect("opens")
}

impl Bench {
    fn silo(&self) -> &dyn Silo {
        &*self.mount.silo
    }

    /// Writes as somebody else, whatever is there.
    async fn overwrite(&self, key: &str, bytes: &'static [u8]) {
        overwrite(Arc::clone(&self.direct.silo), key.to_owned(), bytes).await;
    }
}

async fn overwrite(silo: Arc<dyn Silo>, key: String, bytes: &'static [u8]) {
    let condition = match silo.head(&key).await {
        Ok(meta) => Condition::Version(meta.version),
        Err(_) => Condition::Absent,
    };
    let bytes = Bytes::from_static(bytes);
    store(&*silo, &key, &bytes, condition, 999).await.expect("somebody else's upload");
}

fn get(head: &Head) -> bool {
    head.method == "GET"
}

fn put(head: &Head) -> bool {
    head.method == "PUT" && !head.target.contains("uploadId")
}

fn put_part(head: &Head) -> bool {
    head.method == "PUT" && head.target.contains("partNumber")
}

fn complete(head: &Head) -> bool {
    head.method == "POST" && head.target.contains("uploadId")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_against_a_real_server() {
    let Some(weed) = support::server::binary() else {
        let required = std::env::var("FOREBAY_REQUIRE_S3").is_ok_and(|value| value == "1");
        assert!(!required, "FOREBAY_REQUIRE_S3=1, but there is no server: run ci/seaweedfs");
        let _ = writeln!(std::io::stderr(), "skipped: no S3 server; ci/seaweedfs installs one");
        return;
    };
    let server = Server::start(&weed).await;
    let proxy = Proxy::start(server.s3_port).await;
    let direct = mount(settings(&server, server.s3_port));
    let through = mount(settings(&server, proxy.port));
    let bench = Bench { server, proxy, direct, mount: through };
    objects_come_and_go(&bench).await;
    conditions_hold(&bench).await;
    large_objects_go_in_parts(&bench).await;
    conditions_hold_at_completion(&bench).await;
    simple_servers_are_looked_at_first(&bench).await;
    listings_are_paged(&bench).await;
    broken_reads_recover(&bench).await;
    stalled_reads_recover(&bench).await;
    versions_never_mix(&bench).await;
    lost_answers_are_recognised(&bench).await;
    broken_uploads_recover_or_leave_nothing(&bench).await;
    lasting_failures_say_what_they_are(&bench).await;
    files_are_read_over_plain_http(&bench).await;
}

async fn objects_come_and_go(bench: &Bench) {
    let silo = bench.silo();
    let capabilities = silo.capabilities();
    assert!(capabilities.writable && capabilities.conditional && capabilities.kind == "s3");
    for key in ["plain", "with space + % and ü/ü?#&.bin", "deep/er/and/deeper"] {
        let bytes = pattern(777_777, 1);
        let meta = store(silo, key, &bytes, Condition::Absent, 1).await.expect(key);
        let head = silo.head(key).await.expect(key);
        assert_eq!((&head.version, head.length), (&meta.version, 777_777), "{key}");
        assert_eq!(head.tags, Some(tags(1)), "{key}");
        assert!(head.modified.is_some());
        assert_eq!(read_all(silo, &head).await.expect(key), bytes, "{key}");
        assert_eq!(read(silo, &head, 777_000, 777).await.expect(key), bytes.slice(777_000..));
        let error = refusal(read(silo, &head, 777_000, 778).await, "past the end");
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        let error = refusal(read(silo, &head, 800_000, 1).await, "past the end");
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
    let empty = store(silo, "empty", &Bytes::new(), Condition::Absent, 1).await.expect("empty");
    assert_eq!(read(silo, &empty, 0, 0).await.expect("empty"), Bytes::new());
    assert_eq!(silo.head("none").await.expect_err("none").kind(), Kind::NotFound);
    let counts = bench.mount.counters.counts();
    assert_eq!((counts.written_bytes, counts.retries), (3 * 777_777, 0));
    assert_eq!(counts.read_bytes, 3 * (777_777 + 777));
}

async fn conditions_hold(bench: &Bench) {
    let silo = bench.silo();
    let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two, longer"));
    let first = store(silo, "c", &one, Condition::Absent, 1).await.expect("absent");
    let error = store(silo, "c", &two, Condition::Absent, 2).await.expect_err("there");
    assert_eq!(error.kind(), Kind::Stale, "{error}");
    let current = Condition::Version(first.version.clone());
    let second = store(silo, "c", &two, current.clone(), 3).await.expect("current");
    let error = store(silo, "c", &one, current, 4).await.expect_err("replaced");
    assert_eq!(error.kind(), Kind::Stale, "{error}");
    assert_eq!(read_all(silo, &second).await.expect("good"), two);
    let error = refusal(read(silo, &first, 0, 3).await, "replaced");
    assert_eq!(error.kind(), Kind::Stale, "{error}");
    let gone = Condition::Version(first.version);
    let error = store(silo, "c-none", &one, gone, 5).await.expect_err("no such object");
    assert_eq!(error.kind(), Kind::Stale, "{error}");
    assert_eq!(silo.head("c-none").await.expect_err("not made").kind(), Kind::NotFound);
}

async fn large_objects_go_in_parts(bench: &Bench) {
    let silo = bench.silo();
    bench.proxy.take_seen();
    let bytes = pattern((20 << 20) + 12_345, 2);
    let meta = store(silo, "large", &bytes, Condition::Absent, 1).await.expect("absent");
    let seen = bench.proxy.take_seen();
    assert_eq!(seen.iter().filter(|head| put_part(head)).count(), 3);
    let completion = seen.iter().find(|head| complete(head)).expect("completed");
    assert_eq!(completion.header("if-none-match"), Some("*"));
    let head = silo.head("large").await.expect("there");
    assert_eq!((&head.version, head.tags), (&meta.version, Some(tags(1))));
    assert_eq!(read_all(silo, &head).await.expect("good"), bytes);
    let bytes = pattern(17 << 20, 3);
    let next = Condition::Version(meta.version.clone());
    let meta = store(silo, "large", &bytes, next, 2).await.expect("current");
    assert_eq!(read_all(silo, &meta).await.expect("good"), bytes);
}

/// Somebody else writes at the last moment: behind our own last look, so that it is the server
/// who has to refuse.
async fn conditions_hold_at_completion(bench: &Bench) {
    let bytes = pattern(17 << 20, 4);
    let first = bench.silo().head("large").await.expect("there");
    for (key, condition) in
        [("late", Condition::Absent), ("large", Condition::Version(first.version))]
    {
        let theirs = overwrite(Arc::clone(&bench.direct.silo), key.to_owned(), b"theirs");
        bench.proxy.next(complete, Fault::Before(Box::pin(theirs)));
        let error = store(bench.silo(), key, &bytes, condition, 9).await.expect_err("conflict");
        assert_eq!(error.kind(), Kind::Stale, "{key}: {error}");
        let meta = bench.silo().head(key).await.expect("there");
        assert_eq!(read_all(bench.silo(), &meta).await.expect("good"), "theirs", "{key}");
    }
}

/// For a server that knows no conditions on writes.
async fn simple_servers_are_looked_at_first(bench: &Bench) {
    let simple = S3 { conditional_writes: false, ..settings(&bench.server, bench.proxy.port) };
    let simple = mount(simple);
    assert!(!simple.silo.capabilities().conditional);
    bench.proxy.take_seen();
    for (key, length) in [("s-small", 100), ("s-large", 17 << 20)] {
        let bytes = pattern(length, 9);
        let first = store(&*simple.silo, key, &bytes, Condition::Absent, 1).await.expect(key);
        let error = store(&*simple.silo, key, &bytes, Condition::Absent, 2).await;
        assert_eq!(error.expect_err(key).kind(), Kind::Stale, "{key}");
        let current = Condition::Version(first.version);
        let newer = pattern(length, 10);
        let second = store(&*simple.silo, key, &newer, current.clone(), 3).await.expect(key);
        assert_eq!(read_all(&*simple.silo, &second).await.expect(key), newer, "{key}");
        let error = store(&*simple.silo, key, &bytes, current, 4).await;
        assert_eq!(error.expect_err(key).kind(), Kind::Stale, "{key}");
    }
    let conditional = |head: &Head| {
        !get(head) && (head.header("if-match").is_some() || head.header("if-none-match").is_some())
    };
    assert!(!bench.proxy.take_seen().iter().any(conditional));
}

async fn listings_are_paged(bench: &Bench) {
    let silo = bench.silo();
    let keys = ["l/0", "l/a.b", "l/a/b", "l/a/c", "l/a0", "l/b/1", "l/b/2", "l/ü"];
    for key in keys {
        bench.overwrite(key, b"x").await;
    }
    for limit in [1, 2, 3, 7, 8, 9, 2000] {
        let (mut seen, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = silo.list("l/", after.as_deref(), limit).await.expect("a page");
            assert!(page.objects.len() <= limit);
            seen.extend(page.objects);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        // This server does not quite list in the order of bytes, but every key once.
        seen.sort_by(|a, b| a.key.cmp(&b.key));
        let found: Vec<&str> = seen.iter().map(|meta| meta.key.as_str()).collect();
        assert_eq!(found, keys, "pages of {limit}");
        let head = silo.head("l/0").await.expect("there");
        assert_eq!((&seen[0].version, seen[0].length), (&head.version, head.length));
    }
    let page = silo.list("l/b", None, 10).await.expect("a page");
    assert_eq!(page.objects.len(), 2);
    let page = silo.list("nothing", None, 10).await.expect("a page");
    assert!(page.objects.is_empty() && page.next.is_none());
}

async fn broken_reads_recover(bench: &Bench) {
    let silo = bench.silo();
    let bytes = pattern(900_000, 5);
    let meta = store(silo, "r", &bytes, Condition::Absent, 1).await.expect("absent");
    for (name, fault, resumes_at) in [
        ("503", Fault::Status(503), 0),
        ("500", Fault::Status(500), 0),
        ("429", Fault::Status(429), 0),
        ("reset", Fault::Reset, 0),
        ("lost", Fault::LoseAnswer, 0),
        ("broken off", Fault::BreakOff(300_000), 300_000),
        ("truncated", Fault::Truncate(100_000), 100_000),
    ] {
        let before = bench.mount.counters.counts();
        bench.proxy.take_seen();
        bench.proxy.next(get, fault);
        let result = read_all(silo, &meta).await;
        assert_eq!(result.expect(name), bytes, "{name}");
        assert_eq!(bench.proxy.faults_left(), 0, "{name}");
        let after = bench.mount.counters.counts();
        assert_eq!(
            (after.retries - before.retries, after.errors - before.errors),
            (1, 0),
            "{name}"
        );
        assert_eq!(after.read_bytes - before.read_bytes, 900_000, "{name}");
        let seen = bench.proxy.take_seen();
        let range = format!("bytes={resumes_at}-899999");
        assert_eq!(seen[1].header("range"), Some(range.as_str()), "{name}");
        assert_eq!(seen[1].header("if-match"), Some(meta.version.as_str()), "{name}");
    }
}

async fn stalled_reads_recover(bench: &Bench) {
    let settings = settings(&bench.server, bench.proxy.port);
    let impatient = mount_with(settings, Duration::from_millis(700));
    let meta = bench.silo().head("r").await.expect("there");
    for (name, fault, most) in
        [("stall", Fault::Stall, 0), ("stalled after", Fault::StallAfter(200_000), 200_000)]
    {
        let before = impatient.counters.counts();
        bench.proxy.take_seen();
        bench.proxy.next(get, fault);
        let result = read_all(&*impatient.silo, &meta).await;
        assert_eq!(result.expect(name), pattern(900_000, 5), "{name}");
        assert_eq!(bench.proxy.faults_left(), 0, "{name}");
        assert!(impatient.counters.counts().retries > before.retries, "{name}");
        let seen = bench.proxy.take_seen();
        let range = seen[1].header("range").and_then(|range| range.strip_prefix("bytes="));
        let start = range.and_then(|range| range.split('-').next()?.parse::<u64>().ok());
        assert!(start.is_some_and(|start| start <= most), "{name}: {range:?}");
        assert_eq!(seen[1].header("if-match"), Some(meta.version.as_str()), "{name}");
    }
}

async fn versions_never_mix(bench: &Bench) {
    let silo = bench.silo();
    let bytes = pattern(900_000, 6);
    let meta = store(silo, "v", &bytes, Condition::Absent, 1).await.expect("absent");
    bench.proxy.next(get, Fault::ChangeTag);
    let error = refusal(read_all(silo, &meta).await, "another tag");
    assert_eq!(error.kind(), Kind::Stale, "{error}");
    assert_eq!(read_all(silo, &meta).await.expect("still there"), bytes);

    // The object changes while a read is broken off: the rest must not come from the new one.
    bench.proxy.next(get, Fault::BreakOff(300_000));
    let theirs = overwrite(Arc::clone(&bench.direct.silo), "v".to_owned(), b"theirs");
    bench.proxy.next(get, Fault::Before(Box::pin(theirs)));
    let error = refusal(read_all(silo, &meta).await, "changed");
    assert_eq!(error.kind(), Kind::Stale, "{error}");

    assert_eq!(bench.proxy.faults_left(), 0);
}

async fn lost_answers_are_recognised(bench: &Bench) {
    let silo = bench.silo();
    for (key, length, lost) in
        [("lost-put", 1000, put as fn(&Head) -> bool), ("lost-complete", 17 << 20, complete)]
    {
        let bytes = pattern(length, 7);
        bench.proxy.next(lost, Fault::LoseAnswer);
        let meta = store(silo, key, &bytes, Condition::Absent, 5).await.expect(key);
        assert_eq!(bench.proxy.faults_left(), 0, "{key}");
        assert_eq!(read_all(silo, &meta).await.expect(key), bytes, "{key}");
        // The same conflict with somebody else's object is one.
        let error = store(silo, key, &bytes, Condition::Absent, 6).await.expect_err(key);
        assert_eq!(error.kind(), Kind::Stale, "{key}: {error}");
    }
}

async fn broken_uploads_recover_or_leave_nothing(bench: &Bench) {
    let silo = bench.silo();
    let bytes = pattern(20 << 20, 8);
    for fault in [Fault::Status(503), Fault::Reset, Fault::LoseAnswer] {
        bench.proxy.next(put_part, fault);
    }
    bench.proxy.next(complete, Fault::Status(500));
    let meta = store(silo, "u", &bytes, Condition::Absent, 1).await.expect("recovers");
    assert_eq!(bench.proxy.faults_left(), 0);
    assert_eq!(read_all(silo, &meta).await.expect("good"), bytes);

    bench.proxy.take_seen();
    let mut upload = silo.upload("gone", 20 << 20, Condition::Absent, tags(2)).await.expect("on");
    upload.append(bytes.slice(..18 << 20)).await.expect("room");
    assert_eq!(upload.finish().await.expect_err("short").kind(), Kind::Invalid);
    let aborted = |head: &Head| head.method == "DELETE" && head.target.contains("uploadId");
    assert!(bench.proxy.take_seen().iter().any(aborted), "the parts are removed");
    assert_eq!(silo.head("gone").await.expect_err("nothing").kind(), Kind::NotFound);
    // Whoever waits for the rest keeps no buffer of what came.
    let lent = Arc::new(vec![7; 1 << 20]);
    let mut upload = silo.upload("gone", 2 << 20, Condition::Absent, tags(2)).await.expect("on");
    upload.append(Bytes::from_owner(Lent(Arc::clone(&lent)))).await.expect("room");
    assert_eq!(Arc::strong_count(&lent), 1);
    upload.abort().await;
    let mut upload = silo.upload("gone", 3, Condition::Absent, tags(2)).await.expect("on");
    let error = upload.append(bytes.slice(..4)).await.expect_err("long");
    assert_eq!(error.kind(), Kind::Invalid);
}

async fn lasting_failures_say_what_they_are(bench: &Bench) {
    let meta = bench.silo().head("plain").await.expect("there");
    let wrong = mount(S3 {
        profile: Some("wrong".to_owned()),
        ..settings(&bench.server, bench.server.s3_port)
    });
    assert_eq!(wrong.silo.head("plain").await.expect_err("refused").kind(), Kind::Denied);
    let error = refusal(read(&*wrong.silo, &meta, 0, 5).await, "refused");
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert_eq!(wrong.counters.counts().retries, 0);

    let nowhere = mount(settings(&bench.server, 1));
    let error = nowhere.silo.head("plain").await.expect_err("nobody there");
    assert_eq!(error.kind(), Kind::Io, "{error}");
    let counts = nowhere.counters.counts();
    assert_eq!((counts.requests, counts.retries, counts.errors), (5, 4, 1));

    let other = S3 { bucket: "other".to_owned(), ..settings(&bench.server, bench.server.s3_port) };
    let error = mount(other).silo.list("", None, 1).await.expect_err("no bucket");
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
}

async fn files_are_read_over_plain_http(bench: &Bench) {
    let url = format!("http://127.0.0.1:{}/buckets/{BUCKET}/in", bench.server.filer_port);
    let place = Place::Http { url, allow_http: true };
    let limits = LimitOptions::default();
    let web = open("web", &SiloConfig { place, limits, read_only: true }).expect("opens");
    let bytes = pattern(777_777, 1);
    let meta = web.silo.head("plain").await.expect("there");
    assert_eq!(read_all(&*web.silo, &meta).await.expect("good"), bytes);
    bench.overwrite("plain", b"theirs").await;
    let error = refusal(read(&*web.silo, &meta, 0, 5).await, "changed");
    assert_eq!(error.kind(), Kind::Stale, "{error}");
}
