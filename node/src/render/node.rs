//! The node.

use control::proto as v1;
use serde_json::{Value, json};

use super::{scrub_json, scrub_line, silo_json};
use crate::output::{Output, Tone};
use crate::units;

fn health_json(health: &v1::DeviceHealth) -> Value {
    json!({
        "warnings": health.warnings,
        "temperature_celsius": health.temperature_celsius,
        "available_spare_percent": health.available_spare_percent,
        "used_percent": health.used_percent,
        "read_bytes": health.read_bytes,
        "written_bytes": health.written_bytes,
        "power_on_hours": health.power_on_hours,
        "unsafe_shutdowns": health.unsafe_shutdowns,
        "media_errors": health.media_errors,
    })
}

fn health_line(health: &v1::DeviceHealth, output: Output) -> String {
    let state = if health.warnings.is_empty() {
        output.paint(Tone::Good, "healthy")
    } else {
        output.paint(Tone::Bad, &health.warnings.join("; "))
    };
    format!(
        "          {state}: {} °C, {} % of its life used, {} media errors, {} unsafe shutdowns",
        health.temperature_celsius,
        health.used_percent,
        units::count(health.media_errors),
        units::count(health.unsafe_shutdowns)
    )
}

fn rdma_json(device: &v1::RdmaDevice) -> Value {
    json!({ "name": device.name, "ports": device.ports, "events": device.events })
}

/// A device's ports, and what it told of that an operator would want to know.
fn rdma_line(device: &v1::RdmaDevice, output: Output) -> String {
    let mut ports: Vec<_> = device.ports.iter().collect();
    ports.sort_unstable();
    let port = |(number, up): (&u32, &bool)| {
        let state = if *up { "up".to_owned() } else { output.paint(Tone::Bad, "down") };
        format!("port {number} {state}")
    };
    let mut words: Vec<String> = ports.into_iter().map(port).collect();
    let mut events: Vec<_> = device.events.iter().collect();
    events.sort_unstable();
    words.extend(events.into_iter().map(|(event, count)| format!("{count} {event}")));
    format!("rdma      {}  {}", device.name, words.join(", "))
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
                "deallocated_bytes": device.deallocated_bytes,
                "volatile_cache": device.volatile_cache,
                "failed": device.failed,
                "health": device.health.as_ref().map(health_json),
                "health_missing": Some(&device.health_missing).filter(|why| !why.is_empty()),
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
        "rdma": status.rdma.iter().map(rdma_json).collect::<Vec<_>>(),
        "scrub_job": (!status.scrub_job.is_empty()).then_some(&status.scrub_job),
        "scrub": status.scrub.as_ref().map(scrub_json),
        "last_scrub": status.last_scrub.as_ref().map(scrub_json),
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
        ("checksum_memory_bytes", status.checksum_memory_bytes),
        ("checksum_memory_limit_bytes", status.checksum_memory_limit_bytes),
        ("checksum_hits", status.checksum_hits),
        ("checksum_misses", status.checksum_misses),
        ("dropped_checksums", status.dropped_checksums),
        ("second_copy_reads", status.second_copy_reads),
        ("files_missing_copy", status.files_missing_copy),
        ("errors", status.errors),
        ("scrubbed_extents", status.scrubbed_extents),
        ("scrubbed_bytes", status.scrubbed_bytes),
        ("scrub_damaged", status.scrub_damaged),
        ("scrub_unreadable", status.scrub_unreadable),
        ("scrub_repaired", status.scrub_repaired),
        ("scrub_quarantined", status.scrub_quarantined),
        ("scrub_metadata_damaged", status.scrub_metadata_damaged),
        ("buffers_used", status.buffers_used),
        ("buffers_total", status.buffers_total),
        ("read_p50_ns", status.read_p50_ns),
        ("read_p99_ns", status.read_p99_ns),
    ]
    .into_iter()
}

