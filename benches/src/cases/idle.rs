//! Processor time of a node that has nothing to do.

use std::path::Path;
use std::thread;
use std::time::Duration;

use client::Client;
use extent::Result;

use super::{Case, Contest};
use crate::node::{Node, Place, Plan};
use crate::pairs::{Measure, Terms};
use crate::setup::Setup;
use crate::verdict::Setback;
use crate::{clock, files, sys};

pub(super) const CASE: Case = Case {
    terms: Terms { case: "idle-cpu", unit: "cores", target: 1.0 },
    needs_node: true,
    has_rival: false,
    about: "processor time of a node that has promoted and served, and now idles with two clients: at most 0.01 of a core",
    set_up,
};

const LIMIT_CORES: f64 = 0.01;
/// Promoted, and read over both fabrics, before it is left alone.
const WORK_BYTES: u64 = 64 << 20;
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
    files::write_tree(&silo, WORK_BYTES, 1)?;
    let silos = vec![("data".to_owned(), silo.clone())];
    let plan = Plan { silos, data_bytes: 4 * WORK_BYTES, shards: setup.shards, ..Plan::default() };
    let place = Place::new(setup, &plan)?;
    let node = place.start()?;
    let clients = [node.client(&node.shared_memory())?, node.client(&node.tcp())?];
    work(&node, &silo, &clients)?;
    thread::sleep(SETTLED_AFTER);
    #[expect(clippy::cast_precision_loss, reason = "some hundred ticks")]
    let least = 1.0 / sys::ticks_per_second() as f64 / WATCHED.as_secs_f64();
    let measure = Box::new(Idle { node, _clients: clients });
    Ok(Contest::Limit { measure, limit: LIMIT_CORES, least })
}

/// Has the node do everything that it might then not come to rest from.
fn work(node: &Node, silo: &Path, clients: &[Client]) -> Result<()> {
    node.promote("data/")?;
    let (paths, _) = files::list(silo)?;
    for client in clients {
        for path in &paths {
            let key = path.strip_prefix(silo).unwrap_or(path).display();
            let file = client.open(&format!("data/{key}").parse()?)?;
            let mut bytes = vec![0; usize::try_from(file.len()).unwrap_or(usize::MAX)];
            file.read_into(0, &mut bytes)?;
        }
    }
    Ok(())
}

impl Measure for Idle {
    fn measure(&mut self) -> Result<f64> {
        let (begin, before) = (clock::now(), self.node.cpu_seconds()?);
        thread::sleep(WATCHED);
        Ok((self.node.cpu_seconds()? - before) / begin.elapsed().as_secs_f64())
    }
}
