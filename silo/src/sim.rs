//! A silo in memory for tests and the simulator: seeded, with faults on demand.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use dma::Buffer;
use extent::{ByteRange, Kind, Result, SourceVersion};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::{Capabilities, Condition, ObjectMeta, Page, Silo, Upload, UploadTags};

/// What goes wrong, and how often. Chances are from 0 to 1.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Faults {
    /// Requests fail with this kind at this chance.
    pub errors: Vec<(Kind, f64)>,
    /// Requests take this much longer at this chance.
    pub stall: Option<(f64, Duration)>,
    /// An upload takes effect, but its answer is lost ([`Kind::Io`]), at this chance.
    pub lost_answer: f64,
    /// An upload becomes an object whose first byte is another one, at this chance.
    pub spoilt_upload: f64,
}

/// What was asked of a [`SimSilo`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SimCounts {
    /// Requests to describe an object.
    pub heads: u64,
    /// Requests for a page.
    pub lists: u64,
    /// Reads, by key and range.
    pub reads: HashMap<(String, ByteRange), u64>,
    /// Bytes of reads that succeeded.
    pub read_bytes: u64,
    /// Uploads started.
    pub uploads: u64,
    /// Uploads that became objects.
    pub published: u64,
}

/// Runs in the middle of a read, after the bytes are looked up and before they are believed.
type Hook = Box<dyn FnMut(&SimSilo, &str, ByteRange) + Send>;

/// A silo in memory. Clones are the same silo.
#[derive(Clone)]
pub struct SimSilo(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    hook: Mutex<Option<Hook>>,
    held: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

struct State {
    objects: BTreeMap<String, Object>,
    versions: u64,
    random: SmallRng,
    faults: Faults,
    down: bool,
    read_only: bool,
    counts: SimCounts,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    version: SourceVersion,
    tags: Option<UploadTags>,
}

impl SimSilo {
    /// An empty silo without faults. The seed decides when faults that are set later strike.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                versions: 0,
                random: SmallRng::seed_from_u64(seed),
                faults: Faults::default(),
                down: false,
                read_only: false,
                counts: SimCounts::default(),
            }),
            hook: Mutex::new(None),
            held: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
        }))
    }

    /// Writes an object as somebody else would: a new version, no tags, no faults.
    ///
    /// # Panics
    /// Never: version numbers are short.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> ObjectMeta {
        let object = self.0.state.lock().put(key, bytes.into(), None);
        describe(key, &object)
    }

    /// Writes an object as somebody else would who copies one with all that it carries.
    pub fn put_copy(&self, key: &str, bytes: impl Into<Bytes>, of: &ObjectMeta) -> ObjectMeta {
        let object = self.0.state.lock().put(key, bytes.into(), of.tags);
        describe(key, &object)
    }

    /// Removes an object as somebody else would.
    pub fn remove(&self, key: &str) {
        self.0.state.lock().objects.remove(key);
    }

    /// An object's bytes, as somebody else would read them.
    #[must_use]
    pub fn bytes(&self, key: &str) -> Option<Bytes> {
        self.0.state.lock().objects.get(key).map(|object| object.bytes.clone())
    }

    /// Keys and descriptions of all objects.
    #[must_use]
    pub fn objects(&self) -> Vec<ObjectMeta> {
        self.0.state.lock().objects.iter().map(|(key, object)| describe(key, object)).collect()
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.state.lock().faults = faults;
    }

    /// While down, every request fails with [`Kind::Disconnected`].
    pub fn set_down(&self, down: bool) {
        self.0.state.lock().down = down;
    }

    /// While read-only, uploads are refused.
    pub fn set_read_only(&self, read_only: bool) {
        self.0.state.lock().read_only = read_only;
    }

    /// Runs `hook` in the middle of every read from now on: to change the object underneath, say.
    pub fn on_read(&self, hook: impl FnMut(&SimSilo, &str, ByteRange) + Send + 'static) {
        *self.0.hook.lock() = Some(Box::new(hook));
    }

    /// While held, reads that have arrived wait.
    pub fn hold_reads(&self, held: bool) {
        self.0.held.send_replace(held);
    }

    /// Returns once `count` reads or more wait because reads are held.
    ///
    /// # Panics
    /// Never: the silo keeps the counter.
    pub async fn waiting_reads(&self, count: usize) {
        let mut waiting = self.0.waiting.subscribe();
        waiting.wait_for(|waiting| *waiting >= count).await.expect("the silo keeps the counter");
    }

    /// What was asked of it so far.
    #[must_use]
    pub fn counts(&self) -> SimCounts {
        self.0.state.lock().counts.clone()
    }

    /// How often this range of this key was asked for.
    #[must_use]
    pub fn reads_of(&self, key: &str, range: ByteRange) -> u64 {
        self.0.state.lock().counts.reads.get(&(key.to_owned(), range)).copied().unwrap_or(0)
    }

    /// How many reads there were altogether.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.0.state.lock().counts.reads.values().sum()
    }

    /// Lets the faults strike.
    async fn arrive(&self) -> Result<()> {
        let (stall, failure) = self.0.state.lock().roll();
        if let Some(stall) = stall {
            sleep(stall).await;
        }
        match failure {
            Some(Kind::Disconnected) => Err(Kind::Disconnected.error("the silo is down")),
            Some(kind) => Err(kind.error("a fault was asked for")),
            None => Ok(()),
        }
    }

    async fn wait_while_held(&self) {
        let mut held = self.0.held.subscribe();
        if *held.borrow_and_update() {
            let _waiting = Waiting::new(&self.0.waiting);
            held.wait_for(|held| !held).await.expect("the silo keeps the switch");
        }
    }

    async fn fetch(
        &self,
        key: &str,
        version: &SourceVersion,
        range: ByteRange,
        buffer: &mut Buffer,
    ) -> Result<()> {
        let counted = (key.to_owned(), range);
        *self.0.state.lock().counts.reads.entry(counted).or_default() += 1;
        self.wait_while_held().await;
        self.arrive().await?;
        let bytes = self.0.state.lock().at(key, version)?.bytes.clone();
        // Taken out, so that the hook may use the silo as it likes.
        let hook = self.0.hook.lock().take();
        if let Some(mut hook) = hook {
            hook(self, key, range);
            self.0.hook.lock().get_or_insert(hook);
        }
        let within = |n: u64| usize::try_from(n).ok();
        let part = within(range.offset())
            .zip(within(range.end()))
            .and_then(|(start, end)| bytes.get(start..end))
            .ok_or_else(|| Kind::Invalid.error(format!("{range} is past the end of {key}")))?;
        let target = buffer.as_mut_slice().get_mut(..part.len());
        let target = target.ok_or_else(|| Kind::Invalid.error("the buffer is too small"))?;
        target.copy_from_slice(part);
        let mut state = self.0.state.lock();
        state.at(key, version)?;
        state.counts.read_bytes += range.length();
        Ok(())
    }
}

