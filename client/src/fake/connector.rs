use extent::Kind;
use rdma::Fabric;

use super::Fake;
use crate::{Connector, Dial};

/// Makes channels to it.
pub(super) struct FakeConnector {
    pub(super) node: Fake,
    pub(super) fabric: Fabric,
    pub(super) rails: usize,
}

impl Connector for FakeConnector {
    fn rails(&self) -> usize {
        self.rails
    }

    fn name(&self, rail: usize) -> String {
        format!("rail {rail}")
    }

    fn dial(&mut self, rail: usize) -> Dial {
        let mut node = self.node.node();
        node.dials.push(rail);
        if node.dead_rails.contains(&rail) {
            return Dial::Done(Err(Kind::Disconnected.error("nobody listens there")));
        }
        if node.lose_after == Some(0) {
            node.restart();
        }
        drop(node);
        Dial::Done(Ok(self.node.channel(self.fabric)))
    }
}
