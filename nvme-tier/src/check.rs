use std::collections::HashSet;
use std::sync::atomic::Ordering;

use dma::Pool;
use extent::checksum::crc32c_blocks;
use extent::{ExtentIndex, FileName, Result};

use crate::checksums::ChecksumMemory;
use crate::codec::{Descriptor, FileRecord, Found};
use crate::device::{Device, Location};
use crate::layout::to_usize;
use crate::ledger::io::DeviceSet;
use crate::reader::{DeviceReader, Piece};
use crate::scan::{Findings, FoundExtent, Scan};

/// What an offline check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Files known.
    pub files: u64,
    /// Extents whose data was read and compared with its checksums.
    pub extents: u64,
    /// Bytes read for that.
    pub bytes: u64,
    /// What is wrong with superblocks, headers, records and descriptors.
    pub findings: Findings,
    /// Dirty files that miss a record or an extent.
    pub quarantined: Vec<FileName>,
    /// Extents whose data does not match, up to 1000 of them.
    pub bad_extents: Vec<BadExtent>,
    /// How many extents do not match.
    pub bad_extent_count: u64,
}

/// An extent whose data does not match its checksums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadExtent {
    /// Its file.
    pub name: FileName,
    /// Which extent of it.
    pub index: ExtentIndex,
    /// Where its slot begins.
    pub at: Location,
    /// Whether it exists nowhere else.
    pub dirty: bool,
}

/// An extent, under its record, and where its data begins.
type Checked<'a> = (&'a FileRecord, &'a FoundExtent, Location);

/// Rows of so many checksums are kept from the scan.
const BESIDE: u32 = 16;
/// Extents whose other checksums are in memory together: at most 256 MiB of them.
const GROUP: usize = 4096;
/// The most extents that a report names.
const NAMED: usize = 1000;

impl CheckReport {
    /// Whether nothing that matters is wrong. Torn and stale entries are what a power cut leaves,
    /// and one good superblock and header of two are enough.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.bad_extent_count == 0
            && self.quarantined.is_empty()
            && self.findings.damaged_slabs == 0
            && self.findings.damaged_records == 0
            && self.findings.damaged_descriptors == 0
            && self.findings.unreadable_entries == 0
    }
}

/// Verifies every record, descriptor and data block of a tier that is not running. Writes nothing.
/// `progress` is called with the data bytes done and all there are.
///
/// # Errors
/// As [`crate::recover`]; what is damaged is counted, not an error.
pub fn check(
    device: &mut dyn Device,
    pool: &Pool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport> {
    // What does not lie beside its slot is read a second time, a group of extents after the other.
    let checksums = ChecksumMemory::new(0, BESIDE);
    let mut scan = Scan::read(device, pool, checksums, DeviceSet::default())?;
    scan.drop_duplicates();
    let mut report = CheckReport {
        quarantined: scan.quarantined(),
        findings: scan.findings,
        ..CheckReport::default()
    };
    let mut extents: Vec<Checked<'_>> = Vec::new();
    for file in scan.files.values() {
        let Some(record) = file.record.as_ref().filter(|record| !record.tombstone) else {
            continue;
        };
        report.files += 1;
        let copies = file.extents.iter().chain(&file.copies);
        extents.extend(copies.map(|e| (record, e, scan.data_at(e.slot))));
    }
    // In the order in which they lie on the devices.
    extents.sort_unstable_by_key(|(_, _, at)| (at.device, at.offset));
    report.extents = extents.len() as u64;
    let block = u64::from(scan.layouts[0].checksum_block_bytes);
    let total = extents
        .iter()
        .map(|(r, e, _)| u64::from(r.extent_length(e.index)).next_multiple_of(block))
        .sum();
    let mut bad: HashSet<u64> = HashSet::new();
    let mut reader = DeviceReader::new(device, pool)?;
    let mut number = 0u64;
    for group in extents.chunks(GROUP) {
        let sums = read_sums(&mut reader, &scan, group)?;
        let mut pieces = Vec::with_capacity(group.len());
        for (number, (record, extent, at)) in (number..).zip(group) {
            let bytes = u64::from(record.extent_length(extent.index)).next_multiple_of(block);
            pieces.push(reader.pieces(*at, bytes, block, number));
        }
        reader.read(pieces.into_iter().flatten(), |piece, bytes| {
            let (_, _, at) = &extents[to_usize(piece.tag)];
            let sums = sums[to_usize(piece.tag - number)].as_deref();
            let first = to_usize((piece.at.offset - at.offset) / block);
            let holds = |bytes: &[u8]| sums.is_some_and(|sums| holds(sums, first, block, bytes));
            if !bytes.is_ok_and(holds) {
                bad.insert(piece.tag);
            }
            report.bytes += piece.bytes;
            progress(report.bytes, total);
        })?;
        number += group.len() as u64;
    }
    let mut bad: Vec<u64> = bad.into_iter().collect();
    bad.sort_unstable();
    report.bad_extent_count = bad.len() as u64;
    report.bad_extents = bad
        .into_iter()
        .take(NAMED)
        .map(|number| {
            let (record, extent, at) = &extents[to_usize(number)];
            let name = record.name.clone();
            BadExtent { name, index: extent.index, at: *at, dirty: record.dirty }
        })
        .collect();
    Ok(report)
}

/// The checksums of some extents; `None` where a descriptor cannot be read any more.
fn read_sums(
    reader: &mut DeviceReader<'_>,
    scan: &Scan,
    extents: &[Checked<'_>],
) -> Result<Vec<Option<Vec<u32>>>> {
    let mut sums: Vec<Option<Vec<u32>>> = vec![None; extents.len()];
    let mut pieces = Vec::new();
    for (number, (record, extent, _)) in extents.iter().enumerate() {
        let Some(shelf) = &scan.slab(extent.slot).shelf else { continue };
        let block = shelf.shape().checksum_block_bytes;
        let blocks = record.extent_length(extent.index).div_ceil(block);
        match shelf.beside(extent.slot.slot, blocks) {
            Some(beside) => {
                sums[number] = Some(beside.iter().map(|s| s.load(Ordering::Relaxed)).collect());
            }
            None => {
                let at = shelf.descriptor_place(extent.slot.slot).at;
                let bytes = Descriptor::bytes(shelf.shape().stride, blocks as usize) as u64;
                pieces.push(Piece { at, bytes, unit: bytes, tag: number as u64 });
            }
        }
    }
    reader.read(pieces, |piece, bytes| {
        let (_, extent, _) = &extents[to_usize(piece.tag)];
        let Some(shelf) = &scan.slab(extent.slot).shelf else { return };
        let place = shelf.descriptor_place(extent.slot.slot);
        let found = bytes.map(|b| Descriptor::decode(&place, shelf.shape().block_bytes, b));
        if let Ok(Found::Sound((_, found))) = found {
            sums[to_usize(piece.tag)] = Some(found.into_vec());
        }
    })?;
    Ok(sums)
}

/// Whether bytes match checksums from a block on.
fn holds(expected: &[u32], first: usize, block: u64, bytes: &[u8]) -> bool {
    let sums = crc32c_blocks(bytes, to_usize(block));
    expected
        .get(first..first + sums.len())
        .is_some_and(|expected| sums.eq(expected.iter().copied()))
}
