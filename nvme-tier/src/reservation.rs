use std::sync::Arc;

use extent::{Attempt, ExtentIndex, FileId, FileName};

use crate::FileGeneration;
use crate::device::Location;
use crate::shelf::Hold;

/// A slot to write one extent into, or two of them on different devices. Whoever drops it unpublished gives the slot back, so keep it
/// until every write to the slot has completed.
#[derive(Debug)]
pub struct Reservation {
    hold: Hold,
    /// Of a slot on another device, if the extent is to be there twice.
    copy: Option<Hold>,
    index: ExtentIndex,
    length: u32,
    purpose: ReservedFor,
}

/// What a slot was reserved for.
#[derive(Debug)]
pub(crate) enum ReservedFor {
    /// An extent of a clean generation.
    Fill(Arc<FileGeneration>),
    /// An extent of a draft.
    Draft(Attempt),
}

impl Reservation {
    pub(crate) fn new(
        (hold, copy): (Hold, Option<Hold>),
        index: ExtentIndex,
        length: u32,
        purpose: ReservedFor,
    ) -> Self {
        Self { hold, copy, index, length, purpose }
    }

    /// Where the slot begins.
    #[must_use]
    pub fn at(&self) -> Location {
        self.hold.at()
    }

    /// Where the slot of the second copy begins, on another device, if there is to be one: whatever is
    /// written to the first must be written there, too.
    #[must_use]
    pub fn copy_at(&self) -> Option<Location> {
        self.copy.as_ref().map(Hold::at)
    }

    /// Bytes the slot holds.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.hold.capacity_bytes()
    }

    /// Which extent it is for.
    #[must_use]
    pub fn index(&self) -> ExtentIndex {
        self.index
    }

    /// Bytes of the extent. Write them padded with zeroes to a whole checksum block.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Makes the extent shorter, for a file that ended earlier than its writer had thought.
    ///
    /// # Panics
    /// If `length` is zero or more than it was.
    pub fn shorten(&mut self, length: u32) {
        assert!((1..=self.length).contains(&length), "{length} bytes of {}", self.length);
        self.length = length;
    }

    pub(crate) fn reserved_for(&self) -> &ReservedFor {
        &self.purpose
    }

    pub(crate) fn into_parts(self) -> (Hold, Option<Hold>, ReservedFor) {
        (self.hold, self.copy, self.purpose)
    }
}

/// A generation being written. Nothing of it is visible, or survives a restart, before
/// [`crate::Tier::commit`].
#[derive(Debug)]
pub struct Draft {
    pub(crate) id: FileId,
    pub(crate) name: FileName,
    pub(crate) attempt: Attempt,
    pub(crate) extent_bytes: u64,
    pub(crate) expected_length: u64,
}

impl Draft {
    /// The id of the attempt: never used before, and never again.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Bytes of a full extent.
    #[must_use]
    pub fn extent_bytes(&self) -> u64 {
        self.extent_bytes
    }

    /// The length announced when it began.
    #[must_use]
    pub fn expected_length(&self) -> u64 {
        self.expected_length
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &FileName {
        &self.name
    }

    /// The file's id.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }
}
