//! Reads straight on an NVMe namespace against fio on the same one. A namespace is a matter of luck
//! on most machines, so the lab lends one.

use std::path::PathBuf;

use extent::Result;
use nvme_tier::device::{Driver, NvmeFunction};

use super::{Case, Contest};
use crate::pairs::{Duel, Measure, Terms};
use crate::raw::Load;
use crate::rivals::fio::{Fio, Job, Source, Tuning};
use crate::setup::Setup;
use crate::verdict::Setback;

const BLOCK_BYTES: usize = 4096;
pub(super) const DEPTH: usize = 32;
/// Both sides submit from this processor alone.
pub(super) const CORE: usize = 1;

/// Our passthrough queue.
pub(super) const PASSTHROUGH: Case = Case {
    terms: Terms { case: "passthru-read-4k", unit: "reads/s", target: 1.0 },
    needs_node: false,
    has_rival: true,
    about: "random 4 KiB reads by NVMe passthrough against fio's best on the same namespace, one core each",
    set_up: set_up_passthrough,
};

/// Our driver, on a controller that costs nothing.
pub(super) const VFIO: Case = Case {
    terms: Terms { case: "vfio-read-4k", unit: "reads/s", target: 3.0 },
    needs_node: false,
    has_rival: true,
    about: "random 4 KiB reads by our own NVMe driver against fio's best on an equal controller of the kernel's (stretch 4)",
    set_up: |setup| set_up_vfio(setup, &VFIO, false),
};

/// The same on a controller that keeps its data, which is compared.
pub(super) const VFIO_VERIFIED: Case = Case {
    terms: Terms { case: "vfio-read-4k-file", unit: "reads/s", target: 1.5 },
    needs_node: false,
    has_rival: true,
    about: "the same on controllers that keep data, and every block that we read is compared (stretch 1.8)",
    set_up: |setup| set_up_vfio(setup, &VFIO_VERIFIED, true),
};

/// How seldom our driver rings.
pub(super) const DOORBELLS: Case = Case {
    terms: Terms { case: "vfio-doorbells", unit: "doorbells/read", target: 1.0 },
    needs_node: false,
    has_rival: false,
    about: "submission doorbells a read at depth 32: at most 1/8 (stretch 1/24)",
    set_up: set_up_doorbells,
};

const MOST_DOORBELLS: f64 = 1.0 / 8.0;

fn set_up_passthrough(setup: &Setup) -> Result<Contest, Setback> {
    let Some(namespace) = namespaces().into_iter().next() else {
        return Err(Setback::Skipped(needs_lab(&PASSTHROUGH, "backing=null,size=2G", "")));
    };
    Rivalry::set_up(&namespace, load(setup, namespace.clone(), Driver::Passthrough))
}

fn set_up_vfio(setup: &Setup, case: &Case, verified: bool) -> Result<Contest, Setback> {
    let (Some(namespace), Some(ours)) = (namespaces().into_iter().next(), controllers()?.pop())
    else {
        let controller = if verified { "size=2G" } else { "backing=null,size=2G" };
        return Err(Setback::Skipped(needs_lab(case, controller, ",driver=vfio")));
    };
    let load = Load { verified, ..load(setup, ours, Driver::Vfio) };
    Rivalry::set_up(&namespace, load)
}

fn set_up_doorbells(setup: &Setup) -> Result<Contest, Setback> {
    let Some(ours) = controllers()?.pop() else {
        return Err(Setback::Skipped(needs_lab(
            &DOORBELLS,
            "backing=null,size=2G",
            ",driver=vfio",
        )));
    };
    let mut load = load(setup, ours, Driver::Vfio);
    load.tune()?;
    let measure = Box::new(Doorbells { load });
    Ok(Contest::Limit { measure, limit: MOST_DOORBELLS, least: 0.0 })
}

fn load(setup: &Setup, path: PathBuf, driver: Driver) -> Load {
    Load {
        path,
        driver,
        block_bytes: BLOCK_BYTES,
        depth: setup.depth.unwrap_or(DEPTH),
        batch: 1,
        seconds: setup.seconds,
        core: Some(CORE),
        verified: false,
    }
}

/// What to say where there is no namespace, or no controller of ours beside it.
pub(super) fn needs_lab(case: &Case, controller: &str, ours: &str) -> String {
    let case = case.terms.case;
    let second =
        if ours.is_empty() { String::new() } else { format!(" --nvme {controller}{ours}") };
    format!(
        "needs NVMe controllers: run it in the lab, ci/lab/run --timeout 900 --huge-pages 64 --nvme \
         {controller}{second} -- target/release/compare {case}"
    )
}

/// The controllers that are ours to drive, by their PCI addresses.
pub(super) fn controllers() -> Result<Vec<PathBuf>> {
    let all = NvmeFunction::all()?.into_iter();
    let ours = all.filter(|function| function.driver.as_deref() == Some("vfio-pci"));
    Ok(ours.map(|function| function.address.to_string().into()).collect())
}

struct Doorbells {
    load: Load,
}

impl Measure for Doorbells {
    fn measure(&mut self) -> Result<f64> {
        Ok(self.load.run()?.doorbells_per_read)
    }
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
    fn set_up(namespace: &std::path::Path, load: Load) -> Result<Contest, Setback> {
        let fio = Fio::find()?;
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
        Ok(self.load.run()?.reads_per_second)
    }

    fn rival(&mut self) -> Result<f64> {
        Ok(self.fio.read(self.job())?.operations_per_second)
    }

    fn rival_name(&self) -> String {
        let Load { depth, batch, .. } = self.load;
        format!("(batch {batch}), fio depth {depth}, {}", self.tuning)
    }
}
