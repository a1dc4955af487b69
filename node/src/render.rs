//! What the control plane answers, as JSON objects and as lines.

use std::time::{Duration, SystemTime};

use control::proto as v1;
use serde_json::{Value, json};

use crate::output::{Output, Tone, table};
use crate::units;

/// A file as one object. Names are stable.
pub(crate) fn file_json(file: &v1::FileStatus) -> Value {
    json!({
        "name": file.file,
        "id": file.id,
        "generation": file.generation,
        "length": file.length,
        "version": file.version,
        "residency": residency(file),
        "extent_bytes": file.extent_bytes,
        "total_extents": file.total_extents,
        "resident_extents": file.resident_extents,
        "resident_bytes": file.resident_bytes,
        "pins": file.pins,
    })
}

/// Files as a table.
pub(crate) fn files_table(files: &[v1::FileStatus]) -> String {
    let rows: Vec<Vec<String>> = files
        .iter()
        .map(|file| {
            let share = units::share(file.resident_bytes, file.length);
            vec![
                file.file.clone(),
                units::bytes(file.length),
                residency(file),
                format!("{:.0} %", share * 100.0),
                file.generation.to_string(),
                file.pins.join(","),
            ]
        })
        .collect();
    table(&["NAME", ">SIZE", "STATE", ">HERE", ">GEN", "PINS"], &rows)
}

/// Where a file stands, in lower case.
pub(crate) fn residency(file: &v1::FileStatus) -> String {
    word(file.residency().as_str_name(), "RESIDENCY_")
}

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
                job.targets.first().map(target).unwrap_or_default(),
            ]
        })
        .collect();
    table(&["ID", "KIND", "STATE", ">FILES", ">MOVED", ">AGE", "FIRST TARGET"], &rows)
}

