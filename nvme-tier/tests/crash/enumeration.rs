//! All short workloads on healthy disks, and some of them on failing ones.
#![allow(unreachable_pub, reason = "used by the other modules of this test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use forebay_nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, When};

use crate::cuts::Effort;
use crate::judge::{Counts, Judge};
use crate::player::Beginnings;
use crate::workload::{Op, Workload, all};

/// Workloads that follow each other share most of their images: they are judged together.
const GROUP: usize = 400;
const THREADS: usize = 2;

/// Cuts the power everywhere in every workload given.
pub fn enumerate(workloads: &[Workload], effort: Effort) -> Counts {
    let (next, groups) = (AtomicUsize::new(0), workloads.chunks(GROUP).collect::<Vec<_>>());
    let work = || {
        let mut counts = Counts::default();
        while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            match enumerate_group(group, effort) {
                Ok(more) => counts += more,
                Err(what) => panic!("{what}"),
            }
        }
        counts
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let mut counts = Counts::default();
        threads.into_iter().for_each(|t| counts += t.join().expect("says what it found"));
        counts
    })
}

/// The same in this thread, with what went wrong first.
pub fn enumerate_group(workloads: &[Workload], effort: Effort) -> Result<Counts, String> {
    let (mut beginnings, mut judge) = (Beginnings::default(), Judge::new(effort));
    for (seed, workload) in (0..).zip(workloads) {
        let run = beginnings.play(workload, FaultPlan::new());
        let judged = judge.cut_everywhere(&run, seed);
        judged.map_err(|what| format!("{workload:?}: {what}\n{:#?}", run.changes))?;
    }
    Ok(judge.counts)
}

/// One of each `step` workloads.
pub fn share(step: usize) -> Vec<Workload> {
    all().into_iter().step_by(step).collect()
}

/// Workloads in which a device fails a flush or a write, each of the first few in turn. What was
/// acknowledged is there after a cut all the same.
pub fn fail_everywhere(workloads: &[Workload], effort: Effort) -> Result<Counts, String> {
    let (mut beginnings, mut judge) = (Beginnings::default(), Judge::new(effort));
    for workload in workloads {
        for operation in [Operation::Flush, Operation::Write] {
            for nth in 1..=8 {
                let rule = FaultRule::new(operation, When::Nth(nth), Fault::Fail);
                let run = beginnings.play(workload, FaultPlan::new().with(rule));
                let judged = judge.cut_everywhere(&run, nth);
                judged.map_err(|what| {
                    let changes = &run.changes;
                    format!("{workload:?}, {operation:?} {nth} fails: {what}\n{changes:#?}")
                })?;
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
