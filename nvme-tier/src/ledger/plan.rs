//! What goes into the next batch: operations are checked against what is known now, which does not
//! change before the batch ends, since no other batch runs and it holds one operation of a file.

use std::collections::HashSet;
use std::sync::Arc;

use extent::{Attempt, Error, ExtentIndex, FileId, FileName, Generation, Kind, SourceVersion};

use super::Ledger;
use super::batch::{Batch, Change, Publish, Run};
use crate::bugs::{self, Bug};
use crate::codec::{FileRecord, Mark};
use crate::file::check_expected;
use crate::generation::{Facts, GenerationShape};
use crate::holdings::SlotId;
use crate::ids::RESERVE;
use crate::layout::Class;
use crate::operation::{Operation, RecordOperation, Written};
use crate::reservation::ReservedFor;
use crate::shelf::Hold;
use crate::{Copies, Done, Draft, Extent, File, FileGeneration, State};

/// The most operations, and the most erasures, in one batch.
const BATCH_LIMIT: usize = 1024;
/// Below this many ids left, nothing is begun before more are reserved.
const FEW_IDS: u64 = RESERVE / 64;

impl Ledger {
    /// Begins a batch of what waits. Whether there was anything to do.
    pub(super) fn begin(&mut self) -> bool {
        let mut batch = Batch::new();
        let can_write = !self.space.healthy().is_empty();
        let renew = std::mem::take(&mut self.renew_superblocks);
        if can_write && (renew || self.tier.ids.left() < RESERVE / 2) {
            batch.id_limit = Some(self.tier.ids.next_limit());
        }
        batch.repairs = std::mem::take(&mut self.repairs);
        if !can_write || self.tier.ids.left() >= FEW_IDS {
            self.take_operations(&mut batch);
        }
        self.make_room(&mut batch);
        self.take_erasures(&mut batch);
        if batch.is_empty() {
            return false;
        }
        self.prepare(&batch);
        self.batch = Some(batch);
        true
    }

    fn take_operations(&mut self, batch: &mut Batch) {
        let waiting: Vec<Operation> = {
            let mut queue = self.tier.queue.lock();
            let count = queue.operations.len().min(BATCH_LIMIT);
            queue.operations.drain(..count).collect()
        };
        let mut files = HashSet::new();
        let mut later = Vec::new();
        for operation in waiting {
            match operation {
                Operation::Flush(done) => batch.flushes.push(done),
                Operation::Publish { extent, generation, done } => {
                    self.plan_publish(batch, extent, generation, true, done);
                }
                Operation::Describe { extent, generation, done } => {
                    self.plan_publish(batch, extent, generation, false, done);
                }
                Operation::Look(look, done) => batch.looks.push((look, done)),
                Operation::Record(file, operation) if files.insert(file) => {
                    if let Some(run) = self.plan_record(file, operation) {
                        batch.runs.push(run);
                    }
                }
                operation @ Operation::Record(..) => later.push(operation),
            }
        }
        let mut queue = self.tier.queue.lock();
        later.into_iter().rev().for_each(|operation| queue.operations.push_front(operation));
    }

    fn take_erasures(&mut self, batch: &mut Batch) {
        while batch.erasures.len() < BATCH_LIMIT {
            let Some(erasure) = self.erasures.pop_front() else { break };
            let slot = erasure.slot();
            let gone = match erasure {
                super::Erasure::Descriptor { epoch, .. } => self.space.slab(slot).epoch != epoch,
                super::Erasure::Record { .. } | super::Erasure::Stray { .. } => false,
            };
            if !gone && !self.io.failed().contains(slot.device) {
                batch.erasures.push(erasure);
            }
        }
    }

    fn plan_publish(
        &mut self,
        batch: &mut Batch,
        extent: Extent,
        generation: Arc<FileGeneration>,
        is_new: bool,
        done: Done<()>,
    ) {
        let gone = !generation.has(extent.index(), extent.slot());
        if gone || generation.is_superseded() {
            drop(extent);
            return done.call(Ok(()));
        }
        match self.tier.ids.take() {
            Ok(sequence) => {
                if is_new {
                    self.occupy_evictable(&generation, extent.index(), extent.slot());
                }
                batch.publishes.push(Publish { extent, generation, sequence, done });
            }
            Err(error) => done.call(Err(error)),
        }
    }

    /// An extent that the silo has is in a slot from now on.
    pub(super) fn occupy_evictable(
        &mut self,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
        slot: SlotId,
    ) {
        let ticket = self.space.occupy(slot, generation, index);
        if let Some(class) = Class::of(self.space.slab(slot).shape.slot_bytes) {
            let name = (generation.file_id(), index);
            self.evictor.admit(class, name, ticket, &self.space);
        }
    }

