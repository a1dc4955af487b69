//! What a tier's index and checksums cost beside its device.

use extent::Result;
use nvme_tier::device::Driver;

use super::nvme::{CORE, DEPTH, controllers, needs_lab};
use super::{Case, Contest};
use crate::pairs::{Duel, Terms};
use crate::setup::Setup;
use crate::stream::best_batch;
use crate::tier::filled::Filled;
use crate::tier::reads::{self, Way};
use crate::verdict::Setback;

/// Reads as a shard makes them.
pub(super) const VERIFIED: Case = Case {
    terms: Terms { case: "tier-vs-raw", unit: "reads/s", target: 0.85 },
    needs_node: false,
    has_rival: true,
    about: "random 4 KiB reads of a tier, looked up, held and verified, against the same blocks by a bare queue of our NVMe driver (stretch 0.95)",
    set_up: |setup| set_up(setup, &VERIFIED, true),
};

/// The same without the checksum.
pub(super) const UNVERIFIED: Case = Case {
    terms: Terms { case: "tier-vs-raw-unverified", unit: "reads/s", target: 0.95 },
    needs_node: false,
    has_rival: true,
    about: "the same with nothing verified: what looking up and holding costs",
    set_up: |setup| set_up(setup, &UNVERIFIED, false),
};

/// Both sides on one controller, one after the other.
struct Checked {
    filled: Filled,
    ours: reads::Terms,
    raw: reads::Terms,
}

fn set_up(setup: &Setup, case: &Case, verified: bool) -> Result<Contest, Setback> {
    let Some(path) = controllers()?.pop() else {
        return Err(Setback::Skipped(needs_lab(case, "size=2G,driver=vfio", "")));
    };
    let filled = Filled::make(&path, Driver::Vfio)?;
    let tuned = |way| -> Result<reads::Terms> {
        let depth = setup.depth.unwrap_or(DEPTH);
        let terms = reads::Terms { way, depth, batch: 1, seconds: setup.seconds, core: CORE };
        let batch = best_batch(depth, |batch, seconds| {
            filled.read(reads::Terms { batch, seconds, ..terms })
        })?;
        Ok(reads::Terms { batch, ..terms })
    };
    let (ours, raw) = (tuned(Way::Tier { verified })?, tuned(Way::Raw)?);
    Ok(Contest::Duel(Box::new(Checked { filled, ours, raw })))
}

impl Duel for Checked {
    fn ours(&mut self) -> Result<f64> {
        self.filled.read(self.ours)
    }

    fn rival(&mut self) -> Result<f64> {
        self.filled.read(self.raw)
    }

    fn rival_name(&self) -> String {
        format!("(batch {}), bare queue, batch {}", self.ours.batch, self.raw.batch)
    }
}
