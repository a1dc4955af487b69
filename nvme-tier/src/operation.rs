//! What the ledger is asked to do.

use std::collections::VecDeque;
use std::sync::Arc;

use extent::{Error, ExtentIndex, FileId, FileName, Generation, Kind, SourceVersion};

use crate::codec::Mark;
use crate::layout::Class;
use crate::reservation::ReservedFor;
use crate::verify::{Look, Looked};
use crate::{Copies, Done, Draft, Extent, File, FileGeneration, Reservation};

/// The checksums of one extent of a commit, with the slot it was written to.
pub(crate) type Written = (Reservation, Box<[u32]>);

/// A wish for a slot.
#[derive(Debug)]
pub(crate) struct Reserve {
    pub(crate) class: Class,
    /// On how many devices.
    pub(crate) copies: Copies,
    pub(crate) index: ExtentIndex,
    pub(crate) length: u32,
    pub(crate) purpose: ReservedFor,
    pub(crate) done: Done<Reservation>,
}

/// Something that changes what stands on the devices.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Describes a filled extent.
    Publish { extent: Extent, generation: Arc<FileGeneration>, done: Done<()> },
    /// Writes the descriptor of an extent again, where it stands: what is there does not hold.
    Describe { extent: Extent, generation: Arc<FileGeneration>, done: Done<()> },
    /// Looks at what stands on the devices.
    Look(Look, Done<Looked>),
    /// Makes durable whatever was written before.
    Flush(Done<()>),
    /// Writes a new record of one file.
    Record(FileId, RecordOperation),
}

/// Something that takes one new record of one file. At most one of a file is in a batch, so that
/// what was checked when it began still holds when it ends.
#[derive(Debug)]
pub(crate) enum RecordOperation {
    Register {
        name: FileName,
        length: u64,
        version: SourceVersion,
        expected: Option<Generation>,
        /// A dirty generation that is given up for it.
        over: Option<Arc<FileGeneration>>,
        done: Done<Arc<File>>,
    },
    Forget {
        file: Arc<File>,
        done: Done<()>,
    },
    Commit {
        draft: Draft,
        length: u64,
        extents: Vec<Written>,
        done: Done<Arc<FileGeneration>>,
    },
    Settle {
        generation: Arc<FileGeneration>,
        version: SourceVersion,
        done: Done<()>,
    },
    Mark {
        generation: Arc<FileGeneration>,
        mark: Option<Mark>,
        done: Done<()>,
    },
    /// The silo holds something else than a dirty generation was based on, and that is known now.
    Rebase {
        generation: Arc<FileGeneration>,
        base: Option<SourceVersion>,
        done: Done<()>,
    },
    /// Writes the record again, because a copy of it is missing or damaged.
    Refresh(Done<()>),
}

impl Operation {
    pub(crate) fn fail(self, error: Error) {
        match self {
            Self::Publish { done, .. } | Self::Describe { done, .. } | Self::Flush(done) => {
                done.call(Err(error));
            }
            Self::Look(_, done) => done.call(Err(error)),
            Self::Record(_, operation) => operation.fail(error),
        }
    }
}

impl RecordOperation {
    pub(crate) fn fail(self, error: Error) {
        match self {
            Self::Register { done, .. } => done.call(Err(error)),
            Self::Forget { done, .. }
            | Self::Settle { done, .. }
            | Self::Mark { done, .. }
            | Self::Rebase { done, .. } => done.call(Err(error)),
            Self::Commit { done, .. } => done.call(Err(error)),
            Self::Refresh(done) => done.call(Err(error)),
        }
    }
}

/// What waits for the ledger.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) operations: VecDeque<Operation>,
    pub(crate) reserves: VecDeque<Reserve>,
    /// Set when the ledger ends: nothing more will be done.
    pub(crate) closed: bool,
}

/// What whoever asks is told once the ledger has ended.
pub(crate) fn closed() -> Error {
    Kind::Disconnected.error("the tier is shutting down")
}
