//! Reads into the memory of a device: each session has a reader, and asks for as many at once as the depth says.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use extent::{Kind, Result};

use super::plan::{OpenFile, Plan};
use super::report::{self, Report};
use super::tally::Tally;
use super::{Direction, Load, Stop};
use crate::device::{Device, DeviceFetch, DeviceMemory, DeviceOptions, DeviceReader, Policy};
use crate::{Client, File, Options, clock};

/// A session that fails so often is doing no good.
const MOST_ERRORS: u64 = 10_000;

/// A device that is read into.
#[derive(Clone, Debug)]
pub struct Onto {
    /// Which.
    pub device: Device,
    /// Which ways into its memory are good enough.
    pub policy: Policy,
}

/// One session of a load.
struct Worker {
    reader: DeviceReader,
    client: Client,
    files: Vec<File>,
    plan: Plan,
    /// A block for each read of a batch.
    memory: DeviceMemory,
    block: usize,
    depth: usize,
    left: u64,
    runs_for: Option<Duration>,
    warmup: Duration,
    tally: Tally,
}

/// Runs a load over clients that `connect` makes.
///
/// # Errors
/// As [`super::run`]; [`Kind::Unsupported`] if the policy allows none of the ways that there are.
pub(super) fn run(
    load: &Load,
    onto: &Onto,
    connect: impl Fn(&Options) -> Result<Client>,
) -> Result<Report> {
    super::check(load)?;
    if load.direction != Direction::Read {
        return Err(Kind::Invalid.error("a device's memory can only be read into"));
    }
    let workers: Vec<Worker> = (0..load.sessions)
        .map(|index| Worker::new(load, onto, index, connect(&load.options)?))
        .collect::<Result<_>>()?;
    let fabric = workers[0].client.fabric();
    let barrier = Barrier::new(workers.len());
    let ended: Vec<(Tally, String)> = thread::scope(|scope| {
        let barrier = &barrier;
        let begun: Vec<_> = workers
            .into_iter()
            .map(|worker| {
                scope.spawn(move || {
                    barrier.wait();
                    worker.run()
                })
            })
            .collect();
        begun.into_iter().map(|thread| thread.join().expect("a worker does not panic")).collect()
    });
    let (tallies, mut ladders): (Vec<_>, Vec<_>) = ended.into_iter().unzip();
    let mut report = report::of(load, fabric, tallies);
    report.device = Some(onto.device.info().name.clone());
    report.ladder = ladders.pop();
    Ok(report)
}

impl Worker {
    fn new(load: &Load, onto: &Onto, index: usize, client: Client) -> Result<Self> {
        let (share, shares) = (index as u64, load.sessions as u64);
        let block = usize::try_from(load.block_bytes)
            .map_err(|_| Kind::Invalid.error("a block does not fit into memory"))?;
        let total = block.checked_mul(load.depth).ok_or_else(|| {
            Kind::Invalid.error("block size times depth does not fit into memory")
        })?;
        let usual = DeviceOptions::default();
        let slot_bytes = block.next_multiple_of(dma::ALIGN_BYTES).min(usual.slot_bytes);
        let ring_bytes = usual.ring_bytes.max(slot_bytes * load.depth);
        let options = DeviceOptions { policy: onto.policy, ring_bytes, slot_bytes };
        let reader = DeviceReader::new(&client, &onto.device, &options)?;
        let memory = onto.device.allocate(total)?;
        let files: Vec<File> =
            load.files.iter().map(|name| client.open(name)).collect::<Result<_>>()?;
        let numbered = files.iter().zip(0..);
        let numbered = numbered.map(|(file, handle)| OpenFile { handle, length: file.len() });
        let plan = Plan::new(
            numbered.collect(),
            load.block_bytes,
            load.working_set_bytes,
            load.pattern,
            load.seed,
            (share, shares),
        )?;
        let (left, runs_for) = match load.stop {
            Stop::After(time) => (u64::MAX, Some(time)),
            Stop::Operations(count) => (count / shares + u64::from(share < count % shares), None),
        };
        let (depth, warmup, tally) = (load.depth, load.warmup, Tally::new());
        let worker = Self {
            reader,
            client,
            files,
            plan,
            memory,
            block,
            depth,
            left,
            runs_for,
            warmup,
            tally,
        };
        Ok(worker)
    }

