//! What bytes are read into or written from.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::dlpack::{self, Seen};
use crate::engine::{Engine, Handle};
use crate::errors::{Raise, invalid};
use crate::slab::Slab;
use crate::transfer::{Flow, Foreign, Transfer};

/// An object's bytes, which stay exported, and so where they are, for as long as this lives.
pub(crate) struct Target {
    view: View,
    base: Foreign,
    /// If they belong to a buffer of the client's: which, and where in it they begin.
    slab: Option<(Arc<Slab>, usize)>,
    length: usize,
}

/// Keeps the bytes where they are.
enum View {
    Buffer(PyUntypedBuffer),
    Tensor(Seen),
}

impl Target {
    /// The bytes of a buffer, an array, or a tensor in this computer's memory.
    ///
    /// # Errors
    /// `TypeError` if it has no bytes to show; `forebay.Invalid` if they are not in one piece, or
    /// may not be changed although that is wanted; `forebay.Unsupported` if they are a device's.
    pub(crate) fn of(engine: &Engine, object: &Bound<'_, PyAny>, flow: Flow) -> PyResult<Self> {
        let py = object.py();
        let view = View::of(object)?;
        let (base, length, is_read_only) = match &view {
            View::Buffer(view) => {
                if !view.is_c_contiguous() {
                    return Err(invalid(
                        py,
                        "the memory is not in one piece: pass a contiguous one",
                    ));
                }
                let base = NonNull::new(view.buf_ptr().cast()).unwrap_or(NonNull::dangling());
                (base, view.len_bytes(), view.readonly())
            }
            View::Tensor(seen) => (seen.base, seen.length, seen.is_read_only),
        };
        if flow == Flow::Read && is_read_only {
            return Err(invalid(py, "the memory is read-only"));
        }
        let slab = engine.buffer_at(base.addr().get(), length).filter(|_| length != 0);
        Ok(Self { view, base: Foreign(base), slab, length })
    }

    /// Bytes that it shows.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// A transfer of its first bytes.
    ///
    /// # Errors
    /// `forebay.Busy` if another request uses them.
    pub(crate) fn transfer(
        &self,
        py: Python<'_>,
        flow: Flow,
        handle: &Arc<Handle>,
        offset: u64,
        range: Range<usize>,
    ) -> PyResult<Arc<Transfer>> {
        assert!(range.end <= self.length, "the range is inside");
        let transfer = match &self.slab {
            Some((slab, first)) => {
                let range = first + range.start..first + range.end;
                Transfer::of_slab(flow, handle, offset, slab, range).raise(py)?
            }
            None => {
                let foreign = Foreign(at(self.base.0, range.start));
                Transfer::of_foreign(flow, handle, offset, foreign, range.len())
            }
        };
        Ok(Arc::new(transfer))
    }

    /// Lets the object go.
    pub(crate) fn release(self, py: Python<'_>) {
        match self.view {
            View::Buffer(view) => view.release(py),
            View::Tensor(seen) => seen.release(py),
        }
    }
}

impl View {
    /// By the buffer protocol, or else by DLPack, or else of the array that shows the same memory.
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let refused = match PyUntypedBuffer::get(object) {
            Ok(view) => return Ok(Self::Buffer(view)),
            Err(refused) => refused,
        };
        dlpack::refuse_devices(object)?;
        if let Some(seen) = dlpack::see(object)? {
            return Ok(Self::Tensor(seen));
        }
        match object.getattr("numpy") {
            Ok(numpy) => {
                let array = PyUntypedBuffer::get(&numpy.call0()?)?;
                // What shows its memory does so at the same address each time.
                if PyUntypedBuffer::get(&numpy.call0()?)?.buf_ptr() != array.buf_ptr() {
                    return Err(invalid(
                        object.py(),
                        "its numpy() is a copy: pass memory itself, such as an array or a tensor",
                    ));
                }
                Ok(Self::Buffer(array))
            }
            Err(_) if refused.is_instance_of::<PyTypeError>(object.py()) => {
                let name = object.get_type().name()?;
                Err(PyTypeError::new_err(format!(
                    "a {name} shows no memory: pass a buffer, an array or a tensor of the CPU"
                )))
            }
            Err(_) => Err(refused),
        }
    }
}

#[expect(unsafe_code, reason = "arithmetic on an address of a Python object's buffer")]
fn at(base: NonNull<u8>, start: usize) -> NonNull<u8> {
    // SAFETY: callers have checked that it is inside.
    unsafe { base.add(start) }
}
