//! Memory to copy through, for bytes that the node cannot reach.

use client::{Memory, Session};
use extent::Result;

/// The pieces come in these lengths.
pub(crate) const SMALL_BYTES: usize = 64 << 10;
pub(crate) const LARGE_BYTES: usize = 1 << 20;
/// The least that a pool has.
pub(crate) const LEAST_BYTES: usize = 2 << 20;

/// Pieces that are not in use. They are asked for when they are needed first, and kept.
pub(crate) struct Pool {
    small: Vec<Memory>,
    large: Vec<Memory>,
    /// Bytes that may still be asked for, half of them for either length.
    left: [usize; 2],
    /// What they were at first.
    half: usize,
}

impl Pool {
    pub(crate) fn new(bytes: usize) -> Self {
        let half = bytes.max(LEAST_BYTES) / 2;
        Self { small: Vec::new(), large: Vec::new(), left: [half, half], half }
    }

    /// Which of the two lengths a piece for so many bytes has.
    pub(crate) fn class(length: usize) -> usize {
        usize::from(length > SMALL_BYTES)
    }

    /// Whether there are pieces for so many bytes, in use or not.
    pub(crate) fn has_any(&self, length: usize) -> bool {
        self.left[Self::class(length)] < self.half
    }

    /// A piece of at least so many bytes, at most [`LARGE_BYTES`]; `None` if all are in use.
    ///
    /// # Errors
    /// As [`Session::allocate`].
    pub(crate) fn take(&mut self, session: &mut Session, length: usize) -> Result<Option<Memory>> {
        let is_large = length > SMALL_BYTES;
        let kept = if is_large { &mut self.large } else { &mut self.small };
        let left = &mut self.left[usize::from(is_large)];
        let bytes = if is_large { LARGE_BYTES } else { SMALL_BYTES };
        if let Some(memory) = kept.pop() {
            return Ok(Some(memory));
        }
        if *left < bytes {
            return Ok(None);
        }
        let memory = session.allocate(bytes)?;
        *left -= bytes;
        Ok(Some(memory))
    }

    /// Takes a piece back that was taken for so many bytes. One that was lost is asked for anew.
    pub(crate) fn give_back(&mut self, memory: Option<Memory>, length: usize) {
        let is_large = length > SMALL_BYTES;
        match memory.filter(|memory| !memory.is_empty()) {
            Some(memory) if is_large => self.large.push(memory),
            Some(memory) => self.small.push(memory),
            None => {
                let bytes = if is_large { LARGE_BYTES } else { SMALL_BYTES };
                self.left[usize::from(is_large)] += bytes;
            }
        }
    }
}
