//! The ring's host memory.
#![allow(unsafe_code)]

use std::time::Duration;

use dma::{ALIGN_BYTES, Span};
use extent::{Kind, Result};
use gds::{Device, HostMemory, Ladder, Path, Pinning, Ring};

use super::DeviceOptions;
use crate::Memory;

/// How long the first copy may take: a device may have to wake up.
const PROOF_PATIENCE: Duration = Duration::from_secs(10);

// SAFETY: a `Memory` is its bytes' only user until a request takes it by value, and keeps its region mapped.
// The same value has the same bytes: other memory comes as another value.
unsafe impl HostMemory for Memory {
    fn span(&self) -> Option<Span<'_>> {
        let region = self.region()?;
        Some(Span { region, offset: self.offset(), length: self.len() })
    }
}

/// A ring, and the way that it is: the best that the policy allows and that proves itself.
pub(super) fn choose(
    mut allocate: impl FnMut(usize) -> Result<Memory>,
    device: &Device,
    options: &DeviceOptions,
    ladder: &mut Ladder,
) -> Result<(Ring<Memory>, Path)> {
    check(options)?;
    loop {
        let path = ladder.choose(options.policy)?;
        let pinning = if path == Path::Host { Pinning::Never } else { Pinning::Require };
        let outcome = ring(&mut allocate, device, options, pinning).and_then(|mut ring| {
            ring.prove(PROOF_PATIENCE)?;
            // Memory that a later connection brings need not be as good as this.
            if path != Path::Host && options.policy.allows(Path::Host) {
                ring.relax();
            }
            Ok(ring)
        });
        match outcome {
            Ok(ring) => return Ok((ring, path)),
            // Another way would fail for the same reason.
            Err(error) if error.kind() == Kind::Disconnected || path == Path::Host => {
                return Err(error);
            }
            Err(error) => ladder.deny(path, error.to_string()),
        }
    }
}

/// A ring for a reader that may take no other way than one without it.
pub(super) fn unused(
    mut allocate: impl FnMut(usize) -> Result<Memory>,
    device: &Device,
    options: &DeviceOptions,
) -> Result<Ring<Memory>> {
    check(options)?;
    let window = options.ring_bytes / options.slot_bytes;
    let bytes = window * ALIGN_BYTES;
    ring(
        &mut allocate,
        device,
        &DeviceOptions { ring_bytes: bytes, slot_bytes: ALIGN_BYTES, ..*options },
        Pinning::Never,
    )
}

fn check(options: &DeviceOptions) -> Result<()> {
    let DeviceOptions { ring_bytes, slot_bytes, .. } = *options;
    if slot_bytes == 0 || !slot_bytes.is_multiple_of(ALIGN_BYTES) || ring_bytes < slot_bytes {
        return Err(Kind::Invalid.error(format!(
            "a ring of {ring_bytes} bytes in pieces of {slot_bytes}: pieces are multiples of \
             {ALIGN_BYTES}, and at least one fits"
        )));
    }
    Ok(())
}

fn ring(
    allocate: &mut impl FnMut(usize) -> Result<Memory>,
    device: &Device,
    options: &DeviceOptions,
    pinning: Pinning,
) -> Result<Ring<Memory>> {
    let slots = options.ring_bytes / options.slot_bytes;
    let mut whole = allocate(slots * options.slot_bytes)?;
    let mut pieces: Vec<Memory> =
        (1..slots).rev().map(|slot| whole.split_off(slot * options.slot_bytes)).collect();
    pieces.push(whole);
    Ring::new(device, pieces, pinning)
}