fn checksums_line(status: &v1::NodeStatus) -> String {
    let limit = match status.checksum_memory_limit_bytes {
        0 => "without a limit".to_owned(),
        limit => format!("of {}", units::bytes(limit)),
    };
    let hits = units::share(status.checksum_hits, status.checksum_hits + status.checksum_misses);
    format!(
        "checksums {} {limit} in memory, {:.0} % hits",
        units::bytes(status.checksum_memory_bytes),
        hits * 100.0
    )
}

/// The node in a dozen lines.
pub(crate) fn status_text(status: &v1::NodeStatus, output: Output) -> String {
    let state = match (status.draining, status.devices.iter().any(|device| device.failed)) {
        (true, _) => output.paint(Tone::Warn, "draining"),
        (false, true) => output.paint(Tone::Bad, "a device failed"),
        (false, false) => output.paint(Tone::Good, "serving"),
    };
    let hits = units::share(status.hits, status.hits + status.misses) * 100.0;
    let open = status.sessions.iter().filter(|(_, count)| **count > 0);
    let sessions: Vec<String> = open.map(|(fabric, count)| format!("{count} {fabric}")).collect();
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
        checksums_line(status),
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
            "load      {}, sessions: {}, {} of {} buffers, jobs: {} running, {} queued",
            units::plural(status.shards.into(), "shard"),
            if sessions.is_empty() { "none".to_owned() } else { sessions.join(", ") },
            status.buffers_used,
            status.buffers_total,
            status.jobs_running,
            status.jobs_queued
        ),
    ];
    if status.files_missing_copy > 0 {
        let files = units::count(status.files_missing_copy);
        let text =
            format!("copies    {files} dirty files have one copy left: write them back first");
        lines.push(output.paint(Tone::Bad, &text));
    }
    if let Some(scrub) = &status.scrub {
        lines.push(format!("scrub     running, {}", scrub_line(scrub)));
    } else if let Some(scrub) = &status.last_scrub {
        lines.push(format!("scrub     the last one: {}", scrub_line(scrub)));
    }
    for device in &status.devices {
        lines.push(format!(
            "device    {}  {} of {} ({})",
            device.path,
            units::bytes(device.used_bytes),
            units::bytes(device.capacity_bytes),
            if device.failed { output.paint(Tone::Bad, "failed") } else { device.driver.clone() }
        ));
        if let Some(health) = &device.health {
            lines.push(health_line(health, output));
        } else if !device.health_missing.is_empty() {
            lines.push(format!("          health unknown: {}", device.health_missing));
        }
    }
    lines.extend(status.rdma.iter().map(|device| rdma_line(device, output)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Colour;

    #[test]
    fn a_status_names_what_is_wrong() {
        let mut status = v1::NodeStatus::default();
        let output = Output::new(false, Colour::Never);
        assert!(status_text(&status, output).starts_with("serving"));
        status.devices.push(v1::DeviceStatus { failed: true, ..Default::default() });
        assert!(status_text(&status, output).starts_with("a device failed"));
        status.rdma.push(v1::RdmaDevice {
            name: "mlx5_0".to_owned(),
            ports: [(1, true), (2, false)].into(),
            events: [("port_error".to_owned(), 4)].into(),
        });
        let line = "rdma      mlx5_0  port 1 up, port 2 down, 4 port_error";
        assert!(status_text(&status, output).lines().any(|found| found == line));
        assert_eq!(status_json(&status)["rdma"][0]["events"]["port_error"], 4);
        assert_eq!(status_json(&status)["devices"][0]["failed"], json!(true));
        assert_eq!(status_json(&status)["devices"][0]["health_missing"], json!(null));
        status.devices[0].health_missing = "no rights".to_owned();
        assert!(status_text(&status, output).contains("health unknown: no rights"));
        assert_eq!(status_json(&status)["devices"][0]["health_missing"], json!("no rights"));
    }
}
