//! Small reads over TCP against the faster of the NBD servers.

use std::path::{Path, PathBuf};

use extent::Result;

use super::read::{Ours, Shape};
use super::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::rivals::fio::{Fio, Job, Source, Tuning};
use crate::rivals::nbd::Server;
use crate::setup::Setup;
use crate::verdict::Setback;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "tcp-read-4k-nbd", unit: "reads/s", target: 1.5 },
    needs_node: true,
    has_rival: true,
    about: "random 4 KiB reads over TCP against the fastest of nbdkit and qemu-nbd",
    set_up,
};

const BLOCK_BYTES: u64 = 4096;
const DEPTH: usize = 32;
const PROBE_SECONDS: u64 = 2;

struct Nbd {
    ours: Ours,
    fio: Fio,
    server: Server,
    program: PathBuf,
    file: PathBuf,
    directory: PathBuf,
    shape: Shape,
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    let fio = Fio::find()?;
    let mut servers = Vec::new();
    for server in Server::ALL {
        servers.push((server, server.find()?));
    }
    let file = setup.data_file()?;
    let depth = setup.depth.unwrap_or(DEPTH);
    let shape = Shape { block_bytes: BLOCK_BYTES, depth, seconds: setup.seconds };
    let probe = Shape { seconds: PROBE_SECONDS, ..shape };
    let mut best: Option<(f64, Server, PathBuf)> = None;
    for (server, program) in servers {
        // Some kernels and builds lack one of the ways; the others still count.
        let Ok(score) = read(&fio, server, &program, &file, &setup.directory, probe) else {
            continue;
        };
        if best.as_ref().is_none_or(|(most, ..)| score > *most) {
            best = Some((score, server, program));
        }
    }
    let Some((_, server, program)) = best else {
        return Err(Setback::Skipped(
            "no NBD server works here, or fio was built without its nbd engine".to_owned(),
        ));
    };
    let ours = Ours::prepare(setup, shape)?;
    let directory = setup.directory.clone();
    let nbd = Nbd { ours, fio, server, program, file, directory, shape };
    Ok(Contest::Duel(Box::new(nbd)))
}

fn read(
    fio: &Fio,
    server: Server,
    program: &Path,
    file: &Path,
    directory: &Path,
    shape: Shape,
) -> Result<f64> {
    crate::files::make_cold(file)?;
    let export = server.serve(program, file, directory)?;
    let source = Source::Nbd(&export.uri);
    let Shape { block_bytes, depth, seconds } = shape;
    Ok(fio
        .read(Job { source, block_bytes, depth, tuning: Tuning::default(), seconds })?
        .operations_per_second)
}

impl Duel for Nbd {
    fn ours(&mut self) -> Result<f64> {
        Ok(self.ours.tcp()?.operations_per_second)
    }

    fn rival(&mut self) -> Result<f64> {
        let (program, file) = (&self.program, &self.file);
        read(&self.fio, self.server, program, file, &self.directory, self.shape)
    }

    fn rival_name(&self) -> String {
        format!("fio nbd depth {} on {}", self.shape.depth, self.server.name())
    }
}
