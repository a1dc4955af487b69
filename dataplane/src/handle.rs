//! The seam to the control plane: what can be asked of a running node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use extent::{ByteRange, FileId, FileName, Generation, Kind, Result, SourceVersion};
use nvme_tier::device::Health;
use tokio::sync::Notify;

use crate::scrub::{ScrubOptions, ScrubReport, ScrubStatus};

/// Where a file stands. Derived from facts, never stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Residency {
    /// Known, and none of its extents are here.
    Absent,
    /// Being filled from its silo.
    Promoting,
    /// Some of its extents are here; all match the silo's version.
    Partial,
    /// All of its extents are here and match the silo's version.
    Clean,
    /// It was written here and the silo does not have this generation yet.
    Dirty,
    /// It is being copied to its silo.
    WritingBack,
    /// The silo has changed independently of what was written here. Both are kept.
    Conflict,
    /// Its silo no longer has the version it was adopted at.
    Lost,
    /// A dirty extent or record is damaged: nothing is freed, and reads of it fail.
    Quarantined,
}

impl Residency {
    /// Every state.
    pub const ALL: [Self; 9] = [
        Self::Absent,
        Self::Promoting,
        Self::Partial,
        Self::Clean,
        Self::Dirty,
        Self::WritingBack,
        Self::Conflict,
        Self::Lost,
        Self::Quarantined,
    ];

    /// A stable, lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Promoting => "promoting",
            Self::Partial => "partial",
            Self::Clean => "clean",
            Self::Dirty => "dirty",
            Self::WritingBack => "writing_back",
            Self::Conflict => "conflict",
            Self::Lost => "lost",
            Self::Quarantined => "quarantined",
        }
    }
}

/// A file as the node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileStatus {
    /// Its name.
    pub name: FileName,
    /// Its id.
    pub id: FileId,
    /// The newest committed generation.
    pub generation: Generation,
    /// Bytes of that generation.
    pub length: u64,
    /// The silo's version that this generation matches; `None` if it was only written here.
    pub version: Option<SourceVersion>,
    /// Where it stands.
    pub residency: Residency,
    /// Bytes of an extent.
    pub extent_bytes: u64,
    /// Extents in all.
    pub total_extents: u32,
    /// Extents on the node.
    pub resident_extents: u32,
    /// Bytes of the file on the node.
    pub resident_bytes: u64,
    /// Who pins it.
    pub pins: Vec<String>,
}

/// An object of a silo, whether the node knows it or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its name.
    pub name: FileName,
    /// Bytes.
    pub length: u64,
}

/// A silo that the node reaches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SiloStatus {
    /// Its name, the first part of file names.
    pub name: String,
    /// `file`, `s3`, `gcs`, `azure`, `http` or `sim`.
    pub kind: String,
    /// Whether it can be written.
    pub writable: bool,
    /// Whether it checks versions itself.
    pub conditional: bool,
    /// Bytes read from it since start.
    pub read_bytes: u64,
    /// Bytes written to it since start.
    pub written_bytes: u64,
    /// Requests that failed for good since start.
    pub errors: u64,
}

/// One device of the tier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceStatus {
    /// Its path.
    pub path: String,
    /// How it is driven, such as `io_uring`.
    pub driver: String,
    /// Bytes that can hold extents.
    pub capacity_bytes: u64,
    /// Bytes in slots that are taken.
    pub used_bytes: u64,
    /// Bytes that it was told nobody needs, since start.
    pub deallocated_bytes: u64,
    /// Whether a write cache may lose what is not flushed.
    pub volatile_cache: bool,
    /// Whether it failed and is no longer trusted.
    pub failed: bool,
    /// What it says of its own state, if it does.
    pub health: Option<Health>,
    /// Why an NVMe device's state is not known, such as for want of rights.
    pub health_missing: Option<String>,
}

/// An RDMA device that the node uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RdmaStatus {
    /// The kernel's name for it.
    pub device: String,
    /// The numbers of its ports, and whether each is up.
    pub ports: Vec<(u8, bool)>,
    /// What it told of unasked, such as `port_error`, and how often since start.
    pub events: Vec<(String, u64)>,
}

