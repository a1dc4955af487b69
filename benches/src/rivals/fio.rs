//! fio: random reads of a file through io_uring, of an NVMe namespace, or of an NBD export.

use std::path::{Path, PathBuf};

use extent::{Kind, Result};
use serde::Deserialize;

use crate::process;
use crate::tier::image::Span;
use crate::verdict::Setback;

/// How many requests go to the kernel, and are taken from it, at a time: both are tried.
const BATCHES: [usize; 2] = [1, 8];
/// On a namespace there are more ways, see [`Tuning`].
const NAMESPACE_BATCHES: [usize; 3] = [1, 8, 16];
/// Huge pages are set aside by whoever runs the machine; without them, fio refuses.
const HUGE_PAGES: [bool; 2] = [false, true];
const PROBE_SECONDS: u64 = 2;
const RAMP_SECONDS: u64 = 1;
/// Where the kernel has queues to poll, it says so.
const POLL_QUEUES: &str = "/sys/module/nvme/parameters/poll_queues";

/// fio on a machine.
#[derive(Clone, Debug)]
pub struct Fio {
    program: PathBuf,
}

/// What one run did.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reads {
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Reads a second.
    pub operations_per_second: f64,
    /// 99th percentile of the latency, in microseconds.
    pub p99_us: f64,
}

/// What to read.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// From where.
    pub source: Source<'a>,
    /// Bytes of a read.
    pub block_bytes: u64,
    /// Reads in flight.
    pub depth: usize,
    /// How fio goes about it.
    pub tuning: Tuning,
    /// Seconds to measure.
    pub seconds: u64,
}

/// What there is to choose for the rival's good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// Requests handed over at a time.
    pub batch: usize,
    /// Whether it waits for so many to be taken, and does not take what there is.
    pub waits: bool,
    /// Whether the data goes to huge pages.
    pub huge_pages: bool,
    /// Whether the kernel polls for completions (a namespace's only).
    pub polls: bool,
    /// Whether it goes through the block layer (a namespace's only).
    pub by_block: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { batch: 1, waits: false, huge_pages: false, polls: false, by_block: false }
    }
}

impl std::fmt::Display for Tuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "batch {}", self.batch)?;
        let said = [
            (self.waits, ", waiting for as many"),
            (self.huge_pages, ", huge pages"),
            (self.polls, ", polled"),
            (self.by_block, ", as a block device"),
        ];
        said.iter().filter(|(so, _)| *so).try_for_each(|(_, words)| f.write_str(words))
    }
}

/// Where to read from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file, with direct I/O.
    File(&'a Path),
    /// The front of a block device, so many bytes, with direct I/O.
    Front(&'a Path, u64),
    /// An NBD export, by its URI.
    Nbd(&'a str),
    /// An NVMe namespace by its character device, from one processor: with NVMe commands, or as
    /// the block device that it is as well.
    Namespace(&'a Path, usize),
}

/// Sequential reads of the same range in each of some stretches of a file.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    span: Span,
    block_bytes: u64,
    depth: usize,
}

impl std::fmt::Display for Strides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} KiB at depth {}", self.block_bytes >> 10, self.depth)
    }
}

/// Block sizes and depths to read in order with.
const STRIDES: [(u64, usize); 6] = [
    (1 << 20, 8),
    (1 << 20, 32),
    (256 << 10, 8),
    (256 << 10, 32),
    (512 << 10, 16),
    (128 << 10, 64),
];

impl Fio {
    /// Reads all of some stretches once, in order.
    ///
    /// # Errors
    /// [`Kind::Io`] if fio fails.
    pub fn read_strides(&self, path: &Path, strides: Strides) -> Result<Reads> {
        let output = process::run(&mut process::command(&self.program, strides.arguments(path)))?;
        parse(&output)
    }

    /// Tries block sizes and depths, and returns what was fastest.
    ///
    /// # Errors
    /// [`Kind::Io`] if fio fails.
    pub fn tune_strides(&self, path: &Path, span: Span) -> Result<Strides> {
        let mut best: Option<(Strides, f64)> = None;
        for (block_bytes, depth) in STRIDES {
            let strides = Strides { span, block_bytes, depth };
            let rate = self.read_strides(path, strides)?.bytes_per_second;
            if best.is_none_or(|(_, known)| rate > known) {
                best = Some((strides, rate));
            }
        }
        Ok(best.expect("there are some to try").0)
    }

    /// fio, if it is installed.
    ///
    /// # Errors
    /// [`Setback::Skipped`] if not.
    pub fn find() -> Result<Self, Setback> {
        Ok(Self { program: process::find("fio", "fio")? })
    }