/// One reader that waits.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl State {
    fn put(&mut self, key: &str, bytes: Bytes, tags: Option<UploadTags>) -> Object {
        self.versions += 1;
        let version = SourceVersion::new(format!("v{}", self.versions)).expect("short");
        let object = Object { bytes, version, tags };
        self.objects.insert(key.to_owned(), object.clone());
        object
    }

    /// The object, if it is at this version.
    fn at(&self, key: &str, version: &SourceVersion) -> Result<&Object> {
        let found = self.objects.get(key);
        let found = found.ok_or_else(|| Kind::NotFound.error(format!("no object {key}")))?;
        if found.version != *version {
            let sentence = format!("{key} is at {}, not at {version}", found.version);
            return Err(Kind::Stale.error(sentence));
        }
        Ok(found)
    }

    fn roll(&mut self) -> (Option<Duration>, Option<Kind>) {
        if self.down {
            return (None, Some(Kind::Disconnected));
        }
        let faults = self.faults.clone();
        let stall = faults.stall.filter(|(chance, _)| self.strikes(*chance));
        let failure = faults.errors.into_iter().find(|(_, chance)| self.strikes(*chance));
        (stall.map(|(_, time)| time), failure.map(|(kind, _)| kind))
    }

    fn strikes(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.random.random_bool(chance.min(1.0))
    }
}

fn describe(key: &str, object: &Object) -> ObjectMeta {
    ObjectMeta {
        key: key.to_owned(),
        length: object.bytes.len() as u64,
        version: object.version.clone(),
        modified: None,
        tags: object.tags,
    }
}