/// The whole node at a glance. Counters run since start.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct NodeStatus {
    /// Devices of the tier.
    pub devices: Vec<DeviceStatus>,
    /// Silos.
    pub silos: Vec<SiloStatus>,
    /// Shards.
    pub shards: u32,
    /// Open sessions by fabric name.
    pub sessions: Vec<(String, u64)>,
    /// RDMA devices.
    pub rdma: Vec<RdmaStatus>,
    /// Files known.
    pub files: u64,
    /// Files written here that their silos do not have yet.
    pub dirty_files: u64,
    /// Bytes of dirty files.
    pub dirty_bytes: u64,
    /// Pinned files.
    pub pinned_files: u64,
    /// Extents on the node.
    pub resident_extents: u64,
    /// File bytes in those extents.
    pub resident_bytes: u64,
    /// Bytes of the slots that hold them.
    pub slot_bytes: u64,
    /// Reads answered.
    pub reads: u64,
    /// Bytes read by clients.
    pub read_bytes: u64,
    /// Extent pieces read from the tier.
    pub hits: u64,
    /// Extent pieces that had to come from a silo, or from a buffer arriving from one.
    pub misses: u64,
    /// Writes answered.
    pub writes: u64,
    /// Bytes written by clients.
    pub written_bytes: u64,
    /// Generations committed.
    pub commits: u64,
    /// Extents fetched from silos.
    pub fetched_extents: u64,
    /// Extents evicted.
    pub evicted_extents: u64,
    /// Blocks whose checksum did not hold.
    pub checksum_errors: u64,
    /// Damaged clean extents replaced from their silo.
    pub repairs: u64,
    /// Bytes of memory that checksums take.
    pub checksum_memory_bytes: u64,
    /// Bytes that they may take; 0 where all of them stay.
    pub checksum_memory_limit_bytes: u64,
    /// Extent pieces read whose checksums were in memory.
    pub checksum_hits: u64,
    /// Extent pieces read whose checksums had to be read, too.
    pub checksum_misses: u64,
    /// Extents whose checksums were dropped from memory.
    pub dropped_checksums: u64,
    /// Reads of devices that took a dirty extent's second copy, since the first one did not hold.
    pub second_copy_reads: u64,
    /// Dirty files that were committed on two devices, and of which an extent is on one: write them
    /// back first.
    pub files_missing_copy: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Node buffers in use, and in all.
    pub buffers: (u64, u64),
    /// Median of a READ's time in the node, in nanoseconds.
    pub read_p50_ns: u64,
    /// 99th percentile of a READ's time in the node, in nanoseconds.
    pub read_p99_ns: u64,
    /// Whether new work is refused because the node is draining.
    pub draining: bool,
    /// What scrubs have read and found.
    pub scrub: ScrubStatus,
}

/// How far a long operation is, shared between it and those who watch or cancel it.
#[derive(Debug, Default)]
pub struct Progress {
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    cancelled: AtomicBool,
    wake: Notify,
}

impl Progress {
    /// Nothing done yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Announces more work.
    pub fn expect(&self, bytes: u64) {
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reports work done.
    pub fn advance(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done and bytes announced.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_done.load(Ordering::Relaxed), self.bytes_total.load(Ordering::Relaxed))
    }

    /// Asks the operation to stop as soon as it can.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.wake.notify_waiters();
    }

    /// Whether that was asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Returns once that is asked.
    pub async fn cancelled(&self) {
        let wake = self.wake.notified();
        let mut wake = std::pin::pin!(wake);
        wake.as_mut().enable();
        if !self.is_cancelled() {
            wake.await;
        }
    }

    /// `Ok` until cancellation is asked.
    ///
    /// # Errors
    /// [`Kind::Fenced`] if it was: the operation gives up.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Kind::Fenced.error("cancelled"));
        }
        Ok(())
    }
}

/// Which of two goes on, where a file was changed here and in its silo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// What was written here: the next write-back replaces what the silo holds now.
    Node,
    /// What the silo holds: what was written here is given up.
    Silo,
}

/// How a promote fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PromoteOptions {
    /// Only the extents that this range of the file touches; `None` for all.
    pub range: Option<ByteRange>,
    /// Flush the devices before the promote counts as done, so that it survives a power cut.
    pub durable: bool,
    /// Only if this is the newest generation once the file has been registered.
    pub expected: Option<Generation>,
}