    /// Runs random reads for a while.
    ///
    /// # Errors
    /// [`Kind::Io`] if fio fails.
    pub fn read(&self, job: Job<'_>) -> Result<Reads> {
        let output = process::run(&mut process::command(&self.program, arguments(job)))?;
        parse(&output)
    }

    /// Tries what there is to choose, and returns what was fastest.
    ///
    /// # Errors
    /// [`Kind::Io`] if fio fails.
    pub fn tune(&self, job: Job<'_>) -> Result<Tuning> {
        let mut best = (Tuning::default(), 0.0);
        for tuning in tunings(job.source).into_iter().filter(|tuning| tuning.batch <= job.depth) {
            let reads = match self.read(Job { tuning, seconds: PROBE_SECONDS, ..job }) {
                Err(_) if tuning.huge_pages => continue,
                other => other?,
            };
            if reads.operations_per_second > best.1 {
                best = (tuning, reads.operations_per_second);
            }
        }
        Ok(best.0)
    }
}

/// What is tried.
fn tunings(source: Source<'_>) -> Vec<Tuning> {
    if !matches!(source, Source::Namespace(..)) {
        let of_pages =
            |huge_pages| BATCHES.map(|batch| Tuning { batch, huge_pages, ..Tuning::default() });
        return HUGE_PAGES.into_iter().flat_map(of_pages).collect();
    }
    let has_polled = std::fs::read_to_string(POLL_QUEUES).is_ok_and(|text| text.trim() != "0");
    let mut all = Vec::new();
    for batch in NAMESPACE_BATCHES {
        for waits in [false, true] {
            for polls in if has_polled { &[false, true][..] } else { &[false] } {
                for by_block in [false, true] {
                    all.push(Tuning { batch, waits, polls: *polls, by_block, ..Tuning::default() });
                }
            }
        }
    }
    all
}

fn arguments(job: Job<'_>) -> Vec<String> {
    let mut arguments = vec![
        "--name=compare".to_owned(),
        "--rw=randread".to_owned(),
        format!("--bs={}", job.block_bytes),
        format!("--iodepth={}", job.depth),
        format!("--iodepth_batch_submit={}", job.tuning.batch),
        format!(
            "--iodepth_batch_complete_min={}",
            if job.tuning.waits { job.tuning.batch } else { 1 }
        ),
        format!("--iodepth_batch_complete_max={}", most_completions(job)),
        "--norandommap".to_owned(),
        "--randrepeat=0".to_owned(),
        "--time_based".to_owned(),
        format!("--runtime={}", job.seconds),
        format!("--ramp_time={RAMP_SECONDS}"),
        "--output-format=json".to_owned(),
    ];
    if let Source::Front(_, bytes) = job.source {
        arguments.push(format!("--size={bytes}"));
    }
    match job.source {
        Source::File(path) | Source::Front(path, _) => arguments.extend([
            "--ioengine=io_uring".to_owned(),
            "--direct=1".to_owned(),
            "--registerfiles".to_owned(),
            "--fixedbufs".to_owned(),
            format!("--mem={}", if job.tuning.huge_pages { "shmhuge" } else { "malloc" }),
            // A colon separates names in fio's list of files.
            format!("--filename={}", path.display().to_string().replace(':', "\\:")),
        ]),
        Source::Nbd(uri) => {
            arguments.extend(["--ioengine=nbd".to_owned(), format!("--uri={uri}")]);
        }
        Source::Namespace(path, core) if job.tuning.by_block => arguments.extend([
            "--ioengine=io_uring".to_owned(),
            "--direct=1".to_owned(),
            "--registerfiles=1".to_owned(),
            "--fixedbufs=1".to_owned(),
            format!("--hipri={}", u8::from(job.tuning.polls)),
            format!("--cpus_allowed={core}"),
            format!("--filename={}", block_device(path)),
        ]),
        Source::Namespace(path, core) => arguments.extend([
            "--ioengine=io_uring_cmd".to_owned(),
            "--cmd_type=nvme".to_owned(),
            "--registerfiles=1".to_owned(),
            "--fixedbufs=1".to_owned(),
            format!("--hipri={}", u8::from(job.tuning.polls)),
            format!("--cpus_allowed={core}"),
            format!("--filename={}", path.display()),
        ]),
    }
    arguments
}

/// `/dev/nvme0n1` for `/dev/ng0n1`.
fn block_device(path: &Path) -> String {
    path.display().to_string().replacen("/ng", "/nvme", 1)
}

