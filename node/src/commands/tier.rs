//! A tier without a node: format, inspect, check.

use std::path::PathBuf;

use dma::Pool;
use extent::{Kind, Result};
use nvme_tier::device::{Media, MediaOptions, UringDevice};
use nvme_tier::{CheckReport, FormatOptions, FormatReport, Inspection};

use super::tier_report as report;
use crate::cli::{TierCommand, TierFormatArgs};
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
            let (mut device, pool) = open_for_reading(&args.devices)?;
            let inspection: Inspection = nvme_tier::inspect(&mut device, &pool)?;
            report::inspected(&inspection, &args.devices, output)
        }
        TierCommand::Check(args) => {
            let (mut device, pool) = open_for_reading(&args.devices)?;
            let mut meter = Meter::new(output, "checking");
            let checked: CheckReport = nvme_tier::check(&mut device, &pool, &mut |done, all| {
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

fn open_for_reading(paths: &[PathBuf]) -> Result<(UringDevice, Pool)> {
    let media = Media::open(paths, MediaOptions { read_only: true, ..MediaOptions::default() })?;
    Ok((media.queue(QUEUE_DEPTH)?, work_pool()?))
}

fn format(args: &TierFormatArgs, output: Output) -> Result<FormatReport> {
    let checksum_block_bytes = u32::try_from(args.checksum_block_bytes.0)
        .map_err(|e| Kind::Invalid.error("--checksum-block-bytes is too large").caused_by(e))?;
    let options = FormatOptions {
        slab_bytes: args.slab_bytes.map(|bytes| bytes.0),
        extent_bytes: args.extent_bytes.0,
        checksum_block_bytes,
        min_class_bytes: args.min_class_bytes.0,
    };
    for path in &args.tier.devices {
        match (path.exists(), args.size) {
            (true, _) if args.force => {}
            (true, _) => {
                Media::check_foreign(path)?;
                refuse_tier(path)?;
            }
            (false, Some(size)) => create_file(path, size.0, output)?,
            (false, None) => {
                return Err(Kind::NotFound.error(format!(
                    "{} does not exist: correct the path, or say --size for a file to be created",
                    path.display()
                )));
            }
        }
    }
    let media = Media::open(&args.tier.devices, MediaOptions::default())?;
    let mut device = media.queue(QUEUE_DEPTH)?;
    nvme_tier::format(&mut device, &work_pool()?, &options)
}

/// A device that is part of a tier is not formatted by accident.
fn refuse_tier(path: &std::path::Path) -> Result<()> {
    if crate::serve::is_blank(path)? {
        return Ok(());
    }
    Err(Kind::Denied.error(format!(
        "{} is not empty and may hold a tier (`forebay tier inspect` tells): say --force if all of \
         it may be lost",
        path.display()
    )))
}
