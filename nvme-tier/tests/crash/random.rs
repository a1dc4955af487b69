//! Random runs, each kind from a seed.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use forebay_nvme_tier::Copies;
use forebay_nvme_tier::device::sim::{SimDisk, SimOptions};
use forebay_nvme_tier::device::{DeviceIndex, Location};

use crate::common::{Rig, keeping, pattern, small_disk, small_format};
use crate::cuts::Effort;
use crate::driver::{run, run_on};
use crate::enumeration::{Failure, calmly};
use crate::judge::{Counts, Judge};
use crate::model::Run;

/// A run, and how closely to look at it.
pub type Kind = fn(u64) -> (Run, Effort);

/// Plays the first `few` seeds of a kind, or those that `FOREBAY_SIM_SEEDS` says.
pub fn play(few: u64, kind: Kind) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    for seed in seeds(few) {
        let mut judged = Counts::default();
        let outcome = calmly(|| {
            let (run, effort) = kind(seed);
            let mut judge = Judge::new(effort);
            let outcome = judge.cut_everywhere(&run, seed);
            judged = judge.counts;
            outcome.map_err(|what| format!("{what}\n{:#?}", run.changes))
        });
        counts += judged;
        outcome.map_err(|what| Failure { what, after: counts.schedules() })?;
    }
    Ok(counts)
}

fn seeds(few: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("FOREBAY_SIM_SEEDS") else { return 0..few };
    let parsed = match text.split_once("..") {
        Some((from, to)) => from.parse().ok().zip(to.parse().ok()),
        None => Some(0).zip(text.parse().ok()),
    };
    let (from, to) = parsed.expect("FOREBAY_SIM_SEEDS is a number, or two with .. between them");
    from..to
}

const fn effort(all_subsets_of: usize, samples: usize, nested_one_in: u32) -> Effort {
    Effort { all_subsets_of, samples, torn: 1, nested_one_in }
}

pub fn few_operations(seed: u64) -> (Run, Effort) {
    let disk = small_disk(10, 1, 4096, seed);
    let sim = SimOptions { most_delay_polls: 2, deallocates: true, ..disk };
    (run(sim, 5, 0), effort(5, 8, 16))
}

/// On 512-byte blocks, over what looks like anything but erased.
pub fn small_blocks(seed: u64) -> (Run, Effort) {
    let disk = SimDisk::new(small_disk(10, 1, 512, 1000 + seed));
    for slab in 0..10 {
        let at = Location { device: DeviceIndex(0), offset: (1 << 20) + slab * (256 << 10) };
        disk.poke(at, &pattern(seed, 77, 256 << 10));
    }
    (run_on(Rig::over(disk, &small_format()), 6, 0), effort(2, 6, 16))
}

pub fn two_devices(seed: u64) -> (Run, Effort) {
    let disk = small_disk(8, 2, 4096, 2000 + seed);
    let sim = SimOptions { most_delay_polls: 8, deallocates: true, ..disk };
    (run(sim, 6, 0), effort(2, 5, 16))
}

/// On three devices, with two copies of what is dirty.
pub fn three_devices(seed: u64) -> (Run, Effort) {
    let sim = SimOptions { most_delay_polls: 8, ..small_disk(8, 3, 4096, 5000 + seed) };
    let rig = Rig::new(sim, &small_format());
    let rig = Rig::with(rig.disk, keeping(Copies::Two)).expect("a new tier recovers");
    (run_on(rig, 8, 0), effort(2, 4, 16))
}

/// Long enough to use slots again.
pub fn long_run(seed: u64) -> (Run, Effort) {
    let sim = SimOptions { deallocates: true, ..small_disk(7, 1, 4096, 3000 + seed) };
    (run(sim, 60, 0), effort(0, 1, 32))
}

/// The process dies before the end, and another one goes on.
pub fn new_process(seed: u64) -> (Run, Effort) {
    let disk = small_disk(10, 1, 4096, 4000 + seed);
    let sim = SimOptions { most_delay_polls: 10, deallocates: true, ..disk };
    (run(sim, 9, 3), effort(0, 2, 16))
}
