//! Host memory that bytes go through on their way.

use std::collections::BTreeMap;

use crate::pool::Pool;
use crate::staged::Staged;

/// What transfers borrow of it.
pub(crate) struct Rooms {
    /// For reads and writes of memory that the node cannot reach.
    pub(crate) pool: Pool,
    /// For reads into the memory of GPUs, by their numbers.
    pub(crate) staged: BTreeMap<usize, Staged>,
}

impl Rooms {
    /// The ring of a GPU.
    ///
    /// # Panics
    /// If it has none: a transfer is made after its ring.
    pub(crate) fn of(&mut self, ordinal: usize) -> &mut Staged {
        self.staged.get_mut(&ordinal).expect("a ring is made before its transfers")
    }
}
