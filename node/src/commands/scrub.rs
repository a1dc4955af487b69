//! scrub.

use extent::Result;

use super::follow;
use crate::cli::ScrubArgs;
use crate::output::Output;
use crate::remote::Remote;
use crate::render;

/// Starts a scrub and waits for its end, or stops one.
///
/// # Errors
/// [`extent::Kind::Corrupt`] if something could not be made whole; what the node answers.
pub(crate) async fn scrub(remote: &Remote, args: &ScrubArgs, output: Output) -> Result<()> {
    if args.stop {
        let job = remote.stop_scrub().await?;
        return if output.is_json() {
            output.json(&render::job_json(&job))
        } else {
            output.line(format!("stopping {}", job.id))
        };
    }
    let job = remote.scrub(args.rate.as_ref().map_or(0, |rate| rate.0)).await?;
    follow(remote, job, args.waiting.detach, output).await
}
