use std::collections::HashSet;
use std::sync::atomic::Ordering;

use dma::Pool;
use extent::checksum::crc32c_blocks;
use extent::{ExtentIndex, FileName, Result};

use crate::codec::FileRecord;
use crate::device::{Device, Location};
use crate::layout::to_usize;
use crate::ledger::io::DeviceSet;
use crate::reader::DeviceReader;
use crate::scan::{Findings, FoundExtent, Scan};
use crate::shelf::Shelf;

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
    let mut scan = Scan::read(device, pool, DeviceSet::default())?;
    scan.drop_duplicates();
    let mut report = CheckReport {
        quarantined: scan.quarantined(),
        findings: scan.findings,
        ..CheckReport::default()
    };
    let mut extents: Vec<(&FileRecord, &FoundExtent, Location)> = Vec::new();
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
    let mut pieces = Vec::with_capacity(extents.len());
    for (number, (record, extent, at)) in (0u64..).zip(&extents) {
        let bytes = u64::from(record.extent_length(extent.index)).next_multiple_of(block);
        pieces.push(reader.pieces(*at, bytes, block, number));
    }
    reader.read(pieces.into_iter().flatten(), |piece, bytes| {
        let (_, extent, at) = &extents[to_usize(piece.tag)];
        let shelf = scan.slab(extent.slot).shelf.as_ref();
        let holds = |bytes: &[u8]| {
            let first = (piece.at.offset - at.offset) / block;
            shelf.is_some_and(|shelf| holds(shelf, extent.slot.slot, first, block, bytes))
        };
        if !bytes.is_ok_and(holds) {
            bad.insert(piece.tag);
        }
        report.bytes += piece.bytes;
        progress(report.bytes, total);
    })?;
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

/// Whether bytes match the checksums of a slot from a block on.
fn holds(shelf: &Shelf, slot: u32, first: u64, block: u64, bytes: &[u8]) -> bool {
    let sums = crc32c_blocks(bytes, to_usize(block));
    let first = to_usize(first);
    let until = u32::try_from(first + sums.len()).expect("bounded by the largest slot");
    let expected = &shelf.checksums(slot, until)[first..];
    sums.zip(expected).all(|(found, expected)| found == expected.load(Ordering::Relaxed))
}
