//! Jobs as they are shown.

use crate::clock::{UnixMs, from_timestamp};
use crate::proto;

/// Targets shown in brief, and kept of a finished job.
pub(super) const BRIEF_TARGETS: usize = 16;

/// How much of a job is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Detail {
    Brief,
    Full,
}

/// A job without what `detail` leaves out.
pub(super) fn cut(job: &proto::Job, detail: Detail) -> proto::Job {
    if detail == Detail::Full {
        return job.clone();
    }
    let targets = job.targets.iter().take(BRIEF_TARGETS).cloned().collect();
    // Field by field, so that long lists are not copied to be thrown away.
    proto::Job {
        id: job.id.clone(),
        kind: job.kind,
        state: job.state,
        progress: job.progress,
        targets,
        targets_total: job.targets_total,
        labels: job.labels.clone(),
        request_id: job.request_id.clone(),
        controller_epoch: job.controller_epoch,
        expected_generation: job.expected_generation,
        deadline: job.deadline,
        deadline_missed: job.deadline_missed,
        durable: job.durable,
        pin: job.pin.clone(),
        cancel_requested: job.cancel_requested,
        created: job.created,
        started: job.started,
        finished: job.finished,
        restarts: job.restarts,
        errors: job.errors.clone(),
        results: Vec::new(),
        rate_bytes_per_s: job.rate_bytes_per_s,
        scrub: job.scrub,
    }
}

/// When a stored job ended; `None` if it is not over.
pub(super) fn finished_ms(job: &proto::Job) -> Option<UnixMs> {
    job.finished.as_ref().and_then(from_timestamp)
}