impl Strides {
    fn arguments(&self, path: &Path) -> Vec<String> {
        // Whole reads of the largest size: what is left of each stretch is less than a fortieth.
        let zone = self.span.bytes >> 20 << 20;
        vec![
            "--name=compare".to_owned(),
            "--rw=read".to_owned(),
            format!("--bs={}", self.block_bytes),
            format!("--iodepth={}", self.depth),
            format!("--offset={}", self.span.offset),
            "--zonemode=strided".to_owned(),
            format!("--zonesize={zone}"),
            format!("--zonerange={}", self.span.every),
            format!("--io_size={}", zone * u64::from(self.span.count - 1).max(1)),
            "--ioengine=io_uring".to_owned(),
            "--direct=1".to_owned(),
            "--registerfiles".to_owned(),
            "--fixedbufs".to_owned(),
            "--output-format=json".to_owned(),
            format!("--filename={}", path.display().to_string().replace(':', "\\:")),
        ]
    }
}

/// On a namespace everything that has ended is taken at once.
fn most_completions(job: Job<'_>) -> usize {
    match job.source {
        Source::Namespace(..) => job.depth,
        Source::File(_) | Source::Front(..) | Source::Nbd(_) => job.tuning.batch,
    }
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<JobOutput>,
}

#[derive(Deserialize)]
struct JobOutput {
    error: i64,
    read: ReadOutput,
}

#[derive(Deserialize)]
struct ReadOutput {
    bw_bytes: f64,
    iops: f64,
    clat_ns: Clat,
}

#[derive(Deserialize)]
struct Clat {
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

/// Reads fio's JSON, before which it may have printed other lines.
fn parse(output: &str) -> Result<Reads> {
    let json = output.find('{').map_or("", |start| &output[start..]);
    let parsed: Output = serde_json::from_str(json)
        .map_err(|e| Kind::Corrupt.error("fio's output is not as expected").caused_by(e))?;
    let Some(job) = parsed.jobs.first() else {
        return Err(Kind::Corrupt.error("fio reports no job"));
    };
    if job.error != 0 || job.read.iops <= 0.0 {
        return Err(Kind::Io.error(format!("fio read nothing: error {}", job.error)));
    }
    Ok(Reads {
        bytes_per_second: job.read.bw_bytes,
        operations_per_second: job.read.iops,
        p99_us: job.read.clat_ns.percentile.get("99.000000").map_or(0.0, |ns| ns / 1000.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fio 3.33 prints, cut down to what is read.
    const CAPTURED: &str = r#"fio: connected to NBD server
{
  "fio version" : "fio-3.33",
  "jobs" : [ {
      "jobname" : "compare", "error" : 0,
      "read" : {
        "io_bytes" : 515899392, "bw_bytes" : 257892429, "bw" : 251848, "iops" : 62946.026987,
        "clat_ns" : { "min" : 1, "percentile" : { "50.000000" : 456704, "99.000000" : 2039808 } }
      }
  } ]
}"#;

    #[test]
    fn captured_output_is_read() {
        let reads = parse(CAPTURED).expect("as fio prints it");
        assert_eq!(reads.bytes_per_second, 257_892_429.0);
        assert_eq!(reads.operations_per_second, 62_946.026_987);
        assert_eq!(reads.p99_us, 2039.808);
        let failed = CAPTURED.replace(r#""error" : 0"#, r#""error" : 5"#);
        assert_eq!(parse(&failed).expect_err("it failed").kind(), Kind::Io);
        assert_eq!(parse("fio: no such file").expect_err("no JSON").kind(), Kind::Corrupt);
    }

    #[test]
    fn direct_io_is_asked_for_on_files_only() {
        let tuning = Tuning::default();
        let job = |source| Job { source, block_bytes: 4096, depth: 32, tuning, seconds: 5 };
        let file = arguments(job(Source::File(Path::new("/a:b"))));
        for wanted in ["--direct=1", "--registerfiles", "--fixedbufs", "--filename=/a\\:b"] {
            assert!(file.iter().any(|argument| argument == wanted), "{wanted}");
        }
        let nbd = arguments(job(Source::Nbd("nbd://127.0.0.1:1")));
        assert!(nbd.iter().all(|argument| argument != "--direct=1"));
        let namespace = arguments(job(Source::Namespace(Path::new("/dev/ng0n1"), 1)));
        for wanted in ["--ioengine=io_uring_cmd", "--cpus_allowed=1", "--filename=/dev/ng0n1"] {
            assert!(namespace.iter().any(|argument| argument == wanted), "{wanted}");
        }
        assert!(namespace.iter().all(|argument| argument != "--direct=1"));
    }
}
