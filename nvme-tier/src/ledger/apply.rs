//! What becomes visible once its record is durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Ledger;
use super::batch::{Change, Run};
use crate::bugs::{self, Bug};
use crate::codec::Mark;
use crate::file::Pins;
use crate::generation::Facts;
use crate::{File, FileGeneration, State, Tier};

impl Ledger {
    /// Ends an operation whose record was written and flushed, or whose home failed meanwhile.
    pub(super) fn apply(&mut self, run: Run) {
        let homes = run.homes.devices();
        // Where one of two devices is left, what is known of a file stands there; but what is to be
        // kept twice is not.
        let enough = !homes.is_within(self.io.failed()) && !run.change.is_commit();
        if let Some(error) = self.io.failure_of(homes).filter(|_| !enough) {
            // The record may be on that device, and count after a restart: what it would commit
            // stays as it is, and no tombstone of the file may go.
            self.book.add_stale(run.file, homes);
            if let Change::Commit { generation, .. } = &run.change {
                self.limbo.push(Arc::clone(generation));
            }
            return run.change.fail(error);
        }
        let is_tombstone = run.record.tombstone;
        for slot in self.book.replace(run.file, run.slots, is_tombstone) {
            self.free_record(slot, run.file);
        }
        self.book.note_known(run.file, !run.record.is_blind());
        match run.change {
            Change::Register { generation, pins, done } => {
                let file = self.install(&run.record.name, generation, pins);
                done.call(Ok(file));
            }
            Change::Commit { generation, pins, descriptors, sequence: _, done } => {
                drop(descriptors);
                self.install(&run.record.name, Arc::clone(&generation), pins);
                done.call(Ok(generation));
            }
            Change::Forget { file, done } => {
                let newest = file.newest();
                newest.supersede();
                self.tier.index.write().remove(&file);
                self.tier.uncount(&newest.facts(), newest.length());
                done.call(Ok(()));
            }
            Change::Facts { generation, facts, done } => {
                self.learn(&generation, facts);
                done.call(Ok(()));
            }
        }
    }

    /// Makes a generation the newest of its file, which may be new.
    fn install(
        &self,
        name: &extent::FileName,
        generation: Arc<FileGeneration>,
        pins: Arc<Pins>,
    ) -> Arc<File> {
        let id = generation.file_id();
        self.tier.count(&generation.facts(), generation.length());
        let known = self.tier.file(id);
        if let Some(file) = known {
            let old = file.newest();
            self.tier.uncount(&old.facts(), old.length());
            file.replace(generation);
            return file;
        }
        let file = File::new(id, name.clone(), pins, generation);
        self.tier.index.write().insert(&file);
        file
    }

    fn learn(&mut self, generation: &Arc<FileGeneration>, facts: Facts) {
        let old = generation.facts();
        self.tier.uncount(&old, generation.length());
        self.tier.count(&facts, generation.length());
        let settled = old.state == State::Dirty && facts.state == State::Clean;
        generation.set_facts(facts);
        if settled {
            if !bugs::is(Bug::CopiesKept) {
                generation.drop_copies();
            }
            for (index, slot) in generation.resident(0..u32::MAX) {
                self.occupy_evictable(generation, index, slot);
            }
            generation.offer_checksums();
        }
    }
}

impl Tier {
    /// Counts a newest generation.
    pub(crate) fn count(&self, facts: &Facts, length: u64) {
        let add = |counter: &AtomicU64, value| {
            counter.fetch_add(value, Ordering::Relaxed);
        };
        if facts.state == State::Dirty {
            add(&self.counters.dirty_files, 1);
            add(&self.counters.dirty_bytes, length);
        }
        if facts.mark == Some(Mark::Quarantined) {
            add(&self.counters.quarantined_files, 1);
        }
    }

    /// It is not the newest any more, or something else is known of it.
    pub(crate) fn uncount(&self, facts: &Facts, length: u64) {
        let subtract = |counter: &AtomicU64, value| {
            counter.fetch_sub(value, Ordering::Relaxed);
        };
        if facts.state == State::Dirty {
            subtract(&self.counters.dirty_files, 1);
            subtract(&self.counters.dirty_bytes, length);
        }
        if facts.mark == Some(Mark::Quarantined) {
            subtract(&self.counters.quarantined_files, 1);
        }
    }
}
