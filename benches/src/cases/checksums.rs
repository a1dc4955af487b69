//! What it costs that the checksums of an extent are not in memory: the same node and the same reads,
//! with memory for the checksums of 1 GiB at most, and for all.

use std::sync::Arc;
use std::time::Duration;

use client::load::{self, Load, Stop};
use extent::{Kind, Result};

use super::{Case, Contest};
use crate::files;
use crate::node::{Node, Place, Plan};
use crate::pairs::{Duel, Terms};
use crate::setup::Setup;
use crate::verdict::Setback;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "checksum-miss", unit: "reads/s", target: 0.4 },
    needs_node: true,
    has_rival: true,
    about: "random 4 KiB reads whose checksums are mostly read, too, against the same with all of \
            them in memory: at most 1 MiB of memory, so give it --size 8GiB",
    set_up,
};

const LITTLE: &str = "1MiB";
const FILE: &str = "data/large";
const WARMUP: Duration = Duration::from_secs(1);

struct Misses {
    place: Arc<Place>,
    plan: Plan,
    depth: usize,
    seconds: u64,
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    let silo = setup.silo();
    crate::setup::make_directory(&silo)?;
    files::write_sparse(&silo.join("large"), setup.size_bytes)?;
    let plan = Plan {
        silos: vec![("data".to_owned(), silo)],
        data_bytes: setup.size_bytes,
        shards: setup.shards,
        ..Plan::default()
    };
    let place = Place::new(setup, &plan)?;
    let node = place.start()?;
    node.promote(FILE)?;
    node.stop()?;
    place.make_cold()?;
    let depth = setup.depth.unwrap_or(32);
    Ok(Contest::Duel(Box::new(Misses { place, plan, depth, seconds: setup.seconds })))
}

impl Misses {
    fn read(&mut self, memory: &str) -> Result<f64> {
        self.plan.checksum_memory = Some(memory.to_owned());
        self.place.configure(&self.plan)?;
        let node = self.place.start()?;
        let load = Load {
            files: vec![FILE.parse()?],
            block_bytes: 4096,
            depth: self.depth,
            stop: Stop::After(Duration::from_secs(self.seconds)),
            warmup: WARMUP,
            ..Load::default()
        };
        let report = load::run(&node.shared_memory(), &load)?;
        let share = hits(&node)?;
        node.stop()?;
        if let Some(error) = &report.first_error {
            return Err(
                Kind::Io.error(format!("{} reads failed, the first: {error}", report.errors))
            );
        }
        if (share > 0.5) != (memory == "all") {
            return Err(Kind::Invalid.error(format!(
                "with {memory} for checksums {:.0} % of the reads found theirs: say --size 8GiB",
                share * 100.0
            )));
        }
        Ok(report.operations_per_second)
    }
}

/// The share of pieces read whose checksums were in memory.
fn hits(node: &Node) -> Result<f64> {
    let text = node.tool(&["status", "--json"])?;
    let status: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Kind::Corrupt.error("forebay status printed no JSON").caused_by(e))?;
    let number = |name: &str| status[name].as_f64().unwrap_or(0.0);
    let (hits, misses) = (number("checksum_hits"), number("checksum_misses"));
    Ok(hits / (hits + misses).max(1.0))
}

impl Duel for Misses {
    fn ours(&mut self) -> Result<f64> {
        self.read(LITTLE)
    }

    fn rival(&mut self) -> Result<f64> {
        self.read("all")
    }

    fn rival_name(&self) -> String {
        "the same node with checksum_memory = \"all\"".to_owned()
    }
}