#[async_trait]
impl Silo for SimSilo {
    fn capabilities(&self) -> Capabilities {
        let writable = !self.0.state.lock().read_only;
        Capabilities { kind: "sim", writable, conditional: true }
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        self.0.state.lock().counts.heads += 1;
        self.arrive().await?;
        let state = self.0.state.lock();
        let found = state.objects.get(key).map(|object| describe(key, object));
        found.ok_or_else(|| Kind::NotFound.error(format!("no object {key}")))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        self.0.state.lock().counts.lists += 1;
        self.arrive().await?;
        let limit = limit.max(1);
        let state = self.0.state.lock();
        let wanted = |key: &str| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        let found = state.objects.iter().filter(|(key, _)| wanted(key)).take(limit + 1);
        let mut objects: Vec<_> =
            found.map(|(key, object)| ObjectMeta { tags: None, ..describe(key, object) }).collect();
        let more = objects.len() > limit;
        objects.truncate(limit);
        let next = objects.last().filter(|_| more).map(|last| last.key.clone());
        Ok(Page { objects, next })
    }

    async fn read(
        &self,
        key: &str,
        version: &SourceVersion,
        range: ByteRange,
        mut buffer: Buffer,
    ) -> (Buffer, Result<()>) {
        let result = self.fetch(key, version, range, &mut buffer).await;
        (buffer, result)
    }

    async fn upload(
        &self,
        key: &str,
        length: u64,
        condition: Condition,
        tags: UploadTags,
    ) -> Result<Box<dyn Upload>> {
        self.0.state.lock().counts.uploads += 1;
        self.arrive().await?;
        if self.0.state.lock().read_only {
            return Err(Kind::Unsupported.error("the silo is read-only"));
        }
        let (silo, key) = (self.clone(), key.to_owned());
        Ok(Box::new(SimUpload { silo, key, length, condition, tags, bytes: BytesMut::new() }))
    }
}

struct SimUpload {
    silo: SimSilo,
    key: String,
    length: u64,
    condition: Condition,
    tags: UploadTags,
    bytes: BytesMut,
}

