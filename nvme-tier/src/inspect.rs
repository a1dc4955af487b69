use std::collections::BTreeMap;

use dma::Pool;
use extent::{FileName, Generation, Result, SourceVersion};

use crate::checksums::ChecksumMemory;
use crate::codec::{Mark, TierId};
use crate::device::Device;
use crate::layout::Purpose;
use crate::ledger::io::DeviceSet;
use crate::scan::{Entry, Findings, Scan, SlabHealth};

/// What a tier holds, as its devices say while it is not running.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// The random number it got when it was formatted.
    pub tier: TierId,
    /// Bytes of a slab.
    pub slab_bytes: u64,
    /// Bytes of a full extent of new files.
    pub extent_bytes: u64,
    /// Bytes that one checksum covers.
    pub checksum_block_bytes: u32,
    /// Bytes of the smallest slot.
    pub min_class_bytes: u64,
    /// Bytes of the largest slot.
    pub max_class_bytes: u64,
    /// Attempts, epochs and sequences below this may be in use.
    pub id_limit: u64,
    /// The devices, in order.
    pub devices: Vec<InspectedDevice>,
    /// The files, by name.
    pub files: Vec<InspectedFile>,
    /// What is not as it should be.
    pub findings: Findings,
}

/// One device of a tier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InspectedDevice {
    /// Bytes of it.
    pub capacity_bytes: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// Slabs free for anything.
    pub unassigned_slabs: u32,
    /// Slabs that are not touched because both of their headers are damaged.
    pub damaged_slabs: u32,
    /// Slabs of file records.
    pub record_slabs: u32,
    /// Records and tombstones in them, and how many there could be.
    pub records: (u64, u64),
    /// Slot size in bytes → slabs, extents in them, slots in them.
    pub classes: BTreeMap<u64, (u32, u64, u64)>,
}

/// One file of a tier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InspectedFile {
    /// Its name.
    pub name: FileName,
    /// Its newest committed generation.
    pub generation: Generation,
    /// Bytes of it.
    pub length: u64,
    /// Whether the silo does not have it.
    pub dirty: bool,
    /// What is wrong with it.
    pub mark: Option<Mark>,
    /// Clean: the silo's version that it equals. Dirty: what it was based on.
    pub source: Option<SourceVersion>,
    /// Extents on the tier.
    pub resident_extents: u64,
    /// File bytes in them.
    pub resident_bytes: u64,
}

/// Reads what a tier holds. Writes nothing.
///
/// # Errors
/// As [`crate::recover`].
pub fn inspect(device: &mut dyn Device, pool: &Pool) -> Result<Inspection> {
    let checksums = ChecksumMemory::new(0, 0);
    let mut scan = Scan::read(device, pool, checksums, DeviceSet::default())?;
    scan.drop_duplicates();
    let first = scan.superblocks[0].0;
    Ok(Inspection {
        tier: first.tier,
        slab_bytes: first.slab_bytes,
        extent_bytes: first.extent_bytes,
        checksum_block_bytes: first.checksum_block_bytes,
        min_class_bytes: first.min_class_bytes,
        max_class_bytes: first.max_class_bytes,
        id_limit: scan.superblocks.iter().map(|(s, _)| s.id_limit).max().unwrap_or(0),
        devices: (0..scan.superblocks.len()).map(|device| inspect_device(&scan, device)).collect(),
        files: inspect_files(&scan),
        findings: scan.findings,
    })
}

fn inspect_device(scan: &Scan, index: usize) -> InspectedDevice {
    let superblock = scan.superblocks[index].0;
    let mut device = InspectedDevice {
        capacity_bytes: superblock.capacity_bytes,
        block_bytes: superblock.block_bytes,
        unassigned_slabs: 0,
        damaged_slabs: 0,
        record_slabs: 0,
        records: (0, 0),
        classes: BTreeMap::new(),
    };
    for slab in &scan.slabs[index] {
        let live = slab.entries.iter().filter(|entry| **entry == Entry::Live).count() as u64;
        let slots = u64::from(slab.shape.slots);
        match slab.health {
            SlabHealth::Unassigned => device.unassigned_slabs += 1,
            SlabHealth::Damaged => device.damaged_slabs += 1,
            SlabHealth::Sound(Purpose::Records) | SlabHealth::OneHeader(Purpose::Records) => {
                device.record_slabs += 1;
                device.records = (device.records.0 + live, device.records.1 + slots);
            }
            SlabHealth::Sound(Purpose::Data(class))
            | SlabHealth::OneHeader(Purpose::Data(class)) => {
                let sums = device.classes.entry(class.bytes()).or_default();
                *sums = (sums.0 + 1, sums.1 + live, sums.2 + slots);
            }
        }
    }
    device
}

fn inspect_files(scan: &Scan) -> Vec<InspectedFile> {
    let mut files = Vec::with_capacity(scan.files.len());
    for file in scan.files.values() {
        let Some(record) = file.record.as_ref().filter(|record| !record.tombstone) else {
            continue;
        };
        files.push(InspectedFile {
            name: record.name.clone(),
            generation: record.generation,
            length: record.length,
            dirty: record.dirty,
            mark: if file.is_quarantined() { Some(Mark::Quarantined) } else { record.mark },
            source: record.source.clone(),
            resident_extents: file.extents.len() as u64,
            resident_bytes: file
                .extents
                .iter()
                .map(|extent| u64::from(record.extent_length(extent.index)))
                .sum(),
        });
    }
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    files
}
