mod complete;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use dma::Pool;
use extent::{FileId, FileName, Kind, Result};

use crate::bugs::{self, Bug};
use crate::checksums::ChecksumMemory;
use crate::clock;
use crate::codec::{FileRecord, Mark};
use crate::device::{Command, Device, DeviceIndex};
use crate::eviction::Evictor;
use crate::file::Pins;
use crate::format::write_superblock;
use crate::generation::{Facts, GenerationShape};
use crate::holdings::SlotId;
use crate::ids::{Ids, RESERVE};
use crate::layout::{Class, Purpose, SUPERBLOCK_OFFSETS};
use crate::ledger::book::RecordBook;
use crate::ledger::io::{DeviceSet, Io};
use crate::ledger::{Erasure, Parts};
use crate::operation::{Operation, RecordOperation};
use crate::reader::DeviceReader;
use crate::scan::{Entry, FileScan, Findings, FoundExtent, Scan, SlabHealth};
use crate::space::{DeviceSpace, Slab, Space};
use crate::tier::TierParts;
use crate::usage::{Counters, DeviceCounters};
use crate::{Done, File, FileGeneration, Ledger, State, Tier, TierOptions};

use complete::{Unfinished, complete};

/// From so many extents on, finding one is mostly waiting for the page that it is on.
const MANY_EXTENTS: u64 = 1_000_000;

/// A tier that was on the devices, ready to run.
#[derive(Debug)]
pub struct Recovered {
    /// What all threads share.
    pub tier: Arc<Tier>,
    /// The one writer of metadata; give it a thread and a device queue of its own.
    pub ledger: Ledger,
    /// What was found.
    pub report: RecoveryReport,
}

/// What recovery found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// Files known.
    pub files: u64,
    /// Of those, files whose newest generation the silo does not have.
    pub dirty_files: u64,
    /// Extents on the tier.
    pub extents: u64,
    /// File bytes in them.
    pub bytes: u64,
    /// Dirty files of which something is damaged. Nothing of them was freed; reads of them fail.
    pub quarantined: Vec<FileName>,
    /// What was not as it should be.
    pub findings: Findings,
    /// How long it took.
    pub elapsed: Duration,
}

/// Reads a tier back: one pass over slab headers, records and descriptors, in order. Durably
/// reserves new ids, and makes durable all that it saw, before it returns.
///
/// No command of an earlier process may still be in flight: one that erases could land on what is
/// written from now on. [`crate::device::Media`] sees to that, since commands in flight keep its lock.
///
/// # Errors
/// [`Kind::NotFound`] if a device is not formatted; [`Kind::Invalid`] if the devices are not those
/// of one tier; [`Kind::Corrupt`] if both superblocks of a device are damaged; [`Kind::Io`] if
/// superblocks cannot be read or written; [`Kind::NoSpace`] if what a power cut left on one device has
/// no room on a second one.
pub fn recover(device: &mut dyn Device, pool: &Pool, options: TierOptions) -> Result<Recovered> {
    recover_without(device, pool, options, &[])
}

