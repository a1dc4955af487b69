use std::sync::Arc;

use dma::{Region, Span};
use extent::Result;

use crate::Device;

/// Host memory that is pinned with a device, until this is dropped.
pub(crate) struct Pin {
    device: Device,
    region: Arc<Region>,
    offset: usize,
    length: usize,
}

impl Pin {
    pub(crate) fn new(device: &Device, memory: Span<'_>) -> Result<Self> {
        device.api.pin(memory)?;
        let Span { region, offset, length } = memory;
        Ok(Self { device: device.clone(), region: Arc::clone(region), offset, length })
    }

    /// Whether it is this memory.
    pub(crate) fn covers(&self, memory: Span<'_>) -> bool {
        let Span { region, offset, length } = memory;
        Arc::ptr_eq(&self.region, region)
            && offset >= self.offset
            && offset + length <= self.offset + self.length
    }

    pub(crate) fn bytes(&self) -> usize {
        self.length
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let memory = Span { region: &self.region, offset: self.offset, length: self.length };
        if let Err(error) = self.device.api.unpin(memory) {
            // The driver may still have its pages: they must not become somebody else's addresses.
            tracing::debug!(%error, "host memory stays pinned");
            std::mem::forget(Arc::clone(&self.region));
        }
    }
}
