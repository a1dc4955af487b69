//! How long one small read takes, against the two messages that it cannot do without.

use client::load::Direction;
use extent::Result;

use super::{Conduct, Ours, Shape};
use crate::cases::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::rivals::perftest::{Perftest, Program};
use crate::setup::Setup;
use crate::verdict::Setback;

const BLOCK_BYTES: u64 = 4096;
/// A request capsule.
const REQUEST_BYTES: u64 = 64;
/// Messages to and fro for each second of a run.
const MESSAGES_A_SECOND: u64 = 500;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "rdma-latency-4k", unit: "µs", target: 1.0 / 1.5 },
    needs_node: true,
    has_rival: true,
    about: "rival ÷ ours: the p50 of one 4 KiB read at depth 1, at most 1.5 of a SEND's and an RDMA WRITE's (stretch 1.2)",
    set_up: |setup| set_up(&CASE, setup, true),
};

pub(super) const BRD: Case = Case {
    terms: Terms { case: "rdma-latency-4k-brd", ..CASE.terms },
    about: "the same from a node on the kernel's block device in memory (brd), which it reads through io_uring",
    set_up: |setup| set_up(&BRD, setup, false),
    ..CASE
};

struct Latency {
    ours: Ours,
    send: Perftest,
    write: Perftest,
    messages: u64,
}

fn set_up(case: &Case, setup: &Setup, memory: bool) -> Result<Contest, Setback> {
    let conduct = Conduct { spins: true, memory, ..Conduct::default() };
    let (ours, cable) = Ours::prepare(&case.terms, setup, conduct)?;
    let find = |program, bytes| Perftest::find(program, &cable, &setup.directory, bytes);
    let send = find(Program::SendLatency, REQUEST_BYTES)?;
    let write = find(Program::WriteLatency, BLOCK_BYTES)?;
    let messages = MESSAGES_A_SECOND * setup.seconds;
    Ok(Contest::Duel(Box::new(Latency { ours, send, write, messages })))
}

impl Duel for Latency {
    fn ours(&mut self) -> Result<f64> {
        let direction = Direction::Read;
        let shape =
            Shape { block_bytes: BLOCK_BYTES, depth: 1, sessions: 1, verify: false, direction };
        Ok(self.ours.run(shape)?.latency_us.p50)
    }

    fn rival(&mut self) -> Result<f64> {
        Ok(self.send.run(self.messages)? + self.write.run(self.messages)?)
    }

    fn less_is_better(&self) -> bool {
        true
    }

    fn rival_name(&self) -> String {
        "ib_send_lat of 64 bytes and ib_write_lat of 4 KiB".to_owned()
    }
}
