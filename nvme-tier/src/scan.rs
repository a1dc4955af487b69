//! What stands on the devices, read in order: superblocks, slab headers, records, descriptors.
//! Recovery, inspection and the offline check all begin here; nothing is written.

mod slabs;
mod tables;

use std::sync::Arc;

use dma::Pool;
use extent::{ExtentIndex, FileId, FileName, Kind, Result};

use crate::bugs::{self, Bug};
use crate::checksums::ChecksumMemory;
use crate::codec::{FileRecord, Place, SUPERBLOCK_BYTES, Superblock, seal_of};
use crate::device::{Device, DeviceIndex, Location};
use crate::hash::IdMap;
use crate::holdings::{Holdings, SlotId};
use crate::layout::{self, Class, Layout, PAGE_BYTES, RECORD_BYTES, SUPERBLOCK_OFFSETS};
use crate::ledger::io::DeviceSet;
use crate::reader::{DeviceReader, Piece};

pub(crate) use slabs::{SlabHealth, SlabScan};

/// All that was found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// The newest superblock of each device, and which of the two places the next one goes to.
    pub(crate) superblocks: Vec<(Superblock, usize)>,
    pub(crate) layouts: Vec<Layout>,
    pub(crate) slabs: Vec<Vec<SlabScan>>,
    pub(crate) files: IdMap<FileScan>,
    /// The files as they were come across; some of them twice.
    pub(crate) order: Vec<FileId>,
    pub(crate) findings: Findings,
    /// What the shelves of the slabs belong to.
    pub(crate) holdings: Arc<Holdings>,
    /// Damaged records of something dirty whose name is not legible.
    nameless: Vec<Nameless>,
    /// A record of something dirty may be missing: descriptors under no record are kept.
    keep_orphans: bool,
    /// Devices that are not there.
    pub(crate) absent: DeviceSet,
}

/// What a damaged record still says, as far as that can be believed.
#[derive(Clone, Copy, Debug)]
struct Nameless {
    file: FileId,
    sequence: u64,
    slot: SlotId,
}

/// The records of one file, and the extents that count under the newest.
#[derive(Debug, Default)]
pub(crate) struct FileScan {
    /// The newest.
    pub(crate) record: Option<FileRecord>,
    /// Where it stands.
    pub(crate) slots: Vec<SlotId>,
    /// Where older ones stand.
    pub(crate) stale: Vec<SlotId>,
    /// Damaged ones whose name is still legible.
    damaged: Vec<DamagedRecord>,
    /// The newest that was not made blind, if it is older than the newest of all.
    sighted: Option<Box<SightedRecord>>,
    /// The record that counts is dirty, and was to be replaced by one that was made blind.
    pub(crate) in_conflict: bool,
    /// A damaged dirty record is newer than any sound one: nothing of the file is touched.
    pub(crate) lost_record: bool,
    pub(crate) extents: Vec<FoundExtent>,
    /// Second copies of some, if it was committed twice and is dirty.
    pub(crate) copies: Vec<FoundExtent>,
    /// Its number among the files, for those who note what they find of it.
    number: u32,
}

/// A record that is older than one that was made without knowing it.
#[derive(Debug)]
struct SightedRecord {
    record: FileRecord,
    slots: Vec<SlotId>,
}

/// A damaged record whose name is still legible. What else it says may be what is damaged.
#[derive(Debug)]
struct DamagedRecord {
    record: FileRecord,
    slot: SlotId,
    place: Place,
    /// The CRC32C that it had when it was whole.
    seal: u32,
}

impl DamagedRecord {
    /// Whether it said what `sound` says before it was damaged: then nothing is lost with it,
    /// whatever sequence it seems to have now.
    fn was_copy_of(&self, sound: &FileRecord) -> bool {
        let mut bytes = [0; RECORD_BYTES];
        sound.encode(&self.place, &mut bytes);
        seal_of(&bytes) == self.seal && !bugs::is(Bug::DamagedCopyIsNewer)
    }
}

/// A descriptor that counts.
#[derive(Debug)]
pub(crate) struct FoundExtent {
    pub(crate) index: ExtentIndex,
    pub(crate) sequence: u64,
    /// Its checksums are on the slab's shelf, unless there was no room for them.
    pub(crate) slot: SlotId,
}

/// What an entry of a slab turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// Erased: the slot is free.
    Blank,
    /// Never used in this epoch: it holds whatever was there before.
    Stranger,
    /// It counts.
    Live,
    /// A file's older record, or a descriptor under no record: to be erased.
    Stale,
    /// Half written or half erased: to be erased.
    Torn,
    /// Damaged, and perhaps part of something dirty.
    Suspect,
    /// The device could not read it, or it is damaged evidence: not touched.
    Withheld,
}

