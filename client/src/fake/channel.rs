use std::sync::Arc;
use std::time::Duration;

use dma::{DmaBuf, HugePages, Region};
use extent::wire::{Reply, Request};
use extent::{Kind, Result};
use rdma::{Channel, Fabric};

use super::Fake;

/// A client's end of a connection to it.
pub(super) struct FakeChannel {
    pub(super) node: Fake,
    pub(super) fabric: Fabric,
    pub(super) session: u64,
}

impl Drop for FakeChannel {
    fn drop(&mut self) {
        let mut node = self.node.node();
        node.channels -= 1;
        let session = self.session;
        if self.fabric == Fabric::SharedMemory {
            let late: Vec<_> = node.read_windows(session).collect();
            node.late.extend(late);
        }
        node.forget(session);
        node.arrived.retain(|(of, _)| *of != session);
        node.queued.retain(|(of, _)| *of != session);
        node.regions.retain(|(of, _), _| *of != session);
    }
}

impl Channel for FakeChannel {
    fn fabric(&self) -> Fabric {
        self.fabric
    }

    fn allocate(&mut self, length: usize) -> Result<Arc<Region>> {
        self.node.node().check_there(self.session)?;
        if length > self.node.node().largest_region {
            return Err(Kind::Busy.error("the node maps no more"));
        }
        let region = Region::anonymous(length, HugePages::Never)?;
        self.node.node().regions.insert((self.session, region.id().0), Arc::clone(&region));
        Ok(region)
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        if self.fabric == Fabric::SharedMemory {
            return Err(Kind::Unsupported.error("memory of another session"));
        }
        self.node.node().regions.insert((self.session, region.id().0), Arc::clone(region));
        Ok(())
    }

    fn release(&mut self, region: &Arc<Region>) {
        let key = (self.session, region.id().0);
        self.node.node().regions.remove(&key).expect("released once");
    }

    fn register_device(&mut self, memory: &Arc<DmaBuf>) -> Result<()> {
        if self.fabric != Fabric::Verbs {
            return Err(Kind::Unsupported.error("not over RDMA"));
        }
        let mut node = self.node.node();
        node.check_there(self.session)?;
        let region = node.devices.map(memory)?;
        node.regions.insert((self.session, memory.id().0), region);
        Ok(())
    }

    fn release_device(&mut self, memory: &Arc<DmaBuf>) {
        let key = (self.session, memory.id().0);
        self.node.node().regions.remove(&key).expect("released once");
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let mut node = self.node.node();
        node.check_there(self.session)?;
        if node.queued.len() >= node.ring {
            return Err(Kind::Busy.error("the ring is full"));
        }
        let tag = (self.session, request.tag);
        let in_use = |other: &(u64, Request)| (other.0, other.1.tag) == tag;
        assert!(!node.queued.iter().chain(&node.arrived).any(in_use), "a tag is used once");
        node.queued.push((self.session, *request));
        node.requests += 1;
        node.peak_in_flight = node.peak_in_flight.max(node.queued.len() + node.arrived.len());
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        let mut node = self.node.node();
        node.check_there(self.session)?;
        let session = self.session;
        let (own, others) =
            std::mem::take(&mut node.queued).into_iter().partition(|(of, _)| *of == session);
        node.queued = others;
        node.arrived.extend::<Vec<_>>(own);
        Ok(())
    }

    fn poll(&mut self, replies: &mut Vec<Reply>) -> Result<()> {
        let mut node = self.node.node();
        for _ in 0..node.replies_per_poll {
            if !replies.is_empty() && node.check_there(self.session).is_err() {
                return Ok(());
            }
            node.check_there(self.session)?;
            let Some(request) = node.take_request(self.session) else { break };
            if node.devices.ends_connection(&request) {
                node.forget(self.session);
                return node.check_there(self.session);
            }
            let mut reply = node.answer(self.session, &request)?;
            reply.credits = node.credits;
            replies.push(reply);
            if let Some(left) = &mut node.lose_after {
                *left = left.saturating_sub(1);
            }
        }
        if let Some(twist) = &mut node.twist {
            twist(replies);
        }
        if !replies.is_empty() {
            return Ok(());
        }
        node.check_there(self.session)
    }

    fn wait(&mut self, _timeout: Duration) -> Result<()> {
        self.node.node().check_there(self.session)
    }
}
