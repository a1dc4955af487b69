//! Large reads and writes against bare RDMA WRITEs and READs.

use client::load::Direction;
use extent::Result;

use super::{Conduct, Ours, Shape};
use crate::cases::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::rivals::perftest::{Perftest, Program};
use crate::setup::Setup;
use crate::verdict::Setback;

const BLOCK_BYTES: u64 = 1 << 20;
/// Depths that are tried for our side, as for the rival's.
const DEPTHS: [usize; 3] = [4, 8, 16];
const PROBE_SECONDS: u64 = 2;
const PROBE_MESSAGES: u64 = 40;

pub(super) const READ: Case = Case {
    terms: Terms { case: "rdma-read-1m", unit: "MB/s", target: 0.90 },
    needs_node: true,
    has_rival: true,
    about: "random 1 MiB reads over RDMA from memory against ib_write_bw (stretch 0.98)",
    set_up: |setup| set_up(setup, READ.terms, Direction::Read, false),
};

pub(super) const READ_VERIFIED: Case = Case {
    terms: Terms { case: "rdma-read-1m-verified", unit: "MB/s", target: 0.90 },
    needs_node: true,
    has_rival: true,
    about: "the same, and the client verifies each payload, as the rival does not",
    set_up: |setup| set_up(setup, READ_VERIFIED.terms, Direction::Read, true),
};

pub(super) const WRITE: Case = Case {
    terms: Terms { case: "rdma-write-1m", unit: "MB/s", target: 0.85 },
    needs_node: true,
    has_rival: true,
    about: "1 MiB writes of whole generations over RDMA into memory against ib_read_bw (stretch 0.95)",
    set_up: |setup| set_up(setup, WRITE.terms, Direction::Write, false),
};

pub(super) const WRITE_VERIFIED: Case = Case {
    terms: Terms { case: "rdma-write-1m-verified", unit: "MB/s", target: 0.85 },
    needs_node: true,
    has_rival: true,
    about: "the same, with a checksum of each payload that the node compares",
    set_up: |setup| set_up(setup, WRITE_VERIFIED.terms, Direction::Write, true),
};

struct Bandwidth {
    ours: Ours,
    shape: Shape,
    perftest: Perftest,
    messages: u64,
}

fn set_up(
    setup: &Setup,
    terms: Terms,
    direction: Direction,
    verify: bool,
) -> Result<Contest, Setback> {
    let (mut ours, cable) = Ours::prepare(&terms, setup, Conduct::default())?;
    let program = match direction {
        Direction::Read => Program::WriteBandwidth,
        Direction::Write => Program::ReadBandwidth,
    };
    let mut perftest = Perftest::find(program, &cable, &setup.directory, BLOCK_BYTES)?;
    perftest.tune(PROBE_MESSAGES)?;
    let mut shape = Shape { block_bytes: BLOCK_BYTES, depth: 0, sessions: 1, verify, direction };
    shape.depth = match setup.depth {
        Some(depth) => depth,
        None => best_depth(&mut ours, shape)?,
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
    let messages = (perftest.run(PROBE_MESSAGES)? / BLOCK_BYTES as f64).ceil() as u64;
    let messages = (messages * setup.seconds).max(perftest.depth as u64);
    Ok(Contest::Duel(Box::new(Bandwidth { ours, shape, perftest, messages })))
}

fn best_depth(ours: &mut Ours, shape: Shape) -> Result<usize> {
    let seconds = std::mem::replace(&mut ours.seconds, PROBE_SECONDS);
    let mut best = (DEPTHS[0], 0.0);
    for depth in DEPTHS {
        let rate = ours.run(Shape { depth, ..shape })?.bytes_per_second;
        if rate > best.1 {
            best = (depth, rate);
        }
    }
    ours.seconds = seconds;
    Ok(best.0)
}

impl Duel for Bandwidth {
    fn ours(&mut self) -> Result<f64> {
        Ok(self.ours.run(self.shape)?.bytes_per_second / 1e6)
    }

    fn rival(&mut self) -> Result<f64> {
        Ok(self.perftest.run(self.messages)? / 1e6)
    }

    fn rival_name(&self) -> String {
        format!("(depth {}), {}", self.shape.depth, self.perftest)
    }
}
