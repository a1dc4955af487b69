//! Large reads over TCP against what the device and one stream can do.

use std::path::PathBuf;

use extent::Result;

use super::read::{Ours, Shape};
use super::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::rivals::fio::{Fio, Job, Source, Tuning};
use crate::rivals::iperf::Iperf;
use crate::setup::Setup;
use crate::verdict::Setback;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "tcp-read-1m", unit: "MB/s", target: 0.70 },
    needs_node: true,
    has_rival: true,
    about: "random 1 MiB reads over TCP against the lesser of fio on the file and iperf3",
    set_up,
};

const BLOCK_BYTES: u64 = 1 << 20;
const DEPTH: usize = 16;

struct Tcp {
    ours: Ours,
    fio: Fio,
    iperf: Iperf,
    directory: PathBuf,
    file: PathBuf,
    shape: Shape,
    tuning: Tuning,
    /// Which was the lesser, last.
    limited_by: &'static str,
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    let (fio, iperf) = (Fio::find()?, Iperf::find()?);
    let file = setup.data_file()?;
    let depth = setup.depth.unwrap_or(DEPTH);
    let shape = Shape { block_bytes: BLOCK_BYTES, depth, seconds: setup.seconds };
    let source = Source::File(&file);
    let tuning = Tuning::default();
    let job = Job { source, block_bytes: BLOCK_BYTES, depth, tuning, seconds: setup.seconds };
    let tuning = fio.tune(job)?;
    let ours = Ours::prepare(setup, shape)?;
    let directory = setup.directory.clone();
    let limited_by = "";
    let tcp = Tcp { ours, fio, iperf, directory, file, shape, tuning, limited_by };
    Ok(Contest::Duel(Box::new(tcp)))
}

impl Duel for Tcp {
    fn ours(&mut self) -> Result<f64> {
        Ok(self.ours.tcp()?.bytes_per_second / 1e6)
    }

    fn rival(&mut self) -> Result<f64> {
        let Shape { block_bytes, depth, seconds } = self.shape;
        let source = Source::File(&self.file);
        let tuning = self.tuning;
        let reads = self.fio.read(Job { source, block_bytes, depth, tuning, seconds })?;
        let stream = self.iperf.stream(&self.directory, seconds)?;
        self.limited_by = if reads.bytes_per_second <= stream { "fio" } else { "iperf3" };
        Ok(reads.bytes_per_second.min(stream) / 1e6)
    }

    fn rival_name(&self) -> String {
        format!(
            "min(fio io_uring O_DIRECT depth {}, iperf3 one stream), which was {}",
            self.shape.depth, self.limited_by
        )
    }
}
