//! `Buffer`: memory that the node writes itself.

use std::ffi::c_int;
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::bound::Bound as Here;
use crate::dlpack;
use crate::errors::Raise;
use crate::slab::Slab;

/// Memory that the node writes itself, without a copy where the fabric allows it.
///
/// It is a writable buffer of bytes: `memoryview(buffer)`, `numpy.frombuffer(buffer, dtype)` and
/// `torch.from_dlpack(buffer)` look at it without a copy, and reads into these views, or slices of
/// them, are reads into the buffer.
#[pyclass(frozen, module = "forebay")]
pub(crate) struct Buffer {
    slab: Here<Arc<Slab>>,
}

impl Buffer {
    pub(crate) fn new(slab: Arc<Slab>) -> Self {
        Self { slab: Here::new(slab) }
    }
}

#[pymethods]
impl Buffer {
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.slab.here().raise(py)?.len())
    }

    fn __repr__(&self) -> String {
        match self.slab.here() {
            Ok(slab) => format!("<forebay.Buffer of {} bytes>", slab.len()),
            Err(_) => "<forebay.Buffer of another process>".to_owned(),
        }
    }

    /// NumPy's description of the memory, as bytes.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let slab = self.slab.here().raise(py)?;
        let interface = PyDict::new(py);
        interface.set_item("data", (slab.base().addr().get(), false))?;
        interface.set_item("shape", (slab.len(),))?;
        interface.set_item("typestr", "|u1")?;
        interface.set_item("version", 3)?;
        Ok(interface)
    }

    /// Where the memory is, for DLPack: this computer.
    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::HOST
    }

    /// The memory for other libraries: `torch.from_dlpack(buffer)` shares it.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if stream.is_some() {
            return Err(PyBufferError::new_err("memory of the host has no stream"));
        }
        if dl_device.is_some_and(|device| device != dlpack::HOST) || copy == Some(true) {
            return Err(PyBufferError::new_err("the memory is shown where it is, without a copy"));
        }
        dlpack::show(py, self.slab.here().raise(py)?, max_version)
    }

    #[expect(unsafe_code, reason = "the buffer protocol hands out an address")]
    unsafe fn __getbuffer__(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let py = slf.py();
        let slab = slf.get().slab.here().raise(py)?;
        let base = slab.base().as_ptr().cast();
        let length = ffi::Py_ssize_t::try_from(slab.len())?;
        // SAFETY: the interpreter's lock is held and `view` is the caller's to fill. The view keeps
        // this object, which keeps the slab, whose bytes stay where they are.
        let failed =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), base, length, 0, flags) } < 0;
        if failed { Err(PyErr::fetch(py)) } else { Ok(()) }
    }
}
