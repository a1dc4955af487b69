mod leftovers;
mod listing;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use bytes::Bytes;
use dma::{HugePages, Pool, SizeClass};
use extent::{Attempt, FileId};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::LimitOptions;

const TAGS: UploadTags = UploadTags { file: FileId(0xABCD), attempt: Attempt(42), over: 0xEF_01 };

struct Home {
    path: TempDir,
    silo: Directory,
}

fn home() -> Home {
    let path = tempfile::tempdir().expect("a directory");
    let limits = Limits::new(&LimitOptions::default());
    let silo = Directory::open(path.path(), limits, true).expect("the directory");
    Home { path, silo: silo.with_quiet(Duration::ZERO) }
}

impl Home {
    fn write(&self, key: &str, bytes: &[u8]) {
        let path = self.path.path().join(key);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        std::fs::write(path, bytes).expect("a file");
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.path.path().join(key)).expect("a file")
    }

    /// Names in the whole tree, hidden ones too.
    fn parts(&self) -> usize {
        let names = std::fs::read_dir(self.path.path()).expect("the directory");
        names.filter(|name| name_of(name).starts_with(".forebay-")).count()
    }

    async fn store(&self, key: &str, bytes: &[u8], condition: Condition) -> Result<ObjectMeta> {
        let mut upload = self.silo.upload(key, bytes.len() as u64, condition, TAGS).await?;
        for part in bytes.chunks(1000) {
            upload.append(Bytes::copy_from_slice(part)).await?;
        }
        upload.finish().await
    }

    async fn load(&self, meta: &ObjectMeta) -> Result<Vec<u8>> {
        let range = ByteRange::new(0, meta.length).expect("small");
        let (buffer, result) = self.silo.read(&meta.key, &meta.version, range, buffer()).await;
        result.map(|()| buffer.as_slice()[..usize::try_from(meta.length).expect("small")].to_vec())
    }
}

fn name_of(entry: &std::io::Result<std::fs::DirEntry>) -> String {
    entry.as_ref().expect("an entry").file_name().to_string_lossy().into_owned()
}

fn buffer() -> Buffer {
    let pool = Pool::new(&[SizeClass { bytes: 65536, count: 1 }], HugePages::Never);
    pool.expect("memory").take(1).expect("free")
}

