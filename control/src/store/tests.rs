use std::collections::BTreeMap;
use std::io;
use std::sync::Condvar;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;

use super::*;

const MEMORY: Memory = Memory { ttl: Duration::from_secs(3600), most: 1000 };

/// A disk in memory that tells what was flushed from what was only written.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Platter>);

#[derive(Debug, Default)]
struct Platter {
    state: std::sync::Mutex<Contents>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct Contents {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// Written since the last flush.
    pending: Vec<(usize, Vec<u8>)>,
    held: bool,
    is_full: bool,
    flushes: u64,
    waiting: bool,
}

impl Disk {
    fn contents(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.0.state.lock().expect("no panic under the lock")
    }

    /// What a power cut leaves: what was flushed, and any part of what was not.
    fn cut(&self, random: &mut SmallRng) -> Self {
        let contents = self.contents();
        let mut left = contents.flushed.clone();
        for (offset, bytes) in &contents.pending {
            for (at, block) in bytes.chunks(512).enumerate() {
                if random.random_bool(0.5) {
                    let start = offset + at * 512;
                    let end = (start + block.len()).max(left.len());
                    left.resize(end, 0);
                    left[start..start + block.len()].copy_from_slice(block);
                }
            }
        }
        let disk = Self::default();
        *disk.contents() = Contents { now: left.clone(), flushed: left, ..Contents::default() };
        disk
    }

    /// Makes the next flush wait.
    fn hold(&self) {
        self.contents().held = true;
    }

    /// Waits until a flush waits.
    fn wait_for_flush(&self) {
        let mut contents = self.contents();
        while !contents.waiting {
            contents = self.0.opened.wait(contents).expect("no panic under the lock");
        }
    }

    /// Takes nothing any more, or something again.
    fn fill(&self, is_full: bool) {
        self.contents().is_full = is_full;
    }

    fn release(&self) {
        self.contents().held = false;
        self.0.opened.notify_all();
    }

