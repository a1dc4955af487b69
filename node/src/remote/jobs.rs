//! Jobs of a running node.

use control::proto as v1;
use extent::{Kind, Result};

use super::{Remote, kind_named};

const PAGE: u32 = 100;

impl Remote {
    /// The newest jobs, newest first, up to `limit`.
    ///
    /// # Errors
    /// What the node answers; so for all that follow.
    pub(crate) async fn jobs(&self, limit: usize) -> Result<Vec<v1::Job>> {
        let mut jobs = Vec::new();
        let mut page_token = String::new();
        let mut client = self.client();
        loop {
            let request = v1::ListJobsRequest { page_size: PAGE, page_token, ..Default::default() };
            let page = client.jobs(request).await?;
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() || jobs.len() >= limit {
                jobs.truncate(limit);
                return Ok(jobs);
            }
        }
    }

    /// One job.
    pub(crate) async fn job(&self, id: &str) -> Result<v1::Job> {
        self.client().job(id).await
    }

    /// Starts to read and repair everything on the tier, so many bytes a second; zero for what the
    /// node is set to.
    pub(crate) async fn scrub(&self, rate_bytes_per_s: u64) -> Result<v1::Job> {
        let request = v1::ScrubRequest { rate_bytes_per_s, ..Default::default() };
        self.client().scrub(request).await
    }

    /// Stops the scrub that is waiting or running.
    pub(crate) async fn stop_scrub(&self) -> Result<v1::Job> {
        let mut request = v1::ScrubRequest::default();
        request.set_action(v1::ScrubAction::Stop);
        self.client().scrub(request).await
    }

    /// Asks a job to stop.
    pub(crate) async fn cancel(&self, id: &str) -> Result<v1::Job> {
        let request = v1::CancelJobRequest { mutation: None, id: id.to_owned() };
        self.client().cancel(request).await
    }

    /// Follows a job until it is over, and returns it with its results.
    pub(crate) async fn follow(
        &self,
        id: &str,
        mut on_change: impl FnMut(&v1::Job),
    ) -> Result<v1::Job> {
        let mut changes = self.client().watch(id).await?;
        while let Some(job) = changes.next().await? {
            on_change(&job);
        }
        let job = self.job(id).await?;
        if is_over(&job) {
            return Ok(job);
        }
        Err(Kind::Disconnected.error(format!(
            "the node stopped talking about job {id}; it goes on: `forebay jobs watch {id}`"
        )))
    }
}

/// Whether nothing more will happen.
pub(crate) fn is_over(job: &v1::Job) -> bool {
    use v1::JobState::{Cancelled, Done, Failed};
    matches!(job.state(), Done | Failed | Cancelled)
}

/// Success, or what went wrong first.
///
/// # Errors
/// The first error of a file, with how many more there are; [`Kind::Fenced`] if it was cancelled.
pub(crate) fn outcome(job: &v1::Job) -> Result<()> {
    match job.state() {
        v1::JobState::Failed => {}
        v1::JobState::Cancelled => {
            return Err(Kind::Fenced.error(format!("job {} was cancelled", job.id)));
        }
        _ => return Ok(()),
    }
    let Some(first) = job.errors.first() else {
        return Err(Kind::Io.error(format!("job {} failed without saying why", job.id)));
    };
    let kind = kind_named(&first.error_kind);
    let failed = job.progress.as_ref().map_or(1, |p| p.files_failed + p.targets_failed);
    let more = match failed.saturating_sub(1) {
        0 => String::new(),
        more => format!(" (and {more} more; `forebay jobs show {}` lists them)", job.id),
    };
    Err(kind.error(format!("{}: {}{more}", first.file, first.error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_names_the_kind() {
        let mut job = v1::Job { id: "j1".to_owned(), ..Default::default() };
        job.set_state(v1::JobState::Done);
        assert!(is_over(&job) && outcome(&job).is_ok());
        job.set_state(v1::JobState::Failed);
        job.progress = Some(v1::JobProgress { files_failed: 3, ..Default::default() });
        job.errors.push(v1::FileResult {
            file: "a/b".to_owned(),
            error_kind: "stale".to_owned(),
            error: "it changed".to_owned(),
            ..Default::default()
        });
        let error = outcome(&job).expect_err("failed");
        assert_eq!(error.kind(), Kind::Stale);
        assert_eq!(
            error.to_string(),
            "a/b: it changed (and 2 more; `forebay jobs show j1` lists them)"
        );
        job.set_state(v1::JobState::Cancelled);
        assert_eq!(outcome(&job).expect_err("cancelled").kind(), Kind::Fenced);
    }
}
