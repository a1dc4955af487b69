//! What every device checks before it takes a command.

use extent::{Error, Kind, Result};

use super::{Command, DeviceIndex, Geometry};

/// The most bytes a single command may move. Whatever is above the hardware's own limit, the
/// kernel splits.
pub(super) const LARGEST_COMMAND_BYTES: usize = 64 << 20;

/// The most commands that a queue may hold.
pub(super) const LARGEST_DEPTH: usize = 4096;

/// Checks how many commands a queue is to hold.
///
/// # Errors
/// [`Kind::Invalid`] outside 1 to [`LARGEST_DEPTH`].
pub(super) fn check_depth(depth: usize) -> Result<()> {
    if (1..=LARGEST_DEPTH).contains(&depth) {
        return Ok(());
    }
    Err(Kind::Invalid
        .error(format!("a queue holds from 1 to {LARGEST_DEPTH} commands, not {depth}")))
}

/// What a command that changes something meets on a tier that was opened to be read.
pub(super) fn read_only() -> Error {
    Kind::Denied.error("this tier was opened for reading only")
}

/// What a command for a device meets that was left out.
pub(super) fn absent(device: DeviceIndex) -> Error {
    Kind::Io.error(format!("device {} is absent: the tier was opened without it", device.0))
}

/// Checks a command against the device that it names, `None` if there is no such device.
///
/// # Errors
/// [`Kind::Invalid`] if it names no device, is empty or too large, is not a whole number of
/// blocks, or reaches past the end.
pub(super) fn check(command: &Command, geometry: Option<Geometry>) -> Result<()> {
    let Some(geometry) = geometry else {
        let device = command.device().0;
        return Err(Kind::Invalid.error(format!("there is no device {device} in this tier")));
    };
    let (at, length, most) = match (command, geometry.deallocation) {
        (Command::Flush(_), _) => return Ok(()),
        (Command::Read { at, .. } | Command::Write { at, .. }, _) => {
            (at, command.length() as u64, LARGEST_COMMAND_BYTES as u64)
        }
        (Command::Deallocate { at, bytes }, Some(deallocation)) => {
            (at, *bytes, deallocation.most_bytes)
        }
        (Command::Deallocate { .. }, None) => {
            return Err(Kind::Unsupported.error("this device takes no advice on unused blocks"));
        }
    };
    let block = u64::from(geometry.block_bytes);
    let whole = at.offset.is_multiple_of(block) && length.is_multiple_of(block);
    if length == 0 || length > most || !whole {
        return Err(Kind::Invalid.error(format!(
            "{length} bytes at {} are not whole blocks of {block} bytes, at most {most} in all",
            at.offset
        )));
    }
    match at.offset.checked_add(length) {
        Some(end) if end <= geometry.capacity_bytes => Ok(()),
        _ => Err(Kind::Invalid.error(format!(
            "{length} bytes at {} are past the end of a device of {} bytes",
            at.offset, geometry.capacity_bytes
        ))),
    }
}