    fn open(&self) -> Store {
        let disk = self.clone();
        let open = move || Database::builder().create_with_backend(disk.clone()).map_err(failed);
        Store::with(Box::new(open), None, MEMORY).expect("it opens whole, also after a cut")
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.contents().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("small");
        out.copy_from_slice(&self.contents().now[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).expect("small");
        let mut contents = self.contents();
        contents.now.resize(length, 0);
        contents.flushed.resize(length, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut contents = self.contents();
        while contents.held {
            contents.waiting = true;
            self.0.opened.notify_all();
            contents = self.0.opened.wait(contents).expect("no panic under the lock");
        }
        contents.waiting = false;
        contents.flushes += 1;
        contents.pending.clear();
        contents.flushed = contents.now.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("small");
        let mut contents = self.contents();
        if contents.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        contents.now[offset..offset + data.len()].copy_from_slice(data);
        contents.pending.push((offset, data.to_vec()));
        Ok(())
    }
}

fn pin(file: u64, until_ms: u64) -> PinRow {
    PinRow { file: format!("data/{file}"), owner: "job".into(), until_ms }
}

fn record(at_ms: u64, job: u64) -> RequestRecord {
    RequestRecord { fingerprint: vec![7; 32], at_ms, outcome: Some(Outcome::Job(job)) }
}

fn job(labels: &str) -> Box<proto::Job> {
    let labels = BTreeMap::from([("name".to_owned(), labels.to_owned())]);
    Box::new(proto::Job { labels, ..proto::Job::default() })
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut_at_any_commit() {
    let mut random = SmallRng::seed_from_u64(11);
    let mut disk = Disk::default();
    for cut in 1..=20u64 {
        let store = disk.open();
        for step in 0..random.random_range(1..4) {
            let number = cut * 10 + step;
            let changes = vec![
                Change::PutJob(number, job(&number.to_string())),
                Change::PutPin(pin(number, number)),
                Change::Remember(format!("r{number}"), record(1000 + number, number)),
            ];
            store.commit(Some(Epoch(number)), changes).await.expect("a good disk");
        }
        // A commit that nobody waits for: it may survive or not, but only as a whole.
        disk.hold();
        let late = cut * 10 + 9;
        let changes = vec![
            Change::PutJob(late, job("late")),
            Change::PutPin(pin(late, late)),
            Change::Remember(format!("r{late}"), record(1000 + late, late)),
        ];
        let (waiter, image) = {
            let before = store.load().await.expect("loads");
            let epoch = store.epoch();
            let store = Arc::new(store);
            let writing = Arc::clone(&store);
            let waiter = tokio::spawn(async move { writing.commit(None, changes).await });
            let held = disk.clone();
            let seen = tokio::task::spawn_blocking(move || held.wait_for_flush());
            seen.await.expect("the flush comes");
            let image = disk.cut(&mut random);
            let after = image.open();
            check_image(&after, &before, epoch, late).await;
            after.close().await;
            (waiter, image)
        };
        disk.release();
        waiter.await.expect("no panic").expect("the old life ends well");
        disk = image;
    }
}

/// Everything acknowledged is there, and the late commit is there wholly or not at all.
async fn check_image(after: &Store, before: &Loaded, epoch: Epoch, late: u64) {
    let loaded = after.load().await.expect("loads after the cut");
    let is_late = loaded.jobs.iter().any(|(number, _)| *number == late);
    assert_eq!(loaded.pins.contains(&pin(late, late)), is_late);
    let request = after.request(&format!("r{late}"), 0).await.expect("readable");
    assert_eq!(request.is_some(), is_late);
    assert_eq!(loaded.jobs.len(), before.jobs.len() + usize::from(is_late));
    for (number, stored) in &before.jobs {
        assert!(loaded.jobs.contains(&(*number, stored.clone())), "job {number} was acknowledged");
        let request = after.request(&format!("r{number}"), 0).await.expect("readable");
        assert_eq!(request, Some(record(1000 + number, *number)));
    }
    assert!(before.pins.iter().all(|pin| loaded.pins.contains(pin)));
    assert_eq!(after.epoch(), epoch);
    assert!(loaded.next_job >= before.next_job);
}

#[tokio::test]
async fn a_disk_that_was_full_is_written_again_when_there_is_room() {
    let disk = Disk::default();
    let store = disk.open();
    store.commit(Some(Epoch(3)), vec![Change::PutPin(pin(1, 1))]).await.expect("room");
    disk.fill(true);
    for file in 2..5 {
        let refused = store.commit(None, vec![Change::PutPin(pin(file, 1))]).await;
        assert_eq!(refused.expect_err("no room").kind(), Kind::Io);
        // It cannot be read either, if opening it takes room.
        let _ = store.request("r", 0).await;
    }
    disk.fill(false);
    store.commit(Some(Epoch(3)), vec![Change::PutPin(pin(9, 1))]).await.expect("room again");
    let refused = store.commit(Some(Epoch(2)), vec![Change::PutPin(pin(8, 1))]).await;
    assert_eq!(refused.expect_err("lower").kind(), Kind::Fenced);
    assert_eq!(store.request("r", 0).await.expect("readable"), None);
    let pins = store.load().await.expect("loads").pins;
    assert!(pins.contains(&pin(1, 1)) && pins.contains(&pin(9, 1)), "{pins:?}");
    store.close().await;
    assert_eq!(store.request("r", 0).await.expect_err("closed").kind(), Kind::Disconnected);
}

#[tokio::test]
async fn requests_that_come_together_share_a_flush() {
    let disk = Disk::default();
    let store = Arc::new(disk.open());
    let before = disk.contents().flushes;
    store.commit(None, vec![Change::PutPin(pin(0, 1))]).await.expect("a good disk");
    let of_one = disk.contents().flushes - before;
    disk.hold();
    let first = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.commit(None, vec![Change::PutPin(pin(0, 1))]).await })
    };
    let held = disk.clone();
    tokio::task::spawn_blocking(move || held.wait_for_flush()).await.expect("the flush comes");
    let mut others = Vec::new();
    for file in 1..=100 {
        let (reply, answer) = oneshot::channel();
        let changes = vec![Change::PutPin(pin(file, 1))];
        let inbox = store.inbox.lock().clone().expect("open");
        inbox.send(Batch { fence: None, changes, reply }).await.expect("open");
        others.push(answer);
    }
    disk.release();
    first.await.expect("no panic").expect("a good disk");
    for answer in others {
        answer.await.expect("answered").expect("a good disk");
    }
    let of_all = disk.contents().flushes - before;
    assert_eq!(
        of_all,
        3 * of_one,
        "one group alone, one for the first, one for the hundred behind"
    );
    assert_eq!(store.load().await.expect("loads").pins.len(), 101);
}

#[tokio::test]
async fn a_lower_epoch_is_refused_with_all_its_changes_also_after_reopening() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control.redb");
    let store = Store::open(&path, None, MEMORY).expect("made");
    store.fence(Epoch(5)).await.expect("higher");
    store.fence(Epoch(5)).await.expect("the same");
    let refused = store.commit(Some(Epoch(4)), vec![Change::PutPin(pin(1, 1))]).await;
    assert_eq!(refused.expect_err("lower").kind(), Kind::Fenced);
    store.close().await;
    assert_eq!(store.fence(Epoch(9)).await.expect_err("closed").kind(), Kind::Disconnected);

