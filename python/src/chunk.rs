//! The requests that a transfer is made of, and what became of them.

use std::ops::Range;
use std::time::Instant;

use client::Memory;
use client::device::{Lent, Path};
use extent::wire::{Landing, Served};

/// What a transfer did, so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Done {
    pub(crate) bytes: u64,
    pub(crate) served: Served,
    pub(crate) landing: Landing,
    /// Whether this process copied the bytes.
    pub(crate) copied: bool,
    /// The worst way that bytes took into a GPU's memory.
    pub(crate) way: Option<Path>,
    pub(crate) service_us: u32,
}

/// What one request moves.
#[derive(Default)]
pub(crate) struct Chunk {
    /// In the slab, in foreign memory, or in a GPU's.
    pub(crate) start: usize,
    /// Of the memory below.
    pub(crate) within: Range<usize>,
    pub(crate) memory: Memory,
    /// If that is a piece of a GPU's ring.
    pub(crate) lent: Option<Lent>,
    /// Whether the node writes into a GPU's memory: then there is no memory of the host's.
    pub(crate) is_direct: bool,
    /// Since when the node has been too busy for it.
    pub(crate) busy_since: Option<Instant>,
}

/// See [`crate::transfer::Transfer::next`].
pub(crate) enum Next {
    Chunk(Chunk),
    /// Nothing, or nothing before something has ended.
    Nothing,
    /// Memory to go through, when some comes back.
    NoMemory,
}
