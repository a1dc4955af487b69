use std::fmt;
use std::ops::{Range, RangeBounds};
use std::sync::Arc;

use extent::{Kind, Result};

use crate::api::DevicePointer;
use crate::{Device, bounce};

/// Memory of a device, freed when nobody uses it any more: copies under way count as users.
#[derive(Debug)]
pub struct DeviceMemory {
    whole: DeviceSpan,
}

impl DeviceMemory {
    pub(crate) fn allocate(device: &Device, bytes: usize) -> Result<Self> {
        if bytes == 0 {
            return Err(Kind::Invalid.error("device memory of zero bytes"));
        }
        let pointer = device.api.allocate(bytes)?;
        let owner = Arc::new(Allocation { device: device.clone(), pointer });
        Ok(Self {
            whole: DeviceSpan { device: device.clone(), pointer, bytes, owner: Some(owner) },
        })
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.whole.bytes
    }

    /// Whether it holds no byte: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.whole.bytes == 0
    }

    /// Its address, for kernels.
    #[must_use]
    pub fn pointer(&self) -> DevicePointer {
        self.whole.pointer
    }

    /// All of it.
    #[must_use]
    pub fn all(&self) -> DeviceSpan {
        self.whole.clone()
    }

    /// A part of it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if that is not inside.
    pub fn part(&self, range: impl RangeBounds<usize>) -> Result<DeviceSpan> {
        self.whole.part(range)
    }
}

struct Allocation {
    device: Device,
    pointer: DevicePointer,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Err(error) = self.device.api.free(self.pointer) {
            tracing::debug!(%error, "device memory was not given back");
        }
    }
}

/// A part of a device's memory, which keeps it from being freed if it is a [`DeviceMemory`]'s.
#[derive(Clone)]
pub struct DeviceSpan {
    device: Device,
    pointer: DevicePointer,
    bytes: usize,
    owner: Option<Arc<Allocation>>,
}

impl DeviceSpan {
    pub(crate) fn borrowed(device: &Device, pointer: DevicePointer, bytes: usize) -> Result<Self> {
        let found = device.api.find(pointer)?;
        let end = pointer.0.checked_add(bytes as u64);
        if end.is_none_or(|end| end > found.end) {
            return Err(Kind::Invalid.error(format!(
                "{bytes} bytes of device memory at {:#x}, which ends at {:#x}",
                pointer.0, found.end
            )));
        }
        Ok(Self { device: device.clone(), pointer, bytes, owner: None })
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The address of its first byte.
    #[must_use]
    pub fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    /// The device that it is of.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A part of it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if that is not inside.
    pub fn part(&self, range: impl RangeBounds<usize>) -> Result<Self> {
        let range = resolve(&range, self.bytes)?;
        Ok(Self {
            device: self.device.clone(),
            pointer: self.pointer.after(range.start),
            bytes: range.len(),
            owner: self.owner.clone(),
        })
    }

    /// Writes the host's bytes to its front, through a small buffer: not to be fast.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if they do not fit; else as [`DeviceSpan::to_vec`].
    pub fn fill(&self, bytes: &[u8]) -> Result<()> {
        bounce::into(&self.part(..bytes.len())?, bytes)
    }

    /// Its bytes, copied to the host through a small buffer: to look at them, not to be fast.
    ///
    /// # Errors
    /// [`Kind::Busy`] if the device does not get to it within a minute; what the device answers.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        bounce::out(self)
    }
}

impl fmt::Debug for DeviceSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceSpan")
            .field("device", &self.device.info().ordinal)
            .field("pointer", &format_args!("{:#x}", self.pointer.0))
            .field("bytes", &self.bytes)
            .field("is_borrowed", &self.owner.is_none())
            .finish()
    }
}

fn resolve(bounds: &impl RangeBounds<usize>, length: usize) -> Result<Range<usize>> {
    dma::range_within(bounds, length).ok_or_else(|| {
        Kind::Invalid.error(format!("the range is not inside device memory of {length} bytes"))
    })
}
