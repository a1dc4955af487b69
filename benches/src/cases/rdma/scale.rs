//! As many reads in flight over many sessions as over one.

use client::load::Direction;
use extent::Result;

use super::{Conduct, Ours, Shape};
use crate::cases::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::setup::Setup;
use crate::verdict::Setback;

const BLOCK_BYTES: u64 = 64 << 10;
const SESSIONS: usize = 64;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "rdma-scale", unit: "MB/s", target: 0.9 },
    needs_node: true,
    has_rival: true,
    about: "random 64 KiB reads over RDMA by 64 sessions with one in flight each, against one with 64 (stretch 1)",
    set_up,
};

struct Scale {
    ours: Ours,
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    let (ours, _) = Ours::prepare(&CASE.terms, setup, Conduct::default())?;
    Ok(Contest::Duel(Box::new(Scale { ours })))
}

impl Scale {
    fn with(&mut self, sessions: usize) -> Result<f64> {
        let (depth, direction) = (SESSIONS / sessions, Direction::Read);
        let shape = Shape { block_bytes: BLOCK_BYTES, depth, sessions, verify: false, direction };
        Ok(self.ours.run(shape)?.bytes_per_second / 1e6)
    }
}

impl Duel for Scale {
    fn ours(&mut self) -> Result<f64> {
        self.with(SESSIONS)
    }

    fn rival(&mut self) -> Result<f64> {
        self.with(1)
    }

    fn rival_name(&self) -> String {
        format!("by {SESSIONS} sessions, by one")
    }
}
