//! A device of this process.
#![allow(unsafe_code)]

mod allocated;
mod engine;

use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use dma::{DmaBuf, Span, Window};
use extent::{Kind, Result};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::api::{DeviceApi, DeviceInfo, DevicePointer, EventHandle, Progress, StreamHandle};
use engine::{Engine, Op};

/// A device that is a thread and some memory of this process: for tests of everything above a device, where
/// there is none. It says so in its name, and nothing makes one but who asks for it.
///
/// Its memory is reached by copies alone, its addresses are none of the host's. Streams are in order, each
/// for itself; which goes on next is chosen by a seed. It can be told to go wrong.
#[derive(Clone)]
pub struct SoftwareDevice {
    inner: Arc<Inner>,
}

/// What a device did with a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyStep {
    /// It was queued; whether from pinned memory.
    Queued {
        /// Its number, from 0, in the order in which copies were queued.
        copy: u64,
        /// Whether all of the host memory was pinned then.
        is_pinned: bool,
    },
    /// The device began it.
    Begun {
        /// Its number.
        copy: u64,
    },
    /// It is done, or has failed.
    Ended {
        /// Its number.
        copy: u64,
    },
}

struct Inner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) struct Shared {
    info: DeviceInfo,
    engine: Mutex<Engine>,
    news: Condvar,
}

impl SoftwareDevice {
    /// A device with so many bytes of memory.
    ///
    /// # Panics
    /// If there is no thread to be had.
    #[must_use]
    pub fn new(memory_bytes: u64, seed: u64) -> Self {
        Self::with(memory_bytes, seed, false)
    }

    /// The same, which exports its memory: what stands for a dma-buf is the file that the memory is in, so that
    /// simulated RDMA devices can write there. Addresses of what was freed it uses again.
    ///
    /// # Panics
    /// If there is no thread to be had.
    #[must_use]
    pub fn exporting(memory_bytes: u64, seed: u64) -> Self {
        Self::with(memory_bytes, seed, true)
    }

    fn with(memory_bytes: u64, seed: u64, exports: bool) -> Self {
        let info = DeviceInfo {
            ordinal: 0,
            name: "software device (no GPU)".to_owned(),
            memory_bytes,
            dma_buf: exports,
        };
        let engine = Mutex::new(Engine::new(memory_bytes, seed, exports));
        let shared = Arc::new(Shared { info, engine, news: Condvar::new() });
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("software-gpu".to_owned()).spawn(move || shared.run())
        };
        let thread = Some(thread.expect("a thread"));
        Self { inner: Arc::new(Inner { shared, thread }) }
    }

    pub(crate) fn api(&self) -> Arc<dyn DeviceApi> {
        Arc::new(Handle(self.clone()))
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.inner.shared.engine.lock()
    }

    fn tell(&self) {
        self.inner.shared.news.notify_all();
    }

    /// No copy into the device begins until [`SoftwareDevice::resume`], but for so many.
    pub fn stall_after(&self, copies: u64) {
        self.engine().copies_allowed = Some(copies);
        self.tell();
    }

    /// The copy so many from now does not begin until [`SoftwareDevice::resume`], nor what is behind it in
    /// its stream; 0 is the next one.
    pub fn hold_copy(&self, after: u64) {
        let mut engine = self.engine();
        engine.held = Some(engine.copies + after);
    }

    /// Everything goes on.
    pub fn resume(&self) {
        let mut engine = self.engine();
        (engine.copies_allowed, engine.held) = (None, None);
        drop(engine);
        self.tell();
    }

    /// The copy so many from now fails when its turn comes; 0 is the next one.
    pub fn fail_copy(&self, after: u64) {
        let mut engine = self.engine();
        let number = engine.copies + after;
        engine.failing.push(number);
    }

    /// The copy so many from now is not even queued; 0 is the next one.
    pub fn refuse_copy(&self, after: u64) {
        let mut engine = self.engine();
        let number = engine.copies + after;
        engine.refused.push(number);
    }

    /// From now on no host memory is pinned.
    pub fn refuse_pins(&self, refuse: bool) {
        self.engine().refuses_pins = refuse;
    }

    /// From now on no memory is exported.
    pub fn refuse_exports(&self, refuse: bool) {
        self.engine().refuses_exports = refuse;
    }

    /// How often it was told to take in what others had written.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.engine().flushes
    }

    /// It falls off its bus: nothing that is queued is ever done, and every call says so.
    pub fn lose(&self) {
        self.engine().is_lost = true;
        self.tell();
    }

    /// What became of copies, in the order in which it did.
    #[must_use]
    pub fn steps(&self) -> Vec<CopyStep> {
        self.engine().steps.clone()
    }

    /// Copies that were begun so far.
    #[must_use]
    pub fn copies_begun(&self) -> u64 {
        let begun = |step: &&CopyStep| matches!(step, CopyStep::Begun { .. });
        self.engine().steps.iter().filter(begun).count() as u64
    }

    /// Host memory that is pinned now, and the most that ever was, in bytes.
    #[must_use]
    pub fn pinned_bytes(&self) -> (usize, usize) {
        let engine = self.engine();
        (engine.pinned_bytes, engine.peak_pinned_bytes)
    }

    /// Allocations, streams and events that were not given back.
    #[must_use]
    pub fn left_behind(&self) -> (usize, usize, usize) {
        let engine = self.engine();
        (engine.allocations.len(), engine.streams.len(), engine.events.len())
    }

    /// Copies that read memory that was changed between queueing and the end of the copy, as far as
    /// checksums of both moments tell: somebody used it too early.
    #[must_use]
    pub fn overtaken_copies(&self) -> u64 {
        self.engine().overtaken
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.engine.lock().is_closing = true;
        self.shared.news.notify_all();
        if let Some(thread) = self.thread.take() {
            // Its last user may be the thread itself only if that had one, which it has not.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut engine = self.engine.lock();
        while !engine.is_closing {
            if !engine.step() {
                self.news.wait(&mut engine);
            }
        }
    }
}

