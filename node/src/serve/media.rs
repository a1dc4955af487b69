//! The tier's devices: created if they are to be, formatted if they are new, recovered.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dataplane::DeviceStatus;
use dma::{HugePages, Pool, SizeClass};
use extent::{Error, Kind, Result};
use nvme_tier::device::{DeviceIndex, Driver, Media, MediaOptions, Reach, allocate_file};
use nvme_tier::{Discard, Findings, FormatOptions, Ledger, RecoveryReport, Tier, TierOptions};

use super::ready::Recovery;
use crate::clock;
use crate::config::Settings;
use crate::output::Output;
use crate::progress::Meter;

const RECOVERY_DEPTH: usize = 64;
const BUSY_PATIENCE: Duration = Duration::from_secs(3);
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A tier that is ready to be served.
pub(super) struct Opened {
    pub(super) media: Media,
    pub(super) tier: Arc<Tier>,
    pub(super) ledger: Ledger,
    pub(super) recovery: Recovery,
}

/// Opens the tier of these settings.
///
/// # Errors
/// What is wrong with a device, and what to do about it.
pub(super) fn open(settings: &Settings, output: Output) -> Result<Opened> {
    create(settings, output)?;
    let media = open_patiently(&devices(settings), &absent(settings))
        .map_err(|error| suggest_without(error, settings))?;
    let blank = all_blank(&media)?;
    if blank {
        indices(&media).try_for_each(|device| media.check_foreign(device))?;
    }
    let pool = work_pool()?;
    let mut device = media.queue(RECOVERY_DEPTH)?;
    if blank {
        let report = nvme_tier::format(&mut *device, &pool, &format_options(settings)?)?;
        tracing::info!(tier = %report.tier, slab_bytes = report.slab_bytes, "formatted a new tier");
    }
    let (options, absent) = (tier_options(settings), absent(settings));
    let recovered = nvme_tier::recover_without(&mut *device, &pool, options, &absent)
        .map_err(|error| error.while_doing("opening the tier"))?;
    log(&recovered.report);
    let recovery = Recovery::new(blank, &recovered.report);
    Ok(Opened { media, tier: recovered.tier, ledger: recovered.ledger, recovery })
}

/// Opens the devices, and waits a moment for a node that has just been killed: the kernel finishes
/// its commands, and with them its hold on the devices, only after the process is gone.
fn open_patiently(devices: &[(PathBuf, Reach)], absent: &[DeviceIndex]) -> Result<Media> {
    let begin = clock::now();
    loop {
        match Media::open_without(devices, absent, MediaOptions::default()) {
            Err(error) if error.kind() == Kind::Busy && begin.elapsed() < BUSY_PATIENCE => {
                tracing::debug!(%error, "waiting for the tier's devices");
                thread::sleep(BUSY_PAUSE);
            }
            other => return other,
        }
    }
}

fn log(report: &RecoveryReport) {
    tracing::info!(
        files = report.files,
        dirty_files = report.dirty_files,
        extents = report.extents,
        bytes = report.bytes,
        elapsed = ?report.elapsed,
        "opened the tier"
    );
    // What a crash leaves half done is no damage.
    let findings = Findings { torn_entries: 0, stale_entries: 0, ..report.findings };
    if findings != Findings::default() {
        tracing::warn!(?findings, "not everything on the tier is as it was left");
    }
    for name in &report.quarantined {
        tracing::error!(%name, "damaged, and only here: nothing of it is freed, reads of it fail");
    }
}

/// The tier's devices, in their order, and who drives each.
fn devices(settings: &Settings) -> Vec<(PathBuf, Reach)> {
    settings.devices.iter().map(|device| (device.path.clone(), device.reach)).collect()
}

/// The devices that are left out.
fn absent(settings: &Settings) -> Vec<DeviceIndex> {
    let devices = (0..).zip(&settings.devices);
    devices.filter(|(_, device)| device.absent).map(|(index, _)| DeviceIndex(index)).collect()
}

/// Says that a tier of several devices can do without one.
fn suggest_without(error: Error, settings: &Settings) -> Error {
    let lost = matches!(error.kind(), Kind::NotFound | Kind::Io | Kind::Invalid);
    if settings.devices.len() < 2 || !lost {
        return error;
    }
    error.while_doing(
        "opening the tier's devices (if one of them is lost, start with --without and its path)",
    )
}

fn indices(media: &Media) -> impl Iterator<Item = DeviceIndex> + use<> {
    let count = u16::try_from(media.count()).expect("a tier has at most 65535 devices");
    (0..count).map(DeviceIndex)
}

/// How a new tier of these settings is laid out.
///
/// # Errors
/// [`Kind::Invalid`] for a checksum block that no tier has.
pub(super) fn format_options(settings: &Settings) -> Result<FormatOptions> {
    let tier = &settings.tier;
    let checksum_block_bytes = u32::try_from(tier.checksum_block_bytes).map_err(|e| {
        Kind::Invalid.error("[tier] checksum_block_bytes is too large").caused_by(e)
    })?;
    Ok(FormatOptions {
        slab_bytes: tier.slab_bytes,
        extent_bytes: tier.extent_bytes,
        checksum_block_bytes,
        min_class_bytes: tier.min_class_bytes,
        deallocate: tier.discard != Discard::Off,
    })
}

