//! What a power cut left half recorded is completed before it is served.
//!
//! A record that stands on one of its two devices counts. But until it stands on both, what it
//! replaces must not be erased, and nobody may see it: once the one device is lost, what it replaces is
//! all that is left.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use extent::{Error, FileId, Kind, Result};
use parking_lot::Mutex;

use crate::bugs::{self, Bug};
use crate::device::Device;
use crate::ledger::Erasure;
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
/// [`Kind::Io`] if a device could not be written; [`Kind::NoSpace`] if there is no room for a record, and
/// what can be erased makes none.
pub(super) fn complete(
    ledger: &mut Ledger,
    device: &mut dyn Device,
    unfinished: Unfinished,
) -> Result<()> {
    let Unfinished { mut files, tombstone } = unfinished;
    if files.is_empty() && !tombstone || bugs::is(Bug::IncompleteServed) {
        return Ok(());
    }
    let mut replaced = ledger.withhold_erasures();
    // Room for records first, where torn ones stand.
    come_to_rest(ledger, device)?;
    while !files.is_empty() {
        let left = refresh(ledger, device, &files)?;
        let waits = |erasure: &Erasure| match erasure {
            Erasure::Record { file, .. } => left.contains(file),
            Erasure::Descriptor { .. } => true,
            Erasure::Stray { .. } => false,
        };
        // Records of all others make room, and then it is tried again.
        let others: VecDeque<Erasure>;
        (replaced, others) = replaced.into_iter().partition(waits);
        if !left.is_empty() && left.len() == files.len() && others.is_empty() {
            return Err(no_room(left.len()));
        }
        ledger.resume_erasures(others);
        if !left.is_empty() {
            come_to_rest(ledger, device)?;
        }
        files.retain(|file| left.contains(file));
    }
    ledger.resume_erasures(replaced);
    if tombstone {
        come_to_rest(ledger, device)?;
    }
    Ok(())
}

/// Writes the records of files again. Those for which there was no room.
fn refresh(
    ledger: &mut Ledger,
    device: &mut dyn Device,
    files: &[FileId],
) -> Result<HashSet<FileId>> {
    let errors = Arc::new(Mutex::new(Vec::new()));
    for file in files.iter().copied() {
        let errors = Arc::clone(&errors);
        let done = Done::new(move |result: Result<()>| {
            errors.lock().extend(result.err().map(|error| (file, error)));
        });
        let refresh = Operation::Record(file, RecordOperation::Refresh(done));
        ledger.tier().queue.lock().operations.push_back(refresh);
    }
    come_to_rest(ledger, device)?;
    let mut left = HashSet::new();
    for (file, error) in errors.lock().drain(..) {
        if error.kind() != Kind::NoSpace {
            return Err(error.while_doing("recording on a second device what one device has"));
        }
        left.insert(file);
    }
    Ok(left)
}

fn no_room(files: usize) -> Error {
    Kind::NoSpace.error(format!(
        "the records of {files} files stand on one device, and there is no room for them on a second \
         one: start without the device that is full, forget or write back files, and start again with \
         all of them"
    ))
}

fn come_to_rest(ledger: &mut Ledger, device: &mut dyn Device) -> Result<()> {
    while !ledger.is_idle() {
        if !ledger.step(device) {
            device.sleep(&[], None)?;
        }
    }
    Ok(())
}
