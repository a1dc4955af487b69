use std::path::PathBuf;
use std::time::Duration;

/// What a control plane is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database file. It is made if it is not there.
    pub path: PathBuf,
    /// The identity of the tier that the database must belong to. A new database takes it over;
    /// one that belongs to another tier is refused. `None`: a new database draws one at random.
    pub expected_identity: Option<u128>,
    /// How long after the end of a scrub the next one begins by itself; `None` for never.
    pub scrub_every: Option<Duration>,
    /// How much of everything.
    pub limits: Limits,
}

impl Options {
    /// The usual limits.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            expected_identity: None,
            scrub_every: None,
            limits: Limits::default(),
        }
    }
}

/// How much of everything: no queue and no table grows without end.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Files that jobs work on at the same time.
    pub parallel_files: usize,
    /// Jobs that are not over. More are refused as busy.
    pub active_jobs: usize,
    /// Finished jobs that are kept.
    pub finished_jobs: usize,
    /// Names asked for at a time when a prefix is turned into files.
    pub expand_page: usize,
    /// Tries at a file for which the node is busy, before the file counts as failed.
    pub busy_tries: u32,
    /// The pause after the first such try; it doubles with each.
    pub busy_pause: Duration,
    /// Pins, counting every owner of a file.
    pub pins: usize,
    /// How long request ids are remembered.
    pub request_ttl: Duration,
    /// How many request ids are remembered.
    pub requests: u64,
    /// Changes being made at the same time. More are refused as busy.
    pub mutations: usize,
    /// Watches of jobs at the same time. More are refused as busy.
    pub watches: usize,
    /// Proofs for data sessions that are outstanding. More are refused as busy.
    pub grants: usize,
    /// How often a watch looks whether bytes have moved.
    pub watch_interval: Duration,
    /// Bytes of a request, at most.
    pub request_bytes: usize,
    /// How long `serve` waits for open requests once it is to stop.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parallel_files: 8,
            active_jobs: 1000,
            finished_jobs: 1000,
            expand_page: 256,
            busy_tries: 6,
            busy_pause: Duration::from_millis(100),
            pins: 100_000,
            request_ttl: Duration::from_secs(24 * 3600),
            requests: 1_000_000,
            mutations: 512,
            watches: 1024,
            grants: 4096,
            watch_interval: Duration::from_millis(250),
            request_bytes: 1 << 20,
            shutdown_grace: Duration::from_secs(5),
        }
    }
}
