use extent::{Error, Result};

use crate::session::{Completed, Refused, Session, Ticket};
use crate::{Client, Memory};

/// Whoever drives a session, as what goes into devices uses it: a [`Client`], or a program that drives a
/// [`Session`] by itself.
pub trait Driver {
    /// Does something with the session that does not wait.
    fn with<T>(&self, act: impl FnOnce(&mut Session) -> T) -> T;

    /// Does something with the session that needs a connection, once there is one.
    ///
    /// # Errors
    /// What that answers.
    fn when_connected<T>(&self, act: impl FnMut(&mut Session) -> Result<T>) -> Result<T>;

    /// Submits an operation, again while the node is too busy for it, and waits for its end: no longer than the
    /// driver's patience. `memory` is the operation's, and empty for one that uses none.
    ///
    /// # Errors
    /// Why it was not submitted, with the memory. How it ended, what has completed says.
    fn run(
        &self,
        memory: Memory,
        submit: impl FnMut(&mut Session, Memory) -> Result<Ticket, Refused>,
    ) -> Result<Completed, Refused>;
}

/// As [`Driver::run`], for an operation without memory of the host's that has to end well.
///
/// # Errors
/// Why it was not submitted, or did not.
pub(super) fn call(
    driver: &impl Driver,
    mut submit: impl FnMut(&mut Session) -> Result<Ticket>,
) -> Result<Completed> {
    let submit =
        |session: &mut Session, memory| submit(session).map_err(|error| Refused { error, memory });
    let mut done = driver.run(Memory::default(), submit).map_err(Error::from)?;
    std::mem::replace(&mut done.result, Ok(())).map(|()| done)
}

impl Driver for Client {
    fn with<T>(&self, act: impl FnOnce(&mut Session) -> T) -> T {
        act(&mut self.lock().session)
    }

    fn when_connected<T>(&self, mut act: impl FnMut(&mut Session) -> Result<T>) -> Result<T> {
        Self::when_connected(self, |state| act(&mut state.session))
    }

    fn run(
        &self,
        memory: Memory,
        submit: impl FnMut(&mut Session, Memory) -> Result<Ticket, Refused>,
    ) -> Result<Completed, Refused> {
        Self::run(self, memory, submit)
    }
}