    /// What it counted, and which ways there were in the end.
    fn run(mut self) -> (Tally, String) {
        let counted_from = clock::after(self.warmup);
        // When the first batch began that counts, and when the last one ended.
        let mut counted: Option<(Instant, Instant)> = None;
        while self.left != 0 && self.tally.errors < MOST_ERRORS {
            let now = clock::now();
            let is_enough = |(begin, _)| self.runs_for.is_some_and(|time| now >= begin + time);
            if counted.is_some_and(is_enough) {
                break;
            }
            let counts = now >= counted_from;
            let goes_on = self.batch(counts);
            if counts || !goes_on {
                counted = Some((counted.map_or(now, |(begin, _)| begin), clock::now()));
            }
            if !goes_on {
                break;
            }
        }
        self.tally.elapsed = counted.map_or(Duration::ZERO, |(begin, end)| end - begin);
        let stats = self.client.stats();
        (self.tally.reconnections, self.tally.repeated) =
            (stats.reconnections, stats.repeated_requests);
        (self.tally, self.reader.ladder().to_string())
    }

    /// Reads as many blocks as may be under way. Whether any came.
    fn batch(&mut self, counts: bool) -> bool {
        let count = self.left.min(self.depth as u64);
        let fetches: Vec<DeviceFetch> = (0..self.depth)
            .zip(0..count)
            .map(|(slot, _)| {
                let place = self.plan.next();
                let length = usize::try_from(place.length).expect("no more than a block");
                let begin = slot * self.block;
                let into = self.memory.part(begin..begin + length).expect("a block for each");
                let file = usize::try_from(place.handle).expect("an index");
                DeviceFetch::new(&self.files[file], place.offset, &into)
            })
            .collect();
        let mut came = false;
        for end in self.reader.read_all(fetches, None) {
            match end {
                Ok(read) => {
                    came = true;
                    if counts {
                        self.tally.count_onto_device(&read);
                    }
                }
                Err(error) => self.tally.fail(&error),
            }
        }
        if counts {
            self.left -= count;
        }
        came
    }
}

#[cfg(test)]
mod tests {
    use rdma::Fabric;

    use super::*;
    use crate::Session;
    use crate::device::{Path, SoftwareDevice};
    use crate::fake::Fake;

    fn run_on(fake: &Fake, fabric: Fabric, policy: Policy, load: &Load) -> Result<Report> {
        let device = Device::software(&SoftwareDevice::exporting(64 << 20, 3));
        let connect = |options: &Options| {
            Ok(Client::over(Session::connect(fake.channel(fabric), options)?, options))
        };
        run(load, &Onto { device, policy }, connect)
    }

    fn load() -> Load {
        Load {
            files: vec!["data/a".parse().expect("a name"), "data/b".parse().expect("a name")],
            block_bytes: 8192,
            depth: 5,
            sessions: 2,
            stop: Stop::Operations(103),
            ..Load::default()
        }
    }

    #[test]
    fn reads_into_a_device_are_counted_by_their_ways() {
        for (fabric, way) in [(Fabric::Tcp, "staged"), (Fabric::Verbs, "gpudirect")] {
            let fake = Fake::new();
            fake.add_file("data/a", 81_920);
            fake.add_file("data/b", 163_840);
            let report = run_on(&fake, fabric, Policy::Auto, &load()).expect("it ran");
            assert_eq!((report.operations, report.errors), (103, 0));
            assert_eq!(report.bytes, 103 * 8192);
            assert_eq!(report.ways[way], 103, "{report:?}");
            assert_eq!(report.served["tier"], 103);
            assert!(report.device.is_some());
            let ladder = report.ladder.expect("there is one");
            assert_eq!(ladder.contains("gpudirect: works"), way == "gpudirect", "{ladder}");
            assert!(report.latency_us.p50 > 0.0 && report.seconds > 0.0);
        }
    }

    #[test]
    fn what_makes_no_sense_or_fails_is_told() {
        let fake = Fake::new();
        fake.add_file("data/a", 81_920);
        fake.add_file("data/b", 163_840);
        let strict = Policy::Exactly(Path::GpuDirect);
        let error = run_on(&fake, Fabric::Tcp, strict, &load()).expect_err("no such way");
        assert_eq!(error.kind(), Kind::Unsupported);
        let write = Load { direction: Direction::Write, ..load() };
        let error = run_on(&fake, Fabric::Tcp, Policy::Auto, &write).expect_err("not from there");
        assert_eq!(error.kind(), Kind::Invalid);
        fake.node().fail = Some((30, Kind::Stale, "the source changed"));
        let report = run_on(&fake, Fabric::Tcp, Policy::Auto, &load()).expect("it ran");
        assert_eq!((report.operations, report.errors), (102, 1));
        assert!(report.first_error.expect("told").contains("the source changed"));
    }
}
