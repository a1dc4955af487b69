//! What changes the records of files: what is known of them, and their generations.

use std::collections::HashSet;
use std::sync::Arc;

use extent::{Attempt, FileId, FileName, Generation, Kind, Result, SourceVersion};

use super::Tier;
use crate::codec::Mark;
use crate::layout;
use crate::operation::{Operation, RecordOperation};
use crate::reservation::ReservedFor;
use crate::{Done, Draft, File, FileGeneration, Reservation};

impl Tier {
    /// Makes a silo's object known at one version: a new file, the known one if it has this
    /// version (or is dirty and was based on it), or else a new clean generation of it. Durable
    /// when done.
    ///
    /// Fails with [`Kind::Stale`] if the file is dirty and the silo holds another version than
    /// the one it was based on; [`Kind::Unsupported`] if it is too long for the extent size;
    /// [`Kind::Busy`] if too much waits for the ledger.
    pub fn register(
        &self,
        name: FileName,
        length: u64,
        version: SourceVersion,
        done: Done<Arc<File>>,
    ) {
        self.register_at(name, length, version, None, done);
    }

    /// As [`Tier::register`], but only while the file is at the generation expected; 0 means that it
    /// is not known.
    ///
    /// Fails with [`Kind::Stale`] if it is at another.
    pub fn register_at(
        &self,
        name: FileName,
        length: u64,
        version: SourceVersion,
        expected: Option<Generation>,
        done: Done<Arc<File>>,
    ) {
        let id = name.id();
        if let Some(file) = self.file(id)
            && file.newest().is_of(&version, length)
        {
            return done.call(file.newest_at(expected).map(|_| Arc::clone(&file)));
        }
        if let Err(error) = layout::extent_count(length, self.extent_bytes) {
            return done.call(Err(error));
        }
        let over = None;
        self.enqueue(id, RecordOperation::Register { name, length, version, expected, over, done });
    }

    /// Gives a dirty generation up, also one that is damaged: the file is at a new one, which is clean and
    /// what the silo holds. Durable when done; what was written here is gone then, but for those who read it.
    ///
    /// Fails with [`Kind::Stale`] if it is not the newest or not dirty any more; [`Kind::Unsupported`] if
    /// the silo's is too long for the extent size; [`Kind::Busy`] if too much waits for the ledger.
    pub fn give_up(
        &self,
        file: &File,
        generation: &Arc<FileGeneration>,
        length: u64,
        version: SourceVersion,
        done: Done<Arc<File>>,
    ) {
        if let Err(error) = layout::extent_count(length, self.extent_bytes) {
            return done.call(Err(error));
        }
        let (name, over) = (file.name().clone(), Some(Arc::clone(generation)));
        let expected = None;
        let operation = RecordOperation::Register { name, length, version, expected, over, done };
        self.enqueue(file.id(), operation);
    }

    /// Takes note of what the silo holds instead of what a dirty generation was based on; `None` for
    /// nothing. A mark of that is removed. Durable when done.
    ///
    /// Fails with [`Kind::Stale`] if it is not the newest or not dirty any more; [`Kind::Denied`] if it is
    /// quarantined; [`Kind::Busy`] if too much waits.
    pub fn rebase(
        &self,
        generation: &Arc<FileGeneration>,
        base: Option<SourceVersion>,
        done: Done<()>,
    ) {
        let operation = RecordOperation::Rebase { generation: Arc::clone(generation), base, done };
        self.enqueue(generation.file_id(), operation);
    }

    /// Forgets a clean, unpinned file altogether; its extents are freed once nobody reads them.
    ///
    /// Fails with [`Kind::Denied`] if it is dirty, quarantined or pinned; [`Kind::NotFound`] if it
    /// is not known (any more).
    pub fn forget(&self, file: &Arc<File>, done: Done<()>) {
        self.enqueue(file.id(), RecordOperation::Forget { file: Arc::clone(file), done });
    }

    /// Begins a new generation of a file, which need not exist, under an attempt id of its own.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the length is too long for the extent size; [`Kind::Busy`] if no
    /// attempt id is left for the moment.
    pub fn begin(&self, name: FileName, expected_length: u64) -> Result<Draft> {
        layout::extent_count(expected_length, self.extent_bytes)?;
        let attempt = Attempt(self.ids.take()?);
        let extent_bytes = self.extent_bytes;
        if self.ids.left() < crate::ids::RESERVE / 2 {
            self.holdings.signal.raise();
        }
        Ok(Draft { id: name.id(), name, attempt, extent_bytes, expected_length })
    }

    /// Makes a draft the newest generation of its file, dirty and durable. All its data has been
    /// written, and the writes have completed; they need not be flushed. Extents that are missing
    /// are holes and read as zeroes.
    ///
    /// Fails with [`Kind::Invalid`] if the extents do not make up `length` bytes of this draft;
    /// [`Kind::NoSpace`] if there is no room for the record; [`Kind::Io`] if a device failed: the
    /// old generation is still the newest, but after a restart the new one may be.
    pub fn commit(
        &self,
        draft: Draft,
        length: u64,
        extents: Vec<(Reservation, Box<[u32]>)>,
        done: Done<Arc<FileGeneration>>,
    ) {
        if let Err(error) = self.check_commit(&draft, length, &extents) {
            return done.call(Err(error));
        }
        let file = draft.id;
        let no_slots = extents.is_empty();
        let operation = RecordOperation::Commit { draft, length, extents, done };
        let operation = Operation::Record(file, operation);
        if no_slots { self.push_limited(operation) } else { self.push(operation) }
    }

    /// The silo now holds exactly this generation, as `version`: dirty becomes clean, durably. If
    /// a newer dirty generation exists, what it is based on becomes `version`.
    ///
    /// Fails with [`Kind::Stale`] if the file has moved on to another clean generation;
    /// [`Kind::Denied`] if it is quarantined; [`Kind::Busy`] if too much waits.
    pub fn settle(&self, generation: &Arc<FileGeneration>, version: SourceVersion, done: Done<()>) {
        let operation =
            RecordOperation::Settle { generation: Arc::clone(generation), version, done };
        self.enqueue(generation.file_id(), operation);
    }

    /// Sets or removes a durable mark of the newest generation.
    ///
    /// Fails with [`Kind::Stale`] if it is not the newest; [`Kind::Busy`] if too much waits.
    pub fn mark(&self, generation: &Arc<FileGeneration>, mark: Option<Mark>, done: Done<()>) {
        let operation = RecordOperation::Mark { generation: Arc::clone(generation), mark, done };
        self.enqueue(generation.file_id(), operation);
    }

    fn check_commit(
        &self,
        draft: &Draft,
        length: u64,
        extents: &[(Reservation, Box<[u32]>)],
    ) -> Result<()> {
        layout::extent_count(length, draft.extent_bytes)?;
        let mut seen = HashSet::with_capacity(extents.len());
        for (reservation, checksums) in extents {
            self.check_checksums(reservation, checksums)?;
            let index = reservation.index();
            let expected = layout::extent_length(length, draft.extent_bytes, index);
            let own = matches!(reservation.reserved_for(),
                ReservedFor::Draft(attempt) if *attempt == draft.attempt);
            if !own || reservation.length() != expected || !seen.insert(index) {
                return Err(Kind::Invalid.error(format!(
                    "extent {index} of {} bytes does not belong to this draft of {length} bytes, \
                     or comes twice",
                    reservation.length()
                )));
            }
        }
        Ok(())
    }

    fn enqueue(&self, file: FileId, operation: RecordOperation) {
        self.push_limited(Operation::Record(file, operation));
    }
}
