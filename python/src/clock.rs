//! The one place where time is asked for.

use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// As good as for ever, and no longer than a clock goes.
const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);

/// Now, on a clock that never goes back.
#[expect(clippy::disallowed_methods, reason = "this is the crate's clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// So many seconds, of Python's.
///
/// # Errors
/// `ValueError` if that is no time.
pub(crate) fn seconds(number: f64) -> PyResult<Duration> {
    if number == f64::INFINITY {
        return Ok(CENTURY);
    }
    match Duration::try_from_secs_f64(number) {
        Ok(time) => Ok(time.min(CENTURY)),
        // What is so long that it is no `Duration`.
        Err(_) if number > 1.0 => Ok(CENTURY),
        Err(error) => Err(PyValueError::new_err(error.to_string())),
    }
}
