//! One read or write of C's, in as many requests as it takes.
#![expect(unsafe_code, reason = "C's memory is known by its address")]

use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use client::Completed;
use extent::wire::{Landing, Served};

use crate::abi::{self, Cqe};
use crate::arena::Place;
use crate::bugs::{self, Bug};
use crate::failure::Failure;
use crate::pool::LARGE_BYTES;

/// Requests at a time of a transfer that is copied.
const COPIES_IN_FLIGHT: usize = 8;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flow {
    Read,
    Write,
}

/// What was asked for.
pub(crate) struct Wanted {
    pub(crate) flow: Flow,
    /// What C calls the file.
    pub(crate) file: u64,
    /// What the session calls it.
    pub(crate) handle: u64,
    pub(crate) offset: u64,
    pub(crate) buffer: NonNull<u8>,
    pub(crate) length: usize,
    pub(crate) place: Place,
    pub(crate) user_data: u64,
    pub(crate) begun: Instant,
}

/// See the module.
pub(crate) struct Transfer {
    pub(crate) wanted: Wanted,
    /// Bytes from the front that were asked for.
    next: usize,
    in_flight: usize,
    /// Whether it waits for memory to copy through.
    pub(crate) is_hungry: bool,
    /// Bytes from the front that no answer lacks.
    good: usize,
    failure: Option<Failure>,
    flags: u32,
    served: Served,
    service_us: u32,
}

/// What one request of it moves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    /// The transfer's number.
    pub(crate) transfer: u64,
    pub(crate) start: usize,
    pub(crate) length: usize,
}

impl Transfer {
    pub(crate) fn new(wanted: Wanted) -> Self {
        let copied = wanted.place == Place::Outside && wanted.length != 0;
        Self {
            next: 0,
            in_flight: 0,
            is_hungry: false,
            good: wanted.length,
            failure: None,
            flags: if copied { abi::PATH_CLIENT_COPY } else { 0 },
            served: Served::Nothing,
            service_us: 0,
            wanted,
        }
    }

    /// What to ask for next: where it begins, and how long it is. `None` if that is nothing, or
    /// nothing before something was answered.
    pub(crate) fn next(&self) -> Option<(usize, usize)> {
        if self.failure.is_some() || self.next >= self.good {
            return None;
        }
        let left = self.wanted.length - self.next;
        match self.wanted.place {
            // The session cuts it.
            Place::Inside { .. } => Some((self.next, left)),
            Place::Outside if self.in_flight < COPIES_IN_FLIGHT => {
                Some((self.next, left.min(LARGE_BYTES)))
            }
            Place::Outside => None,
        }
    }

    /// So much of what [`Transfer::next`] said is on its way.
    pub(crate) fn asked(&mut self, length: usize) {
        self.next += length;
        self.in_flight += 1;
    }

    /// Whether everything is answered, and nothing more is to be asked for.
    pub(crate) fn is_over(&self) -> bool {
        self.in_flight == 0 && self.next().is_none()
    }

    /// A chunk comes to nothing.
    pub(crate) fn dropped(&mut self) {
        self.in_flight -= 1;
    }

    /// It has been under way for so long that nobody is to wait for it any more.
    pub(crate) fn is_late(&self, now: Instant, timeout: Duration) -> bool {
        now.saturating_duration_since(self.wanted.begun) >= timeout
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Takes in how a chunk ended.
    pub(crate) fn absorb(&mut self, chunk: Chunk, completed: &Completed) {
        self.in_flight -= 1;
        self.flags |= path(completed.landing);
        self.served = self.served.max(completed.served);
        self.service_us = self.service_us.max(completed.service_us);
        let moved = usize::try_from(completed.bytes).unwrap_or(usize::MAX).min(chunk.length);
        if moved < chunk.length && !bugs::is(Bug::ShortReadForgotten) {
            self.good = self.good.min(chunk.start + moved);
        }
        let (Flow::Read, Place::Outside) = (self.wanted.flow, self.wanted.place) else { return };
        let Some(memory) = &completed.memory else {
            return self.fail(Failure::of(
                abi::DISCONNECTED,
                c"the connection was lost, and what was read with it: read again",
            ));
        };
        let bytes = &memory.as_slice()[..moved];
        let into = self.at(chunk.start);
        // SAFETY: C promises that its buffer is there until the read has completed, that it is as
        // long as it says, and that nobody else uses it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), into, moved) };
    }

    /// Fills memory with a chunk's bytes.
    pub(crate) fn fill(&self, chunk: Chunk, memory: &mut [u8]) {
        let into = &mut memory[..chunk.length];
        // SAFETY: C promises that its buffer is there for as long as it says until the call is over.
        unsafe { ptr::copy_nonoverlapping(self.at(chunk.start), into.as_mut_ptr(), into.len()) };
    }

    fn at(&self, start: usize) -> *mut u8 {
        // SAFETY: chunks lie within the transfer's length.
        unsafe { self.wanted.buffer.as_ptr().add(start) }
    }

    /// What C gets to know, and the words of what went wrong.
    pub(crate) fn completion(self) -> (Cqe, Option<Failure>) {
        let completion = Cqe {
            user_data: self.wanted.user_data,
            result: match &self.failure {
                Some(failure) => -i64::from(failure.code),
                None => i64::try_from(self.good).unwrap_or(i64::MAX),
            },
            flags: self.flags,
            served: served(self.served),
            service_us: self.service_us,
            reserved: 0,
        };
        (completion, self.failure)
    }
}

fn path(landing: Landing) -> u32 {
    match landing {
        Landing::Nothing => 0,
        Landing::Direct => abi::PATH_DIRECT,
        Landing::Copied => abi::PATH_COPIED,
        Landing::Rdma => abi::PATH_RDMA,
        Landing::Stream => abi::PATH_TCP,
    }
}

fn served(served: Served) -> u32 {
    match served {
        Served::Nothing => abi::SERVED_NOTHING,
        Served::Tier => abi::SERVED_TIER,
        Served::Arriving => abi::SERVED_ARRIVING,
        Served::Recall => abi::SERVED_RECALL,
        Served::Repair => abi::SERVED_REPAIR,
    }
}
