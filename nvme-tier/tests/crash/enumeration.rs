//! All short workloads on healthy disks, and some of them on failing ones.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use forebay_nvme_tier::Copies;
use forebay_nvme_tier::device::DeviceIndex;
use forebay_nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, When};

use parking_lot::Mutex;

use crate::cuts::Effort;
use crate::judge::{Counts, Judge};
use crate::player::Beginnings;
use crate::workload::{self, Op, Start, Workload, all, all_twice};

/// Workloads that follow each other share most of their images: they are judged together.
const GROUP: usize = 400;
const THREADS: usize = 2;
/// A prime that no number of workloads or groups is a multiple of: each gets its turn.
const SCATTER: usize = 9973;

/// Cuts the power everywhere in every workload given, and tells how far it is after each group: so
/// that a run that takes an hour and is ended has said something. The groups come in a scattered order.
pub fn enumerate(workloads: &[Workload], effort: Effort, told: impl Fn(&Counts) + Sync) -> Counts {
    let size = GROUP.min(workloads.len().div_ceil(THREADS));
    let groups: Vec<_> = workloads.chunks(size).collect();
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Counts::default()));
    let group = |at: usize| (at < groups.len()).then(|| groups[at * SCATTER % groups.len()]);
    let work = || {
        while let Some(group) = group(next.fetch_add(1, Ordering::Relaxed)) {
            match enumerate_group(group, effort) {
                Ok(more) => {
                    let mut sum = sum.lock();
                    *sum += more;
                    told(&sum);
                }
                Err(Failure { what, .. }) => panic!("{what}"),
            }
        }
    };
    thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work))));
    sum.into_inner()
}

/// What went wrong, and after how many different images.
pub struct Failure {
    pub what: String,
    pub after: u64,
}

/// The same in this thread, up to what goes wrong first.
pub fn enumerate_group(workloads: &[Workload], effort: Effort) -> Result<Counts, Failure> {
    let (mut beginnings, mut judge) = (Beginnings::default(), Judge::new(effort));
    for (seed, workload) in (0..).zip(workloads) {
        let judged = calmly(|| {
            let run = beginnings.play(workload, FaultPlan::new());
            let judged = judge.cut_everywhere(&run, seed);
            judged.map_err(|what| format!("{workload:?}: {what}\n{:#?}", run.changes))
        });
        let after = judge.counts.schedules();
        judged.map_err(|what| Failure { what, after })?;
    }
    Ok(judge.counts)
}

/// A panic is a failure like others.
pub fn calmly(body: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let text = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or_else(|_| "a panic".into(), |t| (*t).into()),
    };
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(text(panic)))
}

/// One of each `step` workloads that keep what is dirty twice.
pub fn share_twice(step: usize) -> Vec<Workload> {
    all_twice().into_iter().step_by(step).collect()
}

/// One of each `step` workloads that settle conflicts.
pub fn settling(copies: Copies, step: usize) -> Vec<Workload> {
    workload::settling(copies).into_iter().step_by(step).collect()
}

/// One of each `step` workloads.
pub fn share(step: usize) -> Vec<Workload> {
    all().into_iter().step_by(step).collect()
}

/// So many workloads that keep what is dirty twice and begin with dirty files: of clean ones the one
/// device may know nothing that the other one has.
pub fn dirty_twice(count: usize) -> Vec<Workload> {
    let mut all = all_twice();
    all.retain(|workload| workload.start == Start::Dirty);
    (0..count).map(|at| all[at * SCATTER % all.len()].clone()).collect()
}

/// Workloads on one of two devices, of which the other one then comes back.
pub fn come_back_everywhere(workloads: &[Workload], effort: Effort) -> Result<Counts, Failure> {
    let (mut beginnings, mut judge) = (Beginnings::default(), Judge::new(effort));
    for (seed, workload) in (0..).zip(workloads) {
        for absent in [DeviceIndex(0), DeviceIndex(1)] {
            let judged = calmly(|| {
                let run = beginnings.play_without(workload, absent);
                let judged = judge.cut_everywhere(&run, seed);
                judged.map_err(|what| {
                    format!("{workload:?} without {absent:?}: {what}\n{:#?}", run.changes)
                })
            });
            let after = judge.counts.schedules();
            judged.map_err(|what| Failure { what, after })?;
        }
    }
    Ok(judge.counts)
}

/// Workloads in which a device fails a flush or a write, each of the first few in turn. What was
/// acknowledged is there after a cut all the same.
pub fn fail_everywhere(workloads: &[Workload], effort: Effort) -> Result<Counts, Failure> {
    let (mut beginnings, mut judge) = (Beginnings::default(), Judge::new(effort));
    for workload in workloads {
        for operation in [Operation::Flush, Operation::Write] {
            for nth in 1..=8 {
                let rule = FaultRule::new(operation, When::Nth(nth), Fault::Fail);
                let judged = calmly(|| {
                    let run = beginnings.play(workload, FaultPlan::new().with(rule));
                    let judged = judge.cut_everywhere(&run, nth);
                    judged.map_err(|what| {
                        let changes = &run.changes;
                        format!("{workload:?}, {operation:?} {nth} fails: {what}\n{changes:#?}")
                    })
                });
                let after = judge.counts.schedules();
                judged.map_err(|what| Failure { what, after })?;
            }
        }
    }
    Ok(judge.counts)
}

/// Workloads that write and commit, of which so many are to fail.
pub fn committing(step: usize) -> Vec<Workload> {
    let commits = |workload: &Workload| {
        workload.steps.windows(2).any(|pair| {
            pair[0].op == Op::Write && pair[1].op == Op::Commit && pair[0].file == pair[1].file
        })
    };
    all().into_iter().filter(commits).step_by(step).collect()
}

/// The same with two copies of what is dirty.
pub fn committing_twice(step: usize) -> Vec<Workload> {
    let twice = |workload| Workload { copies: Copies::Two, ..workload };
    committing(step).into_iter().map(twice).collect()
}

/// The same as [`scattered`] with what is dirty kept twice.
pub fn scattered_twice(count: usize) -> Vec<Workload> {
    let all = all_twice();
    (0..count).map(|at| all[at * SCATTER % all.len()].clone()).collect()
}

/// All workloads in an order in which those that follow each other have little in common, for
/// finding something soon.
pub fn scattered(count: usize) -> Vec<Workload> {
    let all = all();
    (0..count).map(|at| all[at * SCATTER % all.len()].clone()).collect()
}
