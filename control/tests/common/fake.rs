use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dataplane::{
    Candidate, FileStatus, Handle, Keep, NodeStatus, Progress, PromoteOptions, Residency,
    ScrubOptions, ScrubReport, SiloStatus,
};
use extent::{ByteRange, FileName, Generation, Kind, Result, SourceVersion};
use parking_lot::Mutex;
use tokio::sync::watch;

const EXTENT_BYTES: u64 = 1 << 20;

/// A node in memory that does as it is told: it moves no bytes, but counts them, fails where it
/// is asked to, and waits where it is held.
pub(crate) struct Fake {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    silos: BTreeMap<String, BTreeMap<String, u64>>,
    files: BTreeMap<FileName, File>,
    /// `operation name`s that wait until they are let go.
    held: HashSet<String>,
    /// Held operations that do not stop when they are cancelled.
    pub(crate) stubborn: bool,
    /// `operation name` → the errors of the next calls.
    failures: HashMap<String, VecDeque<Kind>>,
    /// Every call, as `operation name`.
    pub(crate) calls: Vec<String>,
    pub(crate) cancelled: usize,
    pub(crate) running: usize,
    pub(crate) most_running: usize,
    pub(crate) durable: usize,
    /// What the next scrub finds.
    pub(crate) scrub: ScrubReport,
}

#[derive(Clone)]
struct File {
    generation: u64,
    length: u64,
    dirty: bool,
    resident: Vec<bool>,
    pins: BTreeMap<String, Duration>,
}

impl File {
    fn new(length: u64) -> Self {
        let extents = usize::try_from(length.div_ceil(EXTENT_BYTES)).expect("small");
        Self {
            generation: 1,
            length,
            dirty: false,
            resident: vec![false; extents],
            pins: BTreeMap::new(),
        }
    }

    fn touched(&self, range: Option<ByteRange>) -> Vec<usize> {
        let whole = ByteRange::new(0, self.length).expect("in range");
        let range = range.unwrap_or(whole).intersect(whole);
        range.pieces(EXTENT_BYTES).map(|piece| piece.index.0 as usize).collect()
    }

    fn bytes_of(&self, index: usize) -> u64 {
        (self.length - index as u64 * EXTENT_BYTES).min(EXTENT_BYTES)
    }

    fn status(&self, name: &FileName) -> FileStatus {
        let here: Vec<_> = (0..self.resident.len()).filter(|index| self.resident[*index]).collect();
        let residency = match here.len() {
            _ if self.dirty => Residency::Dirty,
            0 => Residency::Absent,
            all if all == self.resident.len() => Residency::Clean,
            _ => Residency::Partial,
        };
        FileStatus {
            name: name.clone(),
            id: name.id(),
            generation: Generation(self.generation),
            length: self.length,
            version: (!self.dirty).then(|| SourceVersion::new("v1").expect("short")),
            residency,
            extent_bytes: EXTENT_BYTES,
            total_extents: u32::try_from(self.resident.len()).expect("small"),
            resident_extents: u32::try_from(here.len()).expect("small"),
            resident_bytes: here.into_iter().map(|index| self.bytes_of(index)).sum(),
            pins: self.pins.keys().cloned().collect(),
        }
    }
}

