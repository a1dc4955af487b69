//! Streams of GPUs, as the libraries of Python hand them around: as numbers, which are addresses of the driver's.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The stream in which those do their work who name none.
pub(crate) const DEFAULT: u64 = 0;
/// `CU_STREAM_PER_THREAD`.
pub(crate) const OF_THE_THREAD: u64 = 2;

/// What a caller names a stream by: its number, or an object of torch's, CuPy's, or one that follows the
/// protocol `__cuda_stream__`.
///
/// # Errors
/// `TypeError` for anything else.
pub(crate) fn named(stream: &Bound<'_, PyAny>) -> PyResult<u64> {
    if let Ok(protocol) = stream.getattr("__cuda_stream__") {
        // A version, and the handle.
        let said = if protocol.is_callable() { protocol.call0()? } else { protocol };
        return said.get_item(1)?.extract();
    }
    for attribute in ["cuda_stream", "ptr"] {
        if let Ok(handle) = stream.getattr(attribute) {
            return handle.extract();
        }
    }
    stream.extract().map_err(|_| {
        let name = stream.get_type().name().map_or_else(|_| "this".to_owned(), |n| n.to_string());
        PyTypeError::new_err(format!(
            "a {name} is no stream: pass a torch.cuda.Stream, a cupy.cuda.Stream, an object with \
             __cuda_stream__, or its number"
        ))
    })
}

/// Whether an object is a tensor of torch's, which has a current stream for each GPU.
pub(crate) fn is_torchs(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let modules = object.py().import("sys")?.getattr("modules")?;
    let Ok(torch) = modules.get_item("torch") else { return Ok(false) };
    torch.getattr("Tensor").map_or(Ok(false), |tensor| object.is_instance(&tensor))
}

/// The stream that torch works in on a GPU.
pub(crate) fn of_torch(py: Python<'_>, ordinal: usize) -> PyResult<u64> {
    let cuda = py.import("torch.cuda")?;
    cuda.call_method1("current_stream", (ordinal,))?.getattr("cuda_stream")?.extract()
}

/// The stream that an object's `__cuda_array_interface__` names: from version 3 on a number, of which 1 is the
/// default one, or none to wait for.
pub(crate) fn of_interface(object: &Bound<'_, PyAny>) -> PyResult<u64> {
    let shown = object.getattr("__cuda_array_interface__")?.cast_into::<PyDict>()?;
    let stream = shown.get_item("stream")?;
    Ok(stream.and_then(|stream| stream.extract().ok()).unwrap_or(DEFAULT))
}
