//! What bytes are read into or written from.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use client::device::{Aim, DeviceSpan, Origin, Stream};
use extent::Kind;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::dlpack::{self, Seen};
use crate::engine::{Engine, Handle};
use crate::errors::{Raise, exception, invalid};
use crate::foreign::Foreign;
use crate::gpu::{self, Keeper, Shown};
use crate::gpus::Gpu;
use crate::left;
use crate::onto::Onto;
use crate::slab::Slab;
use crate::transfer::{Flow, Transfer};
use crate::wait::STEP;
use crate::{clock, stream, wait};

/// An object's bytes, which stay exported, and so where they are, for as long as this lives.
pub(crate) struct Target {
    view: View,
    place: Place,
    length: usize,
}

/// Where the bytes are.
enum Place {
    /// Here. If they belong to a buffer of the client's: which, and where in it they begin.
    Host(Foreign, Option<(Arc<Slab>, usize)>),
    /// A GPU's, which is used as [`Onto`] says, by the streams' numbers.
    Gpu { gpu: Arc<Gpu>, into: DeviceSpan, after: u64, before: Option<u64> },
}

/// Keeps the bytes where they are.
enum View {
    Buffer(PyUntypedBuffer),
    Tensor(Seen),
    Gpu(Keeper),
}

impl Target {
    /// The bytes of a buffer, an array, or a tensor.
    ///
    /// # Errors
    /// `TypeError` if it has no bytes to show; `forebay.Invalid` if they are not in one piece, or
    /// may not be changed although that is wanted; `forebay.Unsupported` if they are a GPU's and
    /// are to be written from, or there is no way into its memory.
    pub(crate) fn of(
        engine: &Arc<Engine>,
        object: &Bound<'_, PyAny>,
        flow: Flow,
        stream: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let py = object.py();
        let view = match PyUntypedBuffer::get(object) {
            Ok(view) => View::Buffer(view),
            // Torch's own streams are asked for below.
            Err(refused) => match gpu::see(object, stream.is_some() || stream::is_torchs(object)?)?
            {
                Some(shown) => return Self::of_gpu(engine, object, shown, flow, stream),
                None => View::without_buffer(object, refused)?,
            },
        };
        if stream.is_some() {
            return Err(invalid(py, "a stream is for memory of a GPU, and this is the host's"));
        }
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
            View::Gpu(_) => unreachable!("it has been returned"),
        };
        if flow == Flow::Read && is_read_only {
            return Err(read_only(py));
        }
        let slab = engine.buffer_at(base.addr().get(), length).filter(|_| length != 0);
        Ok(Self { view, place: Place::Host(Foreign(base), slab), length })
    }

    /// Memory of a GPU, to be read into.
    #[expect(unsafe_code, reason = "addresses and streams of a GPU's driver")]
    fn of_gpu(
        engine: &Arc<Engine>,
        object: &Bound<'_, PyAny>,
        shown: Shown,
        flow: Flow,
        stream: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let py = object.py();
        if flow == Flow::Write {
            return Err(exception(
                py,
                &Kind::Unsupported.error(
                    "this memory is a GPU's, and files are written from the host's: pass tensor.cpu()",
                ),
            ));
        }
        left::tidy_up(py);
        let Shown { keeper, ordinal, pointer, length, is_read_only } = shown;
        if is_read_only {
            return Err(read_only(py));
        }
        let before = stream.map(stream::named).transpose()?;
        if before == Some(stream::OF_THE_THREAD) {
            return Err(invalid(
                py,
                "the default stream of a thread is another one in the client's: name another, or none",
            ));
        }
        let view = View::Gpu(keeper);
        if length == 0 {
            // It is at no address.
            return Ok(Self {
                view,
                place: Place::Host(Foreign(NonNull::dangling()), None),
                length,
            });
        }
        let gpu = match engine.gpus().known(ordinal) {
            Some(gpu) => gpu,
            None => {
                let engine = Arc::clone(engine);
                wait::apart(py, move || engine.gpus().make(&engine, ordinal))?
            }
        };
        let after = match (before, &view) {
            (Some(named), _) => named,
            _ if stream::is_torchs(object)? => stream::of_torch(py, ordinal)?,
            (None, View::Gpu(Keeper::Object(_))) => stream::of_interface(object)?,
            // DLPack has put its library's work before what comes into that one.
            (None, _) => stream::DEFAULT,
        };
        // SAFETY: the object is kept until no copy is under way, or the stream that the caller named
        // has them in its order, by which the caller has to go as with any work in a stream.
        let into = unsafe { gpu.device.borrow(pointer, length) }.raise(py)?;
        Ok(Self { view, place: Place::Gpu { gpu, into, after, before }, length })
    }

    /// Bytes that it shows.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Where its bytes are and how many, if they are the host's and the node does not write there itself.
    pub(crate) fn foreign(&self) -> Option<(NonNull<u8>, usize)> {
        match &self.place {
            Place::Host(base, None) => Some((base.0, self.length)),
            Place::Host(..) | Place::Gpu { .. } => None,
        }
    }

    /// A transfer of its first bytes.
    ///
    /// # Errors
    /// `forebay.Busy` if another request uses them; `forebay.Unsupported` if the client's policy allows no way there.
    pub(crate) fn transfer(
        &self,
        py: Python<'_>,
        flow: Flow,
        handle: &Arc<Handle>,
        offset: u64,
        range: Range<usize>,
    ) -> PyResult<Arc<Transfer>> {
        assert!(range.end <= self.length, "the range is inside");
        let transfer = match &self.place {
            Place::Host(_, Some((slab, first))) => {
                let range = first + range.start..first + range.end;
                Transfer::of_slab(flow, handle, offset, slab, range).raise(py)?
            }
            Place::Host(base, None) => {
                let foreign = Foreign(at(base.0, range.start));
                Transfer::of_foreign(flow, handle, offset, foreign, range.len())
            }
            Place::Gpu { gpu, into, after, before } => {
                let into = into.part(range).raise(py)?;
                let (after, before) =
                    (borrowed(&into, *after), before.map(|it| borrowed(&into, it)));
                let aim = aim(py, gpu, handle, offset, &into, &after)?;
                let onto = Onto { ordinal: gpu.ordinal, into, after, before, aim };
                Transfer::of_device(handle, offset, onto)
            }
        };
        Ok(Arc::new(transfer))
    }

    /// Lets the object go.
    pub(crate) fn release(self, py: Python<'_>) {
        match self.view {
            View::Buffer(view) => view.release(py),
            View::Tensor(seen) => seen.release(py),
            View::Gpu(keeper) => keeper.release(py),
        }
    }
}

