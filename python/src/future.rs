//! `Future`: a read that has been started.

use std::sync::Arc;
use std::time::Duration;

use client::device::Path;
use extent::wire::{Landing, Served};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use rdma::Fabric;

use crate::bound::Bound as Here;
use crate::chunk::Done;
use crate::clock::{self, seconds};
use crate::engine::Engine;
use crate::errors::Raise;
use crate::left::{self, Left};
use crate::lock::Mutex;
use crate::target::Target;
use crate::transfer::Transfer;
use crate::wait::{self, STEP, interruptible};
use crate::watch::Watch;

/// How long a read into a GPU's memory that nobody wants any more is waited for.
const LAST_COPIES: Duration = Duration::from_secs(5);

/// A read that has been started, and goes on whether it is waited for or not.
///
/// Its memory stays exported until the read is over. Dropping a future of a read into memory that
/// is not the node's to write ends that read; other memory stays alive until the node has answered.
#[pyclass(frozen, module = "forebay")]
pub(crate) struct Future {
    inner: Here<Inner>,
}

struct Inner {
    engine: Arc<Engine>,
    transfer: Arc<Transfer>,
    /// `None` once the read is over and somebody saw that.
    target: Mutex<Option<Target>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Before the memory may go.
        self.transfer.let_go();
        if !self.transfer.is_copying() {
            return;
        }
        let (engine, transfer) = (&self.engine, &self.transfer);
        // A read that was told that the GPU does not go on has waited.
        let ended = !transfer.is_stalled()
            && Python::attach(|py| py.detach(|| engine.wait_for_copies(transfer, LAST_COPIES)));
        if !ended && let Some(target) = self.target.get_mut().take() {
            let transfer = Arc::clone(transfer);
            left::keep(Left::Copied { transfer, _target: target });
        }
    }
}

impl Future {
    pub(crate) fn new(engine: &Arc<Engine>, transfer: Arc<Transfer>, target: Target) -> Self {
        let engine = Arc::clone(engine);
        let target = Mutex::new(Some(target));
        Self { inner: Here::new(Inner { engine, transfer, target }) }
    }

    /// Starts it.
    pub(crate) fn start(&self, py: Python<'_>) -> PyResult<()> {
        let inner = self.inner.here().raise(py)?;
        wait::submit(py, &inner.engine, &[Arc::clone(&inner.transfer)])
    }

    /// To be started with others.
    pub(crate) fn transfer(&self, py: Python<'_>) -> PyResult<Arc<Transfer>> {
        Ok(Arc::clone(&self.inner.here().raise(py)?.transfer))
    }

    /// What it did; `None` while it is under way.
    fn outcome(&self, py: Python<'_>) -> PyResult<Option<extent::Result<Done>>> {
        let inner = self.inner.here().raise(py)?;
        let outcome = inner.transfer.outcome();
        // One that failed may have copies to a GPU under way.
        if outcome.is_some() && !inner.transfer.is_copying() {
            let target = inner.target.lock().take();
            if let Some(target) = target {
                target.release(py);
            }
        }
        Ok(outcome)
    }

    /// Waits until it is over, or for so many seconds.
    ///
    /// # Errors
    /// What a signal handler raises; `ValueError` if that is no time.
    fn settle(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let inner = self.inner.here().raise(py)?;
        if inner.transfer.is_settled() {
            return Ok(());
        }
        let end = timeout.map(seconds).transpose()?.map(|limit| clock::now() + limit);
        interruptible(py, || {
            let step = end.map_or(STEP, |end| end.saturating_duration_since(clock::now()));
            let over = inner.engine.wait(&inner.transfer, step.min(STEP));
            (over || end.is_some_and(|end| clock::now() >= end)).then_some(())
        })
    }

    fn done_so(&self, py: Python<'_>) -> PyResult<Option<Done>> {
        self.outcome(py)?.transpose().raise(py)
    }
}

#[pymethods]
impl Future {
    /// Waits for the read, and returns how many bytes there were: fewer than asked for only at the
    /// end of the file.
    ///
    /// Raises what went wrong, and `TimeoutError` if it is still under way after so many seconds.
    #[pyo3(signature = (timeout=None))]
    fn result(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<u64> {
        self.settle(py, timeout)?;
        match self.done_so(py)? {
            Some(done) => Ok(done.bytes),
            None => Err(PyTimeoutError::new_err("the read is still under way")),
        }
    }

    /// Whether it is over, well or not. Never waits.
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        let inner = self.inner.here().raise(py)?;
        if !inner.transfer.is_settled() {
            py.detach(|| inner.engine.drive(Duration::ZERO, |_| None::<()>));
        }
        Ok(self.outcome(py)?.is_some())
    }

