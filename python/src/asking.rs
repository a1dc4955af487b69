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

/// How an operation ended.
#[derive(Default)]
pub(crate) struct Call {
    pub(crate) ended: Mutex<Option<Completed>>,
}

/// An operation of [`Engine::drive`] that is sent until the node takes it.
pub(crate) struct Asking<F> {
    submit: F,
    /// The operation's, while the session has it not.
    memory: Memory,
    opens: bool,
    call: Option<Arc<Call>>,
    not_before: Instant,
    pause: Duration,
    patience_ends: Instant,
}

impl<F: FnMut(&mut Session, Memory) -> Result<Ticket, Refused>> Asking<F> {
    /// `opens` says that what it brings is a handle, which is given back if nobody takes it.
    pub(crate) fn new(engine: &Engine, opens: bool, memory: Memory, submit: F) -> Self {
        let now = clock::now();
        let patience_ends = now + engine.timeout();
        let pause = BUSY_PAUSES.0;
        Self { submit, memory, opens, call: None, not_before: now, pause, patience_ends }
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
        let Some(mut completed) = call.ended.lock().take() else {
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
