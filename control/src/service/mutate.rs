//! What every change goes through: its controller's epoch, its request id, its deadline.

use std::collections::BTreeMap;
use std::sync::Arc;

use extent::{Epoch, Error, Generation, Kind, Result};
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::metadata::MetadataValue;
use tonic::{Response, Status};

use super::Core;
use crate::clock::{UnixMs, from_timestamp, now_ms};
use crate::jobs::{Detail, check_id};
use crate::kind::status_from_error;
use crate::proto;
use crate::store::{Change, Outcome, RequestRecord};

/// Tells that an answer was remembered.
const REPLAYED: &str = "forebay-replayed";
const MAX_LABELS: usize = 32;
const MAX_LABEL_KEY_BYTES: usize = 64;
const MAX_LABEL_VALUE_BYTES: usize = 256;

/// A request that changes something.
pub(crate) trait Mutating: Message + Clone + Send + 'static {
    /// Goes into the fingerprint, since requests of two kinds may have the same bytes.
    const METHOD: &'static str;
    /// Whether it makes a job, which may be late.
    const MAKES_JOB: bool;
    /// Its common part.
    fn mutation_mut(&mut self) -> &mut Option<proto::Mutation>;
}

macro_rules! mutating {
    ($($request:ident $makes_job:literal),* $(,)?) => {
        $(impl Mutating for proto::$request {
            const METHOD: &'static str = stringify!($request);
            const MAKES_JOB: bool = $makes_job;
            fn mutation_mut(&mut self) -> &mut Option<proto::Mutation> {
                &mut self.mutation
            }
        })*
    };
}

mutating! {
    RegisterRequest false, ReleaseRequest false, ResolveRequest false, PinRequest false,
    UnpinRequest false, CancelJobRequest false, PromoteRequest true, DemoteRequest true,
    WritebackRequest true, ScrubRequest true,
}

/// What a request answers, and how that is had again.
pub(super) trait Answer: Message + Default + Send + 'static {
    /// The answer that was remembered.
    fn replay(core: &Core, outcome: &Outcome) -> Result<Self>;
}

impl Answer for proto::FileResponse {
    fn replay(_: &Core, outcome: &Outcome) -> Result<Self> {
        let Outcome::Response(bytes) = outcome else { return Err(damaged()) };
        Self::decode(bytes.as_slice()).map_err(|e| damaged().caused_by(e))
    }
}

impl Answer for proto::Job {
    fn replay(core: &Core, outcome: &Outcome) -> Result<Self> {
        let Outcome::Job(number) = outcome else { return Err(damaged()) };
        let found = core.jobs.by_number(*number);
        found.map(|found| found.snapshot(Detail::Full)).map_err(|e| {
            e.while_doing("this request was answered before, by a job that is no longer kept")
        })
    }
}

fn damaged() -> Error {
    Kind::Corrupt.error("the answer remembered for this request is damaged: use a fresh request id")
}

/// A change that is being made.
pub(super) struct Ticket {
    id: String,
    epoch: Epoch,
    fingerprint: Vec<u8>,
    pub(super) at_ms: UnixMs,
    pub(super) expected: Option<Generation>,
    pub(super) deadline_ms: Option<UnixMs>,
    pub(super) labels: BTreeMap<String, String>,
}

impl Ticket {
    /// Parses a request's common part.
    fn of<M: Mutating>(request: &M) -> Result<Self> {
        let mut request = request.clone();
        let mutation = request.mutation_mut();
        let parsed = mutation.clone().ok_or_else(|| {
            Kind::Invalid.error("a change needs a mutation, with at least a request_id")
        })?;
        check_id("request_id", &parsed.request_id)?;
        check_labels(&parsed.labels)?;
        // The next controller may repeat what an earlier one asked.
        mutation.as_mut().expect("it is there").controller_epoch = 0;
        let fingerprint = Sha256::new().chain_update(M::METHOD).chain_update([0]);
        let fingerprint = fingerprint.chain_update(request.encode_to_vec()).finalize().to_vec();
        let deadline_ms =
            match &parsed.deadline {
                None => None,
                Some(at) => Some(from_timestamp(at).ok_or_else(|| {
                    Kind::Invalid.error("the deadline is not a moment after 1970")
                })?),
            };
        Ok(Self {
            id: parsed.request_id,
            epoch: Epoch(parsed.controller_epoch),
            fingerprint,
            at_ms: now_ms(),
            expected: parsed.expected_generation.map(Generation),
            deadline_ms,
            labels: parsed.labels,
        })
    }

