//! Processor time of a node that has nothing to do.

use std::thread;
use std::time::Duration;

use client::Client;
use extent::Result;

use super::{Case, Contest};
use crate::node::{Node, Place, Plan};
use crate::pairs::{Measure, Terms};
use crate::setup::Setup;
use crate::verdict::Setback;
use crate::{clock, sys};

pub(super) const CASE: Case = Case {
    terms: Terms { case: "idle-cpu", unit: "cores", target: 1.0 },
    about: "processor time of an idle node with two clients connected: at most 0.01 of a core",
    set_up,
};

const LIMIT_CORES: f64 = 0.01;
const WATCHED: Duration = Duration::from_secs(10);
/// What start-up and the last requests left to do is done by then.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

struct Idle {
    node: Node,
    _clients: [Client; 2],
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    let silo = setup.silo();
    crate::setup::make_directory(&silo)?;
    let plan =
        Plan { silos: vec![("data".to_owned(), silo)], shards: setup.shards, ..Plan::default() };
    let place = Place::new(setup, &plan)?;
    let node = place.start()?;
    let clients = [node.client(&node.shared_memory())?, node.client(&node.tcp())?];
    thread::sleep(SETTLED_AFTER);
    #[expect(clippy::cast_precision_loss, reason = "some hundred ticks")]
    let least = 1.0 / sys::ticks_per_second() as f64 / WATCHED.as_secs_f64();
    let measure = Box::new(Idle { node, _clients: clients });
    Ok(Contest::Limit { measure, limit: LIMIT_CORES, least })
}

impl Measure for Idle {
    fn measure(&mut self) -> Result<f64> {
        let (begin, before) = (clock::now(), self.node.cpu_seconds()?);
        thread::sleep(WATCHED);
        Ok((self.node.cpu_seconds()? - before) / begin.elapsed().as_secs_f64())
    }
}
