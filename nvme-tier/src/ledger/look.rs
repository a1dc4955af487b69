//! Looking at what stands on the devices, in between two batches' writes: what a batch looks at it
//! reads before it writes any descriptor or record, so nothing is seen half written.

use std::collections::{HashMap, HashSet};

use dma::Buffer;
use extent::FileId;

use super::Ledger;
use super::batch::{Batch, Change};
use super::io::Job;
use crate::codec::{
    Descriptor, FileRecord, Found, Place, SUPERBLOCK_BYTES, SlabHeader, Superblock,
};
use crate::device::{DeviceIndex, Location};
use crate::holdings::SlotId;
use crate::layout::{HEADER_OFFSETS, PAGE_BYTES, RECORD_BYTES, SUPERBLOCK_OFFSETS, to_usize};
use crate::verify::{Look, Looked};
use crate::{Extent, FileGeneration, State};

/// Slabs whose headers one look covers.
const SLABS_AT_ONCE: usize = 32;

/// What was read, by its place.
type Seen = HashMap<Location, Option<Buffer>>;

impl Ledger {
    /// Reads what a batch is to look at.
    pub(super) fn look(&mut self, batch: &Batch) {
        let untold = untold(batch);
        for (look, _) in &batch.looks {
            for (at, bytes) in self.places(look, batch, &untold) {
                self.io.push(Job::Read { at, bytes });
            }
        }
    }

    /// Compares what was read with what is known, and tells.
    pub(super) fn looked(&mut self, batch: &mut Batch) {
        if batch.looks.is_empty() {
            return;
        }
        let seen: Seen = self.io.take_reads().into_iter().collect();
        let untold = untold(batch);
        for (look, done) in std::mem::take(&mut batch.looks) {
            let found = self.compare(&look, batch, &untold, &seen);
            done.call(Ok(found));
        }
    }

    fn places(
        &self,
        look: &Look,
        batch: &Batch,
        untold: &HashSet<SlotId>,
    ) -> Vec<(Location, usize)> {
        match look {
            Look::Device { device, first_slab } => {
                let mut places = Vec::new();
                if *first_slab == 0 && batch.id_limit.is_none() {
                    places.extend(superblocks_of(*device));
                }
                for slab in self.slabs(*device, *first_slab, batch) {
                    places.extend(self.headers_of(*device, slab));
                }
                places.into_iter().map(|at| (at, to_usize(PAGE_BYTES))).collect()
            }
            Look::Records { file } => self.records_of(file.id()),
            Look::Descriptors { generation, indexes } => {
                let told = self.told(generation, indexes.clone(), untold);
                told.iter().map(|extent| self.descriptor_of(extent)).collect()
            }
        }
    }

    fn compare(
        &mut self,
        look: &Look,
        batch: &Batch,
        untold: &HashSet<SlotId>,
        seen: &Seen,
    ) -> Looked {
        let mut found = Looked::default();
        match look {
            Look::Device { device, first_slab } => {
                self.compare_superblocks(*device, seen, &mut found);
                self.compare_headers(*device, *first_slab, batch, seen, &mut found);
            }
            Look::Records { file } => {
                let newest = file.newest();
                // Set aside for this run only: its record says nothing of that.
                let waits = self.tier.is_waiting(&newest);
                for slot in self.book.newest(file.id()) {
                    let place = self.place(slot);
                    let block = self.space.device(slot.device).layout().block_bytes;
                    note(&mut found, seen, place.at, RECORD_BYTES, |bytes| {
                        let read = FileRecord::decode(&place, block, bytes);
                        matches!(&read, Found::Sound(record) if tells(record, file.id(), &newest, waits))
                    });
                }
            }
            Look::Descriptors { generation, indexes } => {
                for extent in self.told(generation, indexes.clone(), untold) {
                    let (at, bytes) = self.descriptor_of(&extent);
                    let place = self.place(extent.slot());
                    let block = self.space.device(at.device).layout().block_bytes;
                    let holds = note(&mut found, seen, at, bytes, |bytes| {
                        let read = Descriptor::decode(&place, block, bytes);
                        matches!(&read, Found::Sound((descriptor, checksums))
                            if describes(descriptor, checksums, generation, &extent))
                    });
                    let is_first = generation.extent_at(extent.index()) == Some(extent.slot());
                    if !holds && is_first {
                        found.extents.push(extent.index());
                    } else if !holds {
                        found.copies.push(extent.index());
                    }
                }
            }
        }
        found
    }

    fn compare_superblocks(&mut self, device: DeviceIndex, seen: &Seen, found: &mut Looked) {
        for (copy, at) in superblocks_of(device).into_iter().enumerate() {
            if !seen.contains_key(&at) {
                continue;
            }
            let tier = self.tier.id;
            let holds = note(found, seen, at, SUPERBLOCK_BYTES, |bytes| {
                Superblock::decode(at.offset, bytes).is_some_and(|superblock| {
                    superblock.tier == tier && superblock.device == device.0
                })
            });
            if !holds {
                // The damaged one is written next, and not the one that still holds.
                self.superblocks[usize::from(device.0)].1 = copy;
                self.renew_superblocks = true;
            }
        }
    }