/// A job in one line, once it is over or while it runs.
pub(crate) fn job_line(job: &v1::Job) -> String {
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
        format!("targets: {}", job.targets.iter().map(target).collect::<Vec<_>>().join(" ")),
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

/// A silo as one object.
pub(crate) fn silo_json(silo: &v1::SiloStatus) -> Value {
    json!({
        "name": silo.name,
        "kind": silo.kind,
        "writable": silo.writable,
        "conditional": silo.conditional,
        "read_bytes": silo.read_bytes,
        "written_bytes": silo.written_bytes,
        "errors": silo.errors,
    })
}

/// Silos as a table.
pub(crate) fn silos_table(silos: &[v1::SiloStatus]) -> String {
    let rows: Vec<Vec<String>> = silos
        .iter()
        .map(|silo| {
            vec![
                silo.name.clone(),
                silo.kind.clone(),
                if silo.writable { "read, write" } else { "read" }.to_owned(),
                if silo.conditional { "by the silo" } else { "compared" }.to_owned(),
                units::bytes(silo.read_bytes),
                units::bytes(silo.written_bytes),
                silo.errors.to_string(),
            ]
        })
        .collect();
    table(&["NAME", "KIND", "ALLOWS", "VERSIONS", ">READ", ">WRITTEN", ">ERRORS"], &rows)
}

/// The node as one object. Names are those of the protocol.
pub(crate) fn status_json(status: &v1::NodeStatus) -> Value {
    let devices: Vec<Value> = status
        .devices
        .iter()
        .map(|device| {
            json!({
                "path": device.path,
                "driver": device.driver,
                "capacity_bytes": device.capacity_bytes,
                "used_bytes": device.used_bytes,
                "volatile_cache": device.volatile_cache,
                "failed": device.failed,
            })
        })
        .collect();
    let mut value = json!({
        "identity": status.identity,
        "version": status.version,
        "controller_epoch": status.controller_epoch,
        "draining": status.draining,
        "devices": devices,
        "silos": status.silos.iter().map(silo_json).collect::<Vec<_>>(),
        "sessions": status.sessions,
    });
    let object = value.as_object_mut().expect("made as an object above");
    object.extend(numbers(status).map(|(name, number)| (name.to_owned(), json!(number))));
    value
}

fn numbers(status: &v1::NodeStatus) -> impl Iterator<Item = (&'static str, u64)> {
    [
        ("jobs_queued", status.jobs_queued),
        ("jobs_running", status.jobs_running),
        ("pins", status.pins),
        ("shards", status.shards.into()),
        ("files", status.files),
        ("dirty_files", status.dirty_files),
        ("dirty_bytes", status.dirty_bytes),
        ("pinned_files", status.pinned_files),
        ("resident_extents", status.resident_extents),
        ("resident_bytes", status.resident_bytes),
        ("slot_bytes", status.slot_bytes),
        ("reads", status.reads),
        ("read_bytes", status.read_bytes),
        ("hits", status.hits),
        ("misses", status.misses),
        ("writes", status.writes),
        ("written_bytes", status.written_bytes),
        ("commits", status.commits),
        ("fetched_extents", status.fetched_extents),
        ("evicted_extents", status.evicted_extents),
        ("checksum_errors", status.checksum_errors),
        ("repairs", status.repairs),
        ("errors", status.errors),
        ("buffers_used", status.buffers_used),
        ("buffers_total", status.buffers_total),
        ("read_p50_ns", status.read_p50_ns),
        ("read_p99_ns", status.read_p99_ns),
    ]
    .into_iter()
}

/// The node in a dozen lines.
pub(crate) fn status_text(status: &v1::NodeStatus, output: Output) -> String {
    let state = match (status.draining, status.devices.iter().any(|device| device.failed)) {
        (true, _) => output.paint(Tone::Warn, "draining"),
        (false, true) => output.paint(Tone::Bad, "a device failed"),
        (false, false) => output.paint(Tone::Good, "serving"),
    };
    let hits = units::share(status.hits, status.hits + status.misses) * 100.0;
    let sessions: Vec<String> =
        status.sessions.iter().map(|(fabric, count)| format!("{count} {fabric}")).collect();
    let mut lines = vec![
        format!("{state}  forebay {}  {}", status.version, status.identity),
        format!(
            "files     {} known, {} dirty ({}), {} pinned",
            units::count(status.files),
            units::count(status.dirty_files),
            units::bytes(status.dirty_bytes),
            units::count(status.pinned_files)
        ),
        format!(
            "resident  {} in {} extents, {} of slots",
            units::bytes(status.resident_bytes),
            units::count(status.resident_extents),
            units::bytes(status.slot_bytes)
        ),
        format!(
            "reads     {} ({}), {hits:.0} % hits, p50 {}, p99 {}",
            units::count(status.reads),
            units::bytes(status.read_bytes),
            units::nanos(status.read_p50_ns),
            units::nanos(status.read_p99_ns)
        ),
        format!(
            "writes    {} ({}), {} commits",
            units::count(status.writes),
            units::bytes(status.written_bytes),
            units::count(status.commits)
        ),
        format!(
            "upkeep    {} fetched, {} evicted, {} checksum errors, {} repairs, {} errors",
            units::count(status.fetched_extents),
            units::count(status.evicted_extents),
            units::count(status.checksum_errors),
            units::count(status.repairs),
            units::count(status.errors)
        ),
        format!(
            "load      {} shards, sessions: {}, {} of {} buffers, jobs: {} running, {} queued",
            status.shards,
            if sessions.is_empty() { "none".to_owned() } else { sessions.join(", ") },
            status.buffers_used,
            status.buffers_total,
            status.jobs_running,
            status.jobs_queued
        ),
    ];
    for device in &status.devices {
        lines.push(format!(
            "device    {}  {} of {} ({})",
            device.path,
            units::bytes(device.used_bytes),
            units::bytes(device.capacity_bytes),
            if device.failed { output.paint(Tone::Bad, "failed") } else { device.driver.clone() }
        ));
    }
    for silo in &status.silos {
        lines.push(format!(
            "silo      {}  {}, {} read, {} written",
            silo.name,
            silo.kind,
            units::bytes(silo.read_bytes),
            units::bytes(silo.written_bytes)
        ));
    }
    lines.join("\n")
}

fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase()
}

fn none_if_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn unix_seconds(time: Option<&prost_types::Timestamp>) -> Option<i64> {
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
    use crate::output::Colour;

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

    #[test]
    fn a_status_names_what_is_wrong() {
        let mut status = v1::NodeStatus::default();
        let output = Output::new(false, Colour::Never);
        assert!(status_text(&status, output).starts_with("serving"));
        status.devices.push(v1::DeviceStatus { failed: true, ..Default::default() });
        assert!(status_text(&status, output).starts_with("a device failed"));
        assert_eq!(status_json(&status)["devices"][0]["failed"], json!(true));
    }

    #[test]
    fn files_are_told_in_words() {
        let mut file = v1::FileStatus {
            file: "data/a".to_owned(),
            length: 8192,
            resident_bytes: 4096,
            ..Default::default()
        };
        file.set_residency(v1::Residency::WritingBack);
        assert_eq!(file_json(&file)["residency"], json!("writing_back"));
        assert!(files_table(&[file]).contains("50 %"));
    }
}
