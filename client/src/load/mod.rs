//! A load generator: keeps exactly so many requests in flight, and measures what comes back.

mod onto;
mod plan;
mod report;
mod tally;
mod worker;

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use extent::{FileName, Kind, Result};

use crate::{Client, Endpoint, Options, Session};
use tally::Tally;
use worker::Worker;

pub use onto::Onto;
pub use report::{Latency, Report};

/// In which order blocks are visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pattern {
    /// Any block, each time anew.
    #[default]
    Random,
    /// One after the other.
    Sequential,
}

impl Pattern {
    /// A stable, lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Sequential => "sequential",
        }
    }
}

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Direction {
    /// From the node.
    #[default]
    Read,
    /// To the node: every session writes whole new generations of its own file, again and again.
    Write,
}

impl Direction {
    /// A stable, lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// When it is enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// After this long.
    After(Duration),
    /// After so many operations, of all sessions together.
    Operations(u64),
}

/// What to do to a node.
#[derive(Clone, Debug)]
pub struct Load {
    /// The files. To write, as many as there are sessions.
    pub files: Vec<FileName>,
    /// Bytes of an operation.
    pub block_bytes: u64,
    /// Operations that each session keeps outstanding. The node's credits may allow fewer.
    pub depth: usize,
    /// Sessions.
    pub sessions: usize,
    /// Threads that drive them: one for each, if it is 0 or more than there are.
    pub threads: usize,
    /// Order of the blocks.
    pub pattern: Pattern,
    /// Read or write.
    pub direction: Direction,
    /// When to stop.
    pub stop: Stop,
    /// How long to run before anything is counted.
    pub warmup: Duration,
    /// Only the front of the files is used, so many bytes in all; `None` for all. To write: bytes
    /// of a generation, 1 GiB if not given.
    pub working_set_bytes: Option<u64>,
    /// The same seed visits the same blocks.
    pub seed: u64,
    /// A device whose memory is read into, by a thread for each session; `None` for memory of the host. Reads are begun
    /// and awaited in batches of as many as the depth says.
    pub onto: Option<Onto>,
    /// The sessions' options: `verify` checks every payload.
    pub options: Options,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            block_bytes: 1 << 20,
            depth: 16,
            sessions: 1,
            threads: 0,
            pattern: Pattern::Random,
            direction: Direction::Read,
            stop: Stop::After(Duration::from_secs(10)),
            warmup: Duration::ZERO,
            working_set_bytes: None,
            seed: 1,
            onto: None,
            options: Options::default(),
        }
    }
}

impl Load {
    /// How many threads there are.
    fn threads(&self) -> usize {
        match self.threads {
            _ if self.onto.is_some() => self.sessions,
            0 => self.sessions,
            threads => threads.min(self.sessions),
        }
    }
}

/// Runs a load against a node.
///
/// # Errors
/// [`Kind::Invalid`] if the load makes no sense; what connecting or opening answers; [`Kind::Unsupported`] if
/// a device is not to be read into in a way that is good enough. Errors of single operations are counted in the
/// report instead.
pub fn run(endpoint: &Endpoint, load: &Load) -> Result<Report> {
    match &load.onto {
        Some(onto) => onto::run(load, onto, |options| Client::connect(endpoint, options)),
        None => run_over(load, |options| endpoint.session(options)),
    }
}

/// Runs a load over sessions that `connect` makes, into memory of the host.
///
/// # Errors
/// As [`run`].
pub fn run_over(load: &Load, connect: impl Fn(&Options) -> Result<Session>) -> Result<Report> {
    check(load)?;
    let threads = load.threads();
    let mut crews: Vec<Vec<Worker>> = (0..threads).map(|_| Vec::new()).collect();
    for index in 0..load.sessions {
        crews[index % threads].push(Worker::new(load, index, connect(&load.options)?)?);
    }
    let fabric = crews[0][0].fabric();
    let barrier = Barrier::new(threads);
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let barrier = &barrier;
        let running: Vec<_> = crews
            .into_iter()
            .map(|crew| {
                scope.spawn(move || {
                    barrier.wait();
                    worker::run(crew)
                })
            })
            .collect();
        let ended = running.into_iter().map(|thread| thread.join());
        ended.flat_map(|tallies| tallies.expect("a worker does not panic")).collect()
    });
    Ok(report::of(load, fabric, tallies))
}