/// A device as programs have it.
struct Handle(SoftwareDevice);

impl Handle {
    fn with<T>(&self, act: impl FnOnce(&mut Engine) -> Result<T>) -> Result<T> {
        let mut engine = self.0.engine();
        engine.check_there()?;
        let outcome = act(&mut engine);
        drop(engine);
        self.0.tell();
        outcome
    }
}

impl DeviceApi for Handle {
    fn info(&self) -> &DeviceInfo {
        &self.0.inner.shared.info
    }

    fn identity(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.0.inner).addr(), 0)
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePointer> {
        self.with(|engine| engine.allocate(bytes))
    }

    fn free(&self, pointer: DevicePointer) -> Result<()> {
        self.with(|engine| engine.free(pointer))
    }

    fn find(&self, pointer: DevicePointer) -> Result<Range<u64>> {
        self.with(|engine| engine.find(pointer))
    }

    fn allocation(&self, pointer: DevicePointer) -> Result<u64> {
        self.with(|engine| engine.allocation(pointer))
    }

    fn export(&self, from: DevicePointer, bytes: usize) -> Result<Arc<DmaBuf>> {
        self.with(|engine| engine.export(from, bytes))
    }

    fn flush_writes(&self) -> Result<()> {
        self.with(|engine| {
            engine.flushes += 1;
            Ok(())
        })
    }

    fn pin(&self, memory: Span<'_>) -> Result<()> {
        self.with(|engine| engine.pin(range_of(memory)))
    }

    fn unpin(&self, memory: Span<'_>) -> Result<()> {
        self.with(|engine| engine.unpin(&range_of(memory)))
    }

    fn create_stream(&self) -> Result<StreamHandle> {
        self.with(|engine| Ok(engine.create_stream()))
    }

    fn destroy_stream(&self, stream: StreamHandle) -> Result<()> {
        self.with(|engine| engine.destroy_stream(stream))
    }

    fn create_event(&self) -> Result<EventHandle> {
        self.with(|engine| Ok(engine.create_event()))
    }

    fn destroy_event(&self, event: EventHandle) -> Result<()> {
        self.with(|engine| {
            let found = engine.events.remove(&event);
            found.map(drop).ok_or_else(|| Kind::Invalid.error("no such event"))
        })
    }

    unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: Span<'_>,
        stream: StreamHandle,
    ) -> Result<()> {
        self.with(|engine| {
            let (is_pinned, window) = (engine.is_pinned(&range_of(from)), window(from)?);
            engine.queue_copy(stream, is_pinned, |copy, crc| Op::In { copy, to, from: window, crc })
        })
    }

    unsafe fn copy_out(
        &self,
        from: DevicePointer,
        to: Span<'_>,
        stream: StreamHandle,
    ) -> Result<()> {
        self.with(|engine| {
            let window = window(to)?;
            engine.queue(stream, Op::Out { from, to: window })
        })
    }

    fn record(&self, event: EventHandle, stream: StreamHandle) -> Result<()> {
        self.with(|engine| engine.record(event, stream))
    }

    fn wait(&self, stream: StreamHandle, event: EventHandle) -> Result<()> {
        self.with(|engine| engine.wait(stream, event))
    }

    fn query(&self, event: EventHandle) -> Result<Progress> {
        self.with(|engine| engine.query(event))
    }
}

fn range_of(memory: Span<'_>) -> Range<usize> {
    let base = memory.region.at(memory.offset, memory.length).addr().get();
    base..base + memory.length
}

fn window(memory: Span<'_>) -> Result<Window> {
    Window::new(Arc::clone(memory.region), memory.offset as u64, memory.length)
}
