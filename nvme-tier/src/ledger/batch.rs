//! One batch: what is in it, and the order in which it is written.

use std::sync::Arc;

use extent::{Error, FileId};

use super::homes::Homes;
use super::io::{DeviceSet, Job};
use super::{Erasure, Ledger};
use crate::bugs::{self, Bug};
use crate::codec::{Descriptor, FileRecord, SlabHeader, Superblock};
use crate::device::{DeviceIndex, Location};
use crate::file::Pins;
use crate::generation::Facts;
use crate::holdings::SlotId;
use crate::layout::{HEADER_OFFSETS, SUPERBLOCK_OFFSETS};
use crate::space::{Opening, Window};
use crate::verify::{Look, Looked};
use crate::{Done, Extent, File, FileGeneration, State};

/// How far a batch is. Each phase begins when every write and flush of the one before has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Prepare,
    FlushPrepared,
    Write,
    Flush,
    Record,
    FlushRecords,
    /// A device has failed: the others are told before anything is acknowledged.
    Tell,
}

/// What is written and acknowledged together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) phase: Phase,
    pub(super) openings: Vec<Opening>,
    pub(super) windows: Vec<Window>,
    pub(super) repairs: Vec<(DeviceIndex, u32)>,
    /// The counter limit that is being made durable, in one of the two superblocks.
    pub(super) id_limit: Option<u64>,
    pub(super) publishes: Vec<Publish>,
    pub(super) erasures: Vec<Erasure>,
    pub(super) flushes: Vec<Done<()>>,
    /// What is looked at before anything that it may be about is written.
    pub(super) looks: Vec<(Look, Done<Looked>)>,
    pub(super) runs: Vec<Run>,
}

/// A fill whose descriptor is written.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) extent: Extent,
    pub(super) generation: Arc<FileGeneration>,
    pub(super) sequence: u64,
    pub(super) done: Done<()>,
}

/// An operation that takes one record of one file.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) file: FileId,
    pub(super) record: Arc<FileRecord>,
    pub(super) copies: usize,
    /// Whether it may take the last record slots.
    pub(super) vital: bool,
    /// Where its record goes.
    pub(super) homes: Homes,
    pub(super) slots: [Option<SlotId>; 2],
    pub(super) change: Change,
}

/// What becomes visible once a record is durable.
#[derive(Debug)]
pub(super) enum Change {
    /// A new generation, of a known file or of a new one.
    Register { generation: Arc<FileGeneration>, pins: Arc<Pins>, done: Done<Arc<File>> },
    /// The same, dirty, with extents whose descriptors go first.
    Commit {
        generation: Arc<FileGeneration>,
        pins: Arc<Pins>,
        descriptors: Vec<Extent>,
        sequence: u64,
        done: Done<Arc<FileGeneration>>,
    },
    /// The file is gone.
    Forget { file: Arc<File>, done: Done<()> },
    /// What is known of the newest generation.
    Facts { generation: Arc<FileGeneration>, facts: Facts, done: Done<()> },
}

impl Change {
    pub(super) fn fail(self, error: Error) {
        match self {
            Self::Register { done, .. } => done.call(Err(error)),
            Self::Commit { done, .. } => done.call(Err(error)),
            Self::Forget { done, .. } | Self::Facts { done, .. } => done.call(Err(error)),
        }
    }

    pub(super) fn is_commit(&self) -> bool {
        matches!(self, Self::Commit { .. })
    }

    /// Devices with extents that this commits.
    pub(super) fn devices(&self) -> DeviceSet {
        let mut devices = DeviceSet::default();
        if let Self::Commit { descriptors, .. } = self {
            descriptors.iter().for_each(|extent| devices.insert(extent.at().device));
        }
        devices
    }
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Prepare,
            openings: Vec::new(),
            windows: Vec::new(),
            repairs: Vec::new(),
            id_limit: None,
            publishes: Vec::new(),
            erasures: Vec::new(),
            flushes: Vec::new(),
            looks: Vec::new(),
            runs: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.openings.is_empty()
            && self.windows.is_empty()
            && self.repairs.is_empty()
            && self.id_limit.is_none()
            && self.publishes.is_empty()
            && self.erasures.is_empty()
            && self.flushes.is_empty()
            && self.looks.is_empty()
            && self.runs.is_empty()
    }

    pub(super) fn fail(self, error: &Error) {
        self.publishes.into_iter().for_each(|publish| publish.done.call(Err(error.duplicate())));
        self.flushes.into_iter().for_each(|done| done.call(Err(error.duplicate())));
        self.looks.into_iter().for_each(|(_, done)| done.call(Err(error.duplicate())));
        self.runs.into_iter().for_each(|run| run.change.fail(error.duplicate()));
    }
}

