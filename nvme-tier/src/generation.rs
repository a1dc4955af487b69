use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use extent::{Attempt, ExtentIndex, FileId, Generation, SourceVersion};
use parking_lot::{RwLock, RwLockReadGuard};

use crate::Extent;
use crate::bugs::{self, Bug};
use crate::codec::Mark;
use crate::file::Pins;
use crate::holdings::SlotId;
use crate::layout;
use crate::shelf::Hold;
use crate::table::ExtentTable;

/// Whether the silo has a generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// It equals a version of the silo. Its extents can be fetched again.
    Clean,
    /// It is only here.
    Dirty,
}

/// One committed, never changing state of a file, and those of its extents that are on the tier.
///
/// What a lookup needs is one cache line: the table, and the first two numbers of the shape.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct FileGeneration {
    extents: RwLock<ExtentTable>,
    shape: GenerationShape,
    file: FileId,
    pins: Arc<Pins>,
    resident_extents: AtomicU32,
    resident_bytes: AtomicU64,
    facts: RwLock<Facts>,
    superseded: AtomicBool,
}

const _: () = assert!(
    offset_of!(FileGeneration, shape) + offset_of!(GenerationShape, number) <= 64,
    "a lookup needs one line"
);

/// What never changes of a generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct GenerationShape {
    pub(crate) length: u64,
    pub(crate) extent_bytes: u64,
    pub(crate) number: Generation,
    pub(crate) attempt: Attempt,
    /// How many extents were committed, if it was written here.
    pub(crate) extents_written: u32,
    pub(crate) written: bool,
    /// Whether it was committed on two devices.
    pub(crate) twice: bool,
    /// Whether it was registered without knowing what an absent device has of its file.
    pub(crate) blind: bool,
}

/// What is known of a generation beyond its bytes; durable in the file's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Facts {
    pub(crate) state: State,
    pub(crate) mark: Option<Mark>,
    /// Clean: the version it equals. Dirty: what the silo is believed to hold.
    pub(crate) source: Option<SourceVersion>,
}

impl FileGeneration {
    pub(crate) fn new(
        file: FileId,
        shape: GenerationShape,
        pins: Arc<Pins>,
        facts: Facts,
    ) -> Arc<Self> {
        let count = layout::extent_count(shape.length, shape.extent_bytes)
            .expect("lengths are checked where generations are made");
        Arc::new(Self {
            file,
            shape,
            pins,
            extents: RwLock::new(ExtentTable::new(count)),
            resident_extents: AtomicU32::new(0),
            resident_bytes: AtomicU64::new(0),
            facts: RwLock::new(facts),
            superseded: AtomicBool::new(false),
        })
    }

    /// The resident extent at an index, and counts the use. This is the lookup of every read: one
    /// shared lock of this generation alone, one or two array steps, no allocation.
    #[must_use]
    pub fn extent(&self, index: ExtentIndex) -> Option<Extent> {
        let hold = self.extents.read().find(index)?.used();
        Some(self.extent_of(index, hold).note_use())
    }

    /// The second copy of the extent at an index, on another device: until a write-back has settled
    /// what was committed twice.
    #[must_use]
    pub fn copy(&self, index: ExtentIndex) -> Option<Extent> {
        let hold = self.extents.read().find_copy(index)?.clone();
        Some(self.extent_of(index, hold))
    }

    /// Whether it was committed on two devices. While it is dirty an extent without a second copy
    /// has lost it, or that is on a device that the tier runs without.
    #[must_use]
    pub fn is_twice(&self) -> bool {
        self.shape.twice
    }

    /// As extents are for those who hold them.
    pub(crate) fn extent_of(&self, index: ExtentIndex, hold: Hold) -> Extent {
        // The slot's, which is that of the whole tier, and not a line of this generation more.
        let block_bytes = hold.shape().checksum_block_bytes;
        Extent::new(hold, index, self.extent_length(index), block_bytes)
    }

    /// Its number within the file.
    #[must_use]
    pub fn number(&self) -> Generation {
        self.shape.number
    }

