#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use extent::{Kind, Result};

use crate::api::{DeviceApi, DeviceInfo, DevicePointer, EventHandle, Progress, StreamHandle};
use crate::memory::{DeviceMemory, DeviceSpan};
use crate::{CudaDriver, SoftwareDevice, clock};

/// How long to look again and again before sleeping, and how long to sleep.
const SPIN: Duration = Duration::from_micros(50);
const NAP: Duration = Duration::from_micros(50);

/// A GPU, or what stands for one. Clones are the same device, and so are two that were asked for by one number.
#[derive(Clone)]
pub struct Device {
    pub(crate) api: Arc<dyn DeviceApi>,
}

impl Device {
    /// An NVIDIA GPU, by its number in CUDA's order, from 0. Everything happens in its primary context,
    /// the one that CUDA's runtime and PyTorch use.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if there is no driver, or no GPU; [`Kind::NotFound`] if not so many.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        CudaDriver::system()?.device(ordinal)
    }

    /// A device of this process, for tests.
    #[must_use]
    pub fn software(device: &SoftwareDevice) -> Self {
        Self { api: device.api() }
    }

    pub(crate) fn over(api: Arc<dyn DeviceApi>) -> Self {
        Self { api }
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        self.api.info()
    }

    /// Memory of the device, freed when the last user of it is gone.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if there is not so much; [`Kind::Invalid`] for none.
    pub fn allocate(&self, bytes: usize) -> Result<DeviceMemory> {
        DeviceMemory::allocate(self, bytes)
    }

    /// Memory of the device that somebody else allocated, such as a tensor's.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is not memory of this device, or not so long.
    ///
    /// # Safety
    /// It stays allocated while the span, a copy of it, or a [`crate::Ring`]'s copy into it lives: also after a
    /// read that was handed to a stream, until that has come past it, after one that the device did not
    /// finish in time, until it has, and for ever after one, or the end of a registration, that answered
    /// [`Kind::Disconnected`].
    pub unsafe fn borrow(&self, pointer: DevicePointer, bytes: usize) -> Result<DeviceSpan> {
        DeviceSpan::borrowed(self, pointer, bytes)
    }

    /// A stream of copies that waits for no other stream unless told.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn stream(&self) -> Result<Stream> {
        let handle = self.api.create_stream()?;
        Ok(Stream { device: self.clone(), handle, is_owned: true })
    }

    /// A stream that somebody else made: a `CUstream`, or `torch.cuda.Stream.cuda_stream`; 0 is the
    /// default one.
    ///
    /// # Safety
    /// It is a stream of this device, and stays one while this lives.
    #[must_use]
    pub unsafe fn borrow_stream(&self, raw: u64) -> Stream {
        Stream { device: self.clone(), handle: StreamHandle(raw), is_owned: false }
    }

    pub(crate) fn event(&self) -> Result<Event> {
        Ok(Event { device: self.clone(), handle: self.api.create_event()? })
    }

    /// Whether it is the same device, reached by the same driver.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.api.identity() == other.api.identity()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(self.info()).finish()
    }
}

/// An order in which a device does things.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    handle: StreamHandle,
    is_owned: bool,
}

impl Stream {
    /// The device that it is of.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn handle(&self) -> StreamHandle {
        self.handle
    }

    /// Waits until everything that is queued in it now is done.
    ///
    /// # Errors
    /// [`Kind::Busy`] if that takes longer than `patience`; what went wrong in the stream.
    pub fn finish(&self, patience: Duration) -> Result<()> {
        let mark = self.mark()?;
        let deadline = clock::now() + patience;
        let mut pause = Pause::new();
        loop {
            if mark.is_past()? {
                return Ok(());
            }
            if clock::now() >= deadline {
                return Err(Kind::Busy.error(format!(
                    "{} is not done after {patience:?}: is something in it that never ends?",
                    self.device.info().name
                )));
            }
            pause.once_more();
        }
    }

    /// Marks what is queued in it now, to be looked at later whether that is done.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn mark(&self) -> Result<Mark> {
        let event = self.device.event()?;
        event.record(self)?;
        Ok(Mark(event))
    }

    /// Makes what is queued from now on wait for what `event` last marked.
    pub(crate) fn wait_for(&self, event: &Event) -> Result<()> {
        self.device.api.wait(self.handle, event.handle)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.is_owned
            && let Err(error) = self.device.api.destroy_stream(self.handle)
        {
            tracing::debug!(%error, "a stream was not given back");
        }
    }
}

/// How far a stream was queued once.
#[derive(Debug)]
pub struct Mark(Event);

impl Mark {
    /// Whether everything before it is done. Never waits.
    ///
    /// # Errors
    /// What went wrong in the stream.
    pub fn is_past(&self) -> Result<bool> {
        Ok(self.0.progress()? == Progress::Done)
    }
}

/// A mark in a stream, which may be set again.
#[derive(Debug)]
pub(crate) struct Event {
    device: Device,
    handle: EventHandle,
}

impl Event {
    pub(crate) fn record(&self, stream: &Stream) -> Result<()> {
        self.device.api.record(self.handle, stream.handle)
    }

    pub(crate) fn progress(&self) -> Result<Progress> {
        self.device.api.query(self.handle)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Err(error) = self.device.api.destroy_event(self.handle) {
            tracing::debug!(%error, "an event was not given back");
        }
    }
}

/// Between two looks at something that a device does: at once for a moment, then with naps.
pub(crate) struct Pause {
    spin_until: std::time::Instant,
}

impl Pause {
    pub(crate) fn new() -> Self {
        Self { spin_until: clock::now() + SPIN }
    }

    pub(crate) fn once_more(&mut self) {
        if clock::now() < self.spin_until {
            thread::yield_now();
        } else {
            thread::sleep(NAP);
        }
    }
}
