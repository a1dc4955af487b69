//! Starts with ten million extents: how fast their descriptions are read, and what they cost in
//! memory. Each start is a process of its own.

use extent::{Kind, Result};

use super::{Case, Contest};
use crate::files;
use crate::pairs::{Duel, Measure, Terms};
use crate::process;
use crate::rivals::fio::{Fio, Strides};
use crate::setup::Setup;
use crate::tier::content::{Content, EXTENT_BYTES, Sizes};
use crate::tier::image::{Image, Scratch};
use crate::tier::start::Start;
use crate::verdict::Setback;

pub(super) const SPEED: Case = Case {
    terms: Terms { case: "recovery-10m", unit: "MB/s", target: 0.7 },
    needs_node: false,
    has_rival: true,
    about: "recovering 10 million extents against fio reading the same tables in order (stretch \
            0.95)",
    set_up: set_up_speed,
};

pub(super) const MEMORY: Case = Case {
    terms: Terms { case: "memory-per-extent", unit: "bytes", target: 1.0 },
    needs_node: false,
    has_rival: false,
    about: "memory of each of 10 million extents besides checksums: at most 200 bytes (stretch 96)",
    set_up: set_up_memory,
};

const EXTENTS: u64 = 10_000_000;
const LIMIT_BYTES: f64 = 200.0;

struct Recovery {
    image: Scratch,
    program: std::path::PathBuf,
}

struct Speed {
    recovery: Recovery,
    fio: Fio,
    strides: Strides,
}

fn set_up(setup: &Setup) -> Result<Recovery, Setback> {
    let content = Content { extents: EXTENTS, sizes: Sizes::Mixed, extent_bytes: EXTENT_BYTES };
    let image = Scratch(Image::make(&setup.directory.join("tier"), content)?);
    let program = process::beside("tier-scale")?;
    Ok(Recovery { image, program })
}

fn set_up_speed(setup: &Setup) -> Result<Contest, Setback> {
    let fio = Fio::find()?;
    let recovery = set_up(setup)?;
    let [_, descriptors] = recovery.image.0.spans();
    let strides = fio.tune_strides(recovery.image.0.path(), descriptors)?;
    Ok(Contest::Duel(Box::new(Speed { recovery, fio, strides })))
}

fn set_up_memory(setup: &Setup) -> Result<Contest, Setback> {
    let measure = Box::new(set_up(setup)?);
    Ok(Contest::Limit { measure, limit: LIMIT_BYTES, least: 1.0 })
}

impl Recovery {
    fn run(&self) -> Result<Start> {
        let path = self.image.0.path();
        files::make_cold(path)?;
        let extents = EXTENTS.to_string();
        let file = path.to_string_lossy();
        let arguments = ["recover", &file, "--extents", &extents, "--json"];
        let output = process::run(&mut process::command(&self.program, arguments))?;
        serde_json::from_str(&output)
            .map_err(|e| Kind::Corrupt.error("tier-scale printed no JSON").caused_by(e))
    }
}

impl Duel for Speed {
    fn ours(&mut self) -> Result<f64> {
        Ok(self.recovery.run()?.bytes_per_second() / 1e6)
    }

    fn rival(&mut self) -> Result<f64> {
        files::make_cold(self.recovery.image.0.path())?;
        let reads = self.fio.read_strides(self.recovery.image.0.path(), self.strides)?;
        Ok(reads.bytes_per_second / 1e6)
    }

    fn rival_name(&self) -> String {
        format!("fio sequential io_uring O_DIRECT, {}", self.strides)
    }
}

impl Measure for Recovery {
    fn measure(&mut self) -> Result<f64> {
        Ok(self.run()?.bytes_per_extent())
    }
}
