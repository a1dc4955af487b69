//! `forebay bench`: puts load on a running node and says what limits it, as far as that is known.

use std::time::Duration;

use client::device::Device;
use client::load::{self, Direction, Load, Onto, Report, Stop};
use client::{Endpoint, Options, ProofSource};
use control::Grants;
use extent::{FileName, Kind, Result};
use rdma::VerbsOptions;
use serde_json::json;

use crate::cli::{BenchArgs, FabricChoice, Global, Pattern};
use crate::commands::block_on;
use crate::config::{default_socket, default_state_dir};
use crate::output::{Output, Tone, table};
use crate::remote::Remote;
use crate::units;

/// Sessions hold this many handles without asking.
const MAX_FILES: usize = 1000;
const WARMUP: Duration = Duration::from_secs(1);
/// Queues of a session hold this many requests.
const MAX_DEPTH: u32 = 4096;

/// Runs the load.
///
/// # Errors
/// [`Kind::NotFound`] if no file that is wholly on the node matches; what the node answers.
pub(crate) fn run(args: &BenchArgs, global: &Global) -> Result<()> {
    let output = global.output();
    if !(1..=MAX_DEPTH).contains(&args.depth) || args.sessions == 0 || args.seconds == 0 {
        return Err(Kind::Invalid.error(format!(
            "a load needs a depth of 1 to {MAX_DEPTH}, and at least one session and second"
        )));
    }
    // Before anything is asked of the node.
    let device = args.gpu.map(Device::cuda).transpose()?;
    let onto = device.map(|device| Onto { device, policy: args.gpu_policy });
    let files = match &args.write {
        Some(name) => written(name, args.sessions)?,
        None => block_on(files(args, &global.control()))?,
    };
    output.note(format!("{} for {} s…", units::plural(files.len() as u64, "file"), args.seconds));
    let report = load::run(&endpoint(args)?, &plan(args, files, onto, &global.control())?)?;
    print(&report, output)?;
    match (&report.first_error, report.failure) {
        (Some(error), Some(kind)) if report.operations == 0 => {
            Err(kind.error(format!("every {} failed: {error}", report.direction)))
        }
        (Some(_), Some(kind)) => Err(kind.error(format!(
            "{} of {} failed",
            units::count(report.errors),
            units::plural(report.errors + report.operations, report.direction)
        ))),
        _ => Ok(()),
    }
}

fn endpoint(args: &BenchArgs) -> Result<Endpoint> {
    Ok(match args.fabric {
        FabricChoice::Shm => Endpoint::Unix(
            args.socket.clone().unwrap_or_else(|| default_socket(&default_state_dir())),
        ),
        FabricChoice::Tcp => format!("tcp://{}", args.data).parse()?,
        FabricChoice::Rdma => format!("rdma://{}", args.data).parse()?,
    })
}

fn plan(args: &BenchArgs, files: Vec<FileName>, onto: Option<Onto>, control: &str) -> Result<Load> {
    let small = |value: u32| {
        usize::try_from(value).map_err(|e| Kind::Invalid.error("too many").caused_by(e))
    };
    let credits = u16::try_from(args.depth).unwrap_or(u16::MAX);
    Ok(Load {
        files,
        block_bytes: args.block_size.0,
        depth: small(args.depth)?,
        sessions: small(args.sessions)?,
        threads: small(args.threads)?,
        pattern: match args.pattern {
            Pattern::Random => load::Pattern::Random,
            Pattern::Sequential => load::Pattern::Sequential,
        },
        stop: Stop::After(Duration::from_secs(args.seconds)),
        warmup: WARMUP,
        direction: if args.write.is_some() { Direction::Write } else { Direction::Read },
        working_set_bytes: args.working_set.map(|bytes| bytes.0),
        options: Options {
            // Else the session's own default would be the limit. A read into a GPU is several requests.
            credits: if onto.is_some() { credits.max(Options::default().credits) } else { credits },
            proof: proofs(args, control),
            verify: args.verify,
            spin: Duration::from_micros(args.spin_us),
            rdma: VerbsOptions { source: args.source, ..VerbsOptions::default() },
            ..Options::default()
        },
        onto,
        ..Load::default()
    })
}

/// Proofs of the node's own, one for each session, unless the environment has one for the client.
fn proofs(args: &BenchArgs, control: &str) -> Option<ProofSource> {
    if ProofSource::is_in_environment() {
        return None;
    }
    let (tenant, control, ttl) = (args.tenant.clone(), control.to_owned(), Grants::DEFAULT_TTL);
    Some(ProofSource::new(move || {
        let granted =
            block_on(async { Remote::connect(&control).await?.grant(&tenant, 1, ttl).await });
        granted.map(|(proof, _)| proof).map_err(|error| error.while_doing("asking for a proof"))
    }))
}

