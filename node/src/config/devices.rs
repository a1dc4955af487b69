//! The tier's devices: those given, or a file in the state directory.

use std::path::{Path, PathBuf};

use extent::{Kind, Result};
use nvme_tier::device::{PciName, Reach, Timeouts};

use super::DeviceSection;
use crate::units::{self, Bytes};

/// The smallest tier that is worth having.
pub(super) const MIN_TIER_BYTES: u64 = 256 << 20;
/// The largest that nobody asked for.
pub(super) const MAX_DEFAULT_TIER_BYTES: u64 = 16 << 30;

/// One device of the tier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DeviceSpec {
    pub(crate) path: PathBuf,
    /// Bytes of the file, if it does not exist yet.
    pub(crate) create_bytes: Option<u64>,
    /// Who moves its blocks, and how long is waited for it.
    pub(crate) reach: Reach,
    /// It is lost, and the tier does without it.
    pub(crate) absent: bool,
}

/// Whether a device is there. A PCI function has no path, and opening it tells.
pub(crate) fn is_there(path: &Path) -> bool {
    PciName::parse(path).is_some() || path.exists()
}

/// The devices of a tier, each with the size it is to be created with, if it is.
///
/// # Errors
/// [`Kind::NotFound`] for a device that is neither there nor to be created; [`Kind::Invalid`] for
/// one that is given twice or too small, or left out and not there; [`Kind::NoSpace`] if there is no room for the default.
pub(super) fn devices(
    sections: Vec<DeviceSection>,
    state_dir: &Path,
    size: Option<Bytes>,
    without: &[PathBuf],
) -> Result<Vec<DeviceSpec>> {
    check_without(&sections, without)?;
    if sections.is_empty() {
        let path = state_dir.join("tier.img");
        let create_bytes = if path.exists() {
            None
        } else {
            Some(size.map_or_else(|| default_tier_bytes(state_dir), |bytes| Ok(bytes.0))?)
        };
        let create_bytes = whole_size(&path, create_bytes)?;
        let reach = Reach::default();
        return Ok(vec![DeviceSpec { path, create_bytes, reach, absent: false }]);
    }
    let mut devices: Vec<DeviceSpec> = Vec::with_capacity(sections.len());
    for section in sections {
        let reach = reach(&section)?;
        let DeviceSection { path, size, .. } = section;
        if devices.iter().any(|device| device.path == path) {
            return Err(
                Kind::Invalid.error(format!("[[device]] {} is given twice", path.display()))
            );
        }
        let absent = without.contains(&path);
        let create_bytes = match (is_there(&path) || absent, size) {
            (true, _) => None,
            (false, Some(bytes)) => Some(bytes.0),
            (false, None) => {
                return Err(Kind::NotFound.error(format!(
                    "[[device]] {} does not exist: correct the path, add a size for a file to be \
                     created, or, if it is lost, start with --without {0}",
                    path.display()
                )));
            }
        };
        let create_bytes = whole_size(&path, create_bytes)?;
        devices.push(DeviceSpec { path, create_bytes, reach, absent });
    }
    Ok(devices)
}

/// How a device is reached.
fn reach(section: &DeviceSection) -> Result<Reach> {
    let device = || format!("[[device]] {}", section.path.display());
    let time = |name: &str, text: &Option<String>| {
        let parsed = text.as_deref().map(units::duration).transpose();
        parsed.map_err(|error| error.while_doing(format!("{} {name}", device())))
    };
    let timeouts = Timeouts {
        command: time("command_timeout", &section.command_timeout)?,
        reset: time("reset_timeout", &section.reset_timeout)?,
        ready: time("ready_timeout", &section.ready_timeout)?,
        resets_per_minute: section.resets_per_minute,
    };
    timeouts.check().map_err(|error| error.while_doing(device()))?;
    if timeouts != Timeouts::default() && PciName::parse(&section.path).is_none() {
        return Err(Kind::Invalid.error(format!(
            "{}: timeouts are for driver vfio, which takes PCI addresses; what the kernel drives has \
             the kernel's (nvme_core.io_timeout)",
            device()
        )));
    }
    Ok(Reach { driver: section.driver.into(), timeouts })
}

/// Whether what is to be left out is there to be left out, and something remains.
fn check_without(sections: &[DeviceSection], without: &[PathBuf]) -> Result<()> {
    let known = |path: &PathBuf| sections.iter().any(|section| section.path == *path);
    if let Some(path) = without.iter().find(|path| !known(path)) {
        let all: Vec<_> =
            sections.iter().map(|section| section.path.display().to_string()).collect();
        return Err(Kind::Invalid.error(format!(
            "--without {}: no [[device]] has that path; they are {}",
            path.display(),
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        )));
    }
    if !sections.is_empty() && sections.iter().all(|section| without.contains(&section.path)) {
        return Err(Kind::Invalid.error("--without names all devices: leave one"));
    }
    Ok(())
}

/// Bytes of a file to be created: whole mebibytes, and enough.
fn whole_size(path: &Path, create_bytes: Option<u64>) -> Result<Option<u64>> {
    match create_bytes {
        Some(bytes) if bytes < MIN_TIER_BYTES => Err(Kind::Invalid.error(format!(
            "a device of {} at {} is too small: give it {} or more",
            units::bytes(bytes),
            path.display(),
            units::bytes(MIN_TIER_BYTES)
        ))),
        other => Ok(other.map(|bytes| bytes & !((1 << 20) - 1))),
    }
}

/// A tenth of what is free, but not more than 16 GiB and not less than the least.
fn default_tier_bytes(state_dir: &Path) -> Result<u64> {
    let free = crate::system::free_bytes(state_dir)?;
    if free < MIN_TIER_BYTES + MIN_TIER_BYTES / 4 {
        return Err(Kind::NoSpace.error(format!(
            "only {} are free at {}, and a tier needs {}: make room, choose another --state-dir, \
             or give [[device]] paths",
            units::bytes(free),
            state_dir.display(),
            units::bytes(MIN_TIER_BYTES)
        )));
    }
    Ok((free / 10).clamp(MIN_TIER_BYTES, MAX_DEFAULT_TIER_BYTES))
}