impl Fake {
    /// A node with an empty silo `data`.
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            silos: BTreeMap::from([("data".to_owned(), BTreeMap::new())]),
            ..State::default()
        };
        Arc::new(Self { state: Mutex::new(state), version: watch::Sender::new(0) })
    }

    /// With objects `data/{stem}00`, `data/{stem}01`… of this length.
    pub(crate) fn with_objects(stem: &str, count: usize, length: u64) -> Arc<Self> {
        let fake = Self::new();
        for index in 0..count {
            fake.put_object(&format!("data/{stem}{index:02}"), length);
        }
        fake
    }

    pub(crate) fn put_object(&self, name: &str, length: u64) {
        let name: FileName = name.parse().expect("a name");
        self.change(|state| {
            let silo = state.silos.entry(name.silo().to_owned()).or_default();
            silo.insert(name.key().to_owned(), length);
        });
    }

    /// A file that was written here.
    pub(crate) fn put_dirty(&self, name: &str, length: u64) {
        let mut file = File::new(length);
        file.dirty = true;
        file.resident.fill(true);
        self.change(|state| state.files.insert(name.parse().expect("a name"), file));
    }

    /// Makes a call wait, such as `promote data/a`.
    pub(crate) fn hold(&self, call: &str) {
        self.change(|state| state.held.insert(call.to_owned()));
    }

    pub(crate) fn let_go(&self, call: &str) {
        self.change(|state| state.held.remove(call));
    }

    /// Makes the next call fail.
    pub(crate) fn fail(&self, call: &str, kind: Kind) {
        self.change(|state| state.failures.entry(call.to_owned()).or_default().push_back(kind));
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock());
        self.version.send_modify(|version| *version += 1);
        changed
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock())
    }

    /// Waits until the node is so.
    pub(crate) async fn until(&self, is_so: impl Fn(&State) -> bool) {
        let mut version = self.version.subscribe();
        while !self.look(&is_so) {
            version.changed().await.expect("the sender is here");
        }
    }

    pub(crate) async fn called(&self, call: &str) {
        self.until(|state| state.calls.iter().any(|made| made == call)).await;
    }

    /// The calls of this operation, in their order, without the operation.
    pub(crate) fn calls(&self, operation: &str) -> Vec<String> {
        let operation = format!("{operation} ");
        let of = |call: &String| call.strip_prefix(&operation).map(ToOwned::to_owned);
        self.look(|state| state.calls.iter().filter_map(of).collect())
    }

    pub(crate) fn pins(&self, name: &str) -> Vec<String> {
        let name = name.parse().expect("a name");
        self.look(|state| {
            state.files.get(&name).map_or(vec![], |file| file.pins.keys().cloned().collect())
        })
    }

    pub(crate) fn status_of(&self, name: &str) -> FileStatus {
        let name = name.parse().expect("a name");
        self.look(|state| state.files[&name].status(&name))
    }

    /// What a node forgets when it restarts: its pins, and what was running.
    pub(crate) fn forget(&self) {
        self.change(|state| {
            state.files.values_mut().for_each(|file| file.pins.clear());
            state.held.clear();
            state.calls.clear();
        });
    }

    /// Notes a call, and fails if it is to.
    fn begin(&self, operation: &str, name: &str) -> Result<String> {
        let call = format!("{operation} {name}");
        let failure = self.change(|state| {
            state.calls.push(call.clone());
            state.failures.get_mut(&call).and_then(VecDeque::pop_front)
        });
        match failure {
            Some(kind) => Err(kind.error(format!("{call} was told to fail"))),
            None => Ok(call),
        }
    }

    /// Waits while the call is held.
    async fn wait(&self, call: &str, progress: Option<&Progress>) -> Result<()> {
        let free = self.until(|state| !state.held.contains(call));
        let is_stubborn = self.look(|state| state.stubborn);
        match progress.filter(|_| !is_stubborn) {
            None => free.await,
            Some(progress) => tokio::select! {
                biased;
                () = progress.cancelled() => {
                    self.change(|state| state.cancelled += 1);
                    return progress.check();
                }
                () = free => {}
            },
        }
        Ok(())
    }

    fn with_file<T>(
        &self,
        name: &FileName,
        change: impl FnOnce(&mut File) -> Result<T>,
    ) -> Result<FileStatus> {
        self.change(|state| {
            let file = state.files.get_mut(name);
            let file = file.ok_or_else(|| Kind::NotFound.error(format!("no file {name}")))?;
            change(file)?;
            Ok(file.status(name))
        })
    }

    fn adopt(&self, name: &FileName) -> Result<FileStatus> {
        self.change(|state| {
            let object = state.silos.get(name.silo()).and_then(|silo| silo.get(name.key()));
            let length = object.ok_or_else(|| Kind::NotFound.error(format!("no object {name}")))?;
            let file = state.files.entry(name.clone()).or_insert_with(|| File::new(*length));
            Ok(file.status(name))
        })
    }

    fn arrive(&self, name: &FileName, at: usize) -> Result<FileStatus> {
        self.with_file(name, |file| {
            file.resident[at] = true;
            Ok(())
        })
    }

    async fn fill(
        &self,
        call: &str,
        name: &FileName,
        options: PromoteOptions,
        progress: &Progress,
    ) -> Result<FileStatus> {
        at(self.adopt(name)?.generation, options.expected)?;
        let missing: Vec<(usize, u64)> = self.look(|state| {
            let file = &state.files[name];
            let touched = file.touched(options.range).into_iter();
            touched.filter(|at| !file.resident[*at]).map(|at| (at, file.bytes_of(at))).collect()
        });
        progress.expect(missing.iter().map(|(_, bytes)| bytes).sum());
        let half = missing.len().div_ceil(2);
        for (at, bytes) in &missing[..half] {
            self.arrive(name, *at)?;
            progress.advance(*bytes);
        }
        self.wait(call, Some(progress)).await?;
        for (at, bytes) in &missing[half..] {
            progress.check()?;
            self.arrive(name, *at)?;
            progress.advance(*bytes);
        }
        if options.durable {
            self.change(|state| state.durable += 1);
        }
        self.with_file(name, |_| Ok(()))
    }
}

