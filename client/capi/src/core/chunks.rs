//! How transfers go on, chunk by chunk.

use client::{Completed, Memory, Ticket};
use extent::{Error, Kind};

use super::{BUSY_PAUSE, Core, Flight};
use crate::arena::Place;
use crate::bugs::{self, Bug};
use crate::clock;
use crate::failure::Outcome;
use crate::pool::Pool;
use crate::transfer::{Chunk, Flow, Transfer};

impl Core {
    /// Asks for as much of a transfer as may be, and ends it if nothing is left of it.
    pub(super) fn feed(&mut self, number: u64) {
        loop {
            let Some(transfer) = self.transfers.get(number) else { return };
            if transfer.is_over() {
                return self.finish(number);
            }
            if transfer.is_hungry {
                return;
            }
            let Some((start, length)) = transfer.next() else { return };
            let chunk = Chunk { transfer: number, start, length };
            match self.memory_for(chunk) {
                Ok(Some(memory)) => {
                    self.transfer(number).asked(length);
                    self.send(chunk, memory);
                }
                Ok(None) => {
                    self.transfer(number).is_hungry = true;
                    self.hungry.push_back(number);
                }
                Err(failure) => self.transfer(number).fail(failure),
            }
        }
    }

    fn transfer(&mut self, number: u64) -> &mut Transfer {
        self.transfers.get_mut(number).expect("a transfer is kept until it is over")
    }

    /// Memory for a chunk; `None` if there will be some later.
    fn memory_for(&mut self, chunk: Chunk) -> Outcome<Option<Memory>> {
        let wanted = &self.transfers.get(chunk.transfer).expect("it is being fed").wanted;
        if let Place::Inside { piece } = wanted.place {
            let address = wanted.buffer.addr().get() + chunk.start;
            return self.arena.lend(&self.session, piece, address, chunk.length).map(Some);
        }
        let is_write = wanted.flow == Flow::Write;
        match self.pool.take(&mut self.session, chunk.length) {
            Ok(Some(mut memory)) => {
                if is_write {
                    self.transfer(chunk.transfer).fill(chunk, memory.as_mut_slice());
                }
                Ok(Some(memory))
            }
            Ok(None) => Ok(None),
            // Whoever connects again, or has some, gets some later. Else the node maps no more.
            Err(error)
                if error.kind() == Kind::Busy
                    && (!self.session.is_connected() || self.pool.has_any(chunk.length)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Goes once round those that wait for memory to copy through: who is first of those that need a
    /// piece of one length gets it first.
    pub(super) fn feed_hungry(&mut self) {
        let mut is_out = [false; 2];
        for _ in 0..self.hungry.len() {
            let Some(number) = self.hungry.pop_front() else { return };
            let transfer = self.transfer(number);
            let class = transfer.next().map_or(0, |(_, length)| Pool::class(length));
            if is_out[class] {
                self.hungry.push_back(number);
                continue;
            }
            transfer.is_hungry = false;
            self.feed(number);
            is_out[class] = self.hungry.back() == Some(&number);
        }
    }

    pub(super) fn send(&mut self, chunk: Chunk, memory: Memory) {
        let wanted = &self.transfers.get(chunk.transfer).expect("it has a chunk out").wanted;
        let (handle, offset) = (wanted.handle, wanted.offset + chunk.start as u64);
        let submitted = match wanted.flow {
            Flow::Read => self.session.submit_read(handle, offset, memory, 0..chunk.length),
            Flow::Write => self.session.submit_write(handle, offset, memory, 0..chunk.length),
        };
        match submitted {
            Ok(ticket) => {
                self.flights.insert(ticket, Flight::Chunk(chunk));
            }
            Err(refused) => self.rest_or_drop(chunk, Some(refused.memory), refused.error),
        }
    }

    /// Takes in how a chunk ended.
    pub(super) fn take_in(&mut self, chunk: Chunk, mut done: Completed) {
        if let Err(error) = std::mem::replace(&mut done.result, Ok(())) {
            self.rest_or_drop(chunk, done.memory, error);
        } else {
            self.transfer(chunk.transfer).absorb(chunk, &done);
            let _ = self.take_back(chunk, done.memory);
        }
        self.feed(chunk.transfer);
    }

    /// A chunk came to nothing: it is sent again later if the node was only too busy, or fails.
    fn rest_or_drop(&mut self, chunk: Chunk, memory: Option<Memory>, error: Error) {
        let (now, timeout) = (clock::now(), self.settings.timeout);
        let is_late = self.transfer(chunk.transfer).is_late(now, timeout);
        match memory {
            Some(memory) if error.kind() == Kind::Busy && !is_late => {
                if self.resting.is_empty() {
                    self.rested_at = now + BUSY_PAUSE;
                }
                self.resting.push((chunk, memory));
            }
            memory => {
                let failure = self.take_back(chunk, memory).err().unwrap_or_else(|| error.into());
                let transfer = self.transfer(chunk.transfer);
                transfer.dropped();
                transfer.fail(failure);
            }
        }
    }

    /// Takes a chunk's memory back.
    ///
    /// # Errors
    /// If C has to know that it is lost.
    fn take_back(&mut self, chunk: Chunk, memory: Option<Memory>) -> Outcome<()> {
        match self.transfer(chunk.transfer).wanted.place {
            Place::Inside { piece } => self.arena.give_back(&self.session, piece),
            Place::Outside => {
                self.pool.give_back(memory, chunk.length);
                Ok(())
            }
        }
    }

    fn finish(&mut self, number: u64) {
        let transfer = self.transfers.remove(number).expect("a transfer ends once");
        if transfer.is_hungry {
            self.hungry.retain(|other| *other != number);
        }
        self.opened.end(transfer.wanted.file);
        let flow = transfer.wanted.flow;
        let (mut completion, failure) = transfer.completion();
        if bugs::is(Bug::UserDataMixed)
            && let Some((_, other)) = self.transfers.iter().next()
        {
            completion.user_data = other.wanted.user_data;
        }
        match flow {
            Flow::Read => self.completions.add(completion, failure),
            Flow::Write => self.written = Some(failure.map_or(Ok(()), Err)),
        }
    }

    /// Nobody waits any more for transfers that take longer than the timeout. The connection ends
    /// with those that the node has, because it might still be writing into their memory.
    pub(super) fn give_up_late(&mut self) {
        let (now, timeout) = (clock::now(), self.settings.timeout);
        if now < self.looked_at + self.patience_step() {
            return;
        }
        self.looked_at = now;
        let is_late =
            |number| self.transfers.get(number).is_some_and(|one| one.is_late(now, timeout));
        let starved: Vec<u64> = self.hungry.iter().copied().filter(|it| is_late(*it)).collect();
        let late = |flight: &Flight| match flight {
            Flight::Answer => false,
            Flight::Chunk(chunk) => is_late(chunk.transfer),
        };
        let hanging = self.flights.iter().filter(|(_, flight)| late(flight));
        let hanging: Vec<Ticket> = hanging.map(|(ticket, _)| *ticket).collect();
        if !hanging.is_empty() {
            self.session.expire(&hanging, &self.late());
        }
        for number in starved {
            let late = self.late().into();
            self.transfer(number).fail(late);
            self.feed(number);
        }
    }
}