#[expect(unsafe_code, reason = "streams of a GPU's driver are known by their addresses")]
fn borrowed(of: &DeviceSpan, stream: u64) -> Stream {
    // SAFETY: Python's libraries keep the streams that they work in, and who names one keeps it.
    unsafe { of.device().borrow_stream(stream) }
}

/// Where the node may write by itself; `None` if all goes through the ring.
fn aim(
    py: Python<'_>,
    gpu: &Gpu,
    handle: &Handle,
    offset: u64,
    into: &DeviceSpan,
    after: &Stream,
) -> PyResult<Option<Aim>> {
    let engine = handle.engine();
    if into.is_empty() {
        return Ok(None);
    }
    let aimed = match py.detach(|| gpu.known(engine, into)) {
        Ok(Some(aim)) => Ok(aim),
        // Some of the memory is written to see that it can be.
        Ok(None) => finish(py, engine, after)?.and_then(|()| {
            let origin = Origin { handle: handle.number(), offset };
            py.detach(|| gpu.aim(engine, origin, into))
        }),
        Err(error) => Err(error),
    };
    let part =
        || Kind::Unsupported.error("a page of the host's that is not all of one allocation's");
    let is_whole = |aim: &Aim| Onto::covers(aim, into.len());
    match aimed {
        Ok(aim) if gpu.stages || is_whole(&aim) => Ok(Some(aim)),
        Ok(_) => {
            Err(exception(py, &part().while_doing("gpudirect, which the client's policy asks for")))
        }
        Err(_) if gpu.stages => Ok(None),
        Err(error) => {
            Err(exception(py, &error.while_doing("gpudirect, which the client's policy asks for")))
        }
    }
}

/// Waits until what is in a stream is done, as long as the client is patient.
fn finish(py: Python<'_>, engine: &Engine, stream: &Stream) -> PyResult<extent::Result<()>> {
    let end = clock::now() + engine.timeout();
    wait::interruptible(py, || match stream.finish(STEP) {
        Err(error) if error.kind() == Kind::Busy && clock::now() < end => None,
        answer => Some(answer),
    })
}

fn read_only(py: Python<'_>) -> PyErr {
    invalid(py, "the memory is read-only")
}

impl View {
    /// By DLPack, or else of the array that shows the same memory.
    fn without_buffer(object: &Bound<'_, PyAny>, refused: PyErr) -> PyResult<Self> {
        if stream::is_torchs(object)? {
            return Self::of_torch(object);
        }
        if let Some(seen) = dlpack::see(object, false)? {
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
                    "a {name} shows no memory: pass a buffer, an array or a tensor"
                )))
            }
            Err(_) => Err(refused),
        }
    }
}

impl View {
    /// A tensor of torch's, by its array: from then on torch lets nobody resize what it has stored, and the array is of
    /// a tensor that nobody else has. DLPack keeps what is stored, but not where it is.
    fn of_torch(tensor: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = tensor.py();
        if tensor.getattr("requires_grad")?.is_truthy()? {
            // Torch says what to do instead.
            tensor.call_method0("numpy")?;
        }
        let alias = tensor.call_method0("detach")?;
        if !alias.call_method0("is_contiguous")?.is_truthy()? {
            return Err(invalid(py, "the memory is not in one piece: pass a contiguous one"));
        }
        // As bytes, of which NumPy knows the type.
        let bytes = alias
            .call_method1("view", (-1,))?
            .call_method1("view", (py.import("torch")?.getattr("uint8")?,))?;
        Ok(Self::Buffer(PyUntypedBuffer::get(&bytes.call_method0("numpy")?)?))
    }
}

#[expect(unsafe_code, reason = "arithmetic on an address of a Python object's buffer")]
fn at(base: NonNull<u8>, start: usize) -> NonNull<u8> {
    // SAFETY: callers have checked that it is inside.
    unsafe { base.add(start) }
}