    /// The record of an operation; `None` if it has ended already, well or not.
    fn plan_record(&mut self, file: FileId, operation: RecordOperation) -> Option<Run> {
        let known = self.tier.file(file);
        if self.space.healthy().is_empty() {
            let error = Kind::Io.error("no device of the tier is trusted any more");
            operation.fail(error);
            return None;
        }
        match operation {
            RecordOperation::Register { name, length, version, expected, over, done } => {
                let at = known.as_ref().map_or(Generation(0), |file| file.newest().number());
                if let Err(error) = check_expected(&name, at, expected) {
                    done.call(Err(error));
                    return None;
                }
                let is_over = over.is_some();
                if over.is_some_and(|over| !is_dirty_newest(known.as_deref(), &over)) {
                    done.call(Err(moved_on()));
                    return None;
                }
                self.plan_register(known.as_deref(), name, length, version, is_over, done)
            }
            RecordOperation::Forget { file, done } => self.plan_forget(file, done),
            RecordOperation::Commit { draft, length, extents, done } => {
                self.plan_commit(known.as_deref(), &draft, length, extents, done)
            }
            RecordOperation::Settle { generation, version, done } => {
                self.plan_settle(known, &generation, version, done)
            }
            RecordOperation::Mark { generation, mark, done } => {
                let newest = known.filter(|file| file.is_newest(&generation));
                let Some(file) = newest else {
                    done.call(Err(moved_on()));
                    return None;
                };
                let facts = Facts { mark, ..generation.facts() };
                if mark == Some(Mark::Quarantined) && facts.state == State::Clean {
                    // It was settled meanwhile: what is damaged is fetched again.
                    done.call(Ok(()));
                    return None;
                }
                self.plan_facts(&file, generation, facts, done)
            }
            RecordOperation::Rebase { generation, base, done } => {
                let is_newest = is_dirty_newest(known.as_deref(), &generation);
                let Some(file) = known.filter(|_| is_newest) else {
                    done.call(Err(moved_on()));
                    return None;
                };
                if generation.mark() == Some(Mark::Quarantined) {
                    done.call(Err(quarantined(&file)));
                    return None;
                }
                let facts = Facts { state: State::Dirty, mark: None, source: base };
                self.plan_facts(&file, generation, facts, done)
            }
            RecordOperation::Refresh(done) => {
                let Some(file) = known else {
                    done.call(Err(moved_on()));
                    return None;
                };
                let generation = file.newest();
                let facts = generation.facts();
                if facts.mark == Some(Mark::Quarantined) && !self.io.absent().is_empty() {
                    // What it lacks may come back with the device.
                    done.call(Err(
                        Kind::Io.error("a device is absent that may have the rest of it")
                    ));
                    return None;
                }
                self.plan_facts(&file, generation, facts, done)
            }
        }
    }

    fn plan_register(
        &mut self,
        known: Option<&File>,
        name: FileName,
        length: u64,
        version: SourceVersion,
        is_over: bool,
        done: Done<Arc<File>>,
    ) -> Option<Run> {
        let newest = known.map(File::newest);
        if let Some(newest) = newest.as_ref().filter(|_| !is_over) {
            if newest.is_of(&version, length) {
                let file = self.tier.file(newest.file_id());
                done.call(file.ok_or_else(moved_on));
                return None;
            }
            if newest.state() == State::Dirty {
                done.call(Err(Kind::Stale.error(format!(
                    "{name} was written here and has not been written back, and the silo now holds \
                     version {version}: `forebay resolve` settles that"
                ))));
                return None;
            }
        }
        let (attempt, sequence) = match (self.tier.ids.take(), self.tier.ids.take()) {
            (Ok(attempt), Ok(sequence)) => (Attempt(attempt), sequence),
            (Err(error), _) | (_, Err(error)) => {
                done.call(Err(error));
                return None;
            }
        };
        let file = name.id();
        let unknown = match &newest {
            Some(newest) => newest.shape().blind,
            None => !self.book.is_known(file),
        };
        let blind = unknown && !self.io.absent().is_empty();
        let shape = GenerationShape {
            number: Generation(newest.as_ref().map_or(0, |newest| newest.number().0) + 1),
            attempt,
            length,
            extent_bytes: self.tier.extent_bytes,
            extents_written: 0,
            written: false,
            twice: false,
            blind,
        };
        let facts = Facts { state: State::Clean, mark: None, source: Some(version) };
        let pins = known.map(|file| Arc::clone(file.pin_set())).unwrap_or_default();
        let record = record_of(file, name, &shape, &facts, sequence);
        let generation = FileGeneration::new(file, shape, Arc::clone(&pins), facts);
        let change = Change::Register { generation, pins, done };
        let mut run = self.run(file, record, is_over, change);
        if is_over {
            // As long as the old record stands, one rotten block must not bring it back.
            run.copies = 2;
        }
        Some(run)
    }

