//! What a power cut left half recorded is completed before it is served.
//!
//! A record that stands on one of its two devices counts. But until it stands on both, what it
//! replaces must not be erased, and nobody may see it: once the one device is lost, what it replaces is
//! all that is left.

use std::sync::Arc;

use extent::{FileId, Kind, Result};
use parking_lot::Mutex;

use crate::bugs::{self, Bug};
use crate::device::Device;
use crate::operation::{Operation, RecordOperation};
use crate::{Done, Ledger};

/// What stands on one device and should stand on two.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Files whose newest record does.
    pub(super) files: Vec<FileId>,
    /// Whether a tombstone does. It goes as soon as what it buries is gone.
    pub(super) tombstone: bool,
}

/// Writes records to their second devices, and only then lets the ledger erase what they replace.
///
/// # Errors
/// [`Kind::Io`] if a device could not be written.
pub(super) fn complete(
    ledger: &mut Ledger,
    device: &mut dyn Device,
    unfinished: Unfinished,
) -> Result<()> {
    let Unfinished { files, tombstone } = unfinished;
    if files.is_empty() && !tombstone || bugs::is(Bug::IncompleteServed) {
        return Ok(());
    }
    let replaced = ledger.withhold_erasures();
    // Room for records first, where torn ones stand.
    come_to_rest(ledger, device)?;
    let errors = Arc::new(Mutex::new(Vec::new()));
    for file in files {
        let errors = Arc::clone(&errors);
        let done = Done::new(move |result: Result<()>| errors.lock().extend(result.err()));
        let refresh = Operation::Record(file, RecordOperation::Refresh(done));
        ledger.tier().queue.lock().operations.push_back(refresh);
    }
    come_to_rest(ledger, device)?;
    for error in errors.lock().drain(..) {
        if error.kind() != Kind::NoSpace {
            return Err(error.while_doing("recording on a second device what one device has"));
        }
        // Erasing makes room for it. Until then the file is as safe as on one device.
        tracing::warn!(%error, "a file's record stands on one device instead of two");
    }
    ledger.resume_erasures(replaced);
    if tombstone {
        come_to_rest(ledger, device)?;
    }
    Ok(())
}

fn come_to_rest(ledger: &mut Ledger, device: &mut dyn Device) -> Result<()> {
    while !ledger.is_idle() {
        if !ledger.step(device) {
            device.sleep(&[], None)?;
        }
    }
    Ok(())
}