    /// The request's id.
    pub(super) fn request_id(&self) -> &str {
        &self.id
    }

    /// The controller that asks.
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Makes the answer durable together with what changed.
    ///
    /// # Errors
    /// As [`crate::store::Store::commit`].
    pub(super) async fn settle(
        &self,
        core: &Core,
        outcome: Outcome,
        mut changes: Vec<Change>,
    ) -> Result<()> {
        let fingerprint = self.fingerprint.clone();
        let record = RequestRecord { fingerprint, at_ms: self.at_ms, outcome: Some(outcome) };
        changes.push(Change::Remember(self.id.clone(), record));
        core.store.commit(Some(self.epoch), changes).await
    }

    fn check_same(&self, record: &RequestRecord) -> Result<()> {
        if record.fingerprint == self.fingerprint {
            return Ok(());
        }
        Err(Kind::Invalid.error(format!(
            "request id {:?} was used for another request: draw a fresh one for each",
            self.id
        )))
    }

    fn check_deadline(&self) -> Result<()> {
        match self.deadline_ms {
            Some(deadline) if deadline <= self.at_ms => Err(Kind::Invalid
                .error("the deadline passed before the request came: nothing was done")),
            _ => Ok(()),
        }
    }
}

impl Core {
    /// Makes a change at most once. A repetition gets the answer of the first. Goes on even if
    /// whoever asked goes away, so that what was done is also remembered.
    pub(super) async fn mutate<M, R, E, F>(
        self: &Arc<Self>,
        request: M,
        effect: E,
    ) -> Result<Response<R>, Status>
    where
        M: Mutating,
        R: Answer,
        E: FnOnce(Arc<Self>, M, Ticket) -> F + Send + 'static,
        F: Future<Output = Result<R>> + Send,
    {
        let ticket = Ticket::of(&request).map_err(|e| status_from_error(&e))?;
        let permit = Arc::clone(&self.mutations).try_acquire_owned().map_err(|_| {
            let error = Kind::Busy.error("too many changes at the same time: try again later");
            status_from_error(&error)
        })?;
        let core = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _permit = permit;
            let _turn = core.inflight.enter(&ticket.id).await;
            core.store.fence(ticket.epoch).await?;
            if let Some(record) = core.store.request(&ticket.id, ticket.at_ms).await? {
                ticket.check_same(&record)?;
                let outcome = record.outcome.as_ref().ok_or_else(damaged)?;
                return R::replay(&core, outcome).map(|answer| (answer, true));
            }
            if !M::MAKES_JOB {
                ticket.check_deadline()?;
            }
            effect(core, request, ticket).await.map(|answer| (answer, false))
        });
        let (answer, is_replayed) = task
            .await
            .unwrap_or_else(|panic| {
                Err(Kind::Io.error("the request panicked: see the log").caused_by(panic))
            })
            .map_err(|e| status_from_error(&e))?;
        let mut response = Response::new(answer);
        if is_replayed {
            response.metadata_mut().insert(REPLAYED, MetadataValue::from_static("true"));
        }
        Ok(response)
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<()> {
    let key = |key: &String| (1..=MAX_LABEL_KEY_BYTES).contains(&key.len());
    let is_good = labels.len() <= MAX_LABELS
        && labels.keys().all(key)
        && labels.values().all(|value| value.len() <= MAX_LABEL_VALUE_BYTES);
    if is_good {
        return Ok(());
    }
    Err(Kind::Invalid.error(format!(
        "at most {MAX_LABELS} labels, keys of 1 to {MAX_LABEL_KEY_BYTES} and values of up to {MAX_LABEL_VALUE_BYTES} bytes"
    )))
}
