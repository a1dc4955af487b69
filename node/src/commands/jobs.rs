//! Jobs: list, show, watch, cancel, and waiting for one.

use control::proto as v1;
use extent::{Kind, Result};

use crate::cli::JobsCommand;
use crate::clock;
use crate::output::Output;
use crate::progress::Meter;
use crate::remote::{Remote, outcome};
use crate::render;

const LISTED: usize = 1000;
/// The exit status after Ctrl-C: 128 and the signal's number.
const INTERRUPTED: i32 = 130;

pub(crate) async fn jobs(remote: &Remote, command: JobsCommand, output: Output) -> Result<()> {
    match command {
        JobsCommand::List => {
            let jobs = remote.jobs(LISTED).await?;
            if output.is_json() {
                let jobs: Vec<_> = jobs.iter().map(render::job_json).collect();
                return output.json(&serde_json::json!({ "jobs": jobs }));
            }
            output.line(render::jobs_table(&jobs, clock::wall()))
        }
        JobsCommand::Show { job } => show(&remote.job(&job).await?, output),
        JobsCommand::Watch { job } => {
            let job = remote.job(&job).await?;
            follow(remote, job, false, output).await
        }
        JobsCommand::Cancel { job } => show(&remote.cancel(&job).await?, output),
    }
}

/// Waits for a job and says how it ended; or, detached, says only which it is.
///
/// # Errors
/// What went wrong in the job.
pub(crate) async fn follow(
    remote: &Remote,
    job: v1::Job,
    detach: bool,
    output: Output,
) -> Result<()> {
    if detach {
        return if output.is_json() {
            output.json(&render::job_json(&job))
        } else {
            output.line(&job.id)
        };
    }
    let job = tokio::select! {
        ended = watch(remote, &job, output) => ended?,
        _ = tokio::signal::ctrl_c() => leave(&job, output),
    };
    if output.is_json() {
        output.json(&render::job_json(&job))?;
    } else {
        output.line(render::job_line(&job))?;
    }
    outcome(&job)?;
    some(&job)
}

/// Nothing to do for a name that was given is no success.
fn some(job: &v1::Job) -> Result<()> {
    let found = job.progress.is_some_and(|progress| progress.files_total != 0);
    if found || job.state() != v1::JobState::Done || job.kind() == v1::JobKind::Scrub {
        return Ok(());
    }
    let (who, how) = match job.kind() {
        v1::JobKind::Promote => ("its silo has", "`forebay silo probe` shows whether it answers"),
        _ => ("the node knows", "`forebay ls` lists them"),
    };
    let targets = render::targets(job);
    Err(Kind::NotFound.error(format!("{who} no file of {targets}: {how}")))
}

/// Ends the process, and not the job: that is the node's.
#[expect(clippy::exit, reason = "as a process ends that is interrupted")]
fn leave(job: &v1::Job, output: Output) -> ! {
    let id = &job.id;
    output.note(format!(
        "\njob {id} goes on: see it with `forebay jobs watch {id}`, end it with `forebay jobs cancel {id}`"
    ));
    std::process::exit(INTERRUPTED)
}

/// Waits for a job while a meter shows how far it is.
///
/// # Errors
/// If the connection is lost; not what goes wrong in the job.
pub(crate) async fn watch(remote: &Remote, job: &v1::Job, output: Output) -> Result<v1::Job> {
    let doing = match job.kind() {
        v1::JobKind::Promote => "promoting",
        v1::JobKind::Demote => "demoting",
        v1::JobKind::Writeback => "writing back",
        v1::JobKind::Scrub => "scrubbing",
        v1::JobKind::Unspecified => "working",
    };
    let mut meter = Meter::new(output, doing);
    let ended = remote
        .follow(&job.id, |job| {
            let progress = job.progress.unwrap_or_default();
            let word = match job.kind() {
                v1::JobKind::Scrub => String::new(),
                _ => format!("{}/{} files", progress.files_done, progress.files_total),
            };
            meter.update(progress.bytes_done, progress.bytes_total, &word);
        })
        .await;
    meter.finish();
    ended
}

fn show(job: &v1::Job, output: Output) -> Result<()> {
    if output.is_json() {
        return output.json(&render::job_json(job));
    }
    output.line(render::job_details(job, output))
}