fn at(generation: Generation, expected: Option<Generation>) -> Result<()> {
    match expected {
        Some(expected) if expected != generation => Err(Kind::Stale.error("another generation")),
        _ => Ok(()),
    }
}

#[async_trait]
impl Handle for Fake {
    async fn register(&self, name: &FileName, expected: Option<Generation>) -> Result<FileStatus> {
        let call = self.begin("register", &name.to_string())?;
        self.wait(&call, None).await?;
        let known = self.look(|state| state.files.get(name).map(|file| file.status(name)));
        at(known.map_or(Generation(0), |status| status.generation), expected)?;
        self.adopt(name)
    }

    async fn get(&self, name: &FileName) -> Result<FileStatus> {
        self.begin("get", &name.to_string())?;
        self.with_file(name, |_| Ok(()))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&FileName>,
        limit: usize,
    ) -> Result<Vec<FileStatus>> {
        self.begin("list", prefix)?;
        Ok(self.look(|state| {
            let behind = state.files.iter().filter(|(name, _)| after.is_none_or(|at| *name > at));
            let wanted = behind.filter(|(name, _)| name.to_string().starts_with(prefix));
            wanted.take(limit).map(|(name, file)| file.status(name)).collect()
        }))
    }

    async fn discover(
        &self,
        silo: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Candidate>> {
        let call = self.begin("discover", &format!("{silo}/{prefix}"))?;
        self.wait(&call, None).await?;
        self.look(|state| {
            let objects = state.silos.get(silo).ok_or_else(|| Kind::NotFound.error("no silo"))?;
            let behind = objects.iter().filter(|(key, _)| after.is_none_or(|at| key.as_str() > at));
            let wanted = behind.filter(|(key, _)| key.starts_with(prefix)).take(limit);
            let candidate = |(key, length): (&String, &u64)| {
                Ok(Candidate { name: FileName::new(silo, key)?, length: *length })
            };
            wanted.map(candidate).collect()
        })
    }

    async fn probe(&self, silo: &str) -> Result<()> {
        self.discover(silo, "", None, 1).await.map(drop)
    }

    async fn promote(
        &self,
        name: &FileName,
        options: PromoteOptions,
        progress: &Progress,
    ) -> Result<FileStatus> {
        let call = self.begin("promote", &name.to_string())?;
        self.change(|state| {
            state.running += 1;
            state.most_running = state.most_running.max(state.running);
        });
        let filled = self.fill(&call, name, options, progress).await;
        self.change(|state| state.running -= 1);
        filled
    }

    async fn writeback(
        &self,
        name: &FileName,
        expected: Option<Generation>,
        progress: &Progress,
    ) -> Result<FileStatus> {
        let call = self.begin("writeback", &name.to_string())?;
        self.wait(&call, Some(progress)).await?;
        at(self.with_file(name, |_| Ok(()))?.generation, expected)?;
        let status = self.with_file(name, |file| {
            if file.dirty {
                progress.expect(file.length);
                progress.advance(file.length);
            }
            file.dirty = false;
            Ok(())
        })?;
        self.put_object(&name.to_string(), status.length);
        Ok(status)
    }

    async fn release(
        &self,
        name: &FileName,
        range: Option<ByteRange>,
        expected: Option<Generation>,
    ) -> Result<FileStatus> {
        self.begin("release", &name.to_string())?;
        at(self.with_file(name, |_| Ok(()))?.generation, expected)?;
        self.with_file(name, |file| {
            if file.dirty || !file.pins.is_empty() {
                return Err(Kind::Denied.error(format!("{name} is dirty or pinned")));
            }
            for at in file.touched(range) {
                file.resident[at] = false;
            }
            Ok(())
        })
    }

    async fn resolve(
        &self,
        name: &FileName,
        keep: Keep,
        expected: Option<Generation>,
    ) -> Result<FileStatus> {
        self.begin(if keep == Keep::Node { "keep" } else { "give up" }, &name.to_string())?;
        at(self.with_file(name, |_| Ok(()))?.generation, expected)?;
        self.with_file(name, |file| {
            if !file.dirty {
                return Err(Kind::Invalid.error(format!("{name} has nothing to settle")));
            }
            file.dirty = keep == Keep::Node;
            Ok(())
        })
    }

    async fn demote(
        &self,
        name: &FileName,
        range: Option<ByteRange>,
        expected: Option<Generation>,
        progress: &Progress,
    ) -> Result<FileStatus> {
        let call = self.begin("demote", &name.to_string())?;
        self.wait(&call, Some(progress)).await?;
        self.writeback(name, expected, progress).await?;
        self.release(name, range, expected).await
    }

    async fn pin(&self, name: &FileName, owner: &str, ttl: Duration) -> Result<FileStatus> {
        let call = self.begin("pin", &name.to_string())?;
        self.wait(&call, None).await?;
        self.with_file(name, |file| {
            file.pins.insert(owner.to_owned(), ttl);
            Ok(())
        })
    }

    async fn unpin(&self, name: &FileName, owner: &str) -> Result<FileStatus> {
        self.begin("unpin", &name.to_string())?;
        self.with_file(name, |file| {
            let pin = file.pins.remove(owner);
            pin.map(|_| ()).ok_or_else(|| Kind::NotFound.error(format!("{owner} has no pin")))
        })
    }

    async fn scrub(&self, options: ScrubOptions, progress: &Progress) -> Result<ScrubReport> {
        let call = self.begin("scrub", "tier")?;
        progress.expect(100);
        progress.advance(40);
        // A real one says how far it came when it is stopped.
        let complete = self.wait(&call, Some(progress)).await.is_ok();
        let rate_bytes_per_s = options.rate_bytes_per_s.unwrap_or(64 << 20);
        let found = self.look(|state| state.scrub);
        Ok(ScrubReport { rate_bytes_per_s, complete, ..found })
    }

    async fn status(&self) -> NodeStatus {
        self.look(|state| NodeStatus {
            silos: state
                .silos
                .keys()
                .map(|name| SiloStatus {
                    name: name.clone(),
                    kind: "sim".to_owned(),
                    writable: true,
                    conditional: true,
                    read_bytes: 11,
                    written_bytes: 12,
                    errors: 13,
                })
                .collect(),
            files: state.files.len() as u64,
            sessions: vec![("tcp".to_owned(), 3)],
            buffers: (5, 9),
            ..NodeStatus::default()
        })
    }
}