    /// What went wrong; `None` if it went well. Waits as `result` does.
    #[pyo3(signature = (timeout=None))]
    fn exception(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        self.settle(py, timeout)?;
        match self.done_so(py) {
            Ok(Some(_)) => Ok(None),
            Ok(None) => Err(PyTimeoutError::new_err("the read is still under way")),
            Err(error) => Ok(Some(error.into_value(py).into_any())),
        }
    }

    /// Bytes read; `None` while the read is under way.
    #[getter]
    fn bytes(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        Ok(self.done_so(py)?.map(|done| done.bytes))
    }

    /// Which way the bytes took: "shm-direct", "shm-copied", "rdma", "rdma-copied", "tcp" or
    /// "tcp-copied"; into a GPU's memory, "gpudirect" where the node wrote there, "staged", or "host"
    /// where the ring was not pinned, of several the worst; "nothing" if there were none; `None`
    /// while the read is under way.
    #[getter]
    fn path(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        let fabric = self.inner.here().raise(py)?.engine.fabric();
        Ok(self.done_so(py)?.map(|done| path(fabric, done)))
    }

    /// Whether a processor of this host copied the bytes on their way.
    #[getter]
    fn copied(&self, py: Python<'_>) -> PyResult<Option<bool>> {
        let copied = |done: Done| {
            done.copied || done.landing == Landing::Copied || done.way == Some(Path::Host)
        };
        Ok(self.done_so(py)?.map(copied))
    }

    /// Where the bytes came from: "tier", "arriving", "silo", "repair" or "nothing".
    #[getter]
    fn served(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        Ok(self.done_so(py)?.map(|done| match done.served {
            Served::Nothing => "nothing",
            Served::Tier => "tier",
            Served::Arriving => "arriving",
            Served::Recall => "silo",
            Served::Repair => "repair",
        }))
    }

    /// Time in the node, in microseconds; of several requests, the longest.
    #[getter]
    fn service_us(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        Ok(self.done_so(py)?.map(|done| done.service_us))
    }

    /// In an event loop: `await future` is `result()`.
    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let settled = py.import("forebay._asyncio")?.call_method1("settled", (slf,))?;
        settled.call_method0("__await__")
    }

    /// Tells a watch about this one's end. False if it has ended.
    fn _watch(&self, py: Python<'_>, watch: &Watcher, number: u64) -> PyResult<bool> {
        let inner = self.inner.here().raise(py)?;
        let watch = watch.watch.here().raise(py)?;
        let watched = inner.transfer.watch(watch, number);
        if watched {
            inner.engine.hurry_pump();
        }
        Ok(watched)
    }

    /// A new watch for futures of this one's client.
    fn _watcher(&self, py: Python<'_>) -> PyResult<Watcher> {
        let inner = self.inner.here().raise(py)?;
        let watch = Watch::new(inner.engine.watched()).raise(py)?;
        Ok(Watcher { watch: Here::new(Arc::new(watch)) })
    }

    /// The same number for futures of the same client.
    fn _client(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.inner.here().raise(py)?.engine.number())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(match self.outcome(py)? {
            None => "<forebay.Future under way>".to_owned(),
            Some(Err(error)) => format!("<forebay.Future failed: {error}>"),
            Some(Ok(done)) => format!("<forebay.Future of {} bytes>", done.bytes),
        })
    }
}

fn path(fabric: Fabric, done: Done) -> &'static str {
    if let Some(way) = done.way {
        return way.name();
    }
    match (fabric, done.copied || done.landing == Landing::Copied) {
        _ if done.landing == Landing::Nothing => "nothing",
        (Fabric::SharedMemory, false) => "shm-direct",
        (Fabric::SharedMemory, true) => "shm-copied",
        (Fabric::Verbs, false) => "rdma",
        (Fabric::Verbs, true) => "rdma-copied",
        (Fabric::Tcp, false) => "tcp",
        (Fabric::Tcp, true) => "tcp-copied",
        (_, false) => "other",
        (_, true) => "other-copied",
    }
}

/// Ends of futures, for an event loop.
#[pyclass(frozen, module = "forebay._forebay")]
pub(crate) struct Watcher {
    watch: Here<Arc<Watch>>,
}

#[pymethods]
impl Watcher {
    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        Ok(self.watch.here().raise(py)?.descriptor())
    }

    /// The numbers of those that have ended since the last time.
    fn take(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        Ok(self.watch.here().raise(py)?.take())
    }
}
