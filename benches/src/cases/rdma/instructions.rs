//! What a node executes for its reads, over RDMA and over TCP.

use std::hint::black_box;

use client::Endpoint;
use client::load::Direction;
use dma::{HugePages, Pool, SizeClass, Target};
use extent::Result;
use extent::checksum::crc32c_blocks;

use super::{Conduct, Ours, Shape};
use crate::cable::{CLIENT_CORE, NODE_CORE};
use crate::cases::{Case, Contest};
use crate::instructions::Counters;
use crate::pairs::{Duel, Terms};
use crate::setup::Setup;
use crate::stream::on_core;
use crate::verdict::Setback;

const BLOCK_BYTES: u64 = 1 << 20;
const CHECKSUM_BLOCK_BYTES: usize = 4096;
const DEPTH: usize = 8;
/// Blocks that are verified to see what that takes.
const VERIFIED: u64 = 64;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "rdma-vs-tcp-instr", unit: "instructions/B", target: 2.0 },
    needs_node: true,
    has_rival: true,
    about: "TCP ÷ RDMA: the node's instructions in user mode for 1 MiB reads, over RDMA at most half of TCP's (stretch 0.2)",
    set_up: |setup| set_up(setup, CASE.terms, false),
};

pub(super) const BESIDE_CHECKSUMS: Case = Case {
    terms: Terms { case: "rdma-vs-tcp-instr-beside", unit: "instructions/B", target: 2.0 },
    needs_node: true,
    has_rival: true,
    about: "the same without those for the checksums of what it read, which are as many over both",
    set_up: |setup| set_up(setup, BESIDE_CHECKSUMS.terms, true),
};

struct Instructions {
    ours: Ours,
    counters: Counters,
    /// What is left out, for each byte.
    without: f64,
    checksums: f64,
    /// Of the whole machine's kernel, for each byte, over RDMA and over TCP.
    kernel: [f64; 2],
}

fn set_up(setup: &Setup, terms: Terms, beside: bool) -> Result<Contest, Setback> {
    let Some(counters) = Counters::find()? else {
        return Err(Setback::Skipped(format!(
            "instructions are counted by a plugin of QEMU's: run it in the lab, ci/lab/rdma {}",
            terms.case
        )));
    };
    let (ours, _) = Ours::prepare(&terms, setup, Conduct::default())?;
    let mut counted =
        Instructions { ours, counters, without: 0.0, checksums: 0.0, kernel: [0.0; 2] };
    counted.checksums = counted.of_checksums()?;
    counted.without = if beside { counted.checksums } else { 0.0 };
    Ok(Contest::Duel(Box::new(counted)))
}

impl Instructions {
    /// What verifying takes, here on the other processor.
    fn of_checksums(&mut self) -> Result<f64> {
        let bytes = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
        let pool = Pool::new(&[SizeClass { bytes, count: 1 }], HugePages::Never)?;
        let mut buffer = pool.take(bytes).expect("a fresh pool has its one buffer");
        buffer.as_mut_slice().copy_from_slice(&self.ours.content[..bytes]);
        let sums: Vec<u32> = crc32c_blocks(buffer.as_slice(), CHECKSUM_BLOCK_BYTES).collect();
        let target = Target::Buffer(buffer, 0..bytes);
        let before = self.counters.read()?;
        on_core(Some(CLIENT_CORE), || {
            for _ in 0..VERIFIED {
                let wrong = target.first_mismatch(CHECKSUM_BLOCK_BYTES, sums.iter().copied());
                assert_eq!(black_box(wrong), None);
            }
            Ok(())
        })?;
        let after = self.counters.read()?;
        let count = after.user[CLIENT_CORE] - before.user[CLIENT_CORE];
        Ok(per_byte(count, VERIFIED * BLOCK_BYTES))
    }

    fn over(&mut self, endpoint: &Endpoint, number: usize) -> Result<f64> {
        let direction = Direction::Read;
        let shape =
            Shape { block_bytes: BLOCK_BYTES, depth: DEPTH, sessions: 1, verify: false, direction };
        let served = self.ours.node.bytes_read()?;
        let before = self.counters.read()?;
        self.ours.run_over(endpoint, shape)?;
        let after = self.counters.read()?;
        let bytes = self.ours.node.bytes_read()? - served;
        let kernel: u64 = after.kernel.iter().zip(&before.kernel).map(|(a, b)| a - b).sum();
        self.kernel[number] = per_byte(kernel, bytes);
        Ok(per_byte(after.user[NODE_CORE] - before.user[NODE_CORE], bytes) - self.without)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per_byte(count: u64, bytes: u64) -> f64 {
    count as f64 / bytes as f64
}

impl Duel for Instructions {
    fn ours(&mut self) -> Result<f64> {
        let endpoint = self.ours.endpoint.clone();
        self.over(&endpoint, 0)
    }

    fn rival(&mut self) -> Result<f64> {
        let endpoint = self.ours.node.tcp();
        self.over(&endpoint, 1)
    }

    fn less_is_better(&self) -> bool {
        true
    }

    fn rival_name(&self) -> String {
        let [rdma, tcp] = self.kernel;
        format!(
            "(kernel of both ends {rdma:.2}, checksums {:.3}), TCP (kernel {tcp:.2})",
            self.checksums
        )
    }
}
