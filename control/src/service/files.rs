use std::sync::Arc;

use dataplane::{FileStatus, Keep};
use extent::{FileName, Kind, Result};
use prost::Message;
use tonic::{Request, Response, Status};

use super::mutate::Ticket;
use super::{Core, page};
use crate::clock::timestamp;
use crate::jobs::{
    Detail, Entry, Selection, Task, check_generation, check_id, pin_until, same_generation,
};
use crate::kind::status_from_error;
use crate::pins::{PinKey, Repin};
use crate::proto;
use crate::store::{Change, Outcome};

/// The service of that name.
pub(super) struct Files(pub(super) Arc<Core>);

#[tonic::async_trait]
impl proto::files_server::Files for Files {
    async fn register(
        &self,
        request: Request<proto::RegisterRequest>,
    ) -> Result<Response<proto::FileResponse>, Status> {
        self.0.mutate(request.into_inner(), register).await
    }

    async fn get(
        &self,
        request: Request<proto::GetFileRequest>,
    ) -> Result<Response<proto::FileStatus>, Status> {
        let found = get(&self.0, &request.into_inner()).await;
        found.map(Response::new).map_err(|e| status_from_error(&e))
    }

    async fn list(
        &self,
        request: Request<proto::ListFilesRequest>,
    ) -> Result<Response<proto::ListFilesResponse>, Status> {
        let found = list(&self.0, &request.into_inner()).await;
        found.map(Response::new).map_err(|e| status_from_error(&e))
    }

    async fn promote(
        &self,
        request: Request<proto::PromoteRequest>,
    ) -> Result<Response<proto::Job>, Status> {
        self.0.mutate(request.into_inner(), promote).await
    }

    async fn demote(
        &self,
        request: Request<proto::DemoteRequest>,
    ) -> Result<Response<proto::Job>, Status> {
        self.0.mutate(request.into_inner(), demote).await
    }

    async fn writeback(
        &self,
        request: Request<proto::WritebackRequest>,
    ) -> Result<Response<proto::Job>, Status> {
        self.0.mutate(request.into_inner(), writeback).await
    }

    async fn release(
        &self,
        request: Request<proto::ReleaseRequest>,
    ) -> Result<Response<proto::FileResponse>, Status> {
        self.0.mutate(request.into_inner(), release).await
    }

