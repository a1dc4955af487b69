//! `Client`: a connection to a node.

use std::sync::Arc;

use client::device::DeviceOptions;
use client::{Endpoint, Options, Session};
use extent::wire::{OpenBody, OpenMode};
use extent::{FileName, Generation, Proof};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::bound::Bound as Here;
use crate::buffer::Buffer;
use crate::clock;
use crate::engine::{Engine, Handle};
use crate::errors::{Raise, exception};
use crate::file::File;
use crate::gpu;
use crate::ranges::{self, Wanted};
use crate::registration::Registration;
use crate::wait;
use crate::writer::Writer;

/// A connection to a node: open files, read them, write new ones. Threads may share it. It is
/// pickled by its endpoint and options; a forked child cannot use it.
#[pyclass(frozen, module = "forebay")]
pub(crate) struct Client {
    engine: Here<Arc<Engine>>,
    endpoint: String,
    options: Py<PyDict>,
}

impl Client {
    pub(crate) fn engine(&self, py: Python<'_>) -> PyResult<&Arc<Engine>> {
        self.engine.here().raise(py)
    }

    fn open_handle(
        &self,
        py: Python<'_>,
        name: &FileName,
        mode: OpenMode,
    ) -> PyResult<(Arc<Handle>, OpenBody)> {
        let engine = self.engine(py)?;
        let open = |session: &mut Session| session.submit_open(name, mode);
        let opened = wait::call(py, engine, true, open)?.opened();
        let (handle, body) = opened
            .map_err(|error| exception(py, &error.while_doing(format_args!("opening {name}"))))?;
        Ok((Handle::new(engine, handle), body))
    }
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (endpoint="auto", **options))]
    fn new(py: Python<'_>, endpoint: &str, options: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let kept = options.map_or_else(|| Ok(PyDict::new(py)), |options| options.copy())?;
        let parsed = parse_options(&kept)?;
        let (parsed, gpus) = parsed;
        let (timeout, verifies) = (parsed.timeout, parsed.verify);
        let place: Endpoint = endpoint.parse().raise(py)?;
        let start = move || Engine::start(place.session(&parsed)?, timeout, verifies, gpus);
        let engine = wait::apart(py, start)?;
        let options = kept.unbind();
        Ok(Self { engine: Here::new(engine), endpoint: endpoint.to_owned(), options })
    }

    /// Where the node is, as given to `connect`.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// How it is reached: "shm", "tcp" or "verbs".
    #[getter]
    fn fabric(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.engine(py)?.fabric().name())
    }

    /// Opens a file, `silo/key`, at its newest generation or a given one.
    #[pyo3(signature = (name, generation=0))]
    fn open(slf: &Bound<'_, Self>, name: &str, generation: u64) -> PyResult<File> {
        let py = slf.py();
        let name: FileName = name.parse().raise(py)?;
        let mode = OpenMode::Read(Generation(generation));
        let (handle, body) = slf.get().open_handle(py, &name, mode)?;
        Ok(File::new(slf.clone().unbind(), slf.get().engine(py)?, handle, name, body))
    }

    /// Starts a new generation of a file, or a new file. `expected_bytes` is a hint to the node,
    /// and the most that it takes; 0 where it is not known.
    #[pyo3(signature = (name, expected_bytes=0))]
    fn create(slf: &Bound<'_, Self>, name: &str, expected_bytes: u64) -> PyResult<Writer> {
        let py = slf.py();
        let name: FileName = name.parse().raise(py)?;
        let (handle, _) = slf.get().open_handle(py, &name, OpenMode::Write(expected_bytes))?;
        Ok(Writer::new(slf.clone().unbind(), slf.get().engine(py)?, handle, name))
    }

    /// Memory of so many bytes that the node writes itself.
    fn alloc(&self, py: Python<'_>, size: usize) -> PyResult<Buffer> {
        let engine = self.engine(py)?;
        let engine = Arc::clone(engine);
        Ok(Buffer::new(wait::apart(py, move || engine.allocate(size))?))
    }

    /// Has the node write memory of a buffer, an array or a tensor of the CPU where it is, over RDMA and
    /// TCP, until the registration is closed. Reads into it cost no copy then.
    fn register(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<Registration> {
        Registration::new(self.engine(py)?, buffer)
    }

    /// How a GPU's memory is reached: the GPU's name and memory, the `path` that reads into it take,
    /// why not a better one, and what the ring did. Makes the ring, if no read has.
    #[pyo3(signature = (number=0))]
    fn gpu<'py>(&self, py: Python<'py>, number: usize) -> PyResult<Bound<'py, PyDict>> {
        let engine = self.engine(py)?;
        let here = Arc::clone(engine);
        let (gpu, look) = wait::apart(py, move || {
            let gpu = here.gpus().make(&here, number)?;
            let look = gpu.look(&here);
            Ok((gpu, look))
        })?;
        let (device, stats) = (gpu.device.info(), look.ring);
        let said = PyDict::new(py);
        said.set_item("name", &device.name)?;
        said.set_item("memory_bytes", device.memory_bytes)?;
        said.set_item("path", look.path.name())?;
        said.set_item("ladder", gpu::rungs(&look.ladder))?;
        said.set_item("direct_reads", look.count.reads)?;
        said.set_item("direct_bytes", look.count.bytes)?;
        said.set_item("registered", look.direct.registered)?;
        said.set_item("proofs", look.direct.proofs)?;
        said.set_item("ring_bytes", stats.slots * stats.slot_bytes)?;
        said.set_item("pinned_bytes", stats.pinned_bytes)?;
        said.set_item("peak_pinned_bytes", stats.peak_pinned_bytes)?;
        said.set_item("copies", stats.copies)?;
        said.set_item("copies_under_way", look.under_way)?;
        said.set_item("copied_bytes", stats.copied_bytes)?;
        said.set_item("failures", stats.failures)?;
        Ok(said)
    }

    /// Reads ranges, triples of a file, an offset and a size, all of them on the way together, and
    /// waits. For each, its bytes, or the exception that says what went wrong.
    fn read_ranges<'py>(
        &self,
        py: Python<'py>,
        ranges: Vec<(Bound<'py, File>, u64, usize)>,
    ) -> PyResult<Bound<'py, PyList>> {
        let engine = self.engine(py)?;
        let wanted = ranges.into_iter().map(|(file, offset, size)| {
            let (handle, of, length) = file.get().open_handle(py)?;
            if !Arc::ptr_eq(of, engine) {
                return Err(PyValueError::new_err("the file was opened by another client"));
            }
            Ok(Wanted { handle, length, offset, size })
        });
        let wanted: Vec<_> = wanted.collect::<PyResult<_>>()?;
        PyList::new(py, ranges::read_many(py, engine, &wanted)?)
    }

    /// Asks the node for a sign of life, and returns the seconds that it took.
    fn ping(&self, py: Python<'_>) -> PyResult<f64> {
        let begin = clock::now();
        wait::call(py, self.engine(py)?, false, Session::submit_ping)?.result.raise(py)?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Whether the connection is over: closed, or lost for good.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        let engine = self.engine(py)?;
        Ok(py.detach(|| engine.is_over()))
    }

    /// Ends the connection. What is under way fails.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let engine = self.engine(py)?;
        py.detach(|| engine.close());
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

    /// Another process connects by itself.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Again)> {
        let again = py.import("forebay._again")?.getattr("connect_again")?;
        Ok((again, (self.endpoint.clone(), self.options.clone_ref(py))))
    }

    fn __repr__(&self) -> String {
        format!("<forebay.Client of {}>", self.endpoint)
    }
}