fn check(load: &Load) -> Result<()> {
    let invalid = |why: &str| Err(Kind::Invalid.error(why));
    if load.files.is_empty() {
        return invalid("a load needs at least one file");
    }
    if load.block_bytes == 0 || load.depth == 0 || load.sessions == 0 {
        return invalid("block size, depth and sessions must be at least 1");
    }
    if load.direction == Direction::Write && load.files.len() < load.sessions {
        return invalid("writing takes a file for each session");
    }
    if load.depth > load.options.queue {
        return invalid("the depth is more than a session queues");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rdma::Fabric;

    use super::*;
    use crate::fake::Fake;

    fn run_on(fake: &Fake, load: &Load) -> Result<Report> {
        run_over(load, |options| Session::connect(fake.channel(Fabric::Simulated), options))
    }

    fn load(direction: Direction) -> Load {
        Load {
            files: vec!["data/a".parse().expect("a name"), "data/b".parse().expect("a name")],
            block_bytes: 1000,
            depth: 5,
            direction,
            stop: Stop::Operations(300),
            working_set_bytes: Some(50_000),
            options: Options { verify: true, ..Options::default() },
            ..Load::default()
        }
    }

    #[test]
    fn reads_are_counted_at_the_exact_depth() {
        let fake = Fake::new();
        fake.add_file("data/a", 20_500);
        fake.add_file("data/b", 60_000);
        for pattern in [Pattern::Random, Pattern::Sequential] {
            fake.node().peak_in_flight = 0;
            let report = run_on(&fake, &Load { pattern, ..load(Direction::Read) }).expect("ran");
            assert_eq!((report.operations, report.errors), (300, 0));
            assert!(report.bytes > 290_000 && report.bytes <= 300_000, "{}", report.bytes);
            assert_eq!(report.served["tier"], 300);
            assert_eq!(report.landing["direct"], 300);
            assert_eq!(fake.node().peak_in_flight, 5);
            assert!(report.latency_us.p50 <= report.latency_us.p99);
            assert!(report.latency_us.p99 <= report.latency_us.max);
        }
    }

    #[test]
    fn a_thread_drives_many_sessions_side_by_side() {
        for (threads, direction) in
            [(1, Direction::Read), (2, Direction::Read), (2, Direction::Write)]
        {
            let fake = Fake::new();
            let names = ["data/a", "data/b", "data/c", "data/d", "data/e"];
            for name in names {
                fake.add_file(name, 60_000);
            }
            let files = names.iter().map(|name| name.parse().expect("a name")).collect();
            let load = Load { files, sessions: 5, threads, ..load(direction) };
            let report = run_on(&fake, &load).expect("ran");
            assert_eq!((report.operations, report.errors), (300, 0));
            assert_eq!((report.sessions, report.threads), (5, threads));
            assert!(fake.node().peak_in_flight > 5, "one after the other");
        }
    }

    #[test]
    fn writes_commit_whole_generations() {
        let fake = Fake::new();
        let report = run_on(&fake, &load(Direction::Write)).expect("ran");
        assert_eq!((report.operations, report.errors, report.commits), (300, 0, 6));
        assert_eq!(fake.node().files["data/a"].len(), 50_000);
        assert!(fake.node().handles.is_empty());
    }

    #[test]
    fn errors_are_counted_and_told() {
        let fake = Fake::new();
        fake.add_file("data/a", 20_000);
        fake.add_file("data/b", 20_000);
        fake.node().fail = Some((10, Kind::Stale, "the source changed"));
        let report = run_on(&fake, &load(Direction::Read)).expect("ran");
        assert_eq!((report.operations, report.errors), (299, 1));
        assert!(report.first_error.expect("told").contains("the source changed"));

        fake.node().lose_after = Some(20);
        let report = run_on(&fake, &load(Direction::Read)).expect("ran");
        assert!((1..=5).contains(&report.errors), "those in flight are lost: {}", report.errors);
        assert!(report.first_error.expect("told").contains("the cable fell out"));
    }

    #[test]
    fn loads_go_on_over_other_connections() {
        for fabric in [Fabric::Tcp, Fabric::SharedMemory] {
            for direction in [Direction::Read, Direction::Write] {
                let fake = Fake::new();
                fake.add_file("data/a", 20_500);
                fake.add_file("data/b", 60_000);
                let load = load(direction);
                let connect = |options: &Options| {
                    let session = Session::connect(fake.channel(fabric), options)?;
                    fake.node().lose_after = Some(20);
                    Ok(session.reconnecting(fake.connector(fabric, 1), 0))
                };
                let report = run_over(&load, connect).expect("it ran");
                assert_eq!((report.reconnections, fake.node().channels), (1, 0));
                match direction {
                    Direction::Read => {
                        assert_eq!((report.operations, report.errors), (300, 0));
                        assert!(report.repeated_requests > 0);
                    }
                    Direction::Write => {
                        assert_eq!(report.operations + report.errors, 300);
                        assert!((1..=5).contains(&report.errors), "{}", report.errors);
                        assert!(report.first_error.expect("told").contains("write all of it"));
                        assert!(report.commits > 3, "{}", report.commits);
                    }
                }
            }
        }
    }

    #[test]
    fn senseless_loads_are_refused() {
        let fake = Fake::new();
        let none = Load { files: Vec::new(), ..load(Direction::Read) };
        assert_eq!(run_on(&fake, &none).expect_err("no file").kind(), Kind::Invalid);
        let crowd = Load { sessions: 3, ..load(Direction::Write) };
        assert_eq!(run_on(&fake, &crowd).expect_err("too few files").kind(), Kind::Invalid);
        let missing = run_on(&fake, &load(Direction::Read)).expect_err("no such file");
        assert_eq!(missing.kind(), Kind::NotFound);
    }
}