/// As [`recover`], without some of the devices: nothing is read from them or written to them. What is
/// clean on them is not resident; what is dirty is served from its second copy, and quarantined for this
/// run where there is none. A file whose records are all there is not known. Nothing is forgotten that
/// they may hold, so they may come back at a later start, where what is newer wins.
///
/// # Errors
/// As [`recover`]; [`Kind::Invalid`] if no device is left.
pub fn recover_without(
    device: &mut dyn Device,
    pool: &Pool,
    options: TierOptions,
    absent: &[DeviceIndex],
) -> Result<Recovered> {
    let begun = clock::now();
    let absent = absent.iter().fold(DeviceSet::default(), |all, d| all.union(DeviceSet::of(*d)));
    let checksums =
        ChecksumMemory::new(options.checksum_memory_bytes, options.most_checksums_beside);
    let mut scan = Scan::read(device, pool, checksums, absent)?;
    scan.drop_duplicates();
    let ids = reserve_ids(device, pool, &mut scan)?;
    let mut io = Io::new(device)?;
    io.do_without(absent);
    let volatile = |index: u16| device.geometry(DeviceIndex(index)).volatile_cache;
    let counters = Counters {
        devices: (0u16..)
            .zip(&scan.superblocks)
            .map(|(index, _)| DeviceCounters {
                volatile_cache: volatile(index),
                ..DeviceCounters::default()
            })
            .collect(),
        ..Counters::default()
    };
    let extent_bytes = scan.superblocks[0].0.extent_bytes;
    let holdings = Arc::clone(&scan.holdings);
    let tier = Tier::new(TierParts {
        id: scan.tier(),
        extent_bytes,
        layout: *scan.layouts.iter().max_by_key(|layout| layout.slab_count).expect("not empty"),
        options,
        ids,
        counters,
        holdings,
    });
    let quarantined = scan.quarantined();
    let findings = scan.findings;
    let unseen = findings.nameless_records + findings.damaged_slabs + findings.unreadable_entries
        > 0
        || !absent.is_empty();
    let mut rebuild = Rebuild::new(&tier, &scan, unseen || !quarantined.is_empty());
    let mut files = std::mem::take(&mut scan.files);
    // In the order in which they stand on the devices, which is about the order of their names
    // where whole directories were promoted: the index then grows at its end.
    for id in std::mem::take(&mut scan.order) {
        if let Some(file) = files.remove(&id) {
            rebuild.add_file(&scan, id, file);
        }
    }
    let Rebuild { space, evictor, book, erasures, dirty, unfinished, .. } = rebuild;
    let repairs = repairs(&scan);
    let superblocks = std::mem::take(&mut scan.superblocks);
    drop((scan, files));
    if tier.usage().resident_extents >= MANY_EXTENTS {
        dma::merge_heap();
    }
    let report = RecoveryReport {
        files: tier.index.read().len() as u64,
        dirty_files: dirty,
        extents: tier.usage().resident_extents,
        bytes: tier.usage().resident_bytes,
        quarantined,
        findings,
        elapsed: begun.elapsed(),
    };
    let mut ledger = Ledger::new(Parts {
        tier: Arc::clone(&tier),
        space,
        evictor,
        book,
        io,
        superblocks,
        erasures,
        repairs,
    });
    complete(&mut ledger, device, unfinished)?;
    ledger.begin_discards();
    Ok(Recovered { tier, ledger, report })
}

/// Makes durable a higher limit of ids, and with the same flush everything that was read: had a
/// process died between a write and its flush, what was just believed could still be lost.
fn reserve_ids(device: &mut dyn Device, pool: &Pool, scan: &mut Scan) -> Result<Ids> {
    let superblocks = scan.superblocks.iter().map(|(superblock, _)| superblock);
    let first = superblocks.map(|superblock| superblock.id_limit).max().unwrap_or(0);
    let limit = first.checked_add(RESERVE).ok_or_else(|| {
        Kind::Corrupt.error("a superblock says that all ids are used up, which takes millennia")
    })?;
    let mut reader = DeviceReader::new(device, pool)?;
    let count = u16::try_from(scan.superblocks.len()).expect("64 devices at most");
    // Both copies, the older one first: with only one of them, one flipped bit would bring the
    // lower limit back, and with it ids that are in use.
    let copies = if bugs::is(Bug::OneSuperblockRaised) { 1 } else { SUPERBLOCK_OFFSETS.len() };
    for round in 0..copies {
        let absent = scan.absent;
        let devices = scan.superblocks.iter_mut();
        for (superblock, copy) in devices.filter(|(s, _)| !absent.contains(DeviceIndex(s.device))) {
            // A device that knows nothing of what these did alone is only trusted with that once it has
            // the new limit, too.
            let before = if round == 0 { superblock.without } else { 0 };
            superblock.without = absent.bits() | before;
            superblock.id_limit = if bugs::is(Bug::IdsReused) { first } else { limit };
            superblock.sequence += 1;
            write_superblock(&mut reader, superblock, SUPERBLOCK_OFFSETS[*copy])
                .map_err(|error| error.while_doing("reserving ids in a superblock"))?;
            *copy = 1 - *copy;
        }
        let devices = (0..count).map(DeviceIndex).filter(|device| !absent.contains(*device));
        let devices = devices.filter(|_| !bugs::is(Bug::UnflushedRecovery));
        reader
            .run(devices.map(Command::Flush))
            .map_err(|error| error.while_doing("flushing what was recovered"))?;
    }
    Ok(Ids::new(first, limit))
}

