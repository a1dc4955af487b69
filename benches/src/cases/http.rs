//! Large reads over TCP against nginx.

use std::time::Duration;

use extent::{Kind, Result};

use super::read::{Ours, Shape};
use super::{Case, Contest};
use crate::http::{Ranges, read_ranges};
use crate::pairs::{Duel, Terms};
use crate::rivals::nginx::{self, Nginx};
use crate::setup::Setup;
use crate::verdict::Setback;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "tcp-read-1m-http", unit: "MB/s", target: 1.2 },
    needs_node: true,
    has_rival: true,
    about: "random 1 MiB reads over TCP against ranges from nginx with direct I/O and threads",
    set_up,
};

const BLOCK_BYTES: u64 = 1 << 20;
const DEPTH: usize = 16;
const PROBE_TIME: Duration = Duration::from_secs(2);
/// nginx answers a connection's requests one after the other, so that more connections read more
/// at a time, and fewer cost less: all are tried.
const PIPELINES: [usize; 3] = [1, 2, 4];

struct Http {
    ours: Ours,
    _nginx: Nginx,
    ranges: Ranges,
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    let program = nginx::find()?;
    let file = setup.data_file()?;
    if !setup.size_bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(Kind::Invalid.error("the size must be a multiple of 1 MiB here").into());
    }
    let depth = setup.depth.unwrap_or(DEPTH);
    let shape = Shape { block_bytes: BLOCK_BYTES, depth, seconds: setup.seconds };
    let root = file.parent().unwrap_or(&setup.directory);
    let nginx = Nginx::serve(&program, root, &setup.directory, BLOCK_BYTES)?;
    let mut best = (0.0, 1);
    for pipeline in PIPELINES.into_iter().filter(|pipeline| depth.is_multiple_of(*pipeline)) {
        let probe = ranges(&nginx, setup, depth, pipeline, PROBE_TIME);
        let score = read_ranges(&probe)?;
        if score > best.0 {
            best = (score, pipeline);
        }
    }
    let time = Duration::from_secs(setup.seconds);
    let ranges = ranges(&nginx, setup, depth, best.1, time);
    let ours = Ours::prepare(setup, shape)?;
    Ok(Contest::Duel(Box::new(Http { ours, _nginx: nginx, ranges })))
}

fn ranges(nginx: &Nginx, setup: &Setup, depth: usize, pipeline: usize, time: Duration) -> Ranges {
    Ranges {
        address: nginx.address,
        path: format!("/{}", Setup::DATA_KEY),
        file_bytes: setup.size_bytes,
        block_bytes: BLOCK_BYTES,
        connections: depth / pipeline,
        pipeline,
        time,
    }
}

impl Duel for Http {
    fn ours(&mut self) -> Result<f64> {
        Ok(self.ours.tcp()?.bytes_per_second / 1e6)
    }

    fn rival(&mut self) -> Result<f64> {
        Ok(read_ranges(&self.ranges)? / 1e6)
    }

    fn rival_name(&self) -> String {
        format!(
            "nginx directio aio threads, {} connections with {} requests each",
            self.ranges.connections, self.ranges.pipeline
        )
    }
}
