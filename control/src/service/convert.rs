use dataplane::{
    DeviceHealth, DeviceStatus, FileStatus, RdmaStatus, Residency, ScrubReport, SiloStatus,
};

use crate::clock::timestamp;
use crate::proto;

impl From<Residency> for proto::Residency {
    fn from(residency: Residency) -> Self {
        match residency {
            Residency::Absent => Self::Absent,
            Residency::Promoting => Self::Promoting,
            Residency::Partial => Self::Partial,
            Residency::Clean => Self::Clean,
            Residency::Dirty => Self::Dirty,
            Residency::WritingBack => Self::WritingBack,
            Residency::Conflict => Self::Conflict,
            Residency::Lost => Self::Lost,
            Residency::Quarantined => Self::Quarantined,
        }
    }
}

impl From<&FileStatus> for proto::FileStatus {
    fn from(status: &FileStatus) -> Self {
        Self {
            file: status.name.to_string(),
            id: status.id.to_string(),
            generation: status.generation.0,
            length: status.length,
            version: status.version.as_ref().map(ToString::to_string),
            residency: proto::Residency::from(status.residency).into(),
            extent_bytes: status.extent_bytes,
            total_extents: status.total_extents,
            resident_extents: status.resident_extents,
            resident_bytes: status.resident_bytes,
            pins: status.pins.clone(),
        }
    }
}

impl From<RdmaStatus> for proto::RdmaDevice {
    fn from(status: RdmaStatus) -> Self {
        Self {
            name: status.device,
            ports: status.ports.into_iter().map(|(port, up)| (port.into(), up)).collect(),
            events: status.events.into_iter().collect(),
        }
    }
}

impl From<SiloStatus> for proto::SiloStatus {
    fn from(status: SiloStatus) -> Self {
        Self {
            name: status.name,
            kind: status.kind,
            writable: status.writable,
            conditional: status.conditional,
            read_bytes: status.read_bytes,
            written_bytes: status.written_bytes,
            errors: status.errors,
        }
    }
}

impl From<ScrubReport> for proto::ScrubReport {
    fn from(report: ScrubReport) -> Self {
        Self {
            started: Some(timestamp(report.started_unix_ms)),
            elapsed_ms: report.elapsed_ms,
            rate_bytes_per_s: report.rate_bytes_per_s,
            complete: report.complete,
            files: report.files,
            extents: report.extents,
            bytes: report.bytes,
            metadata_entries: report.metadata_entries,
            damaged: report.damaged,
            unreadable: report.unreadable,
            repaired: report.repaired,
            unrepaired: report.unrepaired,
            quarantined: report.quarantined,
            metadata_damaged: report.metadata_damaged,
            metadata_repaired: report.metadata_repaired,
        }
    }
}

impl From<DeviceStatus> for proto::DeviceStatus {
    fn from(status: DeviceStatus) -> Self {
        Self {
            path: status.path,
            driver: status.driver,
            capacity_bytes: status.capacity_bytes,
            used_bytes: status.used_bytes,
            deallocated_bytes: status.deallocated_bytes,
            volatile_cache: status.volatile_cache,
            failed: status.failed,
            health: status.health.map(Into::into),
            health_missing: status.health_missing.unwrap_or_default(),
        }
    }
}

impl From<DeviceHealth> for proto::DeviceHealth {
    fn from(health: DeviceHealth) -> Self {
        Self {
            warnings: health.warnings().map(str::to_owned).collect(),
            temperature_celsius: health.temperature_celsius,
            available_spare_percent: health.available_spare_percent.into(),
            used_percent: health.used_percent.into(),
            read_bytes: health.read_bytes,
            written_bytes: health.written_bytes,
            power_on_hours: health.power_on_hours,
            unsafe_shutdowns: health.unsafe_shutdowns,
            media_errors: health.media_errors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residencies_keep_their_names() {
        for residency in Residency::ALL {
            let name = proto::Residency::from(residency).as_str_name();
            assert_eq!(name, format!("RESIDENCY_{}", residency.name().to_uppercase()));
        }
    }
}