    fn plan_forget(&mut self, file: Arc<File>, done: Done<()>) -> Option<Run> {
        let newest = file.newest();
        let known = self.tier.file(file.id()).is_some_and(|known| Arc::ptr_eq(&known, &file));
        let refusal = if !known {
            Some(Kind::NotFound.error(format!("{} is not known any more", file.name())))
        } else if !newest.is_evictable(self.tier.now_unix_ms()) {
            Some(Kind::Denied.error(format!(
                "{} is dirty, damaged or pinned: write it back or unpin it first",
                file.name()
            )))
        } else {
            None
        };
        let sequence = match refusal.map_or_else(|| self.tier.ids.take(), Err) {
            Ok(sequence) => sequence,
            Err(error) => {
                done.call(Err(error));
                return None;
            }
        };
        let mut record =
            record_of(file.id(), file.name().clone(), &newest.shape(), &newest.facts(), sequence);
        record.tombstone = true;
        let id = file.id();
        Some(self.run(id, record, true, Change::Forget { file, done }))
    }

    fn plan_commit(
        &mut self,
        known: Option<&File>,
        draft: &Draft,
        length: u64,
        extents: Vec<Written>,
        done: Done<Arc<FileGeneration>>,
    ) -> Option<Run> {
        let twice = self.tier.options.dirty_copies == Copies::Two;
        let able = if twice { self.can_keep_twice() } else { Ok(()) };
        // One for all: the extents of a commit differ in their index, or are copies.
        let sequence = match able.and_then(|()| self.tier.ids.take()) {
            Ok(sequence) => sequence,
            Err(error) => {
                drop(extents);
                done.call(Err(error));
                return None;
            }
        };
        let newest = known.map(File::newest);
        let shape = GenerationShape {
            number: Generation(newest.as_ref().map_or(0, |newest| newest.number().0) + 1),
            attempt: draft.attempt,
            length,
            extent_bytes: draft.extent_bytes,
            extents_written: u32::try_from(extents.len()).expect("bounded by the extent count"),
            written: true,
            twice,
            blind: false,
        };
        if let Some(newest) = newest.as_ref().filter(|_| bugs::is(Bug::OldSlotsTooEarly)) {
            for (index, slot) in newest.resident(0..u32::MAX) {
                newest.remove(index, slot);
            }
        }
        let source = newest.and_then(|newest| newest.base());
        let facts = Facts { state: State::Dirty, mark: None, source };
        let pins = known.map(|file| Arc::clone(file.pin_set())).unwrap_or_default();
        let record = record_of(draft.id, draft.name.clone(), &shape, &facts, sequence);
        let generation = FileGeneration::new(draft.id, shape, Arc::clone(&pins), facts);
        let mut descriptors = Vec::with_capacity(extents.len());
        for (reservation, checksums) in extents {
            let index = reservation.index();
            let (hold, copy, _purpose): (Hold, Option<Hold>, ReservedFor) =
                reservation.into_parts();
            for hold in [Some(&hold), copy.as_ref()].into_iter().flatten() {
                hold.set_checksums(checksums.iter().copied());
                self.space.occupy(hold.slot(), &generation, index);
                descriptors.push(generation.extent_of(index, hold.clone()));
                if bugs::is(Bug::VectorDroppedEarly) {
                    hold.offer();
                }
            }
            let inserted = generation.insert(index, hold);
            debug_assert!(inserted.is_ok(), "commit checks that no extent comes twice");
            if let Some(copy) = copy {
                generation.insert_copy(index, copy);
            }
        }
        let change = Change::Commit { generation, pins, descriptors, sequence, done };
        Some(self.run(draft.id, record, false, change))
    }

    fn plan_settle(
        &mut self,
        known: Option<Arc<File>>,
        generation: &Arc<FileGeneration>,
        version: SourceVersion,
        done: Done<()>,
    ) -> Option<Run> {
        let Some(file) = known else {
            done.call(Err(moved_on()));
            return None;
        };
        let newest = file.newest();
        let is_newest = Arc::ptr_eq(&newest, generation);
        let facts = newest.facts();
        if is_newest && facts.state == State::Clean && facts.source.as_ref() == Some(&version) {
            done.call(Ok(()));
            return None;
        }
        if facts.state == State::Clean {
            done.call(Err(moved_on()));
            return None;
        }
        if facts.mark == Some(Mark::Quarantined) {
            done.call(Err(quarantined(&file)));
            return None;
        }
        let facts = if is_newest {
            Facts { state: State::Clean, mark: None, source: Some(version) }
        } else {
            Facts { source: Some(version), ..facts }
        };
        self.plan_facts(&file, newest, facts, done)
    }

