//! How long a node with many extents takes to come up.

use std::sync::Arc;

use extent::{FileName, Kind, Result};

use super::{Case, Contest};
use crate::files;
use crate::node::{Node, Place, Plan};
use crate::pairs::{Measure, Terms};
use crate::setup::{Setup, make_directory};
use crate::verdict::Setback;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "start", unit: "s", target: 1.0 },
    needs_node: true,
    has_rival: false,
    about: "from starting the program to serving, with 100,000 resident extents: at most 1 s",
    set_up,
};

const LIMIT_SECONDS: f64 = 1.0;
const FILES: u64 = 100;
const EXTENTS: u64 = 100_000;
/// The smallest, so that many extents take little room.
const EXTENT_BYTES: u64 = 64 << 10;

struct Start {
    place: Arc<Place>,
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    let silo = setup.directory.join("many");
    make_directory(&silo)?;
    for index in 0..FILES {
        files::write_sparse(&silo.join(key(index)), EXTENTS / FILES * EXTENT_BYTES)?;
    }
    let plan = Plan {
        silos: vec![("many".to_owned(), silo)],
        data_bytes: EXTENTS * EXTENT_BYTES,
        extent_bytes: Some(EXTENT_BYTES),
        shards: setup.shards,
        ..Plan::default()
    };
    let place = Place::new(setup, &plan)?;
    let node = place.start()?;
    node.promote("many/")?;
    check(&node)?;
    node.stop()?;
    Ok(Contest::Limit { measure: Box::new(Start { place }), limit: LIMIT_SECONDS, least: 0.001 })
}

fn key(index: u64) -> String {
    format!("{index:03}")
}

/// Whether all the extents are there: a node that forgot them comes up fast.
fn check(node: &Node) -> Result<()> {
    let client = node.client(&node.shared_memory())?;
    let mut resident = 0;
    for index in 0..FILES {
        let file = client.open(&FileName::new("many", key(index))?)?;
        resident += u64::from(file.opened().resident_extents);
    }
    if resident < EXTENTS {
        return Err(Kind::NotResident
            .error(format!("only {resident} of {EXTENTS} extents are on the node")));
    }
    Ok(())
}

impl Measure for Start {
    fn measure(&mut self) -> Result<f64> {
        self.place.make_cold()?;
        let node = self.place.start()?;
        let seconds = node.started_in.as_secs_f64();
        check(&node)?;
        node.stop()?;
        Ok(seconds)
    }
}
