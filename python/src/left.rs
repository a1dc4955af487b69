//! What outlives the objects of Python's that held it, because a node or a GPU may still write to it.

use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use crate::bound::Bound as Here;
use crate::engine::Engine;
use crate::lock::Mutex;
use crate::slab::Slab;
use crate::target::Target;
use crate::transfer::Transfer;

/// Memory, and who may still write there.
pub(crate) enum Left {
    /// A node, for a read into a registration that was dropped.
    Registered { engine: Weak<Engine>, slab: Arc<Slab>, _target: Target },
    /// A GPU, for a read that has ended without it.
    Copied { transfer: Arc<Transfer>, _target: Target },
}

/// Of all clients. Taken with the interpreter's lock held, so that a fork finds it free.
static LEFT: Mutex<Vec<Here<Left>>> = Mutex::new(Vec::new());

impl Left {
    /// Whether nobody writes there any more; then it is nobody's.
    fn is_over(&self) -> bool {
        match self {
            Self::Registered { engine, slab, .. } => {
                let Ok(pieces) = slab.close() else { return false };
                let engine = engine.upgrade();
                if let Some(engine) = &engine {
                    engine.hide(slab);
                }
                drop(pieces);
                // The client's thread has the session let go of it.
                if let Some(engine) = engine {
                    engine.hurry_pump();
                }
                true
            }
            Self::Copied { transfer, .. } => !transfer.is_copying(),
        }
    }
}

/// Keeps it until [`tidy_up`] finds that nobody writes there any more.
pub(crate) fn keep(left: Left) {
    LEFT.lock().push(Here::new(left));
}

/// Lets go of what nobody writes to any more.
pub(crate) fn tidy_up(_: Python<'_>) {
    let mut left = LEFT.lock();
    if left.is_empty() {
        return;
    }
    let is_over = |left: &mut Here<Left>| left.here().is_ok_and(Left::is_over);
    let over: Vec<_> = left.extract_if(.., is_over).collect();
    drop(left);
    drop(over);
}
