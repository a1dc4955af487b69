//! Waiting without the interpreter's lock, so that other threads run and Ctrl-C works.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use client::{Completed, Memory, Refused, Session, Ticket};
use extent::{Error, Kind, Result};
use pyo3::prelude::*;

use crate::asking::Asking;
use crate::engine::Engine;
use crate::errors::Raise;
use crate::transfer::Transfer;

/// How often signals are looked for.
pub(crate) const STEP: Duration = Duration::from_millis(50);

/// Waits in steps until one of them has an answer.
///
/// # Errors
/// What a signal handler raises, such as `KeyboardInterrupt`.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    mut step: impl FnMut() -> Option<T> + Send,
) -> PyResult<T> {
    loop {
        if let Some(answer) = py.detach(&mut step) {
            return Ok(answer);
        }
        py.check_signals()?;
    }
}

/// Runs an operation of the session to its end.
///
/// # Errors
/// What the node answers; what a signal handler raises.
pub(crate) fn call(
    py: Python<'_>,
    engine: &Engine,
    opens: bool,
    mut submit: impl FnMut(&mut Session) -> Result<Ticket> + Send,
) -> PyResult<Completed> {
    let submit =
        |session: &mut Session, memory| submit(session).map_err(|error| Refused { error, memory });
    let mut asking = Asking::new(engine, opens, Memory::default(), submit);
    let answer = interruptible(py, || engine.drive(STEP, |state| asking.advance(state)))?;
    answer.map_err(Error::from).raise(py)
}

/// Starts transfers.
///
/// # Errors
/// What a signal handler raises: then none was started.
pub(crate) fn submit(py: Python<'_>, engine: &Engine, transfers: &[Arc<Transfer>]) -> PyResult<()> {
    interruptible(py, || engine.submit(transfers, STEP))
}

/// Runs something that blocks on a thread of its own, which is left to itself upon a signal.
///
/// # Errors
/// What it answers; what a signal handler raises.
pub(crate) fn apart<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let (sender, receiver) = sync_channel(1);
    let thread = thread::Builder::new().name("forebay-call".to_owned());
    // Nobody receives it after a signal.
    let started = thread.spawn(move || drop(sender.send(work())));
    started.map_err(|error| Error::io("starting a thread", error)).raise(py)?;
    received(py, receiver)
}

/// Waits for what another thread sends.
///
/// # Errors
/// What it sends; what a signal handler raises.
pub(crate) fn received<T: Send>(py: Python<'_>, receiver: Receiver<Result<T>>) -> PyResult<T> {
    let answer = interruptible(py, move || match receiver.recv_timeout(STEP) {
        Ok(answer) => Some(answer),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            Some(Err(Kind::Io.error("the thread that asked the node panicked")))
        }
    })?;
    answer.raise(py)
}
