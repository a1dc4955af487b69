//! Reads straight on an NVMe namespace against fio on the same one. A namespace is a matter of luck
//! on most machines, so the lab lends one.

use std::path::PathBuf;

use extent::Result;
use nvme_tier::device::Driver;

use super::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::raw::Load;
use crate::rivals::fio::{Fio, Job, Source, Tuning};
use crate::setup::Setup;
use crate::verdict::Setback;

const BLOCK_BYTES: usize = 4096;
const DEPTH: usize = 32;
/// Both sides submit from this processor alone.
const CORE: usize = 1;

/// Our passthrough queue.
pub(super) const PASSTHROUGH: Case = Case {
    terms: Terms { case: "passthru-read-4k", unit: "reads/s", target: 1.0 },
    about: "random 4 KiB reads by NVMe passthrough against fio io_uring_cmd, one core each",
    set_up: set_up_passthrough,
};

fn set_up_passthrough(setup: &Setup) -> Result<Contest, Setback> {
    let Some(namespace) = namespaces().into_iter().next() else {
        return Err(Setback::Skipped(needs_lab(PASSTHROUGH.terms.case)));
    };
    Rivalry::set_up(setup, &namespace, namespace.clone(), Driver::Passthrough)
}

/// What to say where there is no namespace.
fn needs_lab(case: &str) -> String {
    format!(
        "needs an NVMe namespace: run it in the lab, ci/lab/run --nvme backing=null,size=2G -- \
         target/release/compare {case}"
    )
}

/// The namespaces that the kernel's driver has, by their character devices.
fn namespaces() -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir("/dev")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("ng") && name.ends_with("n1")
        })
        .collect();
    found.sort();
    found
}

/// Our queue on a device against fio on a namespace that is like it.
struct Rivalry {
    load: Load,
    fio: Fio,
    namespace: PathBuf,
    tuning: Tuning,
}

impl Rivalry {
    fn set_up(
        setup: &Setup,
        namespace: &std::path::Path,
        ours: PathBuf,
        driver: Driver,
    ) -> Result<Contest, Setback> {
        let fio = Fio::find()?;
        let depth = setup.depth.unwrap_or(DEPTH);
        let load = Load {
            path: ours,
            driver,
            block_bytes: BLOCK_BYTES,
            depth,
            batch: 1,
            seconds: setup.seconds,
            core: Some(CORE),
        };
        let mut rivalry =
            Self { load, fio, namespace: namespace.to_owned(), tuning: Tuning::default() };
        rivalry.load.tune()?;
        rivalry.tuning = rivalry.fio.tune(rivalry.job())?;
        Ok(Contest::Duel(Box::new(rivalry)))
    }

    fn job(&self) -> Job<'_> {
        Job {
            source: Source::Namespace(&self.namespace, CORE),
            block_bytes: BLOCK_BYTES as u64,
            depth: self.load.depth,
            tuning: self.tuning,
            seconds: self.load.seconds,
        }
    }
}

impl Duel for Rivalry {
    fn ours(&mut self) -> Result<f64> {
        self.load.run()
    }

    fn rival(&mut self) -> Result<f64> {
        Ok(self.fio.read(self.job())?.operations_per_second)
    }

    fn rival_name(&self) -> String {
        let Load { depth, batch, .. } = self.load;
        format!("(batch {batch}), fio io_uring_cmd depth {depth}, {}", self.tuning)
    }
}