impl Ledger {
    /// Ends the phase of the batch that runs if its writes have ended, and begins the next one.
    /// Whether it did.
    pub(super) fn advance(&mut self) -> bool {
        if !self.io.is_quiet() {
            return false;
        }
        self.note_failures();
        let Some(mut batch) = self.batch.take() else { return false };
        let next = match batch.phase {
            Phase::Prepare => {
                self.looked(&mut batch);
                let devices = prepared_devices(&batch, &self.superblocks);
                self.flush_all(if bugs::is(Bug::UnflushedWindows) {
                    DeviceSet::default()
                } else {
                    devices
                });
                Phase::FlushPrepared
            }
            Phase::FlushPrepared => {
                self.prepared(&mut batch);
                self.write(&batch);
                Phase::Write
            }
            Phase::Write => {
                self.written(&mut batch);
                self.flush_all(self.devices_to_flush(&batch));
                Phase::Flush
            }
            Phase::Flush => {
                self.flushed(&mut batch);
                self.write_records(&mut batch);
                Phase::Record
            }
            Phase::Record => {
                let mut homes = DeviceSet::default();
                let runs = batch.runs.iter().filter(|_| !bugs::is(Bug::UnflushedRecords));
                runs.for_each(|run| homes = homes.union(run.homes.devices()));
                self.flush_all(homes);
                Phase::FlushRecords
            }
            Phase::FlushRecords if self.tell_failures() => Phase::Tell,
            Phase::Tell => {
                self.flush_all(self.all_devices());
                Phase::FlushRecords
            }
            Phase::FlushRecords => {
                batch.runs.into_iter().for_each(|run| self.apply(run));
                return true;
            }
        };
        batch.phase = next;
        self.batch = Some(batch);
        true
    }

    /// Writes what makes room: slab headers, erasures of entries never used, the counter's limit.
    pub(super) fn prepare(&mut self, batch: &Batch) {
        self.look(batch);
        let opened = batch.openings.iter().map(|opening| (opening.device, opening.slab));
        for (device, slab) in opened.chain(batch.repairs.iter().copied()) {
            let space = self.space.device(device);
            let state = space.slab(slab);
            let Some(purpose) = state.purpose else { continue };
            let header = SlabHeader { epoch: state.epoch, purpose };
            let copies = if bugs::is(Bug::OneHeader) { 1 } else { 2 };
            for within in HEADER_OFFSETS.into_iter().take(copies) {
                let offset = space.layout().slab_offset(slab) + within;
                let at = Location { device, offset };
                let place = crate::codec::Place { tier: self.tier.id, at, epoch: header.epoch };
                self.io.push(Job::Header { place, header });
            }
        }
        for window in &batch.windows {
            self.io.push(Job::Zero { at: window.at, bytes: window.bytes });
        }
        if let Some(limit) = batch.id_limit {
            for (index, (superblock, copy)) in (0u16..).zip(&mut self.superblocks) {
                superblock.id_limit = limit;
                superblock.sequence += 1;
                let offset = SUPERBLOCK_OFFSETS[*copy];
                *copy = 1 - *copy;
                let at = Location { device: DeviceIndex(index), offset };
                self.io.push(Job::Superblock { at, superblock: *superblock });
            }
        }
    }

    /// What was prepared is durable: slots become usable.
    fn prepared(&mut self, batch: &mut Batch) {
        let failed = self.io.failed();
        for window in batch.windows.drain(..) {
            if !failed.contains(window.device) {
                self.space.device_mut(window.device).extended(&window);
            }
        }
        if let Some(limit) = batch.id_limit.take()
            && !self.space.healthy().is_empty()
        {
            // The other copy still says what was durable before: the next batch writes that one.
            let other = std::mem::replace(&mut self.id_limit, limit);
            self.tier.ids.raise(other.min(limit));
        }
        batch.openings.clear();
        batch.repairs.clear();
        self.grant();
    }

    /// Writes descriptors, and erases what earlier batches freed.
    fn write(&mut self, batch: &Batch) {
        for publish in &batch.publishes {
            self.describe(&publish.generation, &publish.extent, publish.sequence);
        }
        for run in &batch.runs {
            if let Change::Commit { generation, descriptors, sequence, .. } = &run.change {
                for extent in descriptors {
                    self.describe(generation, extent, *sequence);
                }
            }
        }
        self.erase(&batch.erasures);
        self.discard_early(&batch.erasures);
    }

    fn describe(&mut self, generation: &FileGeneration, extent: &Extent, sequence: u64) {
        let descriptor = Descriptor {
            file: generation.file_id(),
            generation: generation.number(),
            attempt: generation.attempt(),
            index: extent.index(),
            length: extent.length(),
            sequence,
        };
        let place = self.place(extent.slot());
        let stride = self.space.slab(extent.slot()).shape.stride;
        self.io.push(Job::Descriptor { place, stride, descriptor, extent: extent.clone() });
    }