#[async_trait]
impl Upload for SimUpload {
    async fn append(&mut self, bytes: Bytes) -> Result<()> {
        self.silo.arrive().await?;
        if (self.bytes.len() + bytes.len()) as u64 > self.length {
            return Err(Kind::Invalid.error("more bytes than were announced"));
        }
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<ObjectMeta> {
        self.silo.arrive().await?;
        if self.bytes.len() as u64 != self.length {
            return Err(Kind::Invalid.error("fewer bytes than were announced"));
        }
        let mut state = self.silo.0.state.lock();
        let holds = match (&self.condition, state.objects.get(&self.key)) {
            (Condition::Absent, found) => found.is_none(),
            (Condition::Version(version), Some(found)) => found.version == *version,
            (Condition::Version(_), None) => false,
        };
        if !holds {
            return Err(Kind::Stale.error(format!("somebody else wrote {}", self.key)));
        }
        let mut bytes = self.bytes;
        let chance = state.faults.spoilt_upload;
        if !bytes.is_empty() && state.strikes(chance) {
            bytes[0] ^= 1;
        }
        let object = state.put(&self.key, bytes.freeze(), Some(self.tags));
        state.counts.published += 1;
        let chance = state.faults.lost_answer;
        if state.strikes(chance) {
            return Err(Kind::Io.error("the answer was lost"));
        }
        Ok(describe(&self.key, &object))
    }

    async fn abort(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use dma::{HugePages, Pool, SizeClass};
    use extent::{Attempt, FileId};
    use tokio::time::Instant;

    use super::*;

    const TAGS: UploadTags = UploadTags { file: FileId(1), attempt: Attempt(2), over: 3 };

    fn buffer() -> Buffer {
        let pool = Pool::new(&[SizeClass { bytes: 4096, count: 1 }], HugePages::Never);
        pool.expect("memory").take(1).expect("free")
    }

    fn range(offset: u64, length: u64) -> ByteRange {
        ByteRange::new(offset, length).expect("small")
    }

    async fn read(silo: &SimSilo, meta: &ObjectMeta, range: ByteRange) -> Result<Vec<u8>> {
        let (buffer, result) = silo.read(&meta.key, &meta.version, range, buffer()).await;
        let length = usize::try_from(range.length()).expect("small");
        result.map(|()| buffer.as_slice()[..length].to_vec())
    }

    #[tokio::test]
    async fn reads_are_counted_and_bound_to_a_version() {
        let silo = SimSilo::new(1);
        let old = silo.put("a", "0123456789");
        assert_eq!(read(&silo, &old, range(2, 3)).await.expect("good"), b"234");
        assert_eq!(read(&silo, &old, range(2, 3)).await.expect("good"), b"234");
        assert_eq!(read(&silo, &old, range(8, 3)).await.expect_err("past").kind(), Kind::Invalid);
        assert_eq!((silo.reads_of("a", range(2, 3)), silo.reads()), (2, 3));
        let new = silo.put("a", "abc");
        assert_eq!(read(&silo, &old, range(0, 1)).await.expect_err("old").kind(), Kind::Stale);
        assert_eq!(read(&silo, &new, range(0, 3)).await.expect("good"), b"abc");
        silo.remove("a");
        assert_eq!(silo.head("a").await.expect_err("gone").kind(), Kind::NotFound);
    }

    #[tokio::test]
    async fn an_object_may_change_in_the_middle_of_a_read() {
        let silo = SimSilo::new(1);
        let old = silo.put("a", "old");
        silo.on_read(|silo, key, _| drop(silo.put(key, "new")));
        assert_eq!(read(&silo, &old, range(0, 3)).await.expect_err("changed").kind(), Kind::Stale);
        assert_eq!(silo.bytes("a").expect("there"), "new");
    }

    #[tokio::test]
    async fn conditions_of_uploads_hold() {
        let silo = SimSilo::new(1);
        let store = async |condition| {
            let mut upload = silo.upload("a", 3, condition, TAGS).await.expect("started");
            upload.append(Bytes::from_static(b"our")).await.expect("room");
            upload.finish().await
        };
        let first = store(Condition::Absent).await.expect("absent");
        assert_eq!(first, silo.head("a").await.expect("there"));
        assert_eq!(first.tags, Some(TAGS));
        assert_eq!(store(Condition::Absent).await.expect_err("there").kind(), Kind::Stale);
        let second = store(Condition::Version(first.version.clone())).await.expect("current");
        let error = store(Condition::Version(first.version)).await.expect_err("replaced");
        assert_eq!(error.kind(), Kind::Stale);
        silo.set_faults(Faults { lost_answer: 1.0, ..Faults::default() });
        let lost = store(Condition::Version(second.version.clone())).await.expect_err("lost");
        assert_eq!(lost.kind(), Kind::Io);
        assert_ne!(silo.head("a").await.expect("there").version, second.version);
        assert_eq!((silo.counts().uploads, silo.counts().published), (5, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn faults_strike_as_the_seed_says() {
        let run = async |seed| {
            let silo = SimSilo::new(seed);
            silo.put("a", "x");
            silo.set_faults(Faults {
                errors: vec![(Kind::Busy, 0.3), (Kind::Io, 0.3)],
                stall: Some((0.5, Duration::from_secs(1))),
                ..Faults::default()
            });
            let start = Instant::now();
            let mut kinds = Vec::new();
            for _ in 0..50 {
                kinds.push(silo.head("a").await.err().map(|error| error.kind()));
            }
            (kinds, start.elapsed())
        };
        let (kinds, stalled) = run(7).await;
        assert_eq!(run(7).await, (kinds.clone(), stalled));
        assert_ne!(run(8).await.0, kinds);
        for expected in [None, Some(Kind::Busy), Some(Kind::Io)] {
            assert!(kinds.contains(&expected), "{expected:?}");
        }
        assert!(stalled > Duration::from_secs(10) && stalled < Duration::from_secs(40));
    }

    #[tokio::test]
    async fn a_silo_can_be_down_and_reads_can_be_held() {
        let silo = SimSilo::new(1);
        let meta = silo.put("a", "x");
        silo.set_down(true);
        assert_eq!(silo.head("a").await.expect_err("down").kind(), Kind::Disconnected);
        silo.set_down(false);
        silo.hold_reads(true);
        let held = [0, 1].map(|_| {
            let (silo, meta) = (silo.clone(), meta.clone());
            tokio::spawn(async move { read(&silo, &meta, range(0, 1)).await })
        });
        silo.waiting_reads(2).await;
        assert!(held.iter().all(|read| !read.is_finished()));
        silo.hold_reads(false);
        for read in held {
            assert_eq!(read.await.expect("no panic").expect("good"), b"x");
        }
    }

    #[tokio::test]
    async fn pages_follow_each_other() {
        let silo = SimSilo::new(1);
        for key in ["b/1", "a", "b/3", "b/2"] {
            silo.put(key, "x");
        }
        let page = silo.list("b/", None, 2).await.expect("a page");
        assert_eq!((page.objects.len(), page.next.as_deref()), (2, Some("b/2")));
        let page = silo.list("b/", page.next.as_deref(), 2).await.expect("a page");
        assert_eq!((page.objects[0].key.as_str(), page.next), ("b/3", None));
    }
}