fn repairs(scan: &Scan) -> Vec<(DeviceIndex, u32)> {
    let mut repairs = Vec::new();
    for (device, slabs) in (0u16..).zip(&scan.slabs) {
        for (number, slab) in (0u32..).zip(slabs) {
            if matches!(slab.health, SlabHealth::OneHeader(_)) {
                repairs.push((DeviceIndex(device), number));
            }
        }
    }
    repairs
}

/// What is put together from a scan.
struct Rebuild<'a> {
    tier: &'a Arc<Tier>,
    space: Space,
    evictor: Evictor,
    book: RecordBook,
    erasures: VecDeque<Erasure>,
    dirty: u64,
    unfinished: Unfinished,
}

impl<'a> Rebuild<'a> {
    /// Slabs and slots. If something dirty is lost, damaged descriptors are left alone: they may be
    /// part of it.
    fn new(tier: &'a Arc<Tier>, scan: &Scan, keep_suspects: bool) -> Self {
        let mut erasures = VecDeque::new();
        let mut slabs = Vec::with_capacity(scan.slabs.len());
        let mut slots = 0;
        let mut live: BTreeMap<Class, usize> = BTreeMap::new();
        let mut owned_stale: std::collections::HashSet<SlotId> = Default::default();
        scan.files.values().for_each(|file| owned_stale.extend(&file.stale));
        for (device, scanned) in (0u16..).zip(&scan.slabs) {
            let mut built = Vec::with_capacity(scanned.len());
            for (number, slab) in (0u32..).zip(scanned) {
                slots += slab.entries.len();
                let Some(purpose) = slab.purpose() else {
                    let mut unassigned = Slab::unassigned(slab.shape);
                    unassigned.withheld = slab.health == SlabHealth::Damaged;
                    built.push(unassigned);
                    continue;
                };
                let mut state = Slab::assigned(purpose, slab.epoch, slab.shape, slab.shelf.clone());
                if let Purpose::Data(class) = purpose {
                    let count = slab.entries.iter().filter(|entry| **entry == Entry::Live).count();
                    *live.entry(class).or_default() += count;
                }
                let virgin = slab.virgin_from();
                state.virgin_from = u32::try_from(virgin).expect("32-bit slots");
                for (slot, entry) in (0u32..).zip(&slab.entries[..virgin]) {
                    let id = SlotId { device: DeviceIndex(device), slab: number, slot };
                    let erase = match entry {
                        Entry::Blank => {
                            state.set_free(slot);
                            continue;
                        }
                        Entry::Stranger | Entry::Stale | Entry::Torn => true,
                        Entry::Suspect => !keep_suspects,
                        Entry::Live | Entry::Withheld => false,
                    };
                    state.set_used();
                    if erase {
                        state.begin_erase(slot);
                    }
                    if erase && !owned_stale.contains(&id) {
                        erasures.push_back(match purpose {
                            Purpose::Records => Erasure::Stray { slot: id },
                            Purpose::Data(_) => Erasure::Descriptor { slot: id, epoch: slab.epoch },
                        });
                    }
                }
                built.push(state);
            }
            slabs.push(built);
        }
        let mut evictor = Evictor::new(slots);
        for (class, count) in live {
            evictor.expect_many(class, count);
        }
        let devices = (0u16..).zip(slabs.into_iter().zip(&scan.layouts));
        let devices = devices.map(|(index, (slabs, layout))| {
            DeviceSpace::new(DeviceIndex(index), *layout, Arc::clone(&scan.holdings), slabs)
        });
        let absent = !scan.absent.is_empty() && !bugs::is(Bug::AbsentForgotten);
        let keep_tombstones =
            absent || scan.findings.unreadable_entries + scan.findings.damaged_slabs > 0;
        Self {
            tier,
            space: Space::new(devices.collect()),
            evictor,
            book: RecordBook::new(keep_tombstones),
            erasures,
            dirty: 0,
            unfinished: Unfinished::default(),
        }
    }