    /// Overwrites entries with zeroes, neighbours together.
    fn erase(&mut self, erasures: &[Erasure]) {
        let mut places: Vec<(Location, u64)> = erasures
            .iter()
            .map(|erasure| {
                let stride = self.space.slab(erasure.slot()).shape.stride;
                (self.space.entry_at(erasure.slot()), u64::from(stride))
            })
            .collect();
        places.sort_unstable_by_key(|(at, _)| (at.device, at.offset));
        let mut joined: Vec<(Location, u64)> = Vec::with_capacity(places.len());
        for (at, bytes) in places {
            match joined.last_mut() {
                Some((first, sum))
                    if first.device == at.device && first.offset + *sum == at.offset =>
                {
                    *sum += bytes;
                }
                _ => joined.push((at, bytes)),
            }
        }
        joined.into_iter().for_each(|(at, bytes)| self.io.push(Job::Zero { at, bytes }));
    }

    /// Descriptors are written: fills are done.
    fn written(&mut self, batch: &mut Batch) {
        for publish in batch.publishes.drain(..) {
            let mut device = DeviceSet::default();
            device.insert(publish.extent.at().device);
            let result = self.io.failure_of(device).map_or(Ok(()), Err);
            // A descriptor may also be written again of what is dirty.
            if result.is_ok() && publish.generation.state() == State::Clean {
                publish.extent.offer_checksums();
            }
            drop(publish.extent);
            publish.done.call(result);
        }
    }

    fn devices_to_flush(&self, batch: &Batch) -> DeviceSet {
        let mut devices = DeviceSet::default();
        if !batch.flushes.is_empty() {
            self.all_devices().iter().for_each(|device| devices.insert(device));
        }
        let erasures = batch.erasures.iter().filter(|_| !bugs::is(Bug::UnflushedErasures));
        erasures.for_each(|erasure| devices.insert(erasure.slot().device));
        let runs = batch.runs.iter().filter(|_| !bugs::is(Bug::UnflushedDescriptors));
        runs.fold(devices, |devices, run| {
            let all = run.change.devices();
            devices.union(if bugs::is(Bug::CopyUnflushed) { run.homes.first() } else { all })
        })
    }

    /// Erased entries are free, and explicit flushes done.
    fn flushed(&mut self, batch: &mut Batch) {
        let failed = self.io.failed();
        for erasure in batch.erasures.drain(..) {
            let slot = erasure.slot();
            if failed.contains(slot.device) {
                continue;
            }
            self.free_erased(&erasure);
            if let Erasure::Record { file, .. } = erasure {
                for slot in self.book.erased(file) {
                    self.free_record(slot, file);
                }
            }
        }
        let all = self.all_devices();
        for done in batch.flushes.drain(..) {
            done.call(self.io.failure_of(all).map_or(Ok(()), Err));
        }
    }

    /// An older record, or a tombstone, is not needed any more.
    pub(super) fn free_record(&mut self, slot: SlotId, file: FileId) {
        self.space.begin_erase(slot);
        self.erasures.push_back(Erasure::Record { slot, file });
    }

    /// Writes the records of those whose data is durable; the others end here, with nothing done.
    fn write_records(&mut self, batch: &mut Batch) {
        let runs = std::mem::take(&mut batch.runs);
        for mut run in runs {
            if let Err(error) = self.take_record_slots(&mut run) {
                run.change.fail(error);
                continue;
            }
            for slot in run.slots.into_iter().flatten() {
                let (place, record) = (self.place(slot), Arc::clone(&run.record));
                self.io.push(Job::Record { place, record });
            }
            batch.runs.push(run);
        }
    }

    fn flush_all(&mut self, devices: DeviceSet) {
        devices.iter().for_each(|device| self.io.push(Job::Flush(device)));
    }

    fn all_devices(&self) -> DeviceSet {
        let mut all = DeviceSet::default();
        let count = u16::try_from(self.superblocks.len()).expect("64 devices at most");
        (0..count).for_each(|device| all.insert(DeviceIndex(device)));
        // What was written since the start is on the others.
        all.without(self.io.absent())
    }
}

fn prepared_devices(batch: &Batch, superblocks: &[(Superblock, usize)]) -> DeviceSet {
    let mut devices = DeviceSet::default();
    batch.openings.iter().for_each(|opening| devices.insert(opening.device));
    batch.windows.iter().for_each(|window| devices.insert(window.device));
    batch.repairs.iter().for_each(|(device, _)| devices.insert(*device));
    if batch.id_limit.is_some() {
        for index in 0..superblocks.len() {
            devices.insert(DeviceIndex(u16::try_from(index).expect("64 devices at most")));
        }
    }
    devices
}
