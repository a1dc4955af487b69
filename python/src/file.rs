//! `File`: a file open at one generation.

use std::sync::Arc;

use client::{Completed, Session};
use extent::FileName;
use extent::wire::OpenBody;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::bound::Bound as Here;
use crate::client::Client;
use crate::engine::{Engine, Handle};
use crate::errors::Raise;
use crate::future::Future;
use crate::lock::Mutex;
use crate::ranges;
use crate::target::Target;
use crate::transfer::Flow;
use crate::wait;

/// A file open at one generation, which never changes.
#[pyclass(frozen, module = "forebay")]
pub(crate) struct File {
    inner: Here<Inner>,
    client: Py<Client>,
}

struct Inner {
    engine: Arc<Engine>,
    /// `None` once closed. Reads that are under way keep it open.
    handle: Mutex<Option<Arc<Handle>>>,
    name: FileName,
    body: OpenBody,
}

impl File {
    pub(crate) fn new(
        client: Py<Client>,
        engine: &Arc<Engine>,
        handle: Arc<Handle>,
        name: FileName,
        body: OpenBody,
    ) -> Self {
        let engine = Arc::clone(engine);
        let inner = Inner { engine, handle: Mutex::new(Some(handle)), name, body };
        Self { inner: Here::new(inner), client }
    }

    fn here(&self, py: Python<'_>) -> PyResult<&Inner> {
        self.inner.here().raise(py)
    }

    /// The handle, the engine that it belongs to, and the file's length.
    pub(crate) fn open_handle(&self, py: Python<'_>) -> PyResult<(Arc<Handle>, &Arc<Engine>, u64)> {
        let inner = self.here(py)?;
        let handle = inner.handle.lock().as_ref().map(Arc::clone);
        let handle = handle.ok_or_else(|| PyValueError::new_err("the file is closed"))?;
        Ok((handle, &inner.engine, inner.body.length))
    }

    fn stat_body(&self, py: Python<'_>) -> PyResult<OpenBody> {
        let (handle, engine, _) = self.open_handle(py)?;
        let stat = |session: &mut Session| session.submit_stat(handle.number());
        let completed: Completed = wait::call(py, engine, false, stat)?;
        Ok(completed.opened().raise(py)?.1)
    }

    /// A read of some of a target that has not been started.
    fn prepare(
        &self,
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        offset: u64,
        size: Option<usize>,
        stream: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Future> {
        let (handle, engine, length) = self.open_handle(py)?;
        let target = Target::of(engine, object, Flow::Read, stream)?;
        let size = size.unwrap_or(target.len());
        if size > target.len() {
            return Err(PyValueError::new_err(format!(
                "{size} bytes do not fit into memory of {}",
                target.len()
            )));
        }
        let left = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let transfer = target.transfer(py, Flow::Read, &handle, offset, 0..size.min(left))?;
        Ok(Future::new(engine, transfer, target))
    }
}

#[pymethods]
impl File {
    /// Its name, `silo/key`.
    #[getter]
    fn name(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.here(py)?.name.to_string())
    }

    /// The generation that was opened.
    #[getter]
    fn generation(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.here(py)?.body.generation.0)
    }

    /// Bytes of this generation.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.here(py)?.body.length)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(usize::try_from(self.here(py)?.body.length)?)
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.here(py)?.handle.lock().is_none())
    }

    /// What the node says of it now: its id, generation and length, and how many of its extents
    /// are on the node.
    fn stat<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let body = self.stat_body(py)?;
        let stat = PyDict::new(py);
        stat.set_item("name", self.name(py)?)?;
        stat.set_item("id", format!("{:032x}", body.file.0))?;
        stat.set_item("generation", body.generation.0)?;
        stat.set_item("size", body.length)?;
        stat.set_item("extent_bytes", body.extent_bytes)?;
        stat.set_item("resident_extents", body.resident_extents)?;
        stat.set_item("total_extents", body.total_extents)?;
        Ok(stat)
    }

    /// Starts a read from `offset` into a buffer, an array or a tensor: of all of it, or of its
    /// first `size` bytes. It is over when the future says so.
    ///
    /// The node writes into memory from `Client.alloc`, and into views of it. Into other memory of
    /// the host the bytes are copied once, and the future's `path` says so.
    ///
    /// Into memory of a GPU they go through the client's pinned ring, or where the node may write
    /// there, past it. They come after what is in the stream now that the memory's library works
    /// in, and the read is over when they are there. With a `stream` they come after what is in that one now, and the read is over as
    /// soon as what comes into it later waits for them.
    #[pyo3(signature = (buffer, offset=0, size=None, *, stream=None))]
    fn read_into(
        &self,
        py: Python<'_>,
        buffer: &Bound<'_, PyAny>,
        offset: u64,
        size: Option<usize>,
        stream: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Future> {
        let future = self.prepare(py, buffer, offset, size, stream)?;
        future.start(py)?;
        Ok(future)
    }

    /// Starts many reads at once: pairs of an offset and a buffer, array or tensor to be filled.
    #[pyo3(signature = (parts, *, stream=None))]
    fn readv<'py>(
        &self,
        py: Python<'py>,
        parts: Vec<(u64, Bound<'py, PyAny>)>,
        stream: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let futures: Vec<Future> = parts
            .into_iter()
            .map(|(offset, buffer)| self.prepare(py, &buffer, offset, None, stream))
            .collect::<PyResult<_>>()?;
        let (_, engine, _) = self.open_handle(py)?;
        let transfers: Vec<_> =
            futures.iter().map(|future| future.transfer(py)).collect::<PyResult<_>>()?;
        wait::submit(py, engine, &transfers)?;
        PyList::new(py, futures.into_iter().map(|f| Py::new(py, f)).collect::<PyResult<Vec<_>>>()?)
    }

    /// Reads `size` bytes from `offset`, fewer at the end of the file, and waits for them.
    fn pread<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        size: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (handle, engine, length) = self.open_handle(py)?;
        ranges::read_one(py, engine, &ranges::Wanted { handle, length, offset, size })
    }

    /// Gives the file back. Reads that are under way go on.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
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
        _kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.close(py)
    }

    /// Another process connects by itself and opens the same generation.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Again)> {
        let again = py.import("forebay._again")?.getattr("open_again")?;
        let generation = self.generation(py)?;
        Ok((again, (self.client.clone_ref(py), self.name(py)?, generation)))
    }

    fn __repr__(&self) -> String {
        match self.inner.here() {
            Ok(inner) => format!(
                "<forebay.File {} at generation {}, {} bytes>",
                inner.name, inner.body.generation.0, inner.body.length
            ),
            Err(_) => "<forebay.File of another process>".to_owned(),
        }
    }
}

/// The arguments of `forebay._again.open_again`.
type Again = (Py<Client>, String, u64);
