//! How much room the demo needs, and whether it is there.

use std::path::Path;

use extent::{Kind, Result};

use super::source::Source;
use crate::{system, units};

/// What the demo needs beside the node's buffers.
const MEMORY_BYTES: u64 = 1 << 30;

/// A tier that holds everything at once: slots are powers of two, and each size has its own slabs.
pub(super) fn tier_bytes(source: &Source, checkpoint_bytes: u64) -> u64 {
    const EXTENT: u64 = 4 << 20;
    const SMALLEST_SLOT: u64 = 64 << 10;
    const SLABS: u64 = 256 << 20;
    let slots = |length: u64| {
        let tail = length % EXTENT;
        let last = if tail == 0 { 0 } else { tail.next_power_of_two().max(SMALLEST_SLOT) };
        length - tail + last
    };
    let files: u64 = source.files.iter().map(|file| slots(file.length)).sum();
    let all = files + 2 * slots(checkpoint_bytes);
    // Eviction would begin at nine tenths.
    (all + all / 4 + SLABS).next_multiple_of(64 << 20)
}

/// Refuses to begin what would fail in the middle.
///
/// # Errors
/// [`Kind::NoSpace`] with what to do about it.
pub(super) fn check_room(scratch: &Path, tier_bytes: u64, checkpoint_bytes: u64) -> Result<()> {
    let free = system::free_bytes(scratch)?;
    let needed = tier_bytes + checkpoint_bytes + (128 << 20);
    if free < needed {
        return Err(Kind::NoSpace.error(format!(
            "the demo needs {} of disk at {}, and {} are free: give a smaller --limit and \
             --checkpoint, or a --scratch directory with more room",
            units::bytes(needed),
            scratch.display(),
            units::bytes(free)
        )));
    }
    match system::available_memory_bytes() {
        Some(free) if free < MEMORY_BYTES => Err(Kind::NoSpace.error(format!(
            "the demo needs {} of memory, and {} are available: close something",
            units::bytes(MEMORY_BYTES),
            units::bytes(free)
        ))),
        _ => Ok(()),
    }
}
