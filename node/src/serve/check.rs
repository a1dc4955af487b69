//! `forebay serve --check`: whether the node would start, without starting it.

use extent::Result;
use nvme_tier::device::{DeviceIndex, Media, MediaOptions};
use serde_json::json;

use super::{media, parts, room};
use crate::config::Settings;
use crate::output::{Output, Tone};
use crate::units;

/// Looks at devices and silos, and prints what the node would do.
///
/// # Errors
/// The first thing that would keep it from starting.
pub(super) fn run(settings: &Settings, output: Output) -> Result<()> {
    media::format_options(settings)?;
    let mut drivers = Vec::with_capacity(settings.devices.len());
    for device in &settings.devices {
        if device.absent {
            drivers.push(Some("left out".to_owned()));
        } else if device.create_bytes.is_none() {
            let options = MediaOptions { read_only: true, ..MediaOptions::default() };
            let media = Media::open_by(&[(device.path.clone(), device.reach)], options)?;
            drivers.push(Some(media.describe_driver(DeviceIndex(0))));
        } else {
            nvme_tier::device::check_folder(&device.path, device.reach.driver)?;
            drivers.push(None);
        }
    }
    room::check(settings)?;
    drop(parts::silos(settings)?);
    print(settings, &drivers, output)
}

fn print(settings: &Settings, drivers: &[Option<String>], output: Output) -> Result<()> {
    let taken = room::taken(settings);
    let silos: Vec<&str> = settings.silos.iter().map(|(name, _)| name.as_str()).collect();
    if output.is_json() {
        let devices: Vec<_> = settings
            .devices
            .iter()
            .zip(drivers)
            .map(|(device, driver)| {
                json!({
                    "path": device.path,
                    "create_bytes": device.create_bytes,
                    "driver": driver,
                })
            })
            .collect();
        return output.json(&json!({
            "ok": true,
            "state_dir": settings.state_dir,
            "shards": settings.shards,
            "listen": settings.listen.to_string(),
            "rdma": rdma_addresses(settings),
            "proofs": settings.proofs.name(),
            "socket": settings.socket,
            "control": settings.control.to_string(),
            "metrics": settings.metrics.map(|address| address.to_string()),
            "devices": devices,
            "silos": silos,
            "in_use": taken.iter().map(|(_, address)| address.to_string()).collect::<Vec<_>>(),
        }));
    }
    output.line(format!("{}  the node would start", output.paint(Tone::Good, "ok")))?;
    output.line(format!("state   {}", settings.state_dir.display()))?;
    output.line(format!(
        "listen  tcp {}{} (proofs {}), shared memory {}, control {}",
        settings.listen,
        rdma_addresses(settings).iter().map(|at| format!(", rdma {at}")).collect::<String>(),
        settings.proofs.name(),
        settings.socket.display(),
        settings.control
    ))?;
    for (device, driver) in settings.devices.iter().zip(drivers) {
        let fate = device.create_bytes.map_or_else(
            || driver.clone().unwrap_or_else(|| "exists".to_owned()),
            |bytes| format!("to be created, {}", units::bytes(bytes)),
        );
        output.line(format!("device  {} ({fate})", device.path.display()))?;
    }
    for (what, address) in taken {
        output.line(format!(
            "{}  {what} {address} is in use: fine if that is the node that this one is to follow",
            output.paint(Tone::Warn, "note")
        ))?;
    }
    output.line(format!(
        "silos   {}",
        if silos.is_empty() {
            "none: give [silo.NAME] or --silo NAME=DIR".to_owned()
        } else {
            silos.join(", ")
        }
    ))
}

fn rdma_addresses(settings: &Settings) -> Vec<String> {
    let rdma = settings.rdma.as_ref();
    rdma.map_or_else(Vec::new, |rdma| rdma.listen.iter().map(ToString::to_string).collect())
}