    fn compare_headers(
        &mut self,
        device: DeviceIndex,
        first_slab: u32,
        batch: &Batch,
        seen: &Seen,
        found: &mut Looked,
    ) {
        let slabs = self.slabs(device, first_slab, batch);
        for slab in &slabs {
            let state = self.space.device(device).slab(*slab);
            let Some(purpose) = state.purpose else { continue };
            let expected = SlabHeader { epoch: state.epoch, purpose };
            let block = self.space.device(device).layout().block_bytes;
            let mut sound = true;
            for at in self.headers_of(device, *slab) {
                let place = Place { tier: self.tier.id, at, epoch: expected.epoch };
                sound &= note(found, seen, at, SlabHeader::BYTES, |bytes| {
                    SlabHeader::decode(&place, block, bytes) == Found::Sound(expected)
                });
            }
            if !sound {
                self.repairs.push((device, *slab));
            }
        }
        let last = slabs.last().copied();
        let next = last.and_then(|last| self.space.device(device).assigned_from(last + 1).next());
        found.next_slab = next.filter(|_| slabs.len() == SLABS_AT_ONCE);
    }

    /// Slabs whose headers stand still in this batch.
    fn slabs(&self, device: DeviceIndex, first: u32, batch: &Batch) -> Vec<u32> {
        if self.io.failed().contains(device) {
            return Vec::new();
        }
        let opened = batch.openings.iter().map(|opening| (opening.device, opening.slab));
        let moving: HashSet<_> = opened.chain(batch.repairs.iter().copied()).collect();
        let slabs = self.space.device(device).assigned_from(first);
        slabs.filter(|slab| !moving.contains(&(device, *slab))).take(SLABS_AT_ONCE).collect()
    }

    fn headers_of(&self, device: DeviceIndex, slab: u32) -> [Location; 2] {
        let begin = self.space.device(device).layout().slab_offset(slab);
        HEADER_OFFSETS.map(|within| Location { device, offset: begin + within })
    }

    fn records_of(&self, file: FileId) -> Vec<(Location, usize)> {
        let slots = self.book.newest(file).into_iter();
        let trusted = slots.filter(|slot| !self.io.failed().contains(slot.device));
        trusted.map(|slot| (self.space.entry_at(slot), self.record_bytes(slot))).collect()
    }

    fn record_bytes(&self, slot: SlotId) -> usize {
        to_usize(u64::from(self.space.slab(slot).shape.stride))
    }

    /// Extents whose descriptors have been written: those that this batch does not write yet, and
    /// that no later one will.
    fn told(
        &self,
        generation: &FileGeneration,
        indexes: std::ops::Range<u32>,
        untold: &HashSet<SlotId>,
    ) -> Vec<Extent> {
        let mut extents = generation.extents(indexes.clone());
        extents.extend(generation.copies(indexes));
        extents.retain(|extent| {
            let slot = extent.slot();
            self.space.slab(slot).is_occupied_by(slot.slot, generation, extent.index())
                && !untold.contains(&slot)
                && !self.io.failed().contains(slot.device)
        });
        extents
    }

    fn descriptor_of(&self, extent: &Extent) -> (Location, usize) {
        let slot = extent.slot();
        let stride = self.space.slab(slot).shape.stride;
        (self.space.entry_at(slot), to_usize(u64::from(stride)))
    }
}

/// Counts what was seen at a place. Whether it holds; what was not looked at does.
fn note(
    found: &mut Looked,
    seen: &Seen,
    at: Location,
    bytes: usize,
    holds: impl FnOnce(&[u8]) -> bool,
) -> bool {
    let Some(buffer) = seen.get(&at) else { return true };
    found.entries += 1;
    found.bytes += bytes as u64;
    found.unreadable += u64::from(buffer.is_none());
    let sound = buffer.as_ref().is_some_and(|buffer| holds(&buffer.as_slice()[..bytes]));
    found.damaged += u64::from(!sound);
    sound
}

fn superblocks_of(device: DeviceIndex) -> [Location; 2] {
    SUPERBLOCK_OFFSETS.map(|offset| Location { device, offset })
}

/// Slots whose descriptors this batch writes only after it has looked.
fn untold(batch: &Batch) -> HashSet<SlotId> {
    let published = batch.publishes.iter().map(|publish| publish.extent.slot());
    let committed = batch.runs.iter().flat_map(|run| match &run.change {
        Change::Commit { descriptors, .. } => descriptors.as_slice(),
        _ => &[],
    });
    published.chain(committed.map(|extent| extent.slot())).collect()
}

fn tells(record: &FileRecord, file: FileId, newest: &FileGeneration, waits: bool) -> bool {
    let facts = newest.facts();
    record.file == file
        && record.generation == newest.number()
        && record.attempt == newest.attempt()
        && record.length == newest.length()
        && record.dirty == (facts.state == State::Dirty)
        && (record.mark == facts.mark || waits)
        && record.source == facts.source
        && !record.tombstone
}

fn describes(
    descriptor: &Descriptor,
    checksums: &[u32],
    generation: &FileGeneration,
    extent: &Extent,
) -> bool {
    descriptor.file == generation.file_id()
        && descriptor.generation == generation.number()
        && descriptor.attempt == generation.attempt()
        && descriptor.index == extent.index()
        && descriptor.length == extent.length()
        && checksums.len() == extent.blocks() as usize
        // Without them in memory, only the data tells whether they are right.
        && extent.checksums().is_none_or(|known| checksums.iter().copied().eq(known))
}
