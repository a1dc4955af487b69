//! Small reads against the kernel's NVMe over RDMA, from equal block devices in memory.

use client::load::Direction;
use extent::Result;

use super::{Conduct, Ours, Shape};
use crate::cable::CLIENT_CORE;
use crate::cases::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::rivals::fio::{Fio, Job, Reads, Source, Tuning};
use crate::rivals::nvmet::Nvmet;
use crate::setup::Setup;
use crate::stream::on_core;
use crate::verdict::Setback;

const BLOCK_BYTES: u64 = 4096;
const DEPTH: usize = 32;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "rdma-read-4k", unit: "reads/s", target: 1.0 },
    needs_node: true,
    has_rival: true,
    about: "random 4 KiB reads over RDMA from memory against fio on nvme-rdma and nvmet-rdma (stretch 1.5)",
    set_up: |setup| set_up(setup, CASE.terms, false),
};

pub(super) const VERIFIED: Case = Case {
    terms: Terms { case: "rdma-read-4k-verified", unit: "reads/s", target: 1.0 },
    needs_node: true,
    has_rival: true,
    about: "the same, and the client verifies each payload, as fio does not",
    set_up: |setup| set_up(setup, VERIFIED.terms, true),
};

struct Small {
    fio: Fio,
    tuning: Tuning,
    seconds: u64,
    shape: Shape,
    // In this order: it lets go of the devices before they go.
    nvmet: Nvmet,
    ours: Ours,
}

fn set_up(setup: &Setup, terms: Terms, verify: bool) -> Result<Contest, Setback> {
    let fio = Fio::find()?;
    let (ours, cable) = Ours::prepare(&terms, setup, Conduct { disks: 2, ..Conduct::default() })?;
    ours.disks().fill(1, ours.content.len() as u64)?;
    let nvmet = Nvmet::connect(&ours.disks().path(1), &cable)?;
    let depth = setup.depth.unwrap_or(DEPTH);
    let direction = Direction::Read;
    let shape = Shape { block_bytes: BLOCK_BYTES, depth, sessions: 1, verify, direction };
    let tuning = Tuning::default();
    let mut small = Small { fio, tuning, seconds: setup.seconds, shape, nvmet, ours };
    small.tuning = on_core(Some(CLIENT_CORE), || small.fio.tune(small.job()))?;
    Ok(Contest::Duel(Box::new(small)))
}

impl Small {
    fn job(&self) -> Job<'_> {
        Job {
            source: Source::Front(&self.nvmet.block_device, self.ours.content.len() as u64),
            block_bytes: BLOCK_BYTES,
            depth: self.shape.depth,
            tuning: self.tuning,
            seconds: self.seconds,
        }
    }
}

impl Duel for Small {
    fn ours(&mut self) -> Result<f64> {
        Ok(self.ours.run(self.shape)?.operations_per_second)
    }

    fn rival(&mut self) -> Result<f64> {
        let Reads { operations_per_second, .. } =
            on_core(Some(CLIENT_CORE), || self.fio.read(self.job()))?;
        Ok(operations_per_second)
    }

    fn rival_name(&self) -> String {
        let depth = self.shape.depth;
        format!("fio io_uring on nvme-rdma, fixed buffers, depth {depth}, {}", self.tuning)
    }
}
