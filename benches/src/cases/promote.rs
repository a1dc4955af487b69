//! Bringing a directory near, durably, against copying it.

use std::path::{Path, PathBuf};

use extent::{Kind, Result};

use super::{Case, Contest};
use crate::node::{Node, Place, Plan};
use crate::pairs::{Duel, Terms};
use crate::rivals::copy::Copy;
use crate::setup::{Setup, make_directory};
use crate::verdict::Setback;
use crate::{clock, files};

pub(super) const CASE: Case = Case {
    terms: Terms { case: "promote-dir", unit: "MB/s", target: 0.8 },
    needs_node: true,
    has_rival: true,
    about: "a durable promote of a cold directory against cp -r and sync -f",
    set_up,
};

struct Promote {
    node: Option<Node>,
    copy: Copy,
    tree: PathBuf,
    bytes: u64,
    target: PathBuf,
    runs: usize,
}

fn set_up(setup: &Setup) -> Result<Contest, Setback> {
    let copy = Copy::find()?;
    let tree = match &setup.tree {
        Some(tree) => tree.clone(),
        None => generate(setup)?,
    };
    let (found, bytes) = files::list(&tree)?;
    if found.is_empty() || bytes == 0 {
        let tree = tree.display();
        return Err(Kind::Invalid.error(format!("there is nothing to promote in {tree}")).into());
    }
    let node = match &setup.forebay {
        None => None,
        Some(_) => Some(start(setup, &tree, found.len(), bytes)?),
    };
    let target = setup.directory.join("copy");
    Ok(Contest::Duel(Box::new(Promote { node, copy, tree, bytes, target, runs: 0 })))
}

fn generate(setup: &Setup) -> Result<PathBuf> {
    let tree = setup.directory.join("tree");
    make_directory(&tree)?;
    files::write_tree(&tree, setup.size_bytes, 3)?;
    Ok(tree)
}

/// The tree is a silo under as many names as there are runs: a node that has seen a file once
/// keeps what it knows of it, and would have less to do the next time.
fn start(setup: &Setup, tree: &Path, count: usize, bytes: u64) -> Result<Node> {
    let silos = (0..setup.pairs).map(|run| (silo(run), tree.to_owned())).collect();
    // A small file takes a whole smallest slot.
    let data_bytes = bytes * 2 + count as u64 * (64 << 10);
    let plan = Plan { silos, data_bytes, shards: setup.shards, ..Plan::default() };
    let place = Place::new(setup, &plan)?;
    place.start()
}

fn silo(run: usize) -> String {
    format!("tree{run}")
}

impl Duel for Promote {
    fn ours(&mut self) -> Result<f64> {
        let Some(node) = &self.node else {
            return Err(Kind::Invalid.error("only rivals run"));
        };
        let prefix = format!("{}/", silo(self.runs));
        self.runs += 1;
        files::make_cold(&self.tree)?;
        let begin = clock::now();
        node.promote(&prefix)?;
        let seconds = begin.elapsed().as_secs_f64();
        node.release(&prefix)?;
        Ok(rate(self.bytes, seconds))
    }

    fn rival(&mut self) -> Result<f64> {
        files::make_cold(&self.tree)?;
        let seconds = self.copy.copy(&self.tree, &self.target)?;
        Ok(rate(self.bytes, seconds))
    }

    fn rival_name(&self) -> String {
        "cp -r and sync -f".to_owned()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e6
}
