//! Errors of the node and the client as Python exceptions.

use extent::{Error, Kind};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// `forebay._errors.of_kind`: the classes are Python's, since they derive from two bases each.
static OF_KIND: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// The exception for an error.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let made = OF_KIND
        .get_or_try_init(py, || {
            Ok::<_, PyErr>(py.import("forebay._errors")?.getattr("of_kind")?.unbind())
        })
        .and_then(|of_kind| of_kind.call1(py, (error.kind().name(), error.to_string())));
    match made {
        Ok(value) => PyErr::from_value(value.into_bound(py)),
        // The package is not whole: its error first, then ours.
        Err(broken) => PyRuntimeError::new_err(format!("{error} (and {broken})")),
    }
}

/// An error of a call's arguments.
pub(crate) fn invalid(py: Python<'_>, sentence: impl Into<String>) -> PyErr {
    exception(py, &Kind::Invalid.error(sentence))
}

/// Results that become Python's.
pub(crate) trait Raise<T> {
    /// The value, or the exception.
    ///
    /// # Errors
    /// The exception for the error.
    fn raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> Raise<T> for extent::Result<T> {
    fn raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error))
    }
}
