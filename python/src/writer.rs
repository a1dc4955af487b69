//! `Writer`: a new generation that nobody sees yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client::Session;
use extent::FileName;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::bound::Bound as Here;
use crate::client::Client;
use crate::engine::{Engine, Handle};
use crate::errors::Raise;
use crate::file::File;
use crate::lock::Mutex;
use crate::target::Target;
use crate::transfer::Flow;
use crate::wait::{self, STEP, interruptible};

/// A new generation of a file, which nobody sees before `commit`. As a context manager it commits
/// at its end, and leaves nothing behind if that is an exception.
#[pyclass(frozen, module = "forebay")]
pub(crate) struct Writer {
    inner: Here<Inner>,
    client: Py<Client>,
}

struct Inner {
    engine: Arc<Engine>,
    /// `None` once committed or given up.
    handle: Mutex<Option<Arc<Handle>>>,
    name: FileName,
    /// Where the last byte ends.
    end: AtomicU64,
}

impl Writer {
    pub(crate) fn new(
        client: Py<Client>,
        engine: &Arc<Engine>,
        handle: Arc<Handle>,
        name: FileName,
    ) -> Self {
        let (engine, handle) = (Arc::clone(engine), Mutex::new(Some(handle)));
        let inner = Inner { engine, handle, name, end: AtomicU64::new(0) };
        Self { inner: Here::new(inner), client }
    }

    fn here(&self, py: Python<'_>) -> PyResult<&Inner> {
        self.inner.here().raise(py)
    }
}

impl Inner {
    fn handle(&self) -> PyResult<Arc<Handle>> {
        let handle = self.handle.lock();
        let over = || PyValueError::new_err("the writer has committed or was given up");
        handle.as_ref().map(Arc::clone).ok_or_else(over)
    }
}

#[pymethods]
impl Writer {
    /// The file's name.
    #[getter]
    fn name(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.here(py)?.name.to_string())
    }

    /// Writes bytes, an array or a tensor of the CPU to `offset`, and waits until the node has
    /// them. Returns how many bytes those were.
    fn write(&self, py: Python<'_>, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let inner = self.here(py)?;
        let handle = inner.handle()?;
        let target = Target::of(&inner.engine, data, Flow::Write, None)?;
        let length = target.len();
        let end = offset
            .checked_add(length as u64)
            .ok_or_else(|| PyValueError::new_err("files are not that long"))?;
        let transfer = target.transfer(py, Flow::Write, &handle, offset, 0..length)?;
        let waited = wait::submit(py, &inner.engine, &[Arc::clone(&transfer)])
            .and_then(|()| interruptible(py, || inner.engine.wait(&transfer, STEP).then_some(())));
        // Before the data may go.
        transfer.let_go();
        target.release(py);
        waited?;
        transfer.outcome().transpose().raise(py)?;
        inner.end.fetch_max(end, Ordering::Relaxed);
        Ok(length)
    }

    /// Makes the new generation durable and visible, whole, and returns it open for reading. It is
    /// as long as what was written, or `length` bytes; bytes that were never written are zero.
    #[pyo3(signature = (length=None))]
    fn commit(&self, py: Python<'_>, length: Option<u64>) -> PyResult<File> {
        let inner = self.here(py)?;
        let handle = inner.handle()?;
        let length = length.unwrap_or_else(|| inner.end.load(Ordering::Relaxed));
        let commit = |session: &mut Session| session.submit_commit(handle.number(), length);
        let completed = wait::call(py, &inner.engine, false, commit)?;
        let (_, body) = completed.opened().raise(py)?;
        *inner.handle.lock() = None;
        Ok(File::new(self.client.clone_ref(py), &inner.engine, handle, inner.name.clone(), body))
    }

    /// Gives up: nothing is left of what was written. Does nothing after `commit`.
    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        let handle = self.here(py)?.handle.lock().take();
        py.detach(|| drop(handle));
        Ok(())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let open = self.here(py)?.handle.lock().is_some();
        if open && kind.is_none() {
            self.commit(py, None)?;
        }
        self.abort(py)
    }

    fn __repr__(&self) -> String {
        match self.inner.here() {
            Ok(inner) => format!("<forebay.Writer of {}>", inner.name),
            Err(_) => "<forebay.Writer of another process>".to_owned(),
        }
    }
}
