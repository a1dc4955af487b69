use std::mem;
use std::time::Duration;

use extent::{Error, Kind};

use super::place::State;
use super::{Copied, HostMemory, Ring};
use crate::bugs::{self, Bug};
use crate::clock;

/// How long a ring that is dropped waits for its copies.
const DRAIN: Duration = Duration::from_secs(5);

impl<M: HostMemory> Ring<M> {
    /// The device is lost, and may still read what it was to copy.
    pub(super) fn on_lost(&mut self, error: &Error, ended: &mut Vec<Copied>) {
        self.lost = Some(error.duplicate());
        while let Some(index) = self.copying.pop_front() {
            let state = mem::replace(&mut self.places[index].state, State::Missing);
            let State::Copying { memory, to, id } = state else {
                unreachable!("what is listed as copying is copying");
            };
            let bytes = to.len();
            self.leak(index, memory);
            mem::forget(to);
            self.stats.failures += 1;
            ended.push(Copied { id, bytes, result: Err(error.duplicate()) });
        }
    }

    /// Keeps memory, and its pin, for ever.
    pub(super) fn leak(&mut self, index: usize, memory: M) {
        self.places[index].state = State::Missing;
        if bugs::is(Bug::FreedUnderDevice) {
            return;
        }
        mem::forget(self.places[index].pin.take());
        mem::forget(memory);
    }
}

impl<M: HostMemory> Drop for Ring<M> {
    fn drop(&mut self) {
        let deadline = clock::now() + DRAIN;
        let mut ended = Vec::new();
        while !self.copying.is_empty() && clock::now() < deadline {
            self.wait(deadline.saturating_duration_since(clock::now()), &mut ended);
        }
        if self.copying.is_empty() {
            return;
        }
        tracing::error!(
            copies = self.copying.len(),
            "a ring ends before its copies: the memory that the device may still read is kept for ever"
        );
        let error = Kind::Busy.error("the ring has ended");
        self.on_lost(&error, &mut ended);
    }
}
