//! What bytes are read into or written from.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::engine::{Engine, Handle};
use crate::errors::{Raise, invalid};
use crate::slab::Slab;
use crate::transfer::{Flow, Foreign, Transfer};

/// An object's bytes, which stay exported, and so where they are, for as long as this lives.
pub(crate) struct Target {
    view: PyUntypedBuffer,
    /// If they belong to a buffer of the client's: which, and where in it they begin.
    slab: Option<(Arc<Slab>, usize)>,
    length: usize,
}

impl Target {
    /// The bytes of a buffer, an array, or a tensor in this computer's memory.
    ///
    /// # Errors
    /// `TypeError` if it has no bytes to show; `forebay.Invalid` if they are not in one piece, or
    /// may not be changed although that is wanted.
    pub(crate) fn of(engine: &Engine, object: &Bound<'_, PyAny>, flow: Flow) -> PyResult<Self> {
        let py = object.py();
        let view = match PyUntypedBuffer::get(object) {
            Ok(view) => view,
            // Tensors have no buffer, but arrays over the same memory.
            Err(error) => match object.getattr("numpy") {
                Ok(numpy) => PyUntypedBuffer::get(&numpy.call0()?)?,
                Err(_) if error.is_instance_of::<PyTypeError>(py) => {
                    let name = object.get_type().name()?;
                    return Err(PyTypeError::new_err(format!(
                        "a {name} shows no memory: pass a buffer, an array or a tensor of the CPU"
                    )));
                }
                Err(_) => return Err(error),
            },
        };
        if flow == Flow::Read && view.readonly() {
            return Err(invalid(py, "the memory is read-only"));
        }
        if !view.is_c_contiguous() {
            return Err(invalid(py, "the memory is not in one piece: pass a contiguous one"));
        }
        let length = view.len_bytes();
        let slab = engine.buffer_at(view.buf_ptr().addr(), length).filter(|_| length != 0);
        Ok(Self { view, slab, length })
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
                let base = NonNull::new(self.view.buf_ptr().cast()).unwrap_or(NonNull::dangling());
                let foreign = Foreign(at(base, range.start));
                Transfer::of_foreign(flow, handle, offset, foreign, range.len())
            }
        };
        Ok(Arc::new(transfer))
    }

    /// Lets the object go.
    pub(crate) fn release(self, py: Python<'_>) {
        self.view.release(py);
    }
}

#[expect(unsafe_code, reason = "arithmetic on an address of a Python object's buffer")]
fn at(base: NonNull<u8>, start: usize) -> NonNull<u8> {
    // SAFETY: callers have checked that it is inside.
    unsafe { base.add(start) }
}
