use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::Core;
use crate::proto;

/// The service of that name.
pub(super) struct Node(pub(super) Arc<Core>);

#[tonic::async_trait]
impl proto::node_server::Node for Node {
    async fn status(
        &self,
        _: Request<proto::NodeStatusRequest>,
    ) -> Result<Response<proto::NodeStatus>, Status> {
        Ok(Response::new(status(&self.0).await))
    }
}

async fn status(core: &Core) -> proto::NodeStatus {
    let node = core.handle.status().await;
    let (jobs_queued, jobs_running) = core.jobs.counts();
    proto::NodeStatus {
        identity: format!("{:032x}", core.store.identity()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        controller_epoch: core.store.epoch().0,
        jobs_queued,
        jobs_running,
        pins: core.pins.count(),
        draining: node.draining,
        devices: node.devices.into_iter().map(Into::into).collect(),
        silos: node.silos.into_iter().map(Into::into).collect(),
        shards: node.shards,
        sessions: node.sessions.into_iter().collect(),
        files: node.files,
        dirty_files: node.dirty_files,
        dirty_bytes: node.dirty_bytes,
        pinned_files: node.pinned_files,
        resident_extents: node.resident_extents,
        resident_bytes: node.resident_bytes,
        slot_bytes: node.slot_bytes,
        reads: node.reads,
        read_bytes: node.read_bytes,
        hits: node.hits,
        misses: node.misses,
        writes: node.writes,
        written_bytes: node.written_bytes,
        commits: node.commits,
        fetched_extents: node.fetched_extents,
        evicted_extents: node.evicted_extents,
        checksum_errors: node.checksum_errors,
        repairs: node.repairs,
        errors: node.errors,
        buffers_used: node.buffers.0,
        buffers_total: node.buffers.1,
        read_p50_ns: node.read_p50_ns,
        read_p99_ns: node.read_p99_ns,
    }
}
