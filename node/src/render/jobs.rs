//! Jobs.

use std::time::{Duration, SystemTime};

use control::proto as v1;
use serde_json::{Value, json};

use super::word;
use crate::output::{Output, Tone, table};
use crate::units;

/// A job as one object. Names are stable.
pub(crate) fn job_json(job: &v1::Job) -> Value {
    let progress = job.progress.unwrap_or_default();
    let result = |result: &v1::FileResult| {
        json!({
            "name": result.file,
            "error_kind": none_if_empty(&result.error_kind),
            "error": none_if_empty(&result.error),
            "generation": result.generation,
            "resident_bytes": result.resident_bytes,
        })
    };
    json!({
        "id": job.id,
        "kind": job_kind(job),
        "state": job_state(job),
        "files_total": progress.files_total,
        "files_done": progress.files_done,
        "files_failed": progress.files_failed,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "targets": job.targets.iter().map(target).collect::<Vec<_>>(),
        "targets_total": job.targets_total,
        "labels": job.labels,
        "request_id": job.request_id,
        "durable": job.durable,
        "pin": job.pin.as_ref().map(|pin| &pin.owner),
        "cancel_requested": job.cancel_requested,
        "created_unix_s": unix_seconds(job.created.as_ref()),
        "started_unix_s": unix_seconds(job.started.as_ref()),
        "finished_unix_s": unix_seconds(job.finished.as_ref()),
        "restarts": job.restarts,
        "errors": job.errors.iter().map(result).collect::<Vec<_>>(),
        "scrub": job.scrub.as_ref().map(scrub_json),
        "results": job.results.iter().map(result).collect::<Vec<_>>(),
    })
}

/// Jobs as a table; `now` tells their age.
pub(crate) fn jobs_table(jobs: &[v1::Job], now: SystemTime) -> String {
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            let progress = job.progress.unwrap_or_default();
            vec![
                job.id.clone(),
                job_kind(job),
                job_state(job),
                format!("{}/{}", progress.files_done, progress.files_total),
                units::bytes(progress.bytes_done),
                age(job.created.as_ref(), now),
                short_target(job),
            ]
        })
        .collect();
    table(&["ID", "KIND", "STATE", ">FILES", ">MOVED", ">AGE", "FIRST TARGET"], &rows)
}

/// A job in one line, once it is over or while it runs.
pub(crate) fn job_line(job: &v1::Job) -> String {
    if let Some(scrub) = &job.scrub {
        return format!("scrub {}: {}", job_state(job), scrub_line(scrub));
    }
    let progress = job.progress.unwrap_or_default();
    let failed = match progress.files_failed + progress.targets_failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    format!(
        "{} {}: {} of {}{failed}, {} moved",
        job_kind(job),
        job_state(job),
        progress.files_done,
        units::plural(progress.files_total, "file"),
        units::bytes(progress.bytes_done)
    )
}

/// Everything about a job, for people.
pub(crate) fn job_details(job: &v1::Job, output: Output) -> String {
    let mut lines = vec![
        format!("{} {}", output.paint(Tone::Bold, "job"), job.id),
        job_line(job),
        format!("targets: {}", targets(job)),
    ];
    if let Some(pin) = &job.pin {
        lines.push(format!("pins for {}", pin.owner));
    }
    if job.restarts > 0 {
        lines.push(format!("began again after {}", units::plural(job.restarts.into(), "restart")));
    }
    for error in &job.errors {
        let bad = output.paint(Tone::Bad, &error.error_kind);
        lines.push(format!("{bad} {}: {}", error.file, error.error));
    }
    lines.join("\n")
}

/// What a scrub found, as one object. Names are those of the protocol.
pub(crate) fn scrub_json(scrub: &v1::ScrubReport) -> Value {
    json!({
        "started_unix_s": unix_seconds(scrub.started.as_ref()),
        "elapsed_ms": scrub.elapsed_ms,
        "rate_bytes_per_s": scrub.rate_bytes_per_s,
        "complete": scrub.complete,
        "files": scrub.files,
        "extents": scrub.extents,
        "bytes": scrub.bytes,
        "metadata_entries": scrub.metadata_entries,
        "damaged": scrub.damaged,
        "unreadable": scrub.unreadable,
        "repaired": scrub.repaired,
        "unrepaired": scrub.unrepaired,
        "quarantined": scrub.quarantined,
        "metadata_damaged": scrub.metadata_damaged,
        "metadata_repaired": scrub.metadata_repaired,
    })
}

