//! The memory that C got from a ring, by its addresses.
#![expect(unsafe_code, reason = "C knows memory by its address")]

use std::collections::BTreeMap;

use client::{Memory, Session};

use crate::abi;
use crate::bugs::{self, Bug};
use crate::failure::{Failure, Outcome};

/// See the module.
#[derive(Default)]
pub(crate) struct Arena {
    /// By the first byte's address.
    pieces: BTreeMap<usize, Piece>,
}

struct Piece {
    memory: Memory,
    /// Reads into it, and writes from it, that have not ended.
    in_flight: usize,
}

/// Where some of C's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In a piece of the arena, which begins here.
    Inside { piece: usize },
    /// In memory of somebody else's.
    Outside,
}

impl Arena {
    /// Takes memory over; its address.
    pub(crate) fn insert(&mut self, mut memory: Memory) -> *mut u8 {
        let base = memory.as_mut_slice().as_mut_ptr();
        self.pieces.insert(base.addr(), Piece { memory, in_flight: 0 });
        base
    }

    /// Gives memory back.
    ///
    /// # Errors
    /// If there is none at this address, or it is in use.
    pub(crate) fn remove(&mut self, address: usize) -> Outcome<Memory> {
        match self.pieces.get(&address) {
            None => Err(Failure::invalid(c"this ring has no memory that begins there")),
            Some(piece) if piece.in_flight != 0 && !bugs::is(Bug::FreedUnderRead) => {
                Err(Failure::of(abi::BUSY, c"reads into this memory are under way: wait for them"))
            }
            Some(_) => {
                let piece = self.pieces.remove(&address).expect("just seen");
                Ok(piece.memory)
            }
        }
    }

    /// Where bytes are.
    ///
    /// # Errors
    /// If some of them are in a piece, and others are not.
    pub(crate) fn place(&self, address: usize, length: usize) -> Outcome<Place> {
        let ends = Failure::invalid(c"the bytes go past the end of memory that the ring has there");
        let end =
            address.checked_add(length).ok_or(Failure::invalid(c"there is no such memory"))?;
        if let Some((base, piece)) = self.pieces.range(..=address).next_back()
            && address < base + piece.memory.len()
        {
            return if end <= base + piece.memory.len() {
                Ok(Place::Inside { piece: *base })
            } else {
                Err(ends)
            };
        }
        match self.pieces.range(address..end).next() {
            Some(_) => Err(Failure::invalid(c"the bytes reach into memory that the ring has")),
            None => Ok(Place::Outside),
        }
    }

    /// Has one more request use bytes that [`Arena::place`] found in this piece.
    ///
    /// # Errors
    /// If it was lost with its connection.
    pub(crate) fn lend(
        &mut self,
        session: &Session,
        base: usize,
        address: usize,
        length: usize,
    ) -> Outcome<Memory> {
        let piece = self.pieces.get_mut(&base).expect("found there");
        if !session.reaches(&piece.memory) {
            return Err(MEMORY_LOST);
        }
        let at = address - base;
        piece.in_flight += 1;
        // SAFETY: `remove` keeps the piece until the request has ended, a session is dropped before
        // its arena, and that nobody else uses the bytes meanwhile is what C promises.
        Ok(unsafe { piece.memory.view(at..at + length) })
    }

    /// A request has ended. What it ended with, if its memory was lost.
    pub(crate) fn give_back(&mut self, session: &Session, base: usize) -> Outcome<()> {
        let Some(piece) = self.pieces.get_mut(&base) else { return Ok(()) };
        piece.in_flight -= 1;
        if session.reaches(&piece.memory) { Ok(()) } else { Err(MEMORY_LOST) }
    }
}

const MEMORY_LOST: Failure = Failure::of(
    abi::MEMORY_LOST,
    c"the connection was lost, and the node that had this memory may still write to it: free it, and allocate other memory",
);
