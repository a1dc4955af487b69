//! Azure Blob Storage, or an emulator of it, where one is at hand: set `FOREBAY_AZURE_CONTAINER`
//! to a container that may be written to, `FOREBAY_AZURE_ENDPOINT` if it is not Azure's own, and
//! the usual `AZURE_STORAGE_…` variables for the account and its key or SAS token. Blobs of some
//! 40 MB stay behind under `forebay-test-…/`.

mod support;

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use extent::Kind;
use forebay_silo::{Azure, Condition, LimitOptions, Place, Silo, SiloConfig, open};
use support::{pattern, read, read_all, refusal, store, tags};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_where_there_is_one() {
    let Ok(container) = std::env::var("FOREBAY_AZURE_CONTAINER") else {
        let _ = writeln!(std::io::stderr(), "skipped: FOREBAY_AZURE_CONTAINER is not set");
        return;
    };
    let endpoint = std::env::var("FOREBAY_AZURE_ENDPOINT").ok();
    let allow_http = endpoint.as_ref().is_some_and(|url| url.starts_with("http:"));
    let azure = Azure { container, account: None, endpoint, allow_http };
    let place = Place::Azure(azure, format!("forebay-test-{}/", unique()));
    let limits = LimitOptions { retries: 2, ..LimitOptions::default() };
    let config = SiloConfig { place, limits, read_only: false };
    let mount = open("azure", &config).expect("opens");
    let silo = &*mount.silo;
    for (key, length) in [("small ü+%", 100_000), ("large", (18 << 20) + 5)] {
        one_object(silo, key, length).await;
    }
    listing(silo).await;
    assert_eq!(silo.head("none").await.expect_err("none").kind(), Kind::NotFound);
}

/// Time is only taken for a name here.
#[expect(clippy::disallowed_methods, reason = "a name that no other run has")]
fn unique() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()
}

async fn one_object(silo: &dyn Silo, key: &str, length: usize) {
    let bytes = pattern(length, 1);
    let first = store(silo, key, &bytes, Condition::Absent, 1).await.expect(key);
    let head = silo.head(key).await.expect(key);
    assert_eq!((&head.version, head.tags), (&first.version, Some(tags(1))), "{key}");
    assert_eq!(read_all(silo, &head).await.expect(key), bytes, "{key}");
    let error = store(silo, key, &bytes, Condition::Absent, 2).await.expect_err(key);
    assert_eq!(error.kind(), Kind::Stale, "{key}: {error}");
    let newer = pattern(length, 2);
    let current = Condition::Version(first.version.clone());
    let second = store(silo, key, &newer, current.clone(), 3).await.expect(key);
    assert_eq!(read_all(silo, &second).await.expect(key), newer, "{key}");
    let error = store(silo, key, &bytes, current, 4).await.expect_err(key);
    assert_eq!(error.kind(), Kind::Stale, "{key}: {error}");
    let error = refusal(read(silo, &first, 0, 5).await, key);
    assert_eq!(error.kind(), Kind::Stale, "{key}: {error}");
    let error = refusal(read(silo, &second, second.length, 1).await, key);
    assert_eq!(error.kind(), Kind::Invalid, "{key}: {error}");
}

async fn listing(silo: &dyn Silo) {
    let keys = ["l/a", "l/a.b", "l/a/b", "l/a0", "l/b"];
    for key in keys {
        let bytes = Bytes::from_static(b"x");
        store(silo, key, &bytes, Condition::Absent, 1).await.expect(key);
    }
    for limit in [1, 2, 5, 100] {
        let (mut seen, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = silo.list("l/", after.as_deref(), limit).await.expect("a page");
            seen.extend(page.objects);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let found: Vec<&str> = seen.iter().map(|meta| meta.key.as_str()).collect();
        assert_eq!(found, keys, "pages of {limit}");
        assert_eq!(seen[0].version, silo.head("l/a").await.expect("there").version);
    }
}