/// What a scrub found, in one line.
pub(crate) fn scrub_line(scrub: &v1::ScrubReport) -> String {
    let mut line = format!(
        "{} in {} and {} of metadata read",
        units::bytes(scrub.bytes),
        units::plural(scrub.extents, "extent"),
        units::plural(scrub.metadata_entries, "piece")
    );
    if scrub.elapsed_ms > 0 {
        line.push_str(&format!(" in {}", units::nanos(scrub.elapsed_ms.saturating_mul(1_000_000))));
    }
    let counts = [
        ("damaged", scrub.damaged),
        ("unreadable", scrub.unreadable),
        ("repaired", scrub.repaired),
        ("not repaired", scrub.unrepaired),
        ("quarantined", scrub.quarantined),
        ("metadata damaged", scrub.metadata_damaged),
        ("metadata rewritten", scrub.metadata_repaired),
    ];
    let found = counts.iter().filter(|(_, count)| *count > 0);
    let found: Vec<String> = found.map(|(what, count)| format!("{count} {what}")).collect();
    line.push_str("; ");
    line.push_str(&if found.is_empty() { "all of it holds".to_owned() } else { found.join(", ") });
    line
}

/// All that a job is about.
pub(crate) fn targets(job: &v1::Job) -> String {
    job.targets.iter().map(target).collect::<Vec<_>>().join(" ")
}

/// The first of them, as far as a table has room: the end of a long one tells it from others.
fn short_target(job: &v1::Job) -> String {
    const ROOM: usize = 48;
    let first = job.targets.first().map(target).unwrap_or_default();
    let length = first.chars().count();
    let first = match length.checked_sub(ROOM) {
        None | Some(0) => first,
        Some(over) => format!("…{}", first.chars().skip(over + 1).collect::<String>()),
    };
    match job.targets_total {
        0 | 1 => first,
        all => format!("{first} and {} more", all - 1),
    }
}

fn job_kind(job: &v1::Job) -> String {
    word(job.kind().as_str_name(), "JOB_KIND_")
}

fn job_state(job: &v1::Job) -> String {
    word(job.state().as_str_name(), "JOB_STATE_")
}

fn target(target: &v1::Target) -> String {
    use v1::target::What;
    match &target.what {
        Some(What::File(file)) => file.clone(),
        Some(What::Prefix(prefix)) => format!("{prefix}*"),
        Some(What::Range(range)) => {
            format!("{}[{}..{}]", range.file, range.offset, range.offset + range.length)
        }
        None => "?".to_owned(),
    }
}

fn none_if_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(crate) fn unix_seconds(time: Option<&prost_types::Timestamp>) -> Option<i64> {
    time.map(|time| time.seconds)
}

fn age(created: Option<&prost_types::Timestamp>, now: SystemTime) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let created = unix_seconds(created).and_then(|seconds| u64::try_from(seconds).ok());
    match created.map(|created| now.saturating_sub(created)) {
        None => String::new(),
        Some(seconds) if seconds < 120 => format!("{seconds} s"),
        Some(seconds) if seconds < 7200 => format!("{} min", seconds / 60),
        Some(seconds) if seconds < 172_800 => format!("{} h", seconds / 3600),
        Some(seconds) => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> v1::Job {
        let mut job = v1::Job { id: "7".to_owned(), ..Default::default() };
        job.set_kind(v1::JobKind::Promote);
        job.set_state(v1::JobState::Running);
        job.targets.push(v1::Target { what: Some(v1::target::What::Prefix("a/b".to_owned())) });
        job.created = Some(prost_types::Timestamp { seconds: 1000, nanos: 0 });
        job.progress = Some(v1::JobProgress {
            files_total: 2,
            files_done: 1,
            bytes_done: 4096,
            ..Default::default()
        });
        job
    }

    #[test]
    fn jobs_are_told_in_words() {
        assert_eq!(job_line(&job()), "promote running: 1 of 2 files, 4 KiB moved");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + 600);
        let text = jobs_table(&[job()], now);
        let words: Vec<&str> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(words, ["7", "promote", "running", "1/2", "4", "KiB", "10", "min", "a/b*"]);
        let value = job_json(&job());
        assert_eq!((&value["kind"], &value["state"]), (&json!("promote"), &json!("running")));
        assert_eq!(value["created_unix_s"], json!(1000));
    }
}