    let store = Store::open(&path, None, MEMORY).expect("opens again");
    assert_eq!(store.epoch(), Epoch(5));
    assert_eq!(store.fence(Epoch(4)).await.expect_err("lower").kind(), Kind::Fenced);
    assert!(store.load().await.expect("loads").pins.is_empty());
    store.close().await;
}

#[tokio::test]
async fn the_database_of_another_tier_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control.redb");
    let store = Store::open(&path, Some(77), MEMORY).expect("a new one takes the identity over");
    assert_eq!(store.identity(), 77);
    let second = Store::open(&path, Some(77), MEMORY).err().expect("open already");
    assert_eq!(second.kind(), Kind::Denied);
    store.close().await;
    let other = Store::open(&path, Some(78), MEMORY).err().expect("another tier");
    assert_eq!(other.kind(), Kind::Denied);
    let same = Store::open(&path, None, MEMORY).expect("no expectation");
    assert_eq!(same.identity(), 77);
    same.close().await;

    let (one, two) = (Disk::default().open(), Disk::default().open());
    assert_ne!(one.identity(), two.identity(), "drawn at random");
}

#[tokio::test]
async fn request_ids_are_forgotten_by_age_and_by_number() {
    let store = Disk::default().open();
    let ttl = millis(MEMORY.ttl);
    let remember = async |id: &str, at| {
        let change = Change::Remember(id.to_owned(), record(at, 1));
        store.commit(None, vec![change]).await.expect("a good disk");
    };
    remember("old", 1000).await;
    assert!(store.request("old", 1000 + ttl - 1).await.expect("readable").is_some());
    assert!(store.request("old", 1000 + ttl).await.expect("readable").is_none());
    let many = (0..MEMORY.most).map(|n| Change::Remember(format!("n{n:04}"), record(2000 + n, n)));
    store.commit(None, many.collect()).await.expect("a good disk");
    assert!(store.request("old", 1000).await.expect("readable").is_none(), "one too many");
    assert!(store.request("n0000", 2000).await.expect("readable").is_some());
    remember("late", 2000 + ttl + 5).await;
    assert!(store.request("n0005", 0).await.expect("readable").is_none(), "too old");
    assert!(store.request("n0008", 0).await.expect("readable").is_some(), "not yet swept");
    remember("n0500", 2000 + ttl + 6).await;
    assert!(store.request("n0500", 2000 + ttl + 6).await.expect("readable").is_some());
}

#[tokio::test]
async fn a_finished_job_stays_finished_and_a_renewed_pin_stays() {
    let store = Disk::default().open();
    let finished = proto::Job { finished: Some(crate::clock::timestamp(5)), ..*job("x") };
    let changes = vec![
        Change::PutJob(1, Box::new(finished.clone())),
        Change::PutJob(2, job("y")),
        Change::CancelJob(1),
        Change::CancelJob(2),
        Change::CancelJob(3),
        Change::PutPin(pin(1, 100)),
        Change::PutPin(pin(1, 200)),
        Change::DropPin(pin(1, 100)),
        Change::PutPin(pin(2, 300)),
        Change::DropPin(pin(2, 300)),
    ];
    store.commit(None, changes).await.expect("a good disk");
    let loaded = store.load().await.expect("loads");
    let asked = proto::Job { cancel_requested: true, ..*job("y") };
    assert_eq!(loaded.jobs, [(1, finished), (2, asked)]);
    assert_eq!(loaded.pins, [pin(1, 200)]);
    store.commit(None, vec![Change::DropJob(2)]).await.expect("a good disk");
    let loaded = store.load().await.expect("loads");
    assert_eq!((loaded.jobs.len(), loaded.next_job), (1, 3), "its number is not used again");
}
