use std::collections::BTreeMap;
use std::fmt;

use extent::Kind;
use extent::wire::{Landing, Served};
use hdrhistogram::Histogram;
use rdma::Fabric;
use serde::Serialize;

use super::Load;
use super::tally::Tally;
use crate::device::Path;

/// What a load did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the node was reached: `shm`, `tcp`, `rdma` or `sim`.
    pub fabric: &'static str,
    /// `read` or `write`.
    pub direction: &'static str,
    /// `random` or `sequential`.
    pub pattern: &'static str,
    /// Bytes of an operation.
    pub block_bytes: u64,
    /// Operations outstanding on each session.
    pub depth: usize,
    /// Sessions.
    pub sessions: usize,
    /// Threads that drove them.
    pub threads: usize,
    /// Seconds that were measured.
    pub seconds: f64,
    /// Operations that succeeded.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Operations a second.
    pub operations_per_second: f64,
    /// From submission to completion.
    pub latency_us: Latency,
    /// Operations by where the bytes came from.
    pub served: BTreeMap<&'static str, u64>,
    /// Operations by how the bytes got into, or out of, the client's memory.
    pub landing: BTreeMap<&'static str, u64>,
    /// The device whose memory was read into.
    pub device: Option<String>,
    /// Operations by the way that the bytes took into a device's memory, of several the worst.
    pub ways: BTreeMap<&'static str, u64>,
    /// The ways that there are into a device's memory, and why not the others.
    pub ladder: Option<String>,
    /// Generations committed.
    pub commits: u64,
    /// Connections that were lost and made again.
    pub reconnections: u64,
    /// Requests that were sent again for that.
    pub repeated_requests: u64,
    /// Operations that failed.
    pub errors: u64,
    /// What the first of them said.
    pub first_error: Option<String>,
    /// Of which kind it was.
    #[serde(skip)]
    pub failure: Option<Kind>,
}

/// How long operations took, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Latency {
    /// On average.
    pub mean: f64,
    /// Half of them took no longer.
    pub p50: f64,
    /// 90 of 100 took no longer.
    pub p90: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// 999 of 1000 took no longer.
    pub p999: f64,
    /// None took longer.
    pub max: f64,
}

impl Latency {
    fn of(nanoseconds: &Histogram<u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a latency is far below 2^52 ns")]
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |quantile| us(nanoseconds.value_at_quantile(quantile));
        Self {
            mean: nanoseconds.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(nanoseconds.max()),
        }
    }
}

pub(super) fn of(load: &Load, fabric: Fabric, tallies: Vec<Tally>) -> Report {
    let mut total = Tally::new();
    for tally in tallies {
        total.add(tally);
    }
    let seconds = total.elapsed.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "rates are rounded anyway")]
    let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let operations = total.nanoseconds.len();
    Report {
        fabric: fabric.name(),
        direction: load.direction.name(),
        pattern: load.pattern.name(),
        block_bytes: load.block_bytes,
        depth: load.depth,
        sessions: load.sessions,
        threads: load.threads(),
        seconds,
        operations,
        bytes: total.bytes,
        bytes_per_second: rate(total.bytes),
        operations_per_second: rate(operations),
        latency_us: Latency::of(&total.nanoseconds),
        served: named(&total.served, SERVED),
        landing: named(&total.landing, LANDING),
        device: None,
        ways: named(&total.ways, Path::ALL.map(Path::name)),
        ladder: None,
        commits: total.commits,
        reconnections: total.reconnections,
        repeated_requests: total.repeated,
        errors: total.errors,
        first_error: total.first_error,
        failure: total.failure,
    }
}

/// By the value on the wire.
const SERVED: [&str; Tally::SERVED] = ["nothing", "tier", "arriving", "recall", "repair"];
const LANDING: [&str; Tally::LANDING] = ["nothing", "direct", "copied", "rdma", "stream"];

const _: () = assert!(Served::Repair as usize + 1 == Tally::SERVED);
const _: () = assert!(Landing::Stream as usize + 1 == Tally::LANDING);

fn named<const N: usize>(
    counts: &[u64; N],
    names: [&'static str; N],
) -> BTreeMap<&'static str, u64> {
    names.into_iter().zip(*counts).filter(|(_, count)| *count != 0).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = |counts: &BTreeMap<&str, u64>| {
            let one = |(name, count): (&&str, &u64)| format!("{name} {count}");
            counts.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        writeln!(
            f,
            "{} {} {} of {} bytes over {}, depth {} on each of {} sessions, {:.2} s",
            self.operations,
            self.pattern,
            self.direction,
            self.block_bytes,
            self.fabric,
            self.depth,
            self.sessions,
            self.seconds
        )?;
        writeln!(
            f,
            "  {:.1} MB/s, {:.0} operations/s, {} commits",
            self.bytes_per_second / 1e6,
            self.operations_per_second,
            self.commits
        )?;
        let l = &self.latency_us;
        writeln!(
            f,
            "  latency in us: mean {:.1}, p50 {:.1}, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}",
            l.mean, l.p50, l.p90, l.p99, l.p999, l.max
        )?;
        write!(f, "  served: {}; landing: {}", paths(&self.served), paths(&self.landing))?;
        if let Some(device) = &self.device {
            write!(f, "\n  into {device}: {}", paths(&self.ways))?;
        }
        if self.reconnections != 0 {
            let (lost, repeated) = (self.reconnections, self.repeated_requests);
            write!(f, "\n  {lost} lost connections, {repeated} requests sent again")?;
        }
        if let Some(error) = &self.first_error {
            write!(f, "\n  {} errors, the first: {error}", self.errors)?;
        }
        Ok(())
    }
}
