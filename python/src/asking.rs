//! Plain operations, such as an open, of which each is waited for by its caller.

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::device::Driver;
use client::{Completed, Memory, Refused, Session, Ticket};
use extent::{Kind, Result};

use crate::clock;
use crate::engine::Engine;
use crate::lock::Mutex;
use crate::state::State;

/// First and longest pause before an operation that the node was too busy for is sent again.
const BUSY_PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(10));
/// How long the session is driven at a time.
const TURN: Duration = Duration::from_millis(50);

/// How an operation ended, for the one who waits for it.
#[derive(Default)]
pub(crate) struct Call {
    answer: Mutex<Answer>,
}

#[derive(Default)]
enum Answer {
    #[default]
    Awaited,
    There(Completed),
    /// Nobody waits any more.
    Unwanted,
}

impl Call {
    /// Hands the answer over.
    ///
    /// # Errors
    /// The answer, if nobody waits for it any more.
    pub(crate) fn end(&self, completed: Completed) -> Result<(), Completed> {
        let mut answer = self.answer.lock();
        if matches!(*answer, Answer::Unwanted) {
            return Err(completed);
        }
        *answer = Answer::There(completed);
        Ok(())
    }

    /// The answer, if it is there.
    fn take(&self) -> Option<Completed> {
        let mut answer = self.answer.lock();
        match std::mem::take(&mut *answer) {
            Answer::There(completed) => Some(completed),
            other => {
                *answer = other;
                None
            }
        }
    }

    /// Waits no longer. The answer, if it is there already.
    fn leave(&self) -> Option<Completed> {
        match std::mem::replace(&mut *self.answer.lock(), Answer::Unwanted) {
            Answer::There(completed) => Some(completed),
            Answer::Awaited | Answer::Unwanted => None,
        }
    }
}

/// An operation of [`Engine::drive`] that is sent until the node takes it.
pub(crate) struct Asking<'a, F> {
    engine: &'a Engine,
    submit: F,
    /// The operation's, while the session has it not.
    memory: Memory,
    opens: bool,
    call: Option<Arc<Call>>,
    not_before: Instant,
    pause: Duration,
    patience_ends: Instant,
}

impl<'a, F: FnMut(&mut Session, Memory) -> Result<Ticket, Refused>> Asking<'a, F> {
    /// `opens` says that what it brings is a handle, which is given back if nobody takes it.
    pub(crate) fn new(engine: &'a Engine, opens: bool, memory: Memory, submit: F) -> Self {
        let now = clock::now();
        let patience_ends = now + engine.timeout();
        let pause = BUSY_PAUSES.0;
        Self { engine, submit, memory, opens, call: None, not_before: now, pause, patience_ends }
    }

    /// How it ended, once it has.
    pub(crate) fn advance(&mut self, state: &mut State) -> Option<Result<Completed, Refused>> {
        let now = clock::now();
        let Some(call) = &self.call else {
            if now >= self.not_before {
                match (self.submit)(&mut state.session, std::mem::take(&mut self.memory)) {
                    Ok(ticket) => {
                        self.call = Some(state.expect(ticket, self.opens));
                        state.session.kick();
                    }
                    Err(refused)
                        if refused.error.kind() == Kind::Busy && now < self.patience_ends =>
                    {
                        self.memory = refused.memory;
                    }
                    Err(refused) => return Some(Err(refused)),
                }
            }
            return None;
        };
        let Some(mut completed) = call.take() else {
            if now >= self.patience_ends {
                state.give_up();
            }
            return None;
        };
        let busy = completed.result.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
        if busy && now + self.pause < self.patience_ends {
            self.memory = completed.memory.take().unwrap_or_default();
            self.call = None;
            self.not_before = now + self.pause;
            self.pause = (self.pause * 2).min(BUSY_PAUSES.1);
            return None;
        }
        Some(Ok(completed))
    }
}

impl<F> Drop for Asking<'_, F> {
    fn drop(&mut self) {
        // Upon a signal: the answer may have come all the same, and with it a handle of the node's.
        if let Some(completed) = self.call.take().and_then(|call| call.leave())
            && self.opens
            && completed.result.is_ok()
        {
            self.engine.close_handle(completed.handle);
        }
    }
}

impl Driver for Engine {
    fn with<T>(&self, act: impl FnOnce(&mut Session) -> T) -> T {
        act(&mut self.lock().session)
    }

    /// The session never connects again: it has its connection, or is over.
    fn when_connected<T>(&self, mut act: impl FnMut(&mut Session) -> Result<T>) -> Result<T> {
        act(&mut self.lock().session)
    }

    fn run(
        &self,
        memory: Memory,
        submit: impl FnMut(&mut Session, Memory) -> Result<Ticket, Refused>,
    ) -> Result<Completed, Refused> {
        let mut asking = Asking::new(self, false, memory, submit);
        loop {
            // An operation that takes too long ends the session, and comes to its end by that.
            if let Some(answer) = self.drive(TURN, |state| asking.advance(state)) {
                return answer;
            }
        }
    }
}
