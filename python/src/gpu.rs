//! Memory of GPUs, as the libraries of Python show it.

use client::device::{CudaDriver, DevicePointer, Ladder, Path, Verdict, Wire};
use extent::{Error, Kind};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::dlpack::{self, Seen};
use crate::errors::{Raise, exception, invalid};

/// What an object shows of a GPU's memory.
pub(crate) struct Shown {
    /// Keeps it where it is.
    pub(crate) keeper: Keeper,
    pub(crate) ordinal: usize,
    pub(crate) pointer: DevicePointer,
    pub(crate) length: usize,
    pub(crate) is_read_only: bool,
}

/// Keeps memory where it is.
pub(crate) enum Keeper {
    Tensor(Seen),
    Object(Py<PyAny>),
}

impl Keeper {
    /// Lets it go.
    pub(crate) fn release(self, py: Python<'_>) {
        match self {
            Self::Tensor(seen) => seen.release(py),
            Self::Object(object) => drop(object.into_bound(py)),
        }
    }
}

/// A GPU's memory that an object shows, by DLPack, which tells types and GPUs apart, or else by
/// `__cuda_array_interface__`; `None` if it shows none. `is_ordered` says that the caller puts its library's work and ours in order.
///
/// # Errors
/// `forebay.Invalid` if the memory is not in one piece; `forebay.Unsupported` if it is another kind of
/// device's, or there is no GPU.
pub(crate) fn see(object: &Bound<'_, PyAny>, is_ordered: bool) -> PyResult<Option<Shown>> {
    let py = object.py();
    let device = dlpack::device(object)?;
    if let Some((kind, number)) = device
        && dlpack::is_gpu(kind)
        && let Some(seen) = dlpack::see(object, is_ordered)?
    {
        let ordinal = usize::try_from(number)?;
        let pointer = DevicePointer(seen.base.addr().get() as u64);
        let (length, is_read_only) = (seen.length, seen.is_read_only);
        let keeper = Keeper::Tensor(seen);
        return Ok(Some(Shown { keeper, ordinal, pointer, length, is_read_only }));
    }
    let Ok(shown) = object.getattr("__cuda_array_interface__") else {
        let is_cuda = object.getattr("is_cuda").is_ok_and(|it| it.is_truthy().unwrap_or(false));
        if is_cuda || device.is_some_and(|(kind, _)| !dlpack::is_host(kind)) {
            return Err(shows_nothing(py));
        }
        return Ok(None);
    };
    let shown = shown.cast_into::<PyDict>()?;
    let (pointer, is_read_only): (u64, bool) = member(&shown, "data")?.extract()?;
    let length = bytes_of(py, &shown)?;
    let pointer = DevicePointer(pointer);
    let ordinal = match device {
        Some((_, number)) => usize::try_from(number)?,
        // It is at no address.
        None if length == 0 => 0,
        None => {
            let owner = || CudaDriver::system().map_err(missing)?.owner_of(pointer);
            py.detach(owner).raise(py)?
        }
    };
    let keeper = Keeper::Object(object.clone().unbind());
    Ok(Some(Shown { keeper, ordinal, pointer, length, is_read_only }))
}

/// What is not found here is nothing that Python could name otherwise.
pub(crate) fn missing(error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => Kind::Unsupported.error(error.to_string()),
        _ => error,
    }
}

fn shows_nothing(py: Python<'_>) -> PyErr {
    exception(
        py,
        &Kind::Unsupported.error(
            "this memory is a device's, and it is not shown: pass a tensor of CUDA that needs no gradient, such as \
             tensor.detach(), or one of the CPU",
        ),
    )
}

fn member<'py>(shown: &Bound<'py, PyDict>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    shown.get_item(name)?.ok_or_else(|| {
        PyValueError::new_err(format!("the object's __cuda_array_interface__ has no {name:?}"))
    })
}

/// How many bytes `__cuda_array_interface__` shows, which follow each other.
fn bytes_of(py: Python<'_>, shown: &Bound<'_, PyDict>) -> PyResult<usize> {
    let shape: Vec<usize> = member(shown, "shape")?.extract()?;
    let kind: String = member(shown, "typestr")?.extract()?;
    // The order of an item's bytes, its kind, and how many there are of them.
    let item: Option<usize> = kind.get(2..).and_then(|digits| digits.parse().ok());
    let bytes = item
        .and_then(|item| shape.iter().try_fold(item, |bytes, &length| bytes.checked_mul(length)));
    let (Some(item), Some(bytes)) = (item, bytes) else {
        return Err(invalid(py, "the memory's type or shape makes no sense"));
    };
    let strides = shown.get_item("strides")?.filter(|strides| !strides.is_none());
    let Some(strides) = strides else { return Ok(bytes) };
    let strides: Vec<i64> = strides.extract()?;
    let mut expected = i64::try_from(item)?;
    for (&length, &stride) in shape.iter().zip(&strides).rev().filter(|_| bytes != 0) {
        if length != 1 && stride != expected {
            return Err(invalid(py, "the memory is not in one piece: pass a contiguous one"));
        }
        expected = expected.saturating_mul(i64::try_from(length)?);
    }
    Ok(bytes)
}

/// The ways into the memory of the first GPU here, and why not: names, and `None` for what works.
#[pyfunction]
pub(crate) fn gpu_ladder(py: Python<'_>) -> PyResult<Vec<(&'static str, Option<String>)>> {
    let ladder = py.detach(|| Ladder::new(CudaDriver::look().first(), Wire::Unknown));
    Ok(rungs(&ladder))
}

/// A ladder's rungs: names, and why not.
pub(crate) fn rungs(ladder: &Ladder) -> Vec<(&'static str, Option<String>)> {
    let why = |verdict: &Verdict| match verdict {
        Verdict::Works => None,
        Verdict::Cannot(why) => Some(why.clone()),
    };
    // Local files are for programs in Rust.
    let rungs = ladder.rungs().filter(|(path, _)| *path != Path::CuFile);
    rungs.map(|(path, verdict)| (path.name(), why(verdict))).collect()
}