    fn add_file(&mut self, scan: &Scan, id: FileId, mut file: FileScan) {
        let quarantined = file.is_quarantined();
        let Some(record) = file.record.take() else { return };
        let older = devices_of(&file.stale);
        for slot in &file.stale {
            self.book.add_stale(id, DeviceSet::of(slot.device));
            if !file.lost_record {
                self.erasures.push_back(Erasure::Record { slot: *slot, file: id });
            }
        }
        if file.lost_record {
            // Its slot is never erased, so that it stays as evidence.
            self.book.add_stale(id, DeviceSet::default());
        }
        let newest = devices_of(&file.slots);
        let copies = [file.slots.first().copied(), file.slots.get(1).copied()];
        for slot in self.book.replace(id, copies, record.tombstone) {
            self.space.begin_erase(slot);
            self.erasures.push_back(Erasure::Record { slot, file: id });
        }
        self.book.note_known(id, !record.is_blind());
        // One device has it, and two should: it is newer than what stands elsewhere, or is to be kept
        // twice.
        let lonely = newest.count() < 2 && scan.superblocks.len() - scan.absent.count() > 1;
        let unfinished = lonely && (record.dirty && record.twice || !older.is_within(newest));
        // What it won over has a higher sequence, and goes only once it has a higher one.
        let unfinished = unfinished || file.in_conflict;
        if record.tombstone {
            self.unfinished.tombstone |= unfinished;
            return;
        }
        if unfinished && !quarantined {
            self.unfinished.files.push(id);
        } else if record.dirty && !quarantined && copies[1].is_none() {
            let refresh = Operation::Record(id, RecordOperation::Refresh(Done::ignore()));
            self.tier.queue.lock().operations.push_back(refresh);
        }
        self.add_generation(scan, id, record, quarantined, (&file.extents, &file.copies));
    }

    fn add_generation(
        &mut self,
        scan: &Scan,
        id: FileId,
        record: FileRecord,
        quarantined: bool,
        (extents, copies): (&[FoundExtent], &[FoundExtent]),
    ) {
        let shape = GenerationShape {
            number: record.generation,
            attempt: record.attempt,
            length: record.length,
            extent_bytes: record.extent_bytes,
            extents_written: record.extents_written,
            written: record.written,
            twice: record.twice,
            blind: record.blind,
        };
        let marked = record.mark == Some(Mark::Quarantined);
        let facts = Facts {
            state: if record.dirty { State::Dirty } else { State::Clean },
            mark: if quarantined { Some(Mark::Quarantined) } else { record.mark },
            source: record.source,
        };
        self.dirty += u64::from(record.dirty);
        self.tier.count(&facts, record.length);
        let pins: Arc<Pins> = Arc::default();
        let generation = FileGeneration::new(id, shape, Arc::clone(&pins), facts);
        generation.insert_all(extents.iter().map(|found| {
            let shelf = scan.slab(found.slot).shelf.as_ref().expect("data slabs have shelves");
            (found.index, shelf.hold(found.slot.slot))
        }));
        for found in extents {
            let ticket = self.space.occupy(found.slot, &generation, found.index);
            if let (false, Some(Purpose::Data(class))) =
                (record.dirty, scan.slab(found.slot).purpose())
            {
                self.evictor.admit(class, (id, found.index), ticket, &self.space);
            }
        }
        for found in copies {
            let shelf = scan.slab(found.slot).shelf.as_ref().expect("data slabs have shelves");
            generation.insert_copy(found.index, shelf.hold(found.slot.slot));
            self.space.occupy(found.slot, &generation, found.index);
        }
        if record.dirty && record.twice && copies.len() < extents.len() {
            self.tier.note_missing_copy(&generation);
        }
        if quarantined && !marked && !scan.absent.is_empty() {
            self.tier.note_waiting(&generation);
        }
        let file = File::new(id, record.name, pins, generation);
        self.tier.index.write().insert(&file);
    }
}

fn devices_of(slots: &[SlotId]) -> DeviceSet {
    slots.iter().fold(DeviceSet::default(), |all, slot| all.union(DeviceSet::of(slot.device)))
}