/// A running node. Implemented by the node itself and by a simulated one.
#[async_trait]
pub trait Handle: Send + Sync {
    /// Makes a silo's object known without reading its bytes, or refreshes what is known of it: if
    /// the silo's version changed, a new generation begins. Durable when it returns.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown silo or object; [`Kind::Stale`] where the file is dirty and
    /// the silo changed (a conflict), or the file is not at the generation `expected` before (0: not
    /// known).
    async fn register(&self, name: &FileName, expected: Option<Generation>) -> Result<FileStatus>;

    /// What the node knows of a file.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    async fn get(&self, name: &FileName) -> Result<FileStatus>;

    /// Up to `limit` known files whose names begin with `prefix` (of `silo/key`) and come after
    /// `after`, in byte order.
    ///
    /// # Errors
    /// None in practice.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&FileName>,
        limit: usize,
    ) -> Result<Vec<FileStatus>>;

    /// Up to `limit` objects of a silo, known here or not, whose keys begin with `prefix` and come
    /// after `after`, in byte order.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown silo; what the silo answers.
    async fn discover(
        &self,
        silo: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Candidate>>;

    /// Whether a silo answers: by a listing, or where it has none, by whether it has a name that hardly anything has.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown silo; what the silo answers.
    async fn probe(&self, silo: &str) -> Result<()>;

    /// Registers a file and fetches its extents into the tier. Extents that are there already, or
    /// being fetched by somebody else, are not fetched again.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if everything left is pinned, dirty or in use; [`Kind::Stale`] if the
    /// silo's object changed meanwhile, or the generation is not the one expected;
    /// [`Kind::Fenced`] if cancelled. Extents already there stay.
    async fn promote(
        &self,
        name: &FileName,
        options: PromoteOptions,
        progress: &Progress,
    ) -> Result<FileStatus>;

    /// Copies a dirty file to its silo and verifies the copy; a clean one is left alone. Readable
    /// throughout. Generations committed meanwhile follow, unless a certain one is `expected`.
    ///
    /// # Errors
    /// [`Kind::Stale`] if the silo's object changed since (a conflict: both are kept), or the
    /// generation is not the one expected; [`Kind::Unsupported`] if the silo is read-only.
    async fn writeback(
        &self,
        name: &FileName,
        expected: Option<Generation>,
        progress: &Progress,
    ) -> Result<FileStatus>;

    /// Settles what was written here and changed in the silo since, or is damaged here: one of the two goes
    /// on, and the other one is gone. Moves no bytes: a file of which the node's are kept is dirty then.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if there is nothing to settle; [`Kind::NotFound`] if the silo's shall be kept and
    /// it has none; [`Kind::Denied`] if the node's shall be kept and is damaged; [`Kind::Busy`] while it
    /// is written back; [`Kind::Stale`] if the generation is not the one expected; what the silo answers.
    async fn resolve(
        &self,
        name: &FileName,
        keep: Keep,
        expected: Option<Generation>,
    ) -> Result<FileStatus>;

    /// Lets a file's extents go, those that `range` touches or all. Its metadata stays.
    ///
    /// # Errors
    /// [`Kind::Denied`] if it is dirty (write it back first) or pinned (unpin it first);
    /// [`Kind::Stale`] if the generation is not the one expected.
    async fn release(
        &self,
        name: &FileName,
        range: Option<ByteRange>,
        expected: Option<Generation>,
    ) -> Result<FileStatus>;

    /// Writes back, verifies, and releases what was written back.
    ///
    /// # Errors
    /// As its parts.
    async fn demote(
        &self,
        name: &FileName,
        range: Option<ByteRange>,
        expected: Option<Generation>,
        progress: &Progress,
    ) -> Result<FileStatus>;

    /// Protects a file from eviction and release until `ttl` from now, under an owner's name. A
    /// second pin of the same owner replaces the first.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    async fn pin(&self, name: &FileName, owner: &str, ttl: Duration) -> Result<FileStatus>;

    /// Ends a pin.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if that owner has none.
    async fn unpin(&self, name: &FileName, owner: &str) -> Result<FileStatus>;

    /// Reads all that is on the tier and repairs what does not hold, after everything else that the
    /// node has to do. One that is cancelled returns what it has found so far.
    ///
    /// # Errors
    /// [`Kind::Busy`] if one is running already; [`Kind::Disconnected`] if the node stops.
    async fn scrub(&self, options: ScrubOptions, progress: &Progress) -> Result<ScrubReport>;

    /// The node at a glance.
    async fn status(&self) -> NodeStatus;
}