/// Counts of what is not as it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// Superblocks that do not hold. One of the two of a device may be.
    pub bad_superblocks: u64,
    /// Slabs of which one header is missing, older or damaged. Repaired at start.
    pub repaired_slabs: u64,
    /// Slabs both of whose headers are damaged or unreadable: nothing in them is touched.
    pub damaged_slabs: u64,
    /// Records and descriptors half written or half erased when the power went. Harmless.
    pub torn_entries: u64,
    /// Records and descriptors that nothing refers to any more. Harmless.
    pub stale_entries: u64,
    /// Records that were damaged after they were written.
    pub damaged_records: u64,
    /// Descriptors that were damaged after they were written.
    pub damaged_descriptors: u64,
    /// Records of dirty files that are damaged so that their names cannot be told, with no sound
    /// copy: nothing on the tier that may belong to them is freed.
    pub nameless_records: u64,
    /// Records and descriptors that the device could not read.
    pub unreadable_entries: u64,
    /// Extents of dirty files that were committed on two devices and are on one.
    pub missing_copies: u64,
    /// Dirty files that were registered anew while the device was absent that has their records. What
    /// was written here is kept, and marked as a conflict.
    pub conflicts: u64,
}

impl Scan {
    /// Reads all of it. Checksums of what is clean are kept as far as there is memory for them.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if a device is not formatted; [`Kind::Invalid`] if the devices are not
    /// those of one tier, in order and complete; [`Kind::Corrupt`] if no superblock of a device
    /// holds although there was one; [`Kind::Io`].
    pub(crate) fn read(
        device: &mut dyn Device,
        pool: &Pool,
        checksums: ChecksumMemory,
        absent: DeviceSet,
    ) -> Result<Self> {
        let mut reader = DeviceReader::new(device, pool)?;
        let mut findings = Findings::default();
        let superblocks = read_superblocks(&mut reader, absent, &mut findings)?;
        let mut layouts = Vec::with_capacity(superblocks.len());
        let present = superblocks.iter().find(|(found, _)| !is_in(absent, found));
        let first = present.map(|(first, _)| *first).ok_or_else(|| {
            Kind::Invalid.error("a tier without any of its devices: name one that is there")
        })?;
        for (superblock, _) in &superblocks {
            let mut layout = layout_of(superblock, &first, &superblocks, &mut reader, absent)?;
            if is_in(absent, superblock) {
                // Nothing is known of it, and nothing is put there.
                layout.slab_count = 0;
            }
            layouts.push(layout);
        }
        let holdings = Arc::new(Holdings::new(superblocks[0].0.tier, checksums));
        let mut scan = Self {
            superblocks,
            layouts,
            slabs: Vec::new(),
            files: IdMap::default(),
            holdings,
            order: Vec::new(),
            findings,
            nameless: Vec::new(),
            keep_orphans: false,
            absent,
        };
        scan.read_headers(&mut reader)?;
        scan.read_records(&mut reader)?;
        scan.choose_records();
        scan.read_descriptors(&mut reader)?;
        Ok(scan)
    }

    pub(crate) fn tier(&self) -> crate::TierId {
        // The same for all.
        self.superblocks[0].0.tier
    }

    pub(crate) fn slab(&self, slot: SlotId) -> &SlabScan {
        &self.slabs[usize::from(slot.device.0)][slot.slab as usize]
    }

    pub(crate) fn slab_mut(&mut self, slot: SlotId) -> &mut SlabScan {
        &mut self.slabs[usize::from(slot.device.0)][slot.slab as usize]
    }

    pub(crate) fn set_entry(&mut self, slot: SlotId, entry: Entry) {
        self.slab_mut(slot).entries[slot.slot as usize] = entry;
    }

    /// Where a slot's data begins.
    pub(crate) fn data_at(&self, slot: SlotId) -> Location {
        let layout = &self.layouts[usize::from(slot.device.0)];
        let within = self.slab(slot).shape.slot_offset(slot.slot);
        Location { device: slot.device, offset: layout.slab_offset(slot.slab) + within }
    }

    /// Names of dirty files of which something is lost: `extents_written` says how many there
    /// were.
    pub(crate) fn quarantined(&self) -> Vec<FileName> {
        let mut names: Vec<FileName> = self
            .files
            .values()
            .filter(|file| file.is_quarantined())
            .filter_map(|file| file.record.as_ref().map(|record| record.name.clone()))
            .collect();
        names.sort_unstable();
        names
    }
}

impl FileScan {
    /// Whether something that only existed here is lost, now or at an earlier start.
    pub(crate) fn is_quarantined(&self) -> bool {
        let Some(record) = &self.record else { return false };
        let whole = record.extents_written as usize;
        let lonely = record.twice && self.copies.len() < whole && bugs::is(Bug::CopyForgotten);
        let missing = (self.extents.len() < whole || lonely) && !bugs::is(Bug::LostExtentUnnoticed);
        let marked = record.mark == Some(crate::Mark::Quarantined);
        !record.tombstone && (self.lost_record || record.dirty && (missing || marked))
    }
}

fn is_in(devices: DeviceSet, superblock: &Superblock) -> bool {
    devices.contains(DeviceIndex(superblock.device))
}