#[tokio::test]
async fn ranges_of_a_file_come_back_exactly() {
    let home = home();
    let bytes: Vec<u8> = (0..20_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    home.write("d/e/f", &bytes);
    let meta = home.silo.head("d/e/f").await.expect("there");
    assert_eq!((meta.length, meta.tags), (20_000, None));
    for (offset, length) in [(0usize, 20_000usize), (1, 1), (4095, 4098), (19_999, 1), (20_000, 0)]
    {
        let range = ByteRange::new(offset as u64, length as u64).expect("small");
        let (buffer, result) = home.silo.read("d/e/f", &meta.version, range, buffer()).await;
        result.expect("a good read");
        assert!(buffer.as_slice()[..length] == bytes[offset..offset + length]);
    }
    for (offset, length) in [(0, 20_001), (20_000, 1), (u64::MAX - 1, 1), (0, 65537)] {
        let range = ByteRange::new(offset, length).expect("no overflow");
        let (_, result) = home.silo.read("d/e/f", &meta.version, range, buffer()).await;
        assert_eq!(result.expect_err("too much").kind(), Kind::Invalid);
    }
    assert_eq!(home.silo.limits.counters().counts().read_bytes, 20_000 + 1 + 4098 + 1);
}

#[tokio::test]
async fn what_is_not_there_or_no_file_is_refused() {
    let home = home();
    home.write("d/f", b"x");
    for (key, kind) in [
        ("g", Kind::NotFound),
        ("d", Kind::NotFound),
        ("d/f/g", Kind::NotFound),
        ("../x", Kind::Invalid),
        ("/etc/passwd", Kind::Invalid),
        ("d//f", Kind::Invalid),
    ] {
        assert_eq!(home.silo.head(key).await.expect_err(key).kind(), kind, "{key}");
    }
    let status = std::process::Command::new("mkfifo").arg(home.path.path().join("pipe")).status();
    assert!(status.expect("mkfifo").success());
    assert_eq!(home.silo.head("pipe").await.expect_err("a pipe").kind(), Kind::Unsupported);
}

#[tokio::test]
async fn links_may_not_lead_outside() {
    let home = home();
    home.write("blobs/1", b"inside");
    for (name, target) in [
        ("good", "blobs/1"),
        ("absolute", "/etc/passwd"),
        ("up", "../../../../../../etc/passwd"),
        ("circle", "circle"),
        ("etc", "/etc"),
    ] {
        symlink(target, home.path.path().join(name)).expect("a link");
    }
    let meta = home.silo.head("good").await.expect("stays inside");
    assert_eq!(home.load(&meta).await.expect("readable"), b"inside");
    for key in ["absolute", "up", "circle", "etc/passwd"] {
        assert_eq!(home.silo.head(key).await.expect_err(key).kind(), Kind::Denied, "{key}");
    }
    let escape = home.store("etc/forebay-test", b"x", Condition::Absent).await;
    assert_eq!(escape.expect_err("outside").kind(), Kind::Denied);
    let page = home.silo.list("", None, 10).await.expect("a listing");
    let keys: Vec<&str> = page.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(keys, ["blobs/1", "good"]);
    let over = home.store("good", b"x", Condition::Version(meta.version)).await;
    assert_eq!(over.expect_err("a link").kind(), Kind::Unsupported);
}

#[tokio::test]
async fn a_changed_file_is_stale() {
    let home = home();
    home.write("f", b"old bytes");
    let old = home.silo.head("f").await.expect("there");
    home.write("f", b"new bytes!");
    assert_eq!(home.load(&old).await.expect_err("changed").kind(), Kind::Stale);
    let new = home.silo.head("f").await.expect("there");
    assert_eq!(home.load(&new).await.expect("current"), b"new bytes!");
    // Replaced by another file of the same size and times.
    let times = std::fs::metadata(home.path.path().join("f")).expect("there").modified();
    home.write("g", b"NEW BYTES!");
    let other = File::options().write(true).open(home.path.path().join("g")).expect("a file");
    other.set_modified(times.expect("a time")).expect("set");
    std::fs::rename(home.path.path().join("g"), home.path.path().join("f")).expect("renamed");
    assert_eq!(home.load(&new).await.expect_err("another inode").kind(), Kind::Stale);
    std::fs::remove_file(home.path.path().join("f")).expect("removed");
    assert_eq!(home.load(&new).await.expect_err("gone").kind(), Kind::NotFound);
}

#[test]
fn a_file_that_changes_during_a_read_is_stale() {
    let home = home();
    let changes: [fn(&Path); 4] = [
        |path| std::fs::write(path, b"longer than it was before").expect("written"),
        |path| std::fs::write(path, b"less").expect("written"),
        |path| std::fs::remove_file(path).expect("removed"),
        |path| {
            std::fs::write(path.with_extension("2"), b"0123456789").expect("written");
            std::fs::rename(path.with_extension("2"), path).expect("renamed");
        },
    ];
    for change in changes {
        home.write("f", b"0123456789");
        let path = home.path.path().join("f");
        let file = File::open(&path).expect("there");
        let version = Stat::of(&file, "f").expect("a file").version();
        let mut target = [0; 10];
        let result = read_version(&file, "f", &version, 0, &mut target, || change(&path));
        assert_eq!(result.expect_err("changed").kind(), Kind::Stale);
        // The same read without the change passes: it is the change that was seen.
        let file = File::open(home.path.path().join("f"));
        if let Ok(file) = file {
            let stat = Stat::of(&file, "f").expect("a file");
            let mut target = vec![0; usize::try_from(stat.length()).expect("small")];
            read_version(&file, "f", &stat.version(), 0, &mut target, || ()).expect("quiet");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_young_file_is_waited_for_once() {
    let mut home = home();
    home.silo = home.silo.with_quiet(Duration::from_secs(3600));
    home.write("f", b"fresh");
    let meta = home.silo.head("f").await.expect("there");
    let start = tokio::time::Instant::now();
    assert_eq!(home.load(&meta).await.expect("readable"), b"fresh");
    assert!(start.elapsed() > Duration::from_secs(3000), "{:?}", start.elapsed());
    let start = tokio::time::Instant::now();
    assert_eq!(home.load(&meta).await.expect("readable"), b"fresh");
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn an_upload_appears_whole_with_its_tags() {
    let home = home();
    let bytes = vec![7; 4500];
    let mut upload =
        home.silo.upload("n/e/w", 4500, Condition::Absent, TAGS).await.expect("started");
    upload.append(Bytes::from(bytes[..4000].to_vec())).await.expect("room");
    assert_eq!(home.silo.head("n/e/w").await.expect_err("not yet").kind(), Kind::NotFound);
    assert_eq!(home.silo.list("", None, 10).await.expect("a listing"), Page::default());
    upload.append(Bytes::from(bytes[4000..].to_vec())).await.expect("room");
    let meta = upload.finish().await.expect("published");
    assert_eq!(meta, home.silo.head("n/e/w").await.expect("there"));
    assert_eq!(meta.tags, Some(TAGS));
    assert_eq!(home.bytes("n/e/w"), bytes);
    assert_eq!(std::fs::read_dir(home.path.path().join("n/e")).expect("there").count(), 1);
    assert_eq!(home.silo.limits.counters().counts().written_bytes, 4500);
}

/// What was adopted is still read from it.
#[tokio::test]
async fn a_directory_that_was_replaced_is_not_written_to() {
    let home = home();
    home.write("f", b"old");
    let meta = home.silo.head("f").await.expect("there");
    let (path, aside) = (home.path.path(), home.path.path().with_extension("aside"));
    std::fs::rename(path, &aside).expect("moved");
    for replaced in [false, true] {
        if replaced {
            std::fs::create_dir(path).expect("made");
        }
        let started = home.silo.upload("g", 1, Condition::Absent, TAGS).await;
        assert_eq!(started.err().expect("not there").kind(), Kind::Denied);
        assert_eq!(home.silo.list("", None, 10).await.expect_err("not there").kind(), Kind::Denied);
        let error = home.silo.head("f").await.expect_err("not there");
        assert_eq!(error.kind(), Kind::Denied);
        assert!(error.to_string().contains("directory"), "{error}");
        let range = ByteRange::new(0, 3).expect("a range");
        let (buffer, read) = home.silo.read("f", &meta.version, range, buffer()).await;
        read.expect("still open");
        assert_eq!(&buffer.as_slice()[..3], b"old");
    }
    std::fs::remove_dir(path).expect("empty");
    std::fs::rename(&aside, path).expect("back");
    assert_eq!(home.silo.head("f").await.expect("there again"), meta);
}

/// User attributes stay when somebody writes to a file: what was ours is not any more.
#[tokio::test]
async fn an_upload_that_others_wrote_to_is_not_ours() {
    let home = home();
    let changes: [fn(&std::path::Path) -> std::io::Result<()>; 4] = [
        |path| std::fs::write(path, b"theirs, which is longer"),
        |path| std::fs::write(path, b"same"),
        |path| {
            let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
            std::io::Write::write_all(&mut file, b"more")
        },
        |path| {
            let copy = path.with_extension("copy");
            let copied = std::process::Command::new("cp").arg("-a").args([path, &copy]).status()?;
            assert!(copied.success());
            std::fs::rename(copy, path)
        },
    ];
    for change in changes {
        let at = home.path.path().join("f");
        let _ = std::fs::remove_file(&at);
        let mut upload = home.silo.upload("f", 4, Condition::Absent, TAGS).await.expect("started");
        upload.append(Bytes::from_static(b"ours")).await.expect("room");
        assert_eq!(upload.finish().await.expect("published").tags, Some(TAGS));
        // Names and rights are no bytes.
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o640)).expect("set");
        assert_eq!(home.silo.head("f").await.expect("there").tags, Some(TAGS));
        // The clock of a file system may stand still for some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        change(&at).expect("changed");
        assert_eq!(home.silo.head("f").await.expect("there").tags, None);
    }
}

#[tokio::test]
async fn an_upload_that_ends_early_leaves_nothing() {
    let home = home();
    let start = || home.silo.upload("f", 3, Condition::Absent, TAGS);
    let mut short = start().await.expect("started");
    short.append(Bytes::from_static(b"ab")).await.expect("room");
    assert_eq!(short.finish().await.expect_err("short").kind(), Kind::Invalid);
    let mut long = start().await.expect("started");
    let error = long.append(Bytes::from_static(b"abcd")).await.expect_err("long");
    assert_eq!(error.kind(), Kind::Invalid);
    long.abort().await;
    drop(start().await.expect("started"));
    assert_eq!(home.parts(), 0);
    let page = home.silo.list("", None, 10).await.expect("a listing");
    assert!(page.objects.is_empty());
}

#[tokio::test]
async fn somebody_elses_file_is_never_overwritten() {
    let home = home();
    let mut upload = home.silo.upload("f", 4, Condition::Absent, TAGS).await.expect("started");
    upload.append(Bytes::from_static(b"ours")).await.expect("room");
    home.write("f", b"theirs");
    assert_eq!(upload.finish().await.expect_err("taken").kind(), Kind::Stale);
    assert_eq!(home.bytes("f"), b"theirs");

    let theirs = home.silo.head("f").await.expect("there");
    let condition = Condition::Version(theirs.version.clone());
    let mut upload = home.silo.upload("f", 4, condition.clone(), TAGS).await.expect("started");
    upload.append(Bytes::from_static(b"ours")).await.expect("room");
    home.write("f", b"theirs again");
    assert_eq!(upload.finish().await.expect_err("changed").kind(), Kind::Stale);
    assert_eq!(home.bytes("f"), b"theirs again");

    std::fs::remove_file(home.path.path().join("f")).expect("removed");
    let gone = home.store("f", b"ours", condition).await;
    assert_eq!(gone.expect_err("gone").kind(), Kind::Stale);
    assert_eq!(home.parts(), 0);
}

#[tokio::test]
async fn a_known_version_is_replaced_and_keeps_its_permissions() {
    let home = home();
    home.write("f", b"first");
    let path = home.path.path().join("f");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("set");
    let first = home.silo.head("f").await.expect("there");
    let second =
        home.store("f", b"second", Condition::Version(first.version.clone())).await.expect("mine");
    assert_eq!(home.load(&second).await.expect("current"), b"second");
    assert_eq!(home.load(&first).await.expect_err("replaced").kind(), Kind::Stale);
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
    assert_eq!(home.parts(), 0);
}

/// A change between the last look and the exchange: what comes out is not what was checked.
#[test]
fn an_exchange_that_took_out_the_wrong_file_is_undone() {
    let home = home();
    home.write("f", b"checked");
    let condition = Condition::Absent;
    let mut draft = upload::draft(&home.silo.root, "f", condition, TAGS, b"ours").expect("a draft");
    let before = draft.look().expect("there");
    home.write("f", b"newer, by somebody else");
    assert_eq!(draft.exchange(&before).expect_err("changed").kind(), Kind::Stale);
    drop(draft);
    assert_eq!(home.bytes("f"), b"newer, by somebody else");
    assert_eq!(home.parts(), 0);
    // Without the change in between, the very same steps replace the file.
    let mut draft =
        upload::draft(&home.silo.root, "f", Condition::Absent, TAGS, b"ours").expect("a draft");
    let before = draft.look().expect("there");
    draft.exchange(&before).expect("unchanged");
    drop(draft);
    assert_eq!(home.bytes("f"), b"ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_publishers_one_wins() {
    let home = Arc::new(home());
    for round in 0..20 {
        let key = format!("race-{round}");
        let racers = (0..4u8).map(|racer| {
            let (home, key) = (Arc::clone(&home), key.clone());
            tokio::spawn(async move { home.store(&key, &[racer; 3000], Condition::Absent).await })
        });
        let mut won = Vec::new();
        for (racer, result) in racers.collect::<Vec<_>>().into_iter().enumerate() {
            match result.await.expect("no panic") {
                Ok(_) => won.push(u8::try_from(racer).expect("four")),
                Err(error) => assert_eq!(error.kind(), Kind::Stale, "{error}"),
            }
        }
        assert_eq!(won.len(), 1);
        assert_eq!(home.bytes(&key), [won[0]; 3000]);
    }
    assert_eq!(home.parts(), 0);
}

#[tokio::test]
async fn a_read_only_silo_takes_no_uploads() {
    let home = home();
    let limits = Limits::new(&LimitOptions::default());
    let silo = Directory::open(home.path.path(), limits, false).expect("the directory");
    let refused = silo.upload("f", 1, Condition::Absent, TAGS).await;
    assert_eq!(refused.err().expect("read-only").kind(), Kind::Unsupported);
    assert!(!silo.capabilities().writable);
}
