//! `Control`: what the node's control plane says of files, for listings.

use std::time::Duration;

use control::{ControlClient, proto as v1};
use extent::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tokio::runtime::{Builder, Runtime};

use crate::bound::Bound as Here;
use crate::clock::seconds;
use crate::errors::Raise;
use crate::wait;

/// A connection to a node's control plane.
#[pyclass(frozen, module = "forebay._forebay")]
pub(crate) struct Control {
    inner: Here<Inner>,
}

struct Inner {
    /// One thread, which all calls share.
    runtime: Option<Runtime>,
    client: ControlClient,
    timeout: Duration,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Control {
    /// Asks the node, and waits for its answer without the interpreter's lock.
    fn ask<T, F>(&self, py: Python<'_>, ask: impl FnOnce(ControlClient) -> F) -> PyResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let inner = self.inner.here().raise(py)?;
        let Some(runtime) = &inner.runtime else { unreachable!("only drop takes it") };
        let answer = ask(inner.client.clone());
        let limit = inner.timeout;
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        runtime.spawn(async move {
            let answer = tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
                Err(extent::Kind::Disconnected.error(format!("no answer within {limit:?}")))
            });
            // Nobody receives it after a signal.
            drop(sender.send(answer));
        });
        wait::received(py, receiver)
    }
}

#[pymethods]
impl Control {
    #[new]
    #[pyo3(signature = (address, timeout=60.0))]
    fn new(py: Python<'_>, address: String, timeout: f64) -> PyResult<Self> {
        let timeout = seconds(timeout)?;
        let inner = wait::apart(py, move || {
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("forebay-control")
                .enable_all()
                .build()
                .map_err(|error| Error::io("starting a runtime", error))?;
            let connecting = ControlClient::connect(&address, timeout);
            let client = runtime.block_on(connecting)?;
            Ok(Inner { runtime: Some(runtime), client, timeout })
        })?;
        Ok(Self { inner: Here::new(inner) })
    }

    /// A page of the files that the node knows whose names begin with `prefix`, in the byte order
    /// of their names, and the token of the next page, empty after the last one.
    #[pyo3(signature = (prefix, page_token="", page_size=1000))]
    fn list<'py>(
        &self,
        py: Python<'py>,
        prefix: &str,
        page_token: &str,
        page_size: u32,
    ) -> PyResult<(Bound<'py, PyList>, String)> {
        let request = v1::ListFilesRequest {
            prefix: prefix.to_owned(),
            page_size,
            page_token: page_token.to_owned(),
        };
        let page = self.ask(py, |mut client| async move { client.list(request).await })?;
        let files = PyList::empty(py);
        for file in &page.files {
            files.append(describe(py, file)?)?;
        }
        Ok((files, page.next_page_token))
    }

    /// What the node knows of a file.
    fn get<'py>(&self, py: Python<'py>, name: String) -> PyResult<Bound<'py, PyDict>> {
        let file = self.ask(py, |mut client| async move { client.get(&name).await })?;
        describe(py, &file)
    }

    /// Asks for files to be written back to their silos and let go, and returns the job's id.
    fn demote(&self, py: Python<'_>, names: Vec<String>) -> PyResult<String> {
        let target = |name| v1::Target { what: Some(v1::target::What::File(name)) };
        let targets = names.into_iter().map(target).collect();
        let request = v1::DemoteRequest { mutation: None, targets };
        let job = self.ask(py, |mut client| async move { client.demote(request).await })?;
        Ok(job.id)
    }

    /// How far a job is, and the first of what went wrong.
    fn job(&self, py: Python<'_>, id: String) -> PyResult<(String, Option<String>)> {
        let job = self.ask(py, |mut client| async move { client.job(&id).await })?;
        let state = job.state().as_str_name();
        let state = state.strip_prefix("JOB_STATE_").unwrap_or(state).to_lowercase();
        Ok((state, job.errors.first().map(|it| format!("{}: {}", it.file, it.error))))
    }

    /// The names of the node's silos.
    fn silos(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let silos = self.ask(py, |mut client| async move { client.silos().await })?;
        Ok(silos.into_iter().map(|silo| silo.name).collect())
    }
}

fn describe<'py>(py: Python<'py>, file: &v1::FileStatus) -> PyResult<Bound<'py, PyDict>> {
    let described = PyDict::new(py);
    described.set_item("name", &file.file)?;
    described.set_item("id", &file.id)?;
    described.set_item("generation", file.generation)?;
    described.set_item("size", file.length)?;
    let residency = file.residency().as_str_name();
    let residency = residency.strip_prefix("RESIDENCY_").unwrap_or(residency);
    described.set_item("residency", residency.to_lowercase())?;
    described.set_item("resident_bytes", file.resident_bytes)?;
    Ok(described)
}
