//! Plain HTTP servers and Google's XML API, against a small server in this process.

mod support;

use std::time::Duration;

use bytes::Bytes;
use extent::Kind;
use forebay_silo::{Condition, Gcs, LimitOptions, Mount, Place, SiloConfig, open};
use support::stub::{Manners, Stub};
use support::{pattern, read, read_all, refusal, store, tags};

fn limits() -> LimitOptions {
    LimitOptions { retries: 2, stall: Duration::from_secs(90), ..LimitOptions::default() }
}

async fn http(manners: Manners) -> (Stub, Mount) {
    let stub = Stub::start(manners).await;
    let url = format!("http://127.0.0.1:{}/base", stub.port);
    let place = Place::Http { url, allow_http: true };
    let config = SiloConfig { place, limits: limits(), read_only: true };
    let mount = open("web", &config).expect("opens");
    (stub, mount)
}

async fn gcs() -> (Stub, Mount, tempfile::TempDir) {
    let stub = Stub::start(Manners::default()).await;
    let home = tempfile::tempdir().expect("a directory");
    let key = home.path().join("key.json");
    // Credentials for servers that ask for none.
    std::fs::write(
        &key,
        r#"{"private_key":"x","private_key_id":"x","client_email":"x","disable_oauth":true}"#,
    )
    .expect("written");
    let gcs = Gcs {
        bucket: "bucket".to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{}", stub.port)),
        allow_http: true,
        credentials_file: Some(key),
    };
    let place = Place::Gcs(gcs, "in/".to_owned());
    let config = SiloConfig { place, limits: limits(), read_only: false };
    let mount = open("cloud", &config).expect("opens");
    (stub, mount, home)
}

#[tokio::test]
async fn files_of_a_server_are_read_in_ranges() {
    for manners in [
        Manners::default(),
        Manners { weak_tags: true, ..Manners::default() },
        Manners { tags: false, ..Manners::default() },
        Manners { conditions: false, ..Manners::default() },
    ] {
        let (stub, mount) = http(manners).await;
        let bytes = pattern(1_500_000, 1);
        stub.put("/base/d/f", bytes.clone());
        let meta = mount.silo.head("d/f").await.expect("there");
        assert_eq!((meta.length, meta.tags), (1_500_000, None));
        assert_eq!(read_all(&*mount.silo, &meta).await.expect("good"), bytes);
        let asked = stub.take_seen();
        let conditional = asked.iter().filter(|head| head.header("if-match").is_some()).count();
        assert_eq!(conditional > 0, manners.tags && !manners.weak_tags, "{asked:?}");

        // Another version, of the same length and then shorter than the range asked for.
        stub.put("/base/d/f", pattern(1_500_000, 2));
        let error = refusal(read(&*mount.silo, &meta, 5, 10).await, "changed");
        assert_eq!(error.kind(), Kind::Stale, "{error}");
        stub.put("/base/d/f", "short");
        let error = refusal(read(&*mount.silo, &meta, 100, 10).await, "changed");
        assert_eq!(error.kind(), Kind::Stale, "{error}");
        let meta = mount.silo.head("d/f").await.expect("there");
        let error = refusal(read(&*mount.silo, &meta, 100, 10).await, "past the end");
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert_eq!(mount.counters.counts().retries, 0);
    }
}

#[tokio::test]
async fn a_server_without_versions_or_ranges_is_refused() {
    let (stub, mount) = http(Manners { tags: false, times: false, ..Manners::default() }).await;
    stub.put("/base/f", "x");
    let error = mount.silo.head("f").await.expect_err("no version");
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");

    let (stub, mount) = http(Manners { ranges: false, ..Manners::default() }).await;
    stub.put("/base/f", "0123456789");
    let meta = mount.silo.head("f").await.expect("there");
    let error = refusal(read(&*mount.silo, &meta, 2, 3).await, "no ranges");
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
}

#[tokio::test]
async fn what_a_plain_server_cannot_do_is_said() {
    let (_stub, mount) = http(Manners::default()).await;
    assert!(!mount.silo.capabilities().writable);
    assert_eq!(mount.silo.head("none").await.expect_err("none").kind(), Kind::NotFound);
    let list = mount.silo.list("", None, 10).await.expect_err("no list");
    assert_eq!(list.kind(), Kind::Unsupported);
    let upload = mount.silo.upload("f", 1, Condition::Absent, tags(1)).await.err();
    assert_eq!(upload.expect("read-only").kind(), Kind::Unsupported);
    for key in ["", "a//b", "a/", "/a", "a/../b"] {
        assert_eq!(mount.silo.head(key).await.expect_err(key).kind(), Kind::Invalid, "{key:?}");
    }
}

#[tokio::test]
async fn google_is_asked_by_generation() {
    let (stub, mount, _home) = gcs().await;
    let bytes = pattern(300_000, 3);
    let first = store(&*mount.silo, "a/f", &bytes, Condition::Absent, 1).await.expect("absent");
    assert_eq!(stub.bytes("/bucket/in/a/f").expect("there"), bytes);
    let head = mount.silo.head("a/f").await.expect("there");
    assert_eq!((&head.version, head.tags), (&first.version, Some(tags(1))));
    assert_eq!(read_all(&*mount.silo, &head).await.expect("good"), bytes);

    let again = store(&*mount.silo, "a/f", &bytes, Condition::Absent, 2).await;
    assert_eq!(again.expect_err("there").kind(), Kind::Stale);
    let next = Condition::Version(first.version.clone());
    let second = Bytes::from_static(b"second");
    let meta = store(&*mount.silo, "a/f", &second, next.clone(), 3).await.expect("current");
    assert_eq!(read_all(&*mount.silo, &meta).await.expect("good"), second);
    let late = store(&*mount.silo, "a/f", &bytes, next, 4).await;
    assert_eq!(late.expect_err("replaced").kind(), Kind::Stale);
    assert_eq!(stub.bytes("/bucket/in/a/f").expect("there"), second);
    let puts = stub.take_seen().into_iter().filter(|head| head.method == "PUT");
    let generations: Vec<_> =
        puts.map(|head| head.header("x-goog-if-generation-match").map(str::to_owned)).collect();
    assert_eq!(generations, [Some("0".to_owned()), Some("0".to_owned()), Some("1".to_owned())]);
}
