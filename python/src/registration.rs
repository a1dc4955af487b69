//! `Registration`: memory of Python's that the node writes itself.

use std::sync::Arc;

use dma::Region;
use pyo3::prelude::*;

use crate::bound::Bound as Here;
use crate::engine::Engine;
use crate::errors::{Raise, invalid};
use crate::left::{self, Left};
use crate::lock::Mutex;
use crate::slab::Slab;
use crate::target::Target;
use crate::transfer::Flow;

/// Memory of a buffer, an array or a tensor that the node writes where it is, until this is closed,
/// or dropped. The memory stays exported as long.
#[pyclass(frozen, module = "forebay")]
pub(crate) struct Registration {
    inner: Here<Inner>,
}

struct Inner {
    engine: Arc<Engine>,
    /// `None` once closed.
    held: Mutex<Option<Held>>,
}

struct Held {
    slab: Arc<Slab>,
    target: Target,
}

impl Registration {
    /// Registers what an object shows.
    ///
    /// # Errors
    /// As [`Target::of`]; `forebay.Unsupported` over shared memory; `forebay.Invalid` if the node
    /// writes there already.
    pub(crate) fn new(engine: &Arc<Engine>, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        left::tidy_up(py);
        let target = Target::of(engine, object, Flow::Read, None)?;
        let Some((base, length)) = target.foreign() else {
            let sentence = "this memory is the node's to write already, or a GPU's";
            return Err(invalid(py, sentence));
        };
        #[expect(unsafe_code, reason = "a pointer into a Python object's buffer")]
        // SAFETY: the object stays exported while the registration has it, and a registration lets it
        // go when no request uses the memory any more.
        let region = unsafe { Region::lent(base, length) }.raise(py)?;
        // Not left to itself upon Ctrl-C: the memory is the object's for no longer than this call.
        let slab = py.detach(|| engine.register(&region)).raise(py)?;
        let held = Mutex::new(Some(Held { slab, target }));
        Ok(Self { inner: Here::new(Inner { engine: Arc::clone(engine), held }) })
    }
}

#[pymethods]
impl Registration {
    /// Has the node forget it. Raises `forebay.Busy` while reads into it are under way.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let inner = self.inner.here().raise(py)?;
        let mut held = inner.held.lock();
        let Some(Held { slab, .. }) = held.as_ref() else { return Ok(()) };
        let pieces = slab.close().raise(py)?;
        inner.engine.hide(slab);
        let target = held.take().map(|held| held.target);
        drop(held);
        py.detach(|| inner.engine.release(pieces));
        if let Some(target) = target {
            target.release(py);
        }
        left::tidy_up(py);
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
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(Held { slab, target }) = self.held.get_mut().take() else { return };
        match slab.close() {
            // No request names it any more, and the client's thread has the session let go of it.
            Ok(pieces) => {
                self.engine.hide(&slab);
                drop(pieces);
                self.engine.hurry_pump();
            }
            // The node may still write there.
            Err(_) => {
                let engine = Arc::downgrade(&self.engine);
                left::keep(Left::Registered { engine, slab, _target: target });
            }
        }
    }
}
