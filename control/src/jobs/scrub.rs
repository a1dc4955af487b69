//! Scrubs that begin by themselves.

use std::sync::Arc;
use std::time::Duration;

use extent::Result;

use super::{Entry, Jobs, Task};
use crate::clock::{UnixMs, millis, now_ms, timestamp};
use crate::proto;
use crate::store::Change;

/// How often the clock is looked at: it may be set, and a machine may sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// The pause after a scrub that could not be queued.
const PAUSE: Duration = Duration::from_secs(60);

impl Jobs {
    /// Begins a scrub whenever the last one that came to its end did so long enough ago, and at once
    /// if there never was one.
    pub(crate) async fn scrub_every(self: Arc<Self>, every: Duration) {
        loop {
            let now = now_ms();
            let due = due(self.last_scrub().map(|(at, _)| at), every, now);
            if due > now {
                tokio::time::sleep(Duration::from_millis(due - now).min(LONGEST_SLEEP)).await;
                continue;
            }
            match self.active_scrub() {
                Some(entry) => {
                    let mut changes = entry.subscribe();
                    while !entry.is_over() && changes.changed().await.is_ok() {}
                    // One that was stopped is not begun again at once.
                    if self.last_scrub().is_none_or(|(at, _)| at < now) {
                        tokio::time::sleep(every.min(LONGEST_SLEEP)).await;
                    }
                }
                None => {
                    if let Err(error) = self.queue_scrub().await {
                        tracing::warn!(%error, "a scrub that is due was not begun");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    async fn queue_scrub(self: &Arc<Self>) -> Result<()> {
        let promise = self.promise()?;
        let mut job = proto::Job {
            id: self.id(promise.number),
            created: Some(timestamp(now_ms())),
            ..proto::Job::default()
        };
        job.set_kind(Task::Scrub.kind());
        job.set_state(proto::JobState::Queued);
        let entry = Entry::new(promise.number, job.clone())?;
        self.store.commit(None, vec![Change::PutJob(promise.number, Box::new(job))]).await?;
        promise.take(entry);
        Ok(())
    }
}

/// When the next scrub is due. A clock that was set back must not put it off for ever.
fn due(last: Option<UnixMs>, every: Duration, now: UnixMs) -> UnixMs {
    last.map_or(now, |last| last.min(now).saturating_add(millis(every)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_due_at_once_and_a_clock_that_went_back_is_no_excuse() {
        let every = Duration::from_secs(10);
        assert_eq!(due(None, every, 5_000), 5_000);
        assert_eq!(due(Some(4_000), every, 5_000), 14_000);
        assert_eq!(due(Some(90_000), every, 5_000), 15_000);
    }
}
