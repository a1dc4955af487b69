//! Memory to copy through, for reads and writes of memory that the node cannot reach.

use client::{Memory, Session};
use extent::{Kind, Result};

/// The pieces come in these lengths.
pub(crate) const SMALL_BYTES: usize = 64 << 10;
pub(crate) const LARGE_BYTES: usize = 1 << 20;
/// All of them together; less where the machine or the node does not allow that.
const TOTAL_BYTES: [usize; 3] = [32 << 20, 8 << 20, 2 << 20];

/// Pieces of memory that are not in use. Made once: to ask a node for memory may take long.
pub(crate) struct Pool {
    small: Vec<Memory>,
    large: Vec<Memory>,
}

impl Pool {
    /// Allocates all of it.
    ///
    /// # Errors
    /// As [`Session::allocate`].
    pub(crate) fn new(session: &mut Session) -> Result<Self> {
        let mut refused = Kind::NoSpace.error("no memory to copy through");
        for total in TOTAL_BYTES {
            match session.allocate(total) {
                Ok(memory) => return Ok(Self::of(memory)),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn of(mut memory: Memory) -> Self {
        let (mut small, mut large) = (Vec::new(), Vec::new());
        let half = memory.len() / 2;
        while memory.len() > half {
            large.push(memory.split_off(memory.len() - LARGE_BYTES));
        }
        while memory.len() > SMALL_BYTES {
            small.push(memory.split_off(memory.len() - SMALL_BYTES));
        }
        small.push(memory);
        Self { small, large }
    }

    /// A piece of at least so many bytes, at most [`LARGE_BYTES`]; `None` if all are in use.
    pub(crate) fn take(&mut self, length: usize) -> Option<Memory> {
        if length > SMALL_BYTES { self.large.pop() } else { self.small.pop() }
    }

    /// Takes a piece back. Empty memory is lost, and so is its session then.
    pub(crate) fn give_back(&mut self, memory: Memory) {
        match memory.len() {
            0 => {}
            SMALL_BYTES => self.small.push(memory),
            _ => self.large.push(memory),
        }
    }
}
