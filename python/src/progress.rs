//! How far a transfer is.

use std::sync::Arc;

use client::Memory;
use extent::Error;

use crate::chunk::Done;
use crate::foreign::Foreign;
use crate::onto::Direct;
use crate::watch::Watch;

/// What of a transfer changes, under its lock.
pub(crate) struct Progress {
    /// The part of the slab, if no request has had it yet.
    pub(crate) piece: Option<Memory>,
    /// `None` if it is none, or if nobody waits any more.
    pub(crate) foreign: Option<Foreign>,
    /// Whether nobody waits any more.
    pub(crate) is_let_go: bool,
    /// How much of foreign memory, or a GPU's, was asked for.
    pub(crate) next: usize,
    pub(crate) in_flight: usize,
    /// Copies to a GPU under way.
    pub(crate) copying: usize,
    /// What the node writes to a GPU by itself.
    pub(crate) direct: Direct,
    /// Whether what comes into the caller's stream waits for them.
    pub(crate) is_led: bool,
    pub(crate) done: Done,
    pub(crate) error: Option<Error>,
    pub(crate) watches: Vec<(Arc<Watch>, u64)>,
}

impl Progress {
    /// Nothing was asked for yet.
    pub(crate) fn new(piece: Option<Memory>, foreign: Option<Foreign>, copied: bool) -> Self {
        Self {
            piece,
            foreign,
            is_let_go: false,
            next: 0,
            in_flight: 0,
            copying: 0,
            direct: Direct::default(),
            is_led: false,
            done: Done { copied, ..Done::default() },
            error: None,
            watches: Vec::new(),
        }
    }
}
