//! What of the unflushed writes a power cut leaves.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use forebay_nvme_tier::device::sim::{Event, Survival, WriteRecord};
use rand::Rng;
use rand::rngs::SmallRng;

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Of up to so many unflushed writes every subset is tried.
    pub all_subsets_of: usize,
    /// Of more, so many drawn subsets, beside all and none of them.
    pub samples: usize,
    /// How often each subset is tried again with members torn.
    pub torn: usize,
    /// One recovery in so many is cut itself, at every moment.
    pub nested_one_in: u32,
}

impl Effort {
    /// The enumeration: every subset of up to eight.
    pub const FULL: Self = Self { all_subsets_of: 8, samples: 64, torn: 2, nested_one_in: 1 };

    /// Within a recovery, whose writes are few.
    pub fn nested(self) -> Self {
        Self {
            all_subsets_of: self.all_subsets_of.min(4),
            samples: self.samples.min(4),
            torn: 1,
            ..self
        }
    }
}

/// Whether what a cut can leave is after an event what it was before, as long as no two unflushed
/// writes want the same block. What was acknowledged may differ.
pub fn leaves_the_same(event: &Event) -> bool {
    match event {
        Event::WriteEnded { .. } | Event::FlushStarted { .. } => true,
        Event::FlushEnded { completed, .. } => !completed,
        Event::WriteStarted { .. } | Event::Poke { .. } => false,
    }
}

/// The choices to try at one moment.
pub fn choices(
    unflushed: &[WriteRecord],
    block_bytes: u32,
    effort: Effort,
    rng: &mut SmallRng,
) -> Vec<Vec<Survival>> {
    let mut choices = Vec::new();
    let mut add = |members: Vec<bool>, rng: &mut SmallRng| {
        let whole = |member: &bool| if *member { Survival::Whole } else { Survival::Lost };
        choices.push(members.iter().map(whole).collect());
        for _ in 0..effort.torn {
            let tear =
                |(member, write): (&bool, &WriteRecord)| tear(*member, write, block_bytes, rng);
            let torn: Vec<Survival> = members.iter().zip(unflushed).map(tear).collect();
            if torn.iter().any(|survival| matches!(survival, Survival::Torn(_))) {
                choices.push(torn);
            }
        }
    };
    let count = unflushed.len();
    if count <= effort.all_subsets_of {
        for subset in 0..1u64 << count {
            add((0..count).map(|at| subset >> at & 1 == 1).collect(), rng);
        }
    } else {
        add(vec![false; count], rng);
        add(vec![true; count], rng);
        for _ in 0..effort.samples {
            let odds = rng.random_range(0.1..0.9);
            add((0..count).map(|_| rng.random_bool(odds)).collect(), rng);
        }
    }
    choices
}

/// A member of the subset survives whole, or some of its blocks do.
fn tear(member: bool, write: &WriteRecord, block_bytes: u32, rng: &mut SmallRng) -> Survival {
    if !member {
        return Survival::Lost;
    }
    let blocks = u32::try_from(write.data.len()).expect("short writes") / block_bytes;
    if blocks < 2 || rng.random_ratio(1, 3) {
        return Survival::Whole;
    }
    let cut = rng.random_range(1..blocks);
    Survival::Torn(match rng.random_range(0..4) {
        0 => (0..cut).collect(),
        1 => (cut..blocks).collect(),
        2 => (0..blocks).filter(|block| *block != cut).collect(),
        _ => (0..blocks).filter(|_| rng.random()).collect(),
    })
}