    async fn resolve(
        &self,
        request: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::FileResponse>, Status> {
        self.0.mutate(request.into_inner(), resolve).await
    }

    async fn pin(
        &self,
        request: Request<proto::PinRequest>,
    ) -> Result<Response<proto::FileResponse>, Status> {
        self.0.mutate(request.into_inner(), pin).await
    }

    async fn unpin(
        &self,
        request: Request<proto::UnpinRequest>,
    ) -> Result<Response<proto::FileResponse>, Status> {
        self.0.mutate(request.into_inner(), unpin).await
    }
}

async fn get(core: &Core, request: &proto::GetFileRequest) -> Result<proto::FileStatus> {
    let name = request.file.parse()?;
    Ok((&core.handle.get(&name).await?).into())
}

async fn list(core: &Core, request: &proto::ListFilesRequest) -> Result<proto::ListFilesResponse> {
    let size = page::size(request.page_size);
    let after: Option<FileName> = page::token(&request.page_token)?;
    // One more than fits tells whether there is a next page.
    let found = core.handle.list(&request.prefix, after.as_ref(), size + 1).await?;
    let mut filler = page::Filler::new(size);
    let mut answer = proto::ListFilesResponse::default();
    for status in &found {
        if filler.is_full() {
            let last = answer.files.last().map(|file| file.file.clone());
            answer.next_page_token = last.unwrap_or_default();
            break;
        }
        let file = proto::FileStatus::from(status);
        filler.put(&file);
        answer.files.push(file);
    }
    Ok(answer)
}

async fn register(
    core: Arc<Core>,
    request: proto::RegisterRequest,
    ticket: Ticket,
) -> Result<proto::FileResponse> {
    let name = request.file.parse()?;
    let status = core.handle.register(&name, ticket.expected).await?;
    answer(&core, &ticket, &status, Vec::new()).await
}

async fn release(
    core: Arc<Core>,
    request: proto::ReleaseRequest,
    ticket: Ticket,
) -> Result<proto::FileResponse> {
    let target = request.target.unwrap_or_default();
    let Selection::File(name, range) = Selection::parse(&target)? else {
        return Err(Kind::Invalid.error("Release takes one file: Demote takes prefixes"));
    };
    let status = core.handle.release(&name, range, ticket.expected).await?;
    answer(&core, &ticket, &status, Vec::new()).await
}

async fn resolve(
    core: Arc<Core>,
    request: proto::ResolveRequest,
    ticket: Ticket,
) -> Result<proto::FileResponse> {
    let name = request.file.parse()?;
    let keep = match request.keep() {
        proto::Keep::Node => Keep::Node,
        proto::Keep::Silo => Keep::Silo,
        proto::Keep::Unspecified => {
            return Err(Kind::Invalid.error("say what to keep: the node's or the silo's"));
        }
    };
    let status = core.handle.resolve(&name, keep, ticket.expected).await?;
    answer(&core, &ticket, &status, Vec::new()).await
}

async fn pin(
    core: Arc<Core>,
    request: proto::PinRequest,
    ticket: Ticket,
) -> Result<proto::FileResponse> {
    let file = request.file.parse()?;
    let pin = pin_until(&request.pin.unwrap_or_default(), ticket.at_ms)?;
    check_generation(&*core.handle, &file, ticket.expected).await?;
    let key = PinKey { file, owner: pin.owner };
    let repin = core.pins.pin(key, pin.until_ms).await?;
    settle_pin(&core, &ticket, repin).await
}

async fn unpin(
    core: Arc<Core>,
    request: proto::UnpinRequest,
    ticket: Ticket,
) -> Result<proto::FileResponse> {
    let file = request.file.parse()?;
    check_id("a pin's owner", &request.owner)?;
    check_generation(&*core.handle, &file, ticket.expected).await?;
    let repin = core.pins.unpin(PinKey { file, owner: request.owner }).await?;
    settle_pin(&core, &ticket, repin).await
}

/// Generations only grow: a file that is at the one expected before and after was so all the time.
async fn settle_pin(core: &Core, ticket: &Ticket, repin: Repin) -> Result<proto::FileResponse> {
    if let Some(expected) = ticket.expected
        && let Err(error) = same_generation(repin.status(), expected)
    {
        repin.undo().await;
        return Err(error);
    }
    match answer(core, ticket, repin.status(), repin.change()).await {
        Ok(answer) => {
            repin.keep();
            Ok(answer)
        }
        Err(error) => {
            repin.undo().await;
            Err(error)
        }
    }
}

/// Makes the answer and what changed durable.
async fn answer(
    core: &Core,
    ticket: &Ticket,
    status: &FileStatus,
    changes: Vec<Change>,
) -> Result<proto::FileResponse> {
    let answer = proto::FileResponse { file: Some(status.into()), labels: ticket.labels.clone() };
    ticket.settle(core, Outcome::Response(answer.encode_to_vec()), changes).await?;
    Ok(answer)
}

async fn promote(
    core: Arc<Core>,
    request: proto::PromoteRequest,
    ticket: Ticket,
) -> Result<proto::Job> {
    let job = proto::Job {
        targets: request.targets,
        durable: request.durable,
        pin: request.pin,
        ..proto::Job::default()
    };
    queue(&core, Task::Promote, job, ticket).await
}

async fn demote(
    core: Arc<Core>,
    request: proto::DemoteRequest,
    ticket: Ticket,
) -> Result<proto::Job> {
    let job = proto::Job { targets: request.targets, ..proto::Job::default() };
    queue(&core, Task::Demote, job, ticket).await
}

async fn writeback(
    core: Arc<Core>,
    request: proto::WritebackRequest,
    ticket: Ticket,
) -> Result<proto::Job> {
    let job = proto::Job { targets: request.targets, ..proto::Job::default() };
    queue(&core, Task::Writeback, job, ticket).await
}

/// Makes a job durable and queues it.
pub(super) async fn queue(
    core: &Arc<Core>,
    task: Task,
    mut job: proto::Job,
    ticket: Ticket,
) -> Result<proto::Job> {
    let promise = core.jobs.promise()?;
    job.id = core.jobs.id(promise.number);
    job.set_kind(task.kind());
    job.set_state(proto::JobState::Queued);
    job.targets_total = u32::try_from(job.targets.len()).unwrap_or(u32::MAX);
    job.labels.clone_from(&ticket.labels);
    job.request_id = ticket.request_id().to_owned();
    job.controller_epoch = ticket.epoch().0;
    job.expected_generation = ticket.expected.map(|generation| generation.0);
    job.deadline = ticket.deadline_ms.map(timestamp);
    job.created = Some(timestamp(ticket.at_ms));
    let entry = Entry::new(promise.number, job.clone())?;
    let put = Change::PutJob(promise.number, Box::new(job));
    ticket.settle(core, Outcome::Job(promise.number), vec![put]).await?;
    Ok(promise.take(entry).snapshot(Detail::Full))
}