    fn plan_facts(
        &mut self,
        file: &File,
        generation: Arc<FileGeneration>,
        facts: Facts,
        done: Done<()>,
    ) -> Option<Run> {
        let sequence = match self.tier.ids.take() {
            Ok(sequence) => sequence,
            Err(error) => {
                done.call(Err(error));
                return None;
            }
        };
        let record =
            record_of(file.id(), file.name().clone(), &generation.shape(), &facts, sequence);
        let was_dirty = generation.state() == State::Dirty && !bugs::is(Bug::OneRecordCopy);
        let change = Change::Facts { generation, facts, done };
        let mut run = self.run(file.id(), record, true, change);
        if was_dirty {
            run.copies = 2;
        }
        Some(run)
    }

    fn run(&self, file: FileId, record: FileRecord, vital: bool, change: Change) -> Run {
        let (homes, copies) = self.homes(file, &record);
        Run { file, record: Arc::new(record), copies, vital, homes, slots: [None, None], change }
    }
}

fn record_of(
    file: FileId,
    name: FileName,
    shape: &GenerationShape,
    facts: &Facts,
    sequence: u64,
) -> FileRecord {
    FileRecord {
        file,
        name,
        generation: shape.number,
        attempt: shape.attempt,
        sequence,
        length: shape.length,
        extent_bytes: shape.extent_bytes,
        extents_written: shape.extents_written,
        dirty: facts.state == State::Dirty,
        written: shape.written,
        twice: shape.twice,
        tombstone: false,
        blind: shape.blind,
        mark: facts.mark,
        source: facts.source.clone(),
    }
}

fn is_dirty_newest(known: Option<&File>, generation: &Arc<FileGeneration>) -> bool {
    known.is_some_and(|file| file.is_newest(generation)) && generation.state() == State::Dirty
}

fn quarantined(file: &File) -> Error {
    Kind::Denied.error(format!(
        "{} is quarantined: part of what was written is damaged, so no copy of it is whole",
        file.name()
    ))
}

fn moved_on() -> Error {
    Kind::Stale.error("the file has moved on to another generation: look it up again")
}

#[cfg(test)]
mod tests {
    use dma::{HugePages, Pool, SizeClass};
    use extent::{Kind, Result};

    use super::*;
    use crate::device::sim::{self, Fault, FaultPlan, FaultRule, SimDisk, SimOptions, When};
    use crate::{FormatOptions, TierOptions, format, recover};

    #[test]
    fn a_tier_without_devices_comes_to_rest_and_says_so() {
        let sizes = [SizeClass { bytes: 1 << 20, count: 1 }];
        let pool = Pool::new(&sizes, HugePages::Never).expect("memory");
        let disk = SimDisk::new(SimOptions::default());
        let mut queue = disk.queue();
        let layout = FormatOptions { slab_bytes: Some(16 << 20), ..FormatOptions::default() };
        format(&mut queue, &pool, &layout).expect("formats");
        let mut recovered = recover(&mut queue, &pool, TierOptions::default()).expect("recovers");
        while recovered.tier.ids.left() > FEW_IDS / 2 {
            recovered.tier.ids.take().expect("some are left");
        }
        disk.set_faults(FaultPlan::new().with(FaultRule::new(
            sim::Operation::Any,
            When::From(1),
            Fault::Fail,
        )));
        let (told, answer) = std::sync::mpsc::sync_channel(1);
        let name = extent::FileName::new("s", "a").expect("a good name");
        let version = SourceVersion::new("v").expect("short");
        let done = Done::new(move |result: Result<_>| told.send(result.is_err()).expect("heard"));
        recovered.tier.register(name, 1, version, done);
        for _ in 0..1000 {
            recovered.ledger.step(&mut queue);
        }
        assert!(recovered.ledger.is_idle() && answer.try_recv().expect("told"), "refused");
    }

    #[test]
    fn the_counter_is_raised_before_it_runs_out_and_never_goes_back() {
        let sizes = [SizeClass { bytes: 1 << 20, count: 1 }];
        let pool = Pool::new(&sizes, HugePages::Never).expect("memory");
        let disk = SimDisk::new(SimOptions::default());
        let mut queue = disk.queue();
        let layout = FormatOptions { slab_bytes: Some(16 << 20), ..FormatOptions::default() };
        format(&mut queue, &pool, &layout).expect("formats");
        let (mut last, mut refused) = (0, 0);
        for _ in 0..2 {
            let mut recovered =
                recover(&mut queue, &pool, TierOptions::default()).expect("recovers");
            for _ in 0..2_500_000 {
                match recovered.tier.ids.take() {
                    Ok(id) => {
                        assert!(id > last, "{id} after {last}");
                        last = id;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), Kind::Busy);
                        refused += 1;
                        while recovered.ledger.step(&mut queue) || recovered.tier.ids.left() == 0 {}
                    }
                }
            }
        }
        assert_eq!(refused, 4, "two restarts and four refills for five million ids");
    }
}
