use dma::Span;
use extent::Result;

use super::{CopyId, HostMemory};
use crate::device::Event;
use crate::pin::Pin;
use crate::{Device, DeviceSpan};

/// A place of the ring.
pub(super) struct Place<M: HostMemory> {
    /// Before the memory, so that this is unpinned while it is still there.
    pub(super) pin: Option<Pin>,
    pub(super) state: State<M>,
    /// Done when the place's last copy is.
    pub(super) event: Event,
}

pub(super) enum State<M: HostMemory> {
    /// To be lent.
    Free(M),
    /// Somebody has it.
    Lent,
    /// The device reads it. What is read, and where it goes, stay until that has ended.
    Copying { memory: M, to: DeviceSpan, id: CopyId },
    /// Lost.
    Missing,
}

pub(super) fn pin(device: &Device, memory: Span<'_>) -> Result<Pin> {
    Pin::new(device, memory).map_err(|error| {
        error.while_doing(format_args!("pinning {} bytes of host memory", memory.length))
    })
}
