use std::sync::Arc;

use extent::{Kind, Result};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::mutate::Ticket;
use super::{Core, page};
use crate::jobs::{Detail, Found};
use crate::kind::status_from_error;
use crate::proto;
use crate::store::{Change, Outcome};

/// Jobs looked at for one page, at most, however few of them the filters let through.
const LOOKED_AT: usize = 10_000;

/// The service of that name.
pub(super) struct Jobs {
    pub(super) core: Arc<Core>,
    pub(super) closing: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl proto::jobs_server::Jobs for Jobs {
    async fn get(
        &self,
        request: Request<proto::GetJobRequest>,
    ) -> Result<Response<proto::Job>, Status> {
        let found = self.core.jobs.find(&request.into_inner().id);
        let (_, found) = found.map_err(|e| status_from_error(&e))?;
        Ok(Response::new(found.snapshot(Detail::Full)))
    }

    async fn list(
        &self,
        request: Request<proto::ListJobsRequest>,
    ) -> Result<Response<proto::ListJobsResponse>, Status> {
        let found = list(&self.core, &request.into_inner());
        found.map(Response::new).map_err(|e| status_from_error(&e))
    }

    async fn cancel(
        &self,
        request: Request<proto::CancelJobRequest>,
    ) -> Result<Response<proto::Job>, Status> {
        self.core.mutate(request.into_inner(), cancel).await
    }

    type WatchStream = ReceiverStream<Result<proto::Job, Status>>;

    async fn watch(
        &self,
        request: Request<proto::WatchJobRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let found = self.core.jobs.find(&request.into_inner().id);
        let (_, found) = found.map_err(|e| status_from_error(&e))?;
        let permit = Arc::clone(&self.core.watches).try_acquire_owned().map_err(|_| {
            let error = Kind::Busy.error("too many jobs are being watched: ask with Get instead");
            status_from_error(&error)
        })?;
        // Room for one: whoever reads slowly holds the watcher up, and it then sends the latest.
        let (sender, receiver) = mpsc::channel(1);
        let (core, closing) = (Arc::clone(&self.core), self.closing.clone());
        tokio::spawn(async move {
            let _permit = permit;
            watch_until_over(&core, &found, closing, &sender).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn list(core: &Core, request: &proto::ListJobsRequest) -> Result<proto::ListJobsResponse> {
    let below: Option<u64> = page::token(&request.page_token)?;
    let mut filler = page::Filler::new(page::size(request.page_size));
    let mut answer = proto::ListJobsResponse::default();
    let looked_at = core.jobs.below(below.unwrap_or(u64::MAX), LOOKED_AT + 1);
    let last = looked_at.len().min(LOOKED_AT);
    let mut reached = None;
    for (number, found) in &looked_at[..last] {
        if filler.is_full() {
            answer.next_page_token = reached.map_or(String::new(), |at: u64| at.to_string());
            return Ok(answer);
        }
        reached = Some(*number);
        let job = found.snapshot(Detail::Brief);
        if is_wanted(request, &job) {
            filler.put(&job);
            answer.jobs.push(job);
        }
    }
    if looked_at.len() > LOOKED_AT {
        answer.next_page_token = reached.map_or(String::new(), |at| at.to_string());
    }
    Ok(answer)
}

fn is_wanted(request: &proto::ListJobsRequest, job: &proto::Job) -> bool {
    let any_kind = request.kind() == proto::JobKind::Unspecified;
    (request.states.is_empty() || request.states.contains(&job.state))
        && (any_kind || request.kind == job.kind)
        && request.labels.iter().all(|(key, value)| job.labels.get(key) == Some(value))
}

async fn cancel(
    core: Arc<Core>,
    request: proto::CancelJobRequest,
    ticket: Ticket,
) -> Result<proto::Job> {
    let (number, _) = core.jobs.find(&request.id)?;
    stop(&core, number, &ticket).await
}

/// Asks a job to stop.
pub(super) async fn stop(core: &Arc<Core>, number: u64, ticket: &Ticket) -> Result<proto::Job> {
    let found = core.jobs.by_number(number)?;
    // Durable before it takes effect: after a crash the job must not start again.
    ticket.settle(core, Outcome::Job(number), vec![Change::CancelJob(number)]).await?;
    core.jobs.cancel(&found);
    Ok(core.jobs.by_number(number).unwrap_or(found).snapshot(Detail::Full))
}

/// Sends the job now and after every change, until it is over or nobody listens.
async fn watch_until_over(
    core: &Core,
    found: &Found,
    mut closing: watch::Receiver<bool>,
    sender: &mpsc::Sender<Result<proto::Job, Status>>,
) {
    let mut changes = match found {
        Found::Active(entry) => Some(entry.subscribe()),
        Found::Finished(_) => None,
    };
    let mut ticks = tokio::time::interval(core.limits.watch_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sent = None;
    loop {
        if let Some(changes) = &mut changes {
            changes.borrow_and_update();
        }
        let job = found.snapshot(Detail::Brief);
        let is_over = job.finished.is_some();
        if sent.as_ref() != Some(&job) {
            if sender.send(Ok(job.clone())).await.is_err() {
                return;
            }
            sent = Some(job);
        }
        let Some(changes) = changes.as_mut().filter(|_| !is_over) else { return };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = ticks.tick() => {}
            () = sender.closed() => return,
            () = closed(&mut closing) => {
                let error = Kind::Disconnected.error("the node is stopping: watch again when it is back");
                // Whoever watched may have gone.
                let _ = sender.send(Err(status_from_error(&error))).await;
                return;
            }
        }
    }
}

/// Completes when the server closes, or is gone.
async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}
