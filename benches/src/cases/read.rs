//! What the reading cases share: our side.

use std::time::Duration;

use client::Endpoint;
use client::load::{self, Load, Stop};
use extent::{Kind, Result};

use crate::node::{Node, Place, Plan};
use crate::setup::Setup;

/// The same for every run: caches, clocks and TCP's window have settled by then.
const WARMUP: Duration = Duration::from_secs(1);
const SILO: &str = "data";

/// Random reads of one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) block_bytes: u64,
    pub(super) depth: usize,
    pub(super) seconds: u64,
}

/// A node that holds the data file; `None` when only rivals run.
pub(super) struct Ours {
    node: Option<Node>,
    shape: Shape,
}

impl Ours {
    /// Starts a node and brings the data file onto it.
    pub(super) fn prepare(setup: &Setup, shape: Shape) -> Result<Self> {
        if setup.forebay.is_none() {
            return Ok(Self { node: None, shape });
        }
        let plan = Plan {
            silos: vec![(SILO.to_owned(), setup.silo())],
            data_bytes: setup.size_bytes,
            shards: setup.shards,
            ..Plan::default()
        };
        let place = Place::new(setup, &plan)?;
        let node = place.start()?;
        node.promote(&Self::file_name())?;
        place.make_cold()?;
        Ok(Self { node: Some(node), shape })
    }

    /// What the node calls the data file.
    pub(super) fn file_name() -> String {
        format!("{SILO}/{}", Setup::DATA_KEY)
    }

    /// The node, through shared memory.
    pub(super) fn endpoint(&self) -> Result<Endpoint> {
        let node = self.node.as_ref().map(Node::shared_memory);
        node.ok_or_else(|| Kind::Invalid.error("only rivals run"))
    }

    pub(super) fn shared_memory(&self) -> Result<load::Report> {
        self.read(Node::shared_memory)
    }

    pub(super) fn tcp(&self) -> Result<load::Report> {
        self.read(Node::tcp)
    }

    fn read(&self, endpoint: impl Fn(&Node) -> Endpoint) -> Result<load::Report> {
        let Some(node) = &self.node else {
            return Err(Kind::Invalid.error("only rivals run"));
        };
        let load = Load {
            files: vec![Self::file_name().parse()?],
            block_bytes: self.shape.block_bytes,
            depth: self.shape.depth,
            stop: Stop::After(Duration::from_secs(self.shape.seconds)),
            warmup: WARMUP,
            ..Load::default()
        };
        let report = load::run(&endpoint(node), &load)?;
        if let Some(error) = &report.first_error {
            return Err(
                Kind::Io.error(format!("{} reads failed, the first: {error}", report.errors))
            );
        }
        let from_tier = report.served.get("tier").copied().unwrap_or(0);
        if from_tier != report.operations {
            return Err(Kind::NotResident.error(format!(
                "only {from_tier} of {} reads came from the tier: {:?}",
                report.operations, report.served
            )));
        }
        Ok(report)
    }
}
