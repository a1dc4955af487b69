//! Reads into, and writes from, memory that the node cannot reach: through pieces of memory that
//! it can, several of them on the way at once.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;

use extent::wire::{Landing, Served};
use extent::{Error, Kind, Result};

use crate::client::Awaited;
use crate::file::Handle;
use crate::session::{Completed, Refused, Session, Ticket};
use crate::{Client, Memory, Read, clock};

const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_IN_FLIGHT: usize = 4;

/// Reads into `out` until it is full or the file ends.
pub(crate) fn read(handle: &Handle, offset: u64, out: &mut [u8]) -> Result<Read> {
    let mut total = Read {
        bytes: 0,
        served: Served::Nothing,
        landing: Landing::Nothing,
        copied: true,
        service_us: 0,
    };
    let mut ended = false;
    let mut pipe = Pipe::new(handle, out.len(), |session, memory, chunk| {
        session.submit_read(handle.number, offset + chunk.start as u64, memory, 0..chunk.len())
    });
    loop {
        pipe.fill(|_, _| {})?;
        let Some((chunk, mut completed)) = pipe.next()? else { return Ok(total) };
        let length = usize::try_from(completed.bytes).expect("no more than the chunk");
        let memory = completed.memory.take().unwrap_or_default();
        // Chunks come in order, so that only the last ones can be short.
        if !ended {
            out[chunk.start..chunk.start + length].copy_from_slice(&memory.as_slice()[..length]);
            total.bytes += completed.bytes;
        }
        pipe.give_back(memory);
        total.served = total.served.max(completed.served);
        total.landing = total.landing.max(completed.landing);
        total.service_us = total.service_us.max(completed.service_us);
        if length < chunk.len() {
            ended = true;
            pipe.stop();
        }
    }
}

/// Writes all of `bytes`.
pub(crate) fn write(handle: &Handle, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut pipe = Pipe::new(handle, bytes.len(), |session, memory, chunk| {
        session.submit_write(handle.number, offset + chunk.start as u64, memory, 0..chunk.len())
    });
    loop {
        pipe.fill(|memory, chunk| {
            memory.as_mut_slice()[..chunk.len()].copy_from_slice(&bytes[chunk.clone()]);
        })?;
        let Some((_, mut completed)) = pipe.next()? else { return Ok(()) };
        pipe.give_back(completed.memory.take().unwrap_or_default());
    }
}

/// Chunks of a long transfer, handed back in their order.
struct Pipe<'a, F> {
    client: &'a Client,
    submit: F,
    length: usize,
    next: usize,
    in_flight: VecDeque<(Ticket, Range<usize>)>,
}

impl<'a, F> Pipe<'a, F>
where
    F: Fn(&mut Session, Memory, &Range<usize>) -> Result<Ticket, Refused>,
{
    fn new(handle: &'a Handle, length: usize, submit: F) -> Self {
        Self { client: &handle.client, submit, length, next: 0, in_flight: VecDeque::new() }
    }

    /// Starts as many chunks as may be on the way.
    fn fill(&mut self, prepare: impl Fn(&mut Memory, &Range<usize>)) -> Result<()> {
        while self.next < self.length && self.in_flight.len() < CHUNKS_IN_FLIGHT {
            let chunk = self.next..self.length.min(self.next + CHUNK_BYTES);
            let mut memory = self.client.when_connected(|state| state.take_bounce(CHUNK_BYTES))?;
            // Without the lock: this may be a long copy.
            prepare(&mut memory, &chunk);
            let ticket = self.start(memory, &chunk)?;
            self.next = chunk.end;
            self.in_flight.push_back((ticket, chunk));
        }
        Ok(())
    }

    fn start(&self, memory: Memory, chunk: &Range<usize>) -> Result<Ticket> {
        let mut memory = Some(memory);
        let deadline = clock::after(self.client.options().timeout);
        self.client.advance(deadline, Awaited::Room, |state| {
            match (self.submit)(&mut state.session, memory.take()?, chunk) {
                Ok(ticket) => {
                    state.expect(ticket);
                    state.session.kick();
                    Some(Ok(ticket))
                }
                Err(refused) if refused.error.kind() == Kind::Busy && clock::now() < deadline => {
                    memory = Some(refused.memory);
                    None
                }
                Err(refused) => Some(Err(refused.error)),
            }
        })
    }

    /// Waits for the oldest chunk; `None` if there is none. One that the node was too busy for is
    /// sent again.
    fn next(&mut self) -> Result<Option<(Range<usize>, Completed)>> {
        let Some((ticket, chunk)) = self.in_flight.front().cloned() else { return Ok(None) };
        let deadline = clock::after(self.client.options().timeout);
        let awaited = Cell::new(Some(ticket));
        let mut completed =
            self.client.advance(deadline, Awaited::One(&awaited), |state| state.take(ticket));
        self.in_flight.pop_front();
        if completed.result.as_ref().is_err_and(|error| error.kind() == Kind::Busy) {
            let memory = completed.memory.take().unwrap_or_default();
            let again = |session: &mut Session, memory| (self.submit)(session, memory, &chunk);
            completed = self.client.run(memory, again).map_err(Error::from)?;
        }
        std::mem::replace(&mut completed.result, Ok(()))?;
        Ok(Some((chunk, completed)))
    }

    /// Starts no more.
    fn stop(&mut self) {
        self.length = self.next;
    }

    fn give_back(&self, memory: Memory) {
        self.client.lock().keep_bounce(memory);
    }
}

impl<F> Drop for Pipe<'_, F> {
    fn drop(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let mut state = self.client.lock();
        for (ticket, _) in self.in_flight.drain(..) {
            state.abandon(ticket);
        }
    }
}