fn tier_options(settings: &Settings) -> TierOptions {
    TierOptions {
        high_watermark: settings.tier.high_watermark,
        low_watermark: settings.tier.low_watermark,
        discard: settings.tier.discard,
        checksum_memory_bytes: settings.tier.checksum_memory_bytes,
        dirty_copies: settings.tier.dirty_copies,
        ..TierOptions::default()
    }
}

/// What each device is called and how it is driven.
pub(super) fn describe(media: &Media) -> Vec<DeviceStatus> {
    indices(media)
        .map(|device| {
            let geometry = media.geometry(device);
            DeviceStatus {
                path: media.path(device).display().to_string(),
                driver: media.describe_driver(device),
                capacity_bytes: geometry.capacity_bytes,
                used_bytes: 0,
                deallocated_bytes: 0,
                volatile_cache: geometry.volatile_cache,
                failed: false,
                health: None,
                health_missing: None,
            }
        })
        .collect()
}

/// Memory for reading and writing a tier's tables.
///
/// # Errors
/// [`Kind::NoSpace`].
pub(crate) fn work_pool() -> Result<Pool> {
    let classes =
        [SizeClass { bytes: 64 << 10, count: 64 }, SizeClass { bytes: 1 << 20, count: 32 }];
    Pool::new(&classes, HugePages::Never)
}

/// Creates the files of the tier that are not there yet.
///
/// # Errors
/// [`Kind::NotFound`] if the other devices hold a tier: then one is lost, and not new.
fn create(settings: &Settings, output: Output) -> Result<()> {
    let (new, old): (Vec<_>, Vec<_>) = settings
        .devices
        .iter()
        .filter(|device| !device.absent)
        .partition(|device| device.create_bytes.is_some());
    if let (Some(lost), false) = (new.first(), old.is_empty()) {
        let old: Vec<_> = old.iter().map(|device| (device.path.clone(), device.reach)).collect();
        let media = open_patiently(&old, &[])?;
        for device in indices(&media) {
            if !media.is_blank(device)? {
                return Err(Kind::NotFound.error(format!(
                    "{} does not exist, and {} belongs to a tier already: if the first is lost, start \
                     with --without {0}; a tier cannot grow yet",
                    lost.path.display(),
                    media.path(device).display()
                )));
            }
        }
    }
    for device in &settings.devices {
        let Some(bytes) = device.create_bytes.filter(|_| !device.absent) else { continue };
        create_file(&device.path, bytes, device.reach.driver, output)?;
    }
    Ok(())
}

/// Creates one file for a tier, and shows how far that is. It gets its name only once it is whole:
/// if something comes between, the next start does not take a part for all.
///
/// # Errors
/// As [`allocate_file`].
pub(crate) fn create_file(path: &Path, bytes: u64, driver: Driver, output: Output) -> Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let failed = |e| Error::io(format!("creating {}", path.display()), e);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut meter = Meter::new(output, "creating tier");
    let word = path.display().to_string();
    let created =
        allocate_file(&unfinished, bytes, driver, &mut |done, all| meter.update(done, all, &word));
    meter.finish();
    created?;
    fs::rename(&unfinished, path).map_err(failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new("."))).and_then(|f| f.sync_all()).map_err(failed)
}

/// Whether nothing was ever written where superblocks are. A tier that was created but not
/// formatted, because something came between, is blank too.
///
/// # Errors
/// [`Kind::Invalid`] if only some devices are blank: the others belong to some tier.
fn all_blank(media: &Media) -> Result<bool> {
    let mut blank = Vec::new();
    let present = || indices(media).filter(|device| !media.is_absent(*device));
    for device in present() {
        if media.is_blank(device)? {
            blank.push(media.path(device).display().to_string());
        }
    }
    if blank.is_empty() || blank.len() == media.count() {
        return Ok(!blank.is_empty());
    }
    if present().count() < media.count() {
        return Err(Kind::Invalid.error(format!(
            "{} is empty: a tier cannot be formatted without one of its devices",
            blank.join(", ")
        )));
    }
    Err(Kind::Invalid.error(format!(
        "{} {} empty while the tier's other devices are not: a tier cannot grow yet. Give the \
         devices that it was formatted with, or format all of them anew with `forebay tier format`",
        blank.join(", "),
        if blank.len() == 1 { "is" } else { "are" }
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_blank_set_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let (empty, full) = (directory.path().join("empty"), directory.path().join("full"));
        std::fs::write(&empty, vec![0; 4096]).expect("written");
        std::fs::write(&full, vec![1; 4096]).expect("written");
        let all_blank = |paths: &[&PathBuf]| {
            let paths: Vec<_> = paths.iter().map(|path| (*path).clone()).collect();
            let options = MediaOptions { minimum_bytes: 0, ..MediaOptions::default() };
            super::all_blank(&Media::open(&paths, options).expect("two files"))
        };
        assert!(all_blank(&[&empty]).expect("readable"));
        assert!(!all_blank(&[&full]).expect("readable"));
        let error = all_blank(&[&empty, &full]).expect_err("mixed");
        assert_eq!(error.kind(), Kind::Invalid);
    }
}