fn read_superblocks(
    reader: &mut DeviceReader<'_>,
    absent: DeviceSet,
    findings: &mut Findings,
) -> Result<Vec<(Superblock, usize)>> {
    let count = u16::try_from(reader.device().count()).unwrap_or(u16::MAX);
    let mut found: Vec<[Option<Superblock>; 2]> = vec![[None, None]; usize::from(count)];
    let mut traces = vec![false; usize::from(count)];
    let present = || (0..count).filter(|device| !absent.contains(DeviceIndex(*device)));
    let pieces = present().flat_map(|device| {
        (0u64..).zip(SUPERBLOCK_OFFSETS).map(move |(copy, offset)| Piece {
            at: Location { device: DeviceIndex(device), offset },
            bytes: PAGE_BYTES,
            unit: PAGE_BYTES,
            tag: copy,
        })
    });
    reader.read(pieces, |piece, bytes| {
        // What cannot be read may have been one.
        traces[usize::from(piece.at.device.0)] |=
            bytes.as_ref().map_or(true, |b| Superblock::is_trace(b));
        let superblock = bytes
            .ok()
            .and_then(|bytes| Superblock::decode(piece.at.offset, &bytes[..SUPERBLOCK_BYTES]));
        findings.bad_superblocks += u64::from(superblock.is_none());
        found[usize::from(piece.at.device.0)][usize::from(piece.tag != 0)] = superblock;
    })?;
    let choose = |index: u16| match (found[usize::from(index)][0], found[usize::from(index)][1]) {
        (Some(a), Some(b)) if a.sequence > b.sequence => Ok((a, 1)),
        (_, Some(b)) => Ok((b, 0)),
        (Some(a), None) => Ok((a, 1)),
        (None, None) if traces[usize::from(index)] => Err(Kind::Corrupt.error(format!(
            "both superblocks of device {index} are damaged: do not format it if anything on it is \
             dirty, but have it repaired, or start without it"
        ))),
        (None, None) => Err(Kind::NotFound.error(format!(
            "device {index} holds no tier: format it, or give the devices of a tier that exists"
        ))),
    };
    let chosen: Vec<(Superblock, usize)> = present().map(choose).collect::<Result<_>>()?;
    check_apart(&chosen)?;
    let mut chosen = chosen.into_iter();
    let Some(first) = chosen.as_slice().first().copied() else { return Ok(Vec::new()) };
    let placeholder = |device| {
        let unknown = Superblock { device, sequence: 0, id_limit: 0, without: 0, ..first.0 };
        (unknown, 0)
    };
    let all = (0..count).map(|device| {
        if absent.contains(DeviceIndex(device)) { Some(placeholder(device)) } else { chosen.next() }
    });
    Ok(all.flatten().collect())
}

/// Refuses devices of which each was used without the other: neither has what the other was told, and
/// ids were given twice.
fn check_apart(found: &[(Superblock, usize)]) -> Result<()> {
    for (one, _) in found {
        for (other, _) in found {
            if is_in(DeviceSet::from_bits(one.without), other)
                && is_in(DeviceSet::from_bits(other.without), one)
            {
                return Err(Kind::Invalid.error(format!(
                    "devices {} and {} were each used without the other, and files on them differ: \
                     start without one of them",
                    one.device, other.device
                )));
            }
        }
    }
    Ok(())
}

fn layout_of(
    superblock: &Superblock,
    first: &Superblock,
    all: &[(Superblock, usize)],
    reader: &mut DeviceReader<'_>,
    absent: DeviceSet,
) -> Result<Layout> {
    let device = DeviceIndex(superblock.device);
    let in_order = all.get(usize::from(device.0)).is_some_and(|(found, _)| found == superblock);
    if superblock.tier != first.tier || !in_order || usize::from(first.devices) != all.len() {
        return Err(Kind::Invalid.error(format!(
            "these {} devices are not all {} devices of tier {}, in the order they were formatted \
             in: check the configuration",
            all.len(),
            first.devices,
            first.tier
        )));
    }
    let geometry = reader.device().geometry(device);
    let fits = geometry.capacity_bytes >= superblock.capacity_bytes
        && geometry.block_bytes == superblock.block_bytes;
    if !fits && !is_in(absent, superblock) {
        return Err(Kind::Invalid.error(format!(
            "device {} was formatted with {} bytes in blocks of {}, and now has {} in blocks of {}",
            device.0,
            superblock.capacity_bytes,
            superblock.block_bytes,
            geometry.capacity_bytes,
            geometry.block_bytes
        )));
    }
    let classes = (Class::of(superblock.min_class_bytes), Class::of(superblock.max_class_bytes));
    let (Some(min_class), Some(max_class)) = classes else {
        return Err(Kind::Corrupt.error("a superblock with slot sizes that do not exist"));
    };
    Ok(Layout {
        block_bytes: superblock.block_bytes,
        slab_bytes: superblock.slab_bytes,
        slab_count: layout::slab_count(superblock.capacity_bytes, superblock.slab_bytes)?,
        checksum_block_bytes: superblock.checksum_block_bytes,
        min_class,
        max_class,
    })
}
