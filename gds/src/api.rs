//! The seam: what a device does, and nothing of how.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use dma::{DmaBuf, Span};
use extent::{Kind, Result};

/// An address in the memory of a device, as its driver counts. For CUDA, a `CUdeviceptr`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DevicePointer(pub u64);

impl DevicePointer {
    /// The address so many bytes further on.
    pub(crate) fn after(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// What a device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Its place in its driver's order, from 0.
    pub ordinal: usize,
    /// Its maker's name for it.
    pub name: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Whether it says that its memory can be given to other devices, as a dma-buf.
    pub dma_buf: bool,
}

/// A stream of a device. Only [`crate::Stream`] has one, so that it is not used after its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct StreamHandle(pub(crate) u64);

/// An event of a device. Only [`crate::device::Event`] has one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct EventHandle(pub(crate) u64);

/// How far an event is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// Something before it is still to be done.
    Pending,
    /// Everything before it is done.
    Done,
}

/// A device, as its driver shows it. Handles are those that it gave and has not taken back.
///
/// [`extent::Kind::Disconnected`] means that the device is lost, and nobody knows what it still does with
/// memory; after every other error it does nothing any more with what the call was about.
pub(crate) trait DeviceApi: Send + Sync {
    fn info(&self) -> &DeviceInfo;

    /// The same for two that are the same device, reached by the same driver.
    fn identity(&self) -> (usize, usize);

    /// Does something with the device's CUDA context as the thread's own: what other libraries of CUDA's need.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] if the device has none; nothing is done then.
    fn with_context(&self, _act: &mut dyn FnMut()) -> Result<()> {
        Err(Kind::Unsupported.error(format!("{} is not a device of CUDA's", self.info().name)))
    }

    /// # Errors
    /// [`extent::Kind::NoSpace`] if there is not so much memory.
    fn allocate(&self, bytes: usize) -> Result<DevicePointer>;

    fn free(&self, pointer: DevicePointer) -> Result<()>;

    /// Which memory of this device an address is in, from where to where.
    ///
    /// # Errors
    /// [`extent::Kind::Invalid`] if it is in none of this device's.
    fn find(&self, pointer: DevicePointer) -> Result<Range<u64>>;

    /// The number of the allocation that an address is in, which no other had or will have: addresses are used again.
    fn allocation(&self, pointer: DevicePointer) -> Result<u64>;

    /// Exports memory of one allocation, in whole pages of the host's, for other devices to write to.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] if the device, its driver or this memory does not allow it.
    fn export(&self, from: DevicePointer, bytes: usize) -> Result<Arc<DmaBuf>>;

    /// Sees to it that what other devices have written to it by now is what it reads from now on.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] if the device has no way to do that.
    fn flush_writes(&self) -> Result<()>;

    /// Makes host memory such that the device reads it by itself.
    ///
    /// # Errors
    /// [`extent::Kind::NoSpace`] or [`extent::Kind::Unsupported`] if it cannot.
    fn pin(&self, memory: Span<'_>) -> Result<()>;

    fn unpin(&self, memory: Span<'_>) -> Result<()>;

    fn create_stream(&self) -> Result<StreamHandle>;

    fn destroy_stream(&self, stream: StreamHandle) -> Result<()>;

    fn create_event(&self) -> Result<EventHandle>;

    fn destroy_event(&self, event: EventHandle) -> Result<()>;

    /// Queues a copy into the device.
    ///
    /// # Safety
    /// The host memory stays, and nobody writes to it, until an event that is recorded afterwards is done.
    unsafe fn copy_in(&self, to: DevicePointer, from: Span<'_>, stream: StreamHandle)
    -> Result<()>;

    /// Queues a copy out of the device.
    ///
    /// # Safety
    /// As [`DeviceApi::copy_in`], and nobody reads the host memory either.
    unsafe fn copy_out(
        &self,
        from: DevicePointer,
        to: Span<'_>,
        stream: StreamHandle,
    ) -> Result<()>;

    /// Marks how far a stream is queued now.
    fn record(&self, event: EventHandle, stream: StreamHandle) -> Result<()>;

    /// What is queued in a stream from now on waits for what an event last marked.
    fn wait(&self, stream: StreamHandle, event: EventHandle) -> Result<()>;

    /// How far what an event last marked is.
    ///
    /// # Errors
    /// What went wrong with anything before it in its stream that no event told of.
    fn query(&self, event: EventHandle) -> Result<Progress>;
}
