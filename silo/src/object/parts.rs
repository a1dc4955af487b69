//! An upload in parts that carry numbers, as S3 and Google have it.

use std::panic::resume_unwind;
use std::sync::Arc;

use extent::{Kind, Result};
use futures::TryFutureExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{PutMultipartOptions, PutPayload, PutResult};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::error::failed;
use super::service::Conditions;
use super::upload::Target;
use crate::limits::{Limits, Traffic};

/// Parts of one upload under way at once, each in memory.
pub(super) const PARTS_UNDER_WAY: usize = 4;

/// Parts with numbers, which are ours to repeat.
pub(super) struct Numbered {
    store: Arc<dyn MultipartStore>,
    conditions: Option<Conditions>,
    limits: Arc<Limits>,
    path: Path,
    id: String,
    started: usize,
    under_way: JoinSet<Result<(usize, PartId)>>,
    done: Vec<(usize, PartId)>,
    /// Whether the store forgot the parts, or made an object of them.
    over: bool,
}

impl Numbered {
    pub(super) async fn start(
        target: &Target,
        store: &Arc<dyn MultipartStore>,
        conditions: Option<Conditions>,
        options: &PutMultipartOptions,
    ) -> Result<Self> {
        let attempt = || {
            let created = store.create_multipart_opts(&target.path, options.clone());
            created.map_err(|e| failed(&target.key, &e))
        };
        let id = target.shared.limits.call(Traffic::Metadata, attempt).await?;
        if let Some(conditions) = &conditions {
            conditions.insert(&id, target.publish_if());
        }
        Ok(Self {
            store: Arc::clone(store),
            conditions,
            limits: Arc::clone(&target.shared.limits),
            path: target.path.clone(),
            id,
            started: 0,
            under_way: JoinSet::new(),
            done: Vec::new(),
            over: false,
        })
    }

    /// Sends the next part, once there is room for another under way.
    pub(super) async fn send(
        &mut self,
        target: &Target,
        payload: PutPayload,
        bytes: u64,
    ) -> Result<()> {
        while self.under_way.len() >= PARTS_UNDER_WAY {
            let part = joined(&mut self.under_way).await?;
            self.done.push(part);
        }
        let (store, id, target) = (Arc::clone(&self.store), self.id.clone(), target.clone());
        let number = self.started;
        self.started += 1;
        self.under_way.spawn(async move {
            let limits = &target.shared.limits;
            let attempt = || {
                limits.counters().count_written(bytes);
                let sent = store.put_part(&target.path, &id, number, payload.clone());
                sent.map_err(|e| failed(&target.key, &e))
            };
            let part = limits.call(Traffic::Write(bytes), attempt).await?;
            Ok((number, part))
        });
        Ok(())
    }

    /// Waits for all parts.
    pub(super) async fn join_all(&mut self) -> Result<()> {
        while !self.under_way.is_empty() {
            let part = joined(&mut self.under_way).await?;
            self.done.push(part);
        }
        Ok(())
    }

    /// Makes an object of the parts.
    pub(super) async fn complete(&mut self, target: &Target) -> Result<PutResult> {
        self.done.sort_unstable_by_key(|(number, _)| *number);
        let parts: Vec<PartId> = self.done.iter().map(|(_, part)| part.clone()).collect();
        let attempt = || {
            let completed = self.store.complete_multipart(&self.path, &self.id, parts.clone());
            completed.map_err(|e| failed(&target.key, &e))
        };
        let put = target.shared.limits.call(Traffic::Metadata, attempt).await?;
        self.forget();
        Ok(put)
    }

    /// Removes the parts.
    pub(super) async fn abort(&mut self) {
        self.under_way.shutdown().await;
        if !self.over {
            self.forget();
            let attempt = || {
                let aborted = self.store.abort_multipart(&self.path, &self.id);
                aborted.map_err(|e| failed(self.path.as_ref(), &e))
            };
            if let Err(error) = self.limits.call(Traffic::Metadata, attempt).await {
                tracing::warn!(%error, "parts stay behind until the store cleans up");
            }
        }
    }

    /// There are no parts any more.
    pub(super) fn forget(&mut self) {
        self.over = true;
        if let Some(conditions) = &self.conditions {
            conditions.remove(&self.id);
        }
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.forget();
        let (store, path, id) = (Arc::clone(&self.store), self.path.clone(), self.id.clone());
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { store.abort_multipart(&path, &id).await });
        }
    }
}

/// The next part that is done.
pub(super) async fn joined<T: 'static>(under_way: &mut JoinSet<Result<T>>) -> Result<T> {
    match under_way.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
        Some(Err(error)) => Err(Kind::Io.error("the node is stopping").caused_by(error)),
        None => Err(Kind::Io.error("no part is under way")),
    }
}