/// The arguments of `forebay._again.connect_again`.
type Again = (String, Py<PyDict>);

fn parse_options(options: &Bound<'_, PyDict>) -> PyResult<(Options, DeviceOptions)> {
    // A `Buffer` shows its address, and over shared memory a session that connects again may move it:
    // so a session that is lost ends, and the caller connects again.
    let mut parsed = Options { reconnect: None, ..Options::default() };
    let mut gpus = DeviceOptions::default();
    for (key, value) in options {
        let seconds = || clock::seconds(value.extract()?);
        match key.extract::<String>()?.as_str() {
            "credits" => parsed.credits = value.extract()?,
            "queue" => parsed.queue = value.extract()?,
            "verify" => parsed.verify = value.extract()?,
            "timeout" => parsed.timeout = seconds()?,
            "connect_timeout" => parsed.connect_timeout = seconds()?,
            "spin" => parsed.spin = seconds()?,
            "proof" => parsed.proof = Some(proof(&value)?.into()),
            "gpu_ring" => gpus.ring_bytes = value.extract()?,
            "gpu_piece" => gpus.slot_bytes = value.extract()?,
            "gpu_policy" => gpus.policy = value.extract::<String>()?.parse().raise(value.py())?,
            other => {
                return Err(PyTypeError::new_err(format!(
                    "there is no option {other:?}: there are credits, queue, verify, timeout, \
                     connect_timeout, spin, proof, gpu_ring, gpu_piece and gpu_policy"
                )));
            }
        }
    }
    Ok((parsed, gpus))
}

/// A proof as text, or what a function returns that is called for each connection.
fn proof(value: &Bound<'_, PyAny>) -> PyResult<Proof> {
    let text: String =
        if value.is_callable() { value.call0()?.extract()? } else { value.extract()? };
    text.trim().parse().raise(value.py())
}
