//! A tier without a node: format, inspect, check.

use std::path::PathBuf;

use dma::Pool;
use extent::{Kind, Result};
use nvme_tier::device::{Device, DeviceIndex, Driver, Media, MediaOptions};
use nvme_tier::{CheckReport, FormatOptions, FormatReport, Inspection};

use super::tier_report as report;
use crate::cli::{TierArgs, TierCommand, TierFormatArgs};
use crate::config::{DriverName, is_there};
use crate::output::Output;
use crate::progress::Meter;
use crate::serve::{create_file, work_pool};

const QUEUE_DEPTH: usize = 64;

/// Formats, inspects or checks.
///
/// # Errors
/// [`Kind::Denied`] if formatting would destroy something and was not forced; [`Kind::Corrupt`] if
/// a check finds damage; what the devices say.
pub(crate) fn tier(command: TierCommand, output: Output) -> Result<()> {
    match command {
        TierCommand::Format(args) => {
            let formatted = format(&args, output)?;
            report::formatted(&formatted, output)
        }
        TierCommand::Inspect(args) => {
            let (mut device, pool) = open_for_reading(&args)?;
            let inspection: Inspection = nvme_tier::inspect(&mut *device, &pool)?;
            report::inspected(&inspection, &args.devices, output)
        }
        TierCommand::Check(args) => {
            let (mut device, pool) = open_for_reading(&args)?;
            let mut meter = Meter::new(output, "checking");
            let checked: CheckReport = nvme_tier::check(&mut *device, &pool, &mut |done, all| {
                meter.update(done, all, "");
            })?;
            meter.finish();
            report::checked(&checked, output)?;
            if checked.is_sound() {
                return Ok(());
            }
            Err(Kind::Corrupt.error(
                "the tier is damaged; a node still serves what holds, fetches clean extents \
                 again and sets damaged dirty files aside",
            ))
        }
    }
}

fn open_for_reading(args: &TierArgs) -> Result<(Box<dyn Device>, Pool)> {
    let options = MediaOptions { read_only: true, ..MediaOptions::default() };
    let media = open(&args.devices, args.driver, options)?;
    Ok((media.queue(QUEUE_DEPTH)?, work_pool()?))
}

fn open(paths: &[PathBuf], driver: DriverName, options: MediaOptions) -> Result<Media> {
    let driver: Driver = driver.into();
    let devices: Vec<_> = paths.iter().map(|path| (path.clone(), driver)).collect();
    Media::open_by(&devices, options)
}

fn format(args: &TierFormatArgs, output: Output) -> Result<FormatReport> {
    let checksum_block_bytes = u32::try_from(args.checksum_block_bytes.0)
        .map_err(|e| Kind::Invalid.error("--checksum-block-bytes is too large").caused_by(e))?;
    let options = FormatOptions {
        slab_bytes: args.slab_bytes.map(|bytes| bytes.0),
        extent_bytes: args.extent_bytes.0,
        checksum_block_bytes,
        min_class_bytes: args.min_class_bytes.0,
        deallocate: !args.no_discard,
    };
    let TierArgs { devices, driver } = &args.tier;
    let (there, absent): (Vec<_>, Vec<_>) =
        devices.iter().cloned().partition(|path| is_there(path));
    // What cannot be formatted is found before a file is created, which takes a while.
    if !args.force && !there.is_empty() {
        refuse_full(&open(&there, *driver, MediaOptions::default())?)?;
    }
    for path in &absent {
        let Some(size) = args.size else {
            return Err(Kind::NotFound.error(format!(
                "{} does not exist: correct the path, or say --size for a file to be created",
                path.display()
            )));
        };
        create_file(path, size.0, (*driver).into(), output)?;
    }
    let media = open(devices, *driver, MediaOptions::default())?;
    let mut device = media.queue(QUEUE_DEPTH)?;
    nvme_tier::format(&mut *device, &work_pool()?, &options)
}

/// A device that is part of a tier, or holds something else, is not formatted by accident.
fn refuse_full(media: &Media) -> Result<()> {
    let count = u16::try_from(media.count()).expect("a tier has at most 65535 devices");
    for device in (0..count).map(DeviceIndex) {
        media.check_foreign(device)?;
        if !media.is_blank(device)? {
            return Err(Kind::Denied.error(format!(
                "{} is not empty and may hold a tier (`forebay tier inspect` tells): say --force \
                 if all of it may be lost",
                media.path(device).display()
            )));
        }
    }
    Ok(())
}
