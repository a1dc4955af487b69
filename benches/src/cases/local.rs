//! Reads through shared memory against fio on a file of the same size.

use std::path::PathBuf;

use extent::Result;

use super::read::{Ours, Shape};
use super::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::rivals::fio::{Fio, Job, Source, Tuning};
use crate::setup::Setup;
use crate::verdict::Setback;

/// 1 MiB at a time.
pub(super) const ONE_MEGABYTE: Case = Case {
    terms: Terms { case: "local-read-1m", unit: "MB/s", target: 0.95 },
    needs_node: true,
    has_rival: true,
    about: "random 1 MiB reads through shared memory against fio io_uring O_DIRECT",
    set_up: |setup| set_up(setup, 1 << 20, 16, |_, bytes| bytes / 1e6),
};

/// 4 KiB at a time.
pub(super) const FOUR_KILOBYTES: Case = Case {
    terms: Terms { case: "local-read-4k", unit: "reads/s", target: 0.80 },
    needs_node: true,
    has_rival: true,
    about: "random 4 KiB reads through shared memory against fio io_uring O_DIRECT",
    set_up: |setup| set_up(setup, 4096, 32, |operations, _| operations),
};

/// Makes a score of operations and bytes a second.
type Score = fn(f64, f64) -> f64;

struct Local {
    ours: Ours,
    fio: Fio,
    file: PathBuf,
    shape: Shape,
    tuning: Tuning,
    score: Score,
}

fn set_up(setup: &Setup, block_bytes: u64, depth: usize, score: Score) -> Result<Contest, Setback> {
    let fio = Fio::find()?;
    let file = setup.data_file()?;
    let depth = setup.depth.unwrap_or(depth);
    let shape = Shape { block_bytes, depth, seconds: setup.seconds };
    let source = Source::File(&file);
    let tuning = Tuning::default();
    let tuning = fio.tune(Job { source, block_bytes, depth, tuning, seconds: setup.seconds })?;
    let ours = Ours::prepare(setup, shape)?;
    Ok(Contest::Duel(Box::new(Local { ours, fio, file, shape, tuning, score })))
}

impl Duel for Local {
    fn ours(&mut self) -> Result<f64> {
        let report = self.ours.shared_memory()?;
        Ok((self.score)(report.operations_per_second, report.bytes_per_second))
    }

    fn rival(&mut self) -> Result<f64> {
        let Shape { block_bytes, depth, seconds } = self.shape;
        let source = Source::File(&self.file);
        let reads =
            self.fio.read(Job { source, block_bytes, depth, tuning: self.tuning, seconds })?;
        Ok((self.score)(reads.operations_per_second, reads.bytes_per_second))
    }

    fn rival_name(&self) -> String {
        format!("fio io_uring O_DIRECT depth {}, {}", self.shape.depth, self.tuning)
    }
}
