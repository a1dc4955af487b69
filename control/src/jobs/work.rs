//! One file of a job.

use std::sync::Arc;

use dataplane::{FileStatus, Handle, PromoteOptions};
use extent::{Generation, Kind, Result};

use super::entry::{Entry, Work};
use super::spec::{JobPin, Task};
use crate::options::Limits;
use crate::pins::{PinKey, Pins};

/// What it takes to work on a file.
pub(super) struct Worker {
    pub(super) handle: Arc<dyn Handle>,
    pub(super) pins: Arc<Pins>,
    pub(super) limits: Arc<Limits>,
}

impl Worker {
    /// Does what the job wants done with a file. While the node is busy, it is tried again a few
    /// times.
    ///
    /// # Errors
    /// What the node answers; [`Kind::Stale`] if the file is not at the generation expected;
    /// [`Kind::Fenced`] if the job is to stop.
    pub(super) async fn work(&self, entry: &Entry, work: &Work) -> Result<FileStatus> {
        let mut pause = self.limits.busy_pause;
        for _ in 1..self.limits.busy_tries {
            match self.attempt(entry, work).await {
                Err(error) if error.kind() == Kind::Busy => {}
                other => return other,
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = entry.progress.cancelled() => {}
            }
            pause *= 2;
        }
        self.attempt(entry, work).await
    }

    async fn attempt(&self, entry: &Entry, work: &Work) -> Result<FileStatus> {
        entry.progress.check()?;
        let spec = &entry.spec;
        check_generation(&*self.handle, &work.name, spec.expected).await?;
        let progress = &entry.progress;
        let status = match (spec.task, &spec.pin) {
            (Task::Demote, _) => {
                self.handle.demote(&work.name, work.range, spec.expected, progress).await?
            }
            (Task::Writeback, _) => {
                self.handle.writeback(&work.name, spec.expected, progress).await?
            }
            (Task::Scrub, _) => unreachable!("a scrub has no files"),
            (Task::Promote, None) => self.promote(entry, work).await?,
            (Task::Promote, Some(pin)) => self.promote_pinned(entry, work, pin).await?,
        };
        Ok(status)
    }

    async fn promote(&self, entry: &Entry, work: &Work) -> Result<FileStatus> {
        let (durable, expected) = (entry.spec.durable, entry.spec.expected);
        let options = PromoteOptions { range: work.range, durable, expected };
        self.handle.promote(&work.name, options, &entry.progress).await
    }

    /// The pin comes first, so that what arrives is not evicted while the rest is under way.
    async fn promote_pinned(&self, entry: &Entry, work: &Work, pin: &JobPin) -> Result<FileStatus> {
        self.handle.register(&work.name, None).await?;
        let key = PinKey { file: work.name.clone(), owner: pin.owner.clone() };
        let before = self.pins.pin_for_job(key.clone(), pin.until_ms).await?;
        let filled = self.promote(entry, work).await;
        if filled.is_err()
            && let Err(error) = self.pins.unpin_for_job(key, before).await
        {
            tracing::warn!(%error, file = %work.name, "taking back the pin of a failed promote");
        }
        filled
    }
}

/// `Ok` if the file is at the generation expected. Zero means that the node does not know it.
///
/// # Errors
/// [`Kind::Stale`] if it is at another; what the node answers.
pub(crate) async fn check_generation(
    handle: &dyn Handle,
    name: &extent::FileName,
    expected: Option<Generation>,
) -> Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    match handle.get(name).await {
        Ok(status) => same_generation(&status, expected),
        Err(error) if error.kind() == Kind::NotFound && expected.0 == 0 => Ok(()),
        Err(error) if error.kind() == Kind::NotFound => Err(Kind::Stale.error(format!(
            "the node does not know {name}, and generation {expected} was expected: register it and decide again"
        ))),
        Err(error) => Err(error),
    }
}

/// # Errors
/// [`Kind::Stale`] if the file is at another generation than the one expected.
pub(crate) fn same_generation(status: &FileStatus, expected: Generation) -> Result<()> {
    if status.generation == expected {
        return Ok(());
    }
    Err(Kind::Stale.error(format!(
        "{} is at generation {}, not {expected}: read its status and decide again",
        status.name, status.generation
    )))
}
