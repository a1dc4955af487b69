//! What a node counts, in the text format that Prometheus reads.

mod http;

use std::sync::atomic::AtomicU64;

use dataplane::NodeStatus;
use extent::{Kind, Result};
pub(crate) use http::serve;
use nvme_tier::device::Health;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::units;

type Labels = Vec<(String, String)>;
type Float = Gauge<f64, AtomicU64>;

/// The whole status as one page.
///
/// # Errors
/// [`Kind::Io`] if it cannot be written to memory.
pub(crate) fn page(status: &NodeStatus) -> Result<String> {
    let mut registry = Registry::with_prefix("forebay");
    totals(&mut registry, status);
    states(&mut registry, status);
    devices(&mut registry, status);
    health(&mut registry, status);
    silos(&mut registry, status);
    rdma(&mut registry, status);
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|e| Kind::Io.error("writing metrics").caused_by(e))?;
    Ok(text)
}

fn totals(registry: &mut Registry, status: &NodeStatus) {
    let totals = [
        ("reads", "Reads answered", status.reads),
        ("read_bytes", "Bytes read by clients", status.read_bytes),
        ("hits", "Extent pieces read from the tier", status.hits),
        ("misses", "Extent pieces that had to come from a silo", status.misses),
        ("writes", "Writes answered", status.writes),
        ("written_bytes", "Bytes written by clients", status.written_bytes),
        ("commits", "Generations committed", status.commits),
        ("fetched_extents", "Extents fetched from silos", status.fetched_extents),
        ("evicted_extents", "Extents evicted", status.evicted_extents),
        ("checksum_errors", "Blocks whose checksum did not hold", status.checksum_errors),
        ("checksum_hits", "Pieces read whose checksums were in memory", status.checksum_hits),
        ("checksum_misses", "Pieces read whose checksums had to be read", status.checksum_misses),
        (
            "dropped_checksums",
            "Extents whose checksums were dropped from memory",
            status.dropped_checksums,
        ),
        ("repairs", "Damaged clean extents replaced from their silo", status.repairs),
        ("second_copy_reads", "Reads that took a second copy", status.second_copy_reads),
        ("errors", "Requests answered with an error", status.errors),
        ("scrubbed_extents", "Extents that scrubs have read", status.scrub.extents),
        ("scrubbed_bytes", "File bytes in them", status.scrub.bytes),
        ("scrub_damaged", "Extents that scrubs found damaged", status.scrub.damaged),
        ("scrub_unreadable", "Extents that devices could not read", status.scrub.unreadable),
        ("scrub_repaired", "Of both, those fetched again", status.scrub.repaired),
        ("scrub_quarantined", "Files that scrubs set aside", status.scrub.quarantined),
        (
            "scrub_metadata_damaged",
            "Superblocks, headers, records and descriptors that scrubs found damaged",
            status.scrub.metadata_damaged,
        ),
    ];
    for (name, help, value) in totals {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
}

fn states(registry: &mut Registry, status: &NodeStatus) {
    let seconds = |nanos| units::to_f64(nanos) / 1e9;
    let gauges = [
        ("shards", "Shards", f64::from(status.shards)),
        ("files", "Files known", units::to_f64(status.files)),
        (
            "files_missing_copy",
            "Dirty files that were committed on two devices and are on one",
            units::to_f64(status.files_missing_copy),
        ),
        (
            "dirty_files",
            "Files that their silos do not have yet",
            units::to_f64(status.dirty_files),
        ),
        ("dirty_bytes", "Bytes of dirty files", units::to_f64(status.dirty_bytes)),
        ("pinned_files", "Pinned files", units::to_f64(status.pinned_files)),
        ("resident_extents", "Extents on the node", units::to_f64(status.resident_extents)),
        ("resident_bytes", "File bytes in those extents", units::to_f64(status.resident_bytes)),
        ("slot_bytes", "Bytes of the slots that hold them", units::to_f64(status.slot_bytes)),
        (
            "checksum_memory_bytes",
            "Bytes of memory that checksums take",
            units::to_f64(status.checksum_memory_bytes),
        ),
        (
            "checksum_memory_limit_bytes",
            "Bytes that they may take; 0 where all of them stay",
            units::to_f64(status.checksum_memory_limit_bytes),
        ),
        ("buffers_taken", "Node buffers in use", units::to_f64(status.buffers.0)),
        ("buffers", "Node buffers in all", units::to_f64(status.buffers.1)),
        ("draining", "Whether new work is refused", f64::from(u8::from(status.draining))),
        ("scrubbing", "Whether a scrub runs", f64::from(u8::from(status.scrub.running.is_some()))),
    ];
    for (name, help, value) in gauges {
        let gauge = Float::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
    let latency = Family::<Labels, Float>::default();
    for (quantile, nanos) in [("0.5", status.read_p50_ns), ("0.99", status.read_p99_ns)] {
        latency.get_or_create(&label("quantile", quantile)).set(seconds(nanos));
    }
    registry.register("read_seconds", "Time of a READ in the node", latency);
    let sessions = Family::<Labels, Float>::default();
    for (fabric, count) in &status.sessions {
        sessions.get_or_create(&label("fabric", fabric)).set(units::to_f64(*count));
    }
    registry.register("sessions", "Open sessions", sessions);
}

fn rdma(registry: &mut Registry, status: &NodeStatus) {
    let up = Family::<Labels, Float>::default();
    let events = Family::<Labels, Counter>::default();
    for device in &status.rdma {
        for (port, active) in &device.ports {
            let mut labels = label("device", &device.device);
            labels.extend(label("port", &port.to_string()));
            up.get_or_create(&labels).set(f64::from(u8::from(*active)));
        }
        for (event, count) in &device.events {
            let mut labels = label("device", &device.device);
            labels.extend(label("event", event));
            events.get_or_create(&labels).inc_by(*count);
        }
    }
    registry.register("rdma_port_up", "Whether the port of an RDMA device is up", up);
    registry.register("rdma_events", "What RDMA devices told of unasked", events);
}

fn devices(registry: &mut Registry, status: &NodeStatus) {
    let deallocated = Family::<Labels, Counter>::default();
    let (capacity, used, failed) = (
        Family::<Labels, Float>::default(),
        Family::<Labels, Float>::default(),
        Family::<Labels, Float>::default(),
    );
    for device in &status.devices {
        let labels = label("device", &device.path);
        capacity.get_or_create(&labels).set(units::to_f64(device.capacity_bytes));
        used.get_or_create(&labels).set(units::to_f64(device.used_bytes));
        deallocated.get_or_create(&labels).inc_by(device.deallocated_bytes);
        failed.get_or_create(&labels).set(f64::from(u8::from(device.failed)));
    }
    registry.register("device_capacity_bytes", "Bytes that can hold extents", capacity);
    registry.register("device_used_bytes", "Bytes in slots that are taken", used);
    let help = "Bytes that a device was told nobody needs";
    registry.register("device_deallocated_bytes", help, deallocated);
    registry.register("device_failed", "Whether a device is no longer trusted", failed);
}

/// What devices say of themselves; those that say nothing have no such lines.
fn health(registry: &mut Registry, status: &NodeStatus) {
    type Reading = (&'static str, &'static str, fn(&Health) -> f64);
    let readings: [Reading; 6] = [
        ("device_temperature_celsius", "Composite temperature", |h| h.temperature_celsius.into()),
        ("device_critical_warning", "Critical Warning bits of the SMART log", |h| {
            h.critical_warning.into()
        }),
        ("device_used_percent", "Share of the device's life that is used up", |h| {
            h.used_percent.into()
        }),
        ("device_spare_percent", "Available spare", |h| h.available_spare_percent.into()),
        ("device_media_errors", "Media and data integrity errors", |h| {
            units::to_f64(h.media_errors)
        }),
        ("device_unsafe_shutdowns", "Times that it lost its power unannounced", |h| {
            units::to_f64(h.unsafe_shutdowns)
        }),
    ];
    for (name, help, read) in readings {
        let family = Family::<Labels, Float>::default();
        for device in &status.devices {
            if let Some(health) = &device.health {
                family.get_or_create(&label("device", &device.path)).set(read(health));
            }
        }
        registry.register(name, help, family);
    }
}

fn silos(registry: &mut Registry, status: &NodeStatus) {
    let (read, written, errors) = (
        Family::<Labels, Counter>::default(),
        Family::<Labels, Counter>::default(),
        Family::<Labels, Counter>::default(),
    );
    for silo in &status.silos {
        let mut labels = label("silo", &silo.name);
        labels.extend(label("kind", &silo.kind));
        read.get_or_create(&labels).inc_by(silo.read_bytes);
        written.get_or_create(&labels).inc_by(silo.written_bytes);
        errors.get_or_create(&labels).inc_by(silo.errors);
    }
    registry.register("silo_read_bytes", "Bytes read from a silo", read);
    registry.register("silo_written_bytes", "Bytes written to a silo", written);
    registry.register("silo_errors", "Requests to a silo that failed for good", errors);
}

fn label(name: &str, value: &str) -> Labels {
    vec![(name.to_owned(), value.to_owned())]
}

#[cfg(test)]
mod tests {
    use dataplane::{DeviceStatus, RdmaStatus, SiloStatus};

    use super::*;

    const HEALTHY: Health = Health {
        critical_warning: 0,
        temperature_celsius: 30,
        available_spare_percent: 100,
        spare_threshold_percent: 10,
        used_percent: 1,
        read_bytes: 0,
        written_bytes: 0,
        power_on_hours: 0,
        unsafe_shutdowns: 0,
        media_errors: 0,
    };

    #[test]
    fn a_page_has_every_number() {
        let status = NodeStatus {
            reads: 7,
            dirty_files: 3,
            scrub: dataplane::ScrubStatus { damaged: 5, ..Default::default() },
            read_p99_ns: 1_500_000,
            sessions: vec![("shm".to_owned(), 2)],
            devices: vec![DeviceStatus {
                path: "/dev/nvme0n1".to_owned(),
                driver: "io_uring".to_owned(),
                capacity_bytes: 1 << 40,
                used_bytes: 0,
                deallocated_bytes: 77,
                volatile_cache: false,
                failed: true,
                health: Some(Health { temperature_celsius: 41, media_errors: 3, ..HEALTHY }),
                health_missing: None,
            }],
            silos: vec![SiloStatus {
                name: "data".to_owned(),
                kind: "s3".to_owned(),
                writable: true,
                conditional: true,
                read_bytes: 9,
                written_bytes: 0,
                errors: 0,
            }],
            rdma: vec![RdmaStatus {
                device: "mlx5_0".to_owned(),
                ports: vec![(1, true), (2, false)],
                events: vec![("port_error".to_owned(), 4)],
            }],
            ..NodeStatus::default()
        };
        let page = page(&status).expect("a page");
        for line in [
            "forebay_reads_total 7",
            "forebay_dirty_files 3.0",
            "forebay_scrub_damaged_total 5",
            "forebay_scrubbing 0.0",
            "forebay_read_seconds{quantile=\"0.99\"} 0.0015",
            "forebay_sessions{fabric=\"shm\"} 2.0",
            "forebay_rdma_port_up{device=\"mlx5_0\",port=\"1\"} 1.0",
            "forebay_rdma_port_up{device=\"mlx5_0\",port=\"2\"} 0.0",
            "forebay_rdma_events_total{device=\"mlx5_0\",event=\"port_error\"} 4",
            "forebay_device_deallocated_bytes_total{device=\"/dev/nvme0n1\"} 77",
            "forebay_device_failed{device=\"/dev/nvme0n1\"} 1.0",
            "forebay_device_temperature_celsius{device=\"/dev/nvme0n1\"} 41.0",
            "forebay_device_media_errors{device=\"/dev/nvme0n1\"} 3.0",
            "forebay_silo_read_bytes_total{silo=\"data\",kind=\"s3\"} 9",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }
}
