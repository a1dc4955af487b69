use std::path::PathBuf;

use super::*;
use crate::LimitOptions;

fn limits() -> Arc<Limits> {
    Limits::new(&LimitOptions::default())
}

fn s3() -> S3 {
    S3 {
        bucket: "bucket".to_owned(),
        endpoint: None,
        region: None,
        allow_http: false,
        virtual_hosted: false,
        conditional_writes: true,
        credentials_file: None,
        profile: None,
    }
}

#[test]
fn stores_are_built_from_their_settings() {
    let silo = Objects::s3(&s3(), "in/", limits(), true).expect("built");
    assert!(silo.capabilities().conditional && silo.capabilities().writable);
    let plain = S3 { conditional_writes: false, ..s3() };
    let silo = Objects::s3(&plain, "", limits(), false).expect("built");
    assert!(!silo.capabilities().conditional && !silo.capabilities().writable);
    let azure = Azure {
        container: "container".to_owned(),
        account: Some("account".to_owned()),
        endpoint: None,
        allow_http: false,
    };
    let silo = Objects::azure(&azure, "", limits(), true).expect("built");
    assert_eq!(silo.capabilities().kind, "azure");
    assert_eq!(silo.shared.store.objects.to_string().matches("container").count(), 2);
    let silo = Objects::http("https://example.org/a", false, limits()).expect("built");
    assert_eq!(silo.capabilities().kind, "http");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let missing = S3 { credentials_file: Some(PathBuf::from("/nowhere/credentials")), ..s3() };
    assert_eq!(Objects::s3(&missing, "", limits(), true).err().expect("missing").kind(), Kind::Io);
    let error = Objects::http("not a url", false, limits()).err().expect("no URL");
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    let home = tempfile::tempdir().expect("a directory");
    let key = home.path().join("key.json");
    let gcs = |credentials_file| Gcs {
        bucket: "bucket".to_owned(),
        endpoint: None,
        allow_http: false,
        credentials_file: Some(credentials_file),
    };
    for text in ["", "{}", "no json"] {
        std::fs::write(&key, text).expect("written");
        let error = Objects::gcs(&gcs(key.clone()), "", limits(), true).err().expect(text);
        assert_eq!(error.kind(), Kind::Invalid, "{text:?}: {error}");
    }
}

#[test]
fn keys_that_would_be_rewritten_are_refused() {
    let silo = Objects::s3(&s3(), "in/", limits(), true).expect("built");
    assert_eq!(silo.shared.path("a b/ü+%").expect("good").as_ref(), "in/a b/ü+%");
    for key in ["", "/a", "a/", "a//b", "a/./b", "a/../b"] {
        assert_eq!(silo.shared.path(key).expect_err(key).kind(), Kind::Invalid, "{key:?}");
    }
}
