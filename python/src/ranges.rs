//! Reads that return bytes.

use std::ptr::NonNull;
use std::sync::Arc;

use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::engine::{Engine, Handle};
use crate::errors::{Raise, exception};
use crate::foreign::Foreign;
use crate::transfer::{Flow, Transfer};
use crate::wait::{self, STEP, interruptible};

/// A range of a file.
pub(crate) struct Wanted {
    pub(crate) handle: Arc<Handle>,
    /// The file's.
    pub(crate) length: u64,
    pub(crate) offset: u64,
    pub(crate) size: usize,
}

/// Bytes that are being filled, which nobody else has seen yet.
struct Filling<'py> {
    bytes: Bound<'py, PyBytes>,
    transfer: Arc<Transfer>,
    size: usize,
}

impl<'py> Filling<'py> {
    fn of(py: Python<'py>, wanted: &Wanted) -> PyResult<Self> {
        let left = wanted.length.saturating_sub(wanted.offset);
        let size = wanted.size.min(usize::try_from(left).unwrap_or(usize::MAX));
        let (bytes, base) = uninitialised(py, size)?;
        let (handle, offset) = (&wanted.handle, wanted.offset);
        let transfer = Transfer::of_foreign(Flow::Read, handle, offset, Foreign(base), size);
        Ok(Self { bytes, transfer: Arc::new(transfer), size })
    }

    /// The bytes, if all of them came.
    fn finish(self, py: Python<'py>) -> Result<Bound<'py, PyBytes>, PyErr> {
        let done = match self.transfer.outcome() {
            Some(outcome) => outcome.raise(py)?,
            None => return Err(PyMemoryError::new_err("the read is still under way")),
        };
        if done.bytes != self.size as u64 {
            // A generation never changes its length, so this is a mistake of the node's.
            let short = format!("{} bytes came, of {}", done.bytes, self.size);
            return Err(exception(py, &extent::Kind::Corrupt.error(short)));
        }
        Ok(self.bytes.clone())
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        // Before the bytes may go.
        self.transfer.let_go();
    }
}

/// Reads one range.
///
/// # Errors
/// What the node answers; what a signal handler raises.
pub(crate) fn read_one<'py>(
    py: Python<'py>,
    engine: &Engine,
    wanted: &Wanted,
) -> PyResult<Bound<'py, PyBytes>> {
    let filling = Filling::of(py, wanted)?;
    run(py, engine, &[Arc::clone(&filling.transfer)])?;
    filling.finish(py)
}

/// Reads many ranges, all of them on the way together: bytes, or the exception, for each.
///
/// # Errors
/// What a signal handler raises.
pub(crate) fn read_many<'py>(
    py: Python<'py>,
    engine: &Engine,
    wanted: &[Wanted],
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let fillings: Vec<_> =
        wanted.iter().map(|wanted| Filling::of(py, wanted)).collect::<PyResult<_>>()?;
    let transfers: Vec<_> = fillings.iter().map(|filling| Arc::clone(&filling.transfer)).collect();
    run(py, engine, &transfers)?;
    let finished = fillings.into_iter().map(|filling| match filling.finish(py) {
        Ok(bytes) => bytes.into_any(),
        Err(error) => error.into_value(py).into_bound(py).into_any(),
    });
    Ok(finished.collect())
}

fn run(py: Python<'_>, engine: &Engine, transfers: &[Arc<Transfer>]) -> PyResult<()> {
    wait::submit(py, engine, transfers)?;
    let mut left = transfers.iter();
    let mut current = left.next();
    interruptible(py, || {
        while let Some(transfer) = current {
            if !engine.wait(transfer, STEP) {
                return None;
            }
            current = left.next();
        }
        Some(())
    })
}

/// New bytes, and where they are.
#[expect(unsafe_code, reason = "bytes that are filled by others before anybody sees them")]
fn uninitialised(py: Python<'_>, size: usize) -> PyResult<(Bound<'_, PyBytes>, NonNull<u8>)> {
    let length = ffi::Py_ssize_t::try_from(size)?;
    // SAFETY: the interpreter's lock is held; without bytes to copy it leaves them to the caller.
    let object = unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), length) };
    // SAFETY: a new reference, or null with an exception set.
    let bytes = unsafe { Bound::from_owned_ptr_or_err(py, object) }?;
    // SAFETY: it is a bytes object.
    let base = unsafe { ffi::PyBytes_AsString(bytes.as_ptr()) };
    let base = NonNull::new(base.cast()).ok_or_else(|| PyErr::fetch(py))?;
    Ok((bytes.cast_into::<PyBytes>()?, base))
}