    /// The attempt that made it.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.shape.attempt
    }

    /// The file it belongs to.
    #[must_use]
    pub fn file_id(&self) -> FileId {
        self.file
    }

    /// Bytes of the file.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.shape.length
    }

    /// Bytes of a full extent.
    #[must_use]
    pub fn extent_bytes(&self) -> u64 {
        self.shape.extent_bytes
    }

    /// How many extents the file has, resident or not.
    #[must_use]
    pub fn extent_count(&self) -> u32 {
        layout::extent_count(self.shape.length, self.shape.extent_bytes).unwrap_or(u32::MAX)
    }

    /// Bytes of an extent: full ones and a shorter last one; zero past the end.
    #[must_use]
    pub fn extent_length(&self, index: ExtentIndex) -> u32 {
        layout::extent_length(self.shape.length, self.shape.extent_bytes, index)
    }

    /// Whether the silo has it.
    #[must_use]
    pub fn state(&self) -> State {
        self.facts.read().state
    }

    /// What is wrong with it.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.facts.read().mark
    }

    /// The silo's version that it equals; `None` while dirty.
    #[must_use]
    pub fn version(&self) -> Option<SourceVersion> {
        let facts = self.facts.read();
        facts.source.clone().filter(|_| facts.state == State::Clean)
    }

    /// What the silo is believed to hold; `None` if nothing.
    #[must_use]
    pub fn base(&self) -> Option<SourceVersion> {
        self.facts.read().source.clone()
    }

    /// Whether it was written here. While it is dirty its absent extents are holes, which read as
    /// zeroes; unless it is marked [`Mark::Quarantined`].
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.shape.written
    }

    /// How many extents are on the tier.
    #[must_use]
    pub fn resident_extents(&self) -> u32 {
        self.resident_extents.load(Ordering::Relaxed)
    }

    /// File bytes on the tier.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn shape(&self) -> GenerationShape {
        self.shape
    }

    pub(crate) fn facts(&self) -> Facts {
        self.facts.read().clone()
    }

    pub(crate) fn set_facts(&self, facts: Facts) {
        *self.facts.write() = facts;
    }

    /// Whether registering this version of this length would find nothing new.
    pub(crate) fn is_of(&self, version: &SourceVersion, length: u64) -> bool {
        let facts = self.facts.read();
        facts.source.as_ref() == Some(version)
            && (facts.state == State::Dirty || self.shape.length == length)
    }

    pub(crate) fn is_pinned(&self, now_unix_ms: u64) -> bool {
        self.pins.is_pinned(now_unix_ms)
    }

    /// Whether a newer generation has taken its place, or its file was forgotten.
    pub(crate) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Acquire)
    }

    pub(crate) fn supersede(&self) {
        self.superseded.store(true, Ordering::Release);
    }

    /// Whether its extents may go: the silo has them, and nobody asked to keep them.
    pub(crate) fn is_evictable(&self, now_unix_ms: u64) -> bool {
        let facts = self.facts.read();
        (facts.state == State::Clean || bugs::is(Bug::DirtyEvicted))
            && facts.mark != Some(Mark::Quarantined)
            && (!self.is_pinned(now_unix_ms) || bugs::is(Bug::PinnedEvicted))
    }

    /// Has the processor fetch what a lookup needs of it.
    pub(crate) fn prefetch(&self) {
        dma::prefetch(&self.extents);
    }

    /// Its table; also for whoever has it locked already.
    pub(crate) fn table_locked(&self) -> RwLockReadGuard<'_, ExtentTable> {
        self.extents.read_recursive()
    }

    /// Whether the extent at an index, or its second copy, is the one in this slot.
    pub(crate) fn has(&self, index: ExtentIndex, slot: SlotId) -> bool {
        let table = self.extents.read();
        let is_here = |hold: Option<&Hold>| hold.is_some_and(|hold| hold.slot() == slot);
        is_here(table.find(index)) || is_here(table.find_copy(index))
    }

    /// Makes an extent visible whose checksums are noted; gives it back if there is one already.
    pub(crate) fn insert(&self, index: ExtentIndex, hold: Hold) -> Result<(), Hold> {
        let length = u64::from(self.extent_length(index));
        hold.describe();
        hold.holdings().count(1, length);
        if let Err(hold) = self.extents.write().insert(index, hold) {
            hold.holdings().discount(1, length);
            return Err(hold);
        }
        self.resident_extents.fetch_add(1, Ordering::Relaxed);
        self.resident_bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// As [`FileGeneration::insert`], for a generation that nobody knows yet, and extents of which
    /// none comes twice.
    pub(crate) fn insert_all(&self, extents: impl ExactSizeIterator<Item = (ExtentIndex, Hold)>) {
        let mut table = self.extents.write();
        table.expect(extents.len());
        let (mut count, mut bytes) = (0, 0);
        for (index, hold) in extents {
            hold.describe();
            if table.insert(index, hold).is_ok() {
                count += 1;
                bytes += u64::from(self.extent_length(index));
            }
        }
        if let Some((_, hold)) = table.range(0..u32::MAX).next() {
            hold.holdings().count(u64::from(count), bytes);
        }
        self.resident_extents.fetch_add(count, Ordering::Relaxed);
        self.resident_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes note of the second copy of an extent, which counts nowhere.
    pub(crate) fn insert_copy(&self, index: ExtentIndex, hold: Hold) {
        hold.describe();
        let inserted = self.extents.write().insert_copy(index, hold);
        debug_assert!(inserted.is_ok(), "an extent has one second copy");
    }

    /// The silo has it now: second copies go, once nobody reads them.
    pub(crate) fn drop_copies(&self) {
        let copies = self.extents.write().take_copies();
        // Without the lock: whoever drops the last hold of a slot takes another.
        drop(copies);
    }

    /// Where the extent at an index is, and not its second copy.
    pub(crate) fn extent_at(&self, index: ExtentIndex) -> Option<SlotId> {
        self.extents.read().find(index).map(Hold::slot)
    }

    /// Second copies in a range of indexes.
    pub(crate) fn copies(&self, indexes: Range<u32>) -> Vec<Extent> {
        let table = self.extents.read();
        let held = table.copies(indexes).map(|(index, hold)| self.extent_of(index, hold.clone()));
        held.collect()
    }

    /// Takes the extent at an index out, if it is still the one in this slot.
    pub(crate) fn remove(&self, index: ExtentIndex, slot: SlotId) -> bool {
        let mut extents = self.extents.write();
        if extents.find(index).is_none_or(|hold| hold.slot() != slot) {
            return false;
        }
        let removed = extents.remove(index);
        drop(extents);
        let length = u64::from(self.extent_length(index));
        self.resident_extents.fetch_sub(1, Ordering::Relaxed);
        self.resident_bytes.fetch_sub(length, Ordering::Relaxed);
        if let Some(removed) = &removed {
            removed.holdings().discount(1, length);
            if bugs::is(Bug::ReadersIgnored) {
                removed.give_back_although_held();
            }
        }
        drop(removed);
        true
    }

    /// The resident extents in a range of indexes, without counting a use.
    pub(crate) fn extents(&self, indexes: Range<u32>) -> Vec<Extent> {
        let table = self.extents.read();
        let held = table.range(indexes).map(|(index, hold)| self.extent_of(index, hold.clone()));
        held.collect()
    }

    /// The resident extents in a range of indexes, and where they are.
    pub(crate) fn resident(&self, indexes: Range<u32>) -> Vec<(ExtentIndex, SlotId)> {
        self.extents.read().range(indexes).map(|(index, hold)| (index, hold.slot())).collect()
    }
}

impl Drop for FileGeneration {
    fn drop(&mut self) {
        let extents = self.extents.get_mut();
        if let Some((_, hold)) = extents.range(0..u32::MAX).next() {
            let (count, bytes) = (self.resident_extents.get_mut(), self.resident_bytes.get_mut());
            hold.holdings().discount(u64::from(*count), *bytes);
        }
    }
}
