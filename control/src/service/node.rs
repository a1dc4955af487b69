use std::sync::Arc;

use extent::Kind;
use tonic::{Request, Response, Status};

use super::Core;
use super::files::queue;
use super::jobs::stop;
use super::mutate::Ticket;
use crate::jobs::Task;
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

    async fn scrub(
        &self,
        request: Request<proto::ScrubRequest>,
    ) -> Result<Response<proto::Job>, Status> {
        self.0.mutate(request.into_inner(), scrub).await
    }
}

async fn scrub(
    core: Arc<Core>,
    request: proto::ScrubRequest,
    ticket: Ticket,
) -> extent::Result<proto::Job> {
    let active = core.jobs.active_scrub();
    if request.action() == proto::ScrubAction::Stop {
        let number = active.map(|entry| entry.number()).ok_or_else(|| {
            Kind::NotFound.error("no scrub is waiting or running: there is nothing to stop")
        })?;
        return stop(&core, number, &ticket).await;
    }
    if let Some(entry) = active {
        return Err(Kind::Busy.error(format!(
            "scrub {} is waiting or running: wait for it, or stop it first",
            core.jobs.id(entry.number())
        )));
    }
    let job = proto::Job { rate_bytes_per_s: request.rate_bytes_per_s, ..proto::Job::default() };
    queue(&core, Task::Scrub, job, ticket).await
}

async fn status(core: &Core) -> proto::NodeStatus {
    let node = core.handle.status().await;
    let (jobs_queued, jobs_running) = core.jobs.counts();
    let scrub = node.scrub;
    let last = core.jobs.last_scrub().map(|(_, report)| report);
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
        rdma: node.rdma.into_iter().map(Into::into).collect(),
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
        checksum_memory_bytes: node.checksum_memory_bytes,
        checksum_memory_limit_bytes: node.checksum_memory_limit_bytes,
        checksum_hits: node.checksum_hits,
        checksum_misses: node.checksum_misses,
        dropped_checksums: node.dropped_checksums,
        second_copy_reads: node.second_copy_reads,
        files_missing_copy: node.files_missing_copy,
        errors: node.errors,
        buffers_used: node.buffers.0,
        buffers_total: node.buffers.1,
        read_p50_ns: node.read_p50_ns,
        read_p99_ns: node.read_p99_ns,
        scrubbed_extents: scrub.extents,
        scrubbed_bytes: scrub.bytes,
        scrub_damaged: scrub.damaged,
        scrub_unreadable: scrub.unreadable,
        scrub_repaired: scrub.repaired,
        scrub_quarantined: scrub.quarantined,
        scrub_metadata_damaged: scrub.metadata_damaged,
        scrub_job: core.jobs.active_scrub().map_or(String::new(), |e| core.jobs.id(e.number())),
        scrub: scrub.running.map(Into::into),
        last_scrub: last,
    }
}
