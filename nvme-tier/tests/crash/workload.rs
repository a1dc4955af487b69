//! All short workloads: what they begin from, what is done, and how closely together.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::fmt;

use forebay_nvme_tier::Copies;

/// What is done to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Registered at its silo's version and filled: reserve, write, publish, extent by extent.
    Promote,
    /// A draft is begun and its extents are written; it is not committed.
    Write,
    /// What was written last becomes the newest generation.
    Commit,
    /// Its clean extents are let go.
    Release,
    /// So many slots are asked for that something clean has to go.
    Evict,
    /// The silo has it now: dirty becomes clean, and then its extents are let go.
    Demote,
    /// It is not known any more.
    Forget,
    /// The silo has something else, which what was written is to replace.
    Rebase,
    /// The silo has something else, for which what was written is given up.
    GiveUp,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Promote,
        Self::Write,
        Self::Commit,
        Self::Release,
        Self::Evict,
        Self::Demote,
        Self::Forget,
    ];
}

/// An operation on one of two files. Eviction chooses for itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub op: Op,
    pub file: usize,
}

/// What is on the tier before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Nothing: it was just formatted.
    Empty,
    /// Both files, clean and resident.
    Clean,
    /// Both files, written and not written back.
    Dirty,
    /// Both files, clean, the second one pinned.
    Pinned,
}

impl Start {
    pub const ALL: [Self; 4] = [Self::Empty, Self::Clean, Self::Dirty, Self::Pinned];
}

/// How soon one operation follows the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// When the one before was acknowledged and all cleaning up is done.
    InTurn,
    /// As soon as the one before was acknowledged.
    Eager,
    /// Those on different files at the same time. Readers hold what is let go, to the end.
    AtOnce,
}

impl Pace {
    pub const ALL: [Self; 3] = [Self::InTurn, Self::Eager, Self::AtOnce];
}

#[derive(Clone)]
pub struct Workload {
    pub start: Start,
    pub pace: Pace,
    pub block_bytes: u32,
    /// With two, on two devices.
    pub copies: Copies,
    pub steps: Vec<Step>,
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, pace, block_bytes, copies, .. } = self;
        write!(f, "{start:?}, {pace:?}, blocks of {block_bytes}, {copies:?}:")?;
        self.steps.iter().try_for_each(|Step { op, file }| match op {
            Op::Evict => write!(f, " {op:?}"),
            _ => write!(f, " {op:?}({file})"),
        })
    }
}

/// Every sequence of one to three operations, from every start, at every pace, on disks of both block sizes.
/// Left out is what others say already: a shorter sequence that is the beginning of a longer one,
/// a pin that nothing presses against, and files at once of which there is one.
pub fn all() -> Vec<Workload> {
    let step = |op| (0..2).map(move |file| Step { op, file });
    let steps: Vec<Step> =
        Op::ALL.into_iter().flat_map(step).filter(|s| s.op != Op::Evict || s.file == 0).collect();
    let mut all = Vec::new();
    for block_bytes in [4096, 512] {
        for start in Start::ALL {
            for pace in Pace::ALL {
                for a in &steps {
                    for b in &steps {
                        for c in &steps {
                            let steps = vec![*a, *b, *c];
                            let copies = Copies::One;
                            let workload = Workload { start, pace, block_bytes, copies, steps };
                            if workload.is_worth_it() {
                                all.push(workload);
                            }
                        }
                    }
                }
            }
        }
    }
    all
}

/// The same on two devices, with two copies of what is dirty.
pub fn all_twice() -> Vec<Workload> {
    all().into_iter().map(|workload| Workload { copies: Copies::Two, ..workload }).collect()
}

/// All that begin with what is dirty, or write it, and settle it against a silo that has changed, with so many copies.
/// They are not among [`all`].
pub fn settling(copies: Copies) -> Vec<Workload> {
    let ops = [Op::Write, Op::Commit, Op::Promote, Op::Demote, Op::Rebase, Op::GiveUp];
    let step = |op| (0..2).map(move |file| Step { op, file });
    let steps: Vec<Step> = ops.into_iter().flat_map(step).collect();
    let settles = |step: &&Step| matches!(step.op, Op::Rebase | Op::GiveUp);
    let mut found = Vec::new();
    for start in [Start::Dirty, Start::Clean] {
        for pace in Pace::ALL {
            for a in &steps {
                for b in &steps {
                    for c in &steps {
                        let steps = vec![*a, *b, *c];
                        if steps.iter().any(|step| settles(&step)) {
                            let block_bytes = if pace == Pace::Eager { 512 } else { 4096 };
                            found.push(Workload { start, pace, block_bytes, copies, steps });
                        }
                    }
                }
            }
        }
    }
    found.retain(Workload::is_worth_it);
    found
}

impl Workload {
    fn is_worth_it(&self) -> bool {
        let has = |op| self.steps.iter().any(|step| step.op == op);
        let lanes = |lane| self.steps.iter().any(|step| step.lane() == lane);
        let pressed = has(Op::Evict) || has(Op::Release) || has(Op::Forget);
        let several = (0..3).filter(|lane| lanes(*lane)).count() > 1;
        (self.start != Start::Pinned || pressed && self.pace == Pace::Eager)
            && (self.pace != Pace::AtOnce || several)
    }
}

impl Step {
    /// Steps of one lane follow each other, also when others run at the same time.
    pub fn lane(self) -> usize {
        if self.op == Op::Evict { 2 } else { self.file }
    }
}