/// A file for each session.
fn written(name: &FileName, sessions: u32) -> Result<Vec<FileName>> {
    (0..sessions).map(|number| format!("{name}.{number}").parse()).collect()
}

/// Files that are wholly on the node, so that the node is measured and not the silo.
async fn files(args: &BenchArgs, control: &str) -> Result<Vec<FileName>> {
    let remote = Remote::connect(control).await?;
    let mut known = Vec::new();
    for name in &args.files {
        known.push(remote.stat(&name.to_string()).await?);
    }
    if args.files.is_empty() {
        known = remote.list(&args.prefix, MAX_FILES).await?.0;
    }
    let here = known.iter().filter(|file| file.length > 0 && file.resident_bytes >= file.length);
    let names: Vec<FileName> = here.map(|file| file.file.parse()).collect::<Result<_>>()?;
    if names.is_empty() {
        return Err(Kind::NotFound.error(
            "none of these files is wholly on the node: bring some with `forebay promote`",
        ));
    }
    Ok(names)
}

fn print(report: &Report, output: Output) -> Result<()> {
    let limit = limit(report);
    if output.is_json() {
        let mut value = json!(report);
        value["limit"] = json!(limit);
        return output.json(&value);
    }
    output.line(format!(
        "{}  {} {}s/s  over {}, {} of {}, depth {} × {}",
        output.paint(Tone::Bold, &units::rate(report.bytes_per_second)),
        units::count(units::round(report.operations_per_second)),
        report.direction,
        report.fabric,
        report.pattern,
        units::bytes(report.block_bytes),
        report.depth,
        units::plural(report.sessions as u64, "session")
    ))?;
    let l = &report.latency_us;
    let times =
        [("mean", l.mean), ("p50", l.p50), ("p90", l.p90), ("p99", l.p99), ("p99.9", l.p999)];
    let mut heads = vec![">LATENCY"];
    let mut row = vec![String::new()];
    for (head, micros) in times.into_iter().chain([("max", l.max)]) {
        heads.push(head);
        row.push(units::nanos(units::round(micros * 1000.0)));
    }
    output.line(table(&heads, &[row]))?;
    output.line(format!("served by {}; landed {}", mix(&report.served), mix(&report.landing)))?;
    if let (Some(device), Some(ladder)) = (&report.device, &report.ladder) {
        output.line(format!("into {device}: {}", mix(&report.ways)))?;
        output.line(format!("ways there: {ladder}"))?;
    }
    if let Some(limit) = limit {
        output.line(format!("limit: {limit}"))?;
    }
    if report.reconnections != 0 {
        output.line(format!(
            "{}; {} sent again",
            units::plural(report.reconnections, "lost connection"),
            units::plural(report.repeated_requests, "request")
        ))?;
    }
    if let Some(error) = &report.first_error {
        let errors = output.paint(Tone::Bad, &units::plural(report.errors, "error"));
        output.line(format!("{errors}, the first: {error}"))?;
    }
    Ok(())
}

/// Shares of a few ways, the largest first.
fn mix(counts: &std::collections::BTreeMap<&'static str, u64>) -> String {
    let total: u64 = counts.values().sum();
    let mut parts: Vec<_> = counts.iter().map(|(name, count)| (*count, *name)).collect();
    parts.sort_unstable_by(|a, b| b.cmp(a));
    let one =
        |(count, name): (u64, &str)| format!("{name} {:.1} %", units::share(count, total) * 100.0);
    parts.into_iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What the numbers themselves say about the limit; `None` if they do not.
fn limit(report: &Report) -> Option<String> {
    let count = |name: &str| report.served.get(name).copied().unwrap_or(0);
    let from_silo = count("recall") + count("arriving");
    if from_silo * 20 > report.operations {
        return Some(format!(
            "the silo: {:.0} % of reads came from it; promote the files first",
            units::share(from_silo, report.operations) * 100.0
        ));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if report.threads * 2 >= cores {
        return Some(format!(
            "this machine's {}: {} and the node share them",
            units::plural(cores as u64, "core"),
            units::plural(report.threads as u64, "thread")
        ));
    }
    // With so few in flight, every read waits for the one before it.
    if report.depth * report.sessions <= 2 {
        return Some("latency: raise --depth to see throughput".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn shares_are_told_largest_first() {
        let counts = BTreeMap::from([("copied", 1), ("direct", 3)]);
        assert_eq!(mix(&counts), "direct 75.0 %, copied 25.0 %");
    }
}
