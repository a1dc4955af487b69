//! How long a start takes and what it costs in memory: describes a number of extents on a
//! simulated disk (their data is never written), then recovers.
//!
//! ```text
//! cargo run --release -p forebay-nvme-tier --example recovery -- [EXTENTS [EXTENT_KIB [PER_FILE]]]
//! ```
#![allow(clippy::print_stdout, reason = "a tool that prints times")]

use std::fs;
use std::sync::Arc;

use dma::{HugePages, Pool, SizeClass};
use extent::{ExtentIndex, FileName, Kind, Result, SourceVersion};
use forebay_nvme_tier::device::sim::{SimDevice, SimDisk, SimOptions};
use forebay_nvme_tier::{Done, File, FormatOptions, Ledger, TierOptions, format, recover};
use parking_lot::Mutex;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let mut next =
        |default: u64| arguments.next().and_then(std::result::Result::ok).unwrap_or(default);
    let (extents, extent_kib, per_file) = (next(100_000), next(64), next(100).max(1));
    let extent_bytes = extent_kib << 10;
    let slab_bytes = (extent_bytes * 64).next_power_of_two().max(64 << 20);
    let slabs = (extents * extent_bytes).div_ceil(slab_bytes) * 5 / 4 + 4;
    let sim = SimOptions {
        capacity_bytes: (1 << 20) + slabs * slab_bytes,
        queue_depth: 256,
        most_delay_polls: 1,
        ..SimOptions::default()
    };
    let disk = SimDisk::new(sim);
    let pool = Pool::new(&[SizeClass { bytes: 1 << 20, count: 32 }], HugePages::Never)?;
    let mut queue = disk.queue();
    let options =
        FormatOptions { slab_bytes: Some(slab_bytes), extent_bytes, ..FormatOptions::default() };
    format(&mut queue, &pool, &options)?;
    let mut first = recover(&mut queue, &pool, TierOptions::default())?;
    for number in 0..extents.div_ceil(per_file) {
        let name = FileName::new("s", format!("file-{number}"))?;
        let count = per_file.min(extents - number * per_file);
        let version = SourceVersion::new("v1")?;
        let tier = Arc::clone(&first.tier);
        let file: Arc<File> = wait(&mut first.ledger, &mut queue, |done| {
            tier.register(name, count * extent_bytes, version, done);
        })?;
        fill(&mut first.ledger, &mut queue, &file)?;
    }
    while !first.ledger.is_idle() {
        first.ledger.step(&mut queue);
    }
    drop(first);
    let (cpu, memory) = (cpu_ticks(), resident_bytes());
    let recovered = recover(&mut queue, &pool, TierOptions::default())?;
    let (cpu, grown) = (cpu_ticks() - cpu, resident_bytes().saturating_sub(memory));
    let report = recovered.report;
    let checksums = extent_bytes / 4096 * 4;
    println!(
        "{} extents of {extent_kib} KiB in {} files: {:?}, {} ms of CPU, {} bytes each in memory, of \
         which {checksums} are checksums",
        report.extents,
        report.files,
        report.elapsed,
        cpu * 10,
        grown / report.extents.max(1),
    );
    Ok(())
}

/// Describes every extent of a file, a few hundred at a time.
fn fill(ledger: &mut Ledger, queue: &mut SimDevice, file: &File) -> Result<()> {
    let tier = Arc::clone(ledger.tier());
    let generation = file.newest();
    for index in (0..generation.extent_count()).map(ExtentIndex) {
        let reservation = wait(ledger, queue, |done| tier.reserve(&generation, index, done))?;
        let blocks = reservation.length().div_ceil(tier.checksum_block_bytes());
        let checksums = (0..blocks).map(|block| block ^ index.0).collect();
        tier.publish(reservation, checksums, Done::ignore());
    }
    Ok(())
}

fn wait<T: Send + 'static>(
    ledger: &mut Ledger,
    queue: &mut SimDevice,
    begin: impl FnOnce(Done<T>),
) -> Result<T> {
    let answer = Arc::new(Mutex::new(None));
    let told = Arc::clone(&answer);
    begin(Done::new(move |result| *told.lock() = Some(result)));
    for _ in 0..10_000_000 {
        if let Some(result) = answer.lock().take() {
            return result;
        }
        ledger.step(queue);
    }
    Err(Kind::Io.error("an operation never ended"))
}

/// Hundredths of a second of processor time this process took so far.
fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    field(12) + field(13)
}

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 4096
}
