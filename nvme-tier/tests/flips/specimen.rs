//! A small tier with clean and dirty files, and what may be found after it was damaged.

use std::ops::Range;

use extent::{ExtentIndex, FileName};
use forebay_nvme_tier::device::Location;
use forebay_nvme_tier::device::sim::{Image, SimDisk, SimOptions};
use forebay_nvme_tier::{FileGeneration, Mark, State};

use super::common::{EXTENT, Rig, name, small_disk, small_format};

/// What a stretch of the device holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Superblock,
    Header,
    DirtyRecord,
    CleanRecord,
    DirtyDescriptor,
    CleanDescriptor,
    Free,
    Data,
}

/// A stretch of the device.
#[derive(Clone, Debug)]
pub(crate) struct Area {
    pub(crate) kind: Kind,
    bytes: Range<u64>,
}

impl Area {
    pub(crate) fn bits(&self) -> Range<u64> {
        self.bytes.start * 8..self.bytes.end * 8
    }
}

const BLOCK_BYTES: u32 = 512;
const SLABS: u64 = 4;
const SLAB_BYTES: u64 = 256 << 10;
const FIRST_SLAB: u64 = 1 << 20;
const CLEAN_LENGTH: u64 = EXTENT + 9000;
const DIRTY_LENGTH: u64 = EXTENT + 5000;

/// See the module. The dirty file was written twice: its older bytes are of seed 1.
pub(crate) struct Specimen {
    sim: SimOptions,
    image: Image,
    /// Where the dirty file's extents lie, and how many bytes of them.
    dirty_data: Vec<(Location, usize)>,
}

impl Specimen {
    pub(crate) fn new() -> Self {
        let sim = small_disk(SLABS, 1, BLOCK_BYTES, 5);
        let mut rig = Rig::new(sim, &small_format());
        let file = rig.register(&clean(), CLEAN_LENGTH, "v").expect("registers");
        (0..2).for_each(|index| rig.fill(&file, index, 7).expect("fills"));
        drop(file);
        for seed in [1, 2] {
            drop(rig.write_file(&dirty(), DIRTY_LENGTH, &[], seed).expect("commits"));
            rig.settle();
        }
        let newest = rig.find(&dirty()).expect("known").newest();
        let extents = (0..2).map(|index| newest.extent(ExtentIndex(index)).expect("resident"));
        let dirty_data = extents.map(|extent| (extent.at(), extent.length() as usize)).collect();
        let image = rig.disk.durable_image().remove(0);
        Self { sim, image, dirty_data }
    }

    pub(crate) fn disk(&self) -> SimDisk {
        SimDisk::from_images(self.sim, vec![self.image.clone()])
    }

    /// Whether a byte looks like what fills the unused rest of records.
    pub(crate) fn is_padding(&self, byte: u64) -> bool {
        let mut found = [0];
        self.image.read(byte, &mut found);
        found[0] == forebay_nvme_tier::codec::PAD
    }

    /// Where what stands, found by the magic bytes and, for whose it is, the ids in it.
    pub(crate) fn areas(&self, kind: Kind) -> Vec<Area> {
        let mut found = vec![area(Kind::Superblock, 0, 512), area(Kind::Superblock, 64 << 10, 512)];
        for slab in (0..SLABS).map(|slab| FIRST_SLAB + slab * SLAB_BYTES) {
            let mut head = [0; 4];
            self.image.read(slab, &mut head);
            if head != *b"4bSH" {
                continue;
            }
            found.push(area(Kind::Header, slab, 512));
            found.push(area(Kind::Header, slab + 4096, 512));
            let mut class = [0; 8];
            self.image.read(slab + 40, &mut class);
            self.entries(slab, u64::from_le_bytes(class), &mut found);
        }
        found.into_iter().filter(|area| area.kind == kind).collect()
    }

    fn entries(&self, slab: u64, class: u64, found: &mut Vec<Area>) {
        let stride = if class == 0 { 2048 } else { 512 };
        let room = SLAB_BYTES - 8192;
        let slots = room / (class + stride);
        let data = slab + 8192 + (slots * stride).next_multiple_of(4096);
        for slot in 0..slots {
            let at = slab + 8192 + slot * stride;
            let mut head = [0; 128];
            self.image.read(at, &mut head);
            // Both lay their file's id down, each at its place.
            let id_at = if class == 0 { 48 } else { 56 };
            let id = head[id_at..id_at + 16].to_vec();
            let is_dirty = id == dirty().id().0.to_le_bytes();
            let kind = match (&head[..4], is_dirty) {
                (b"4bFR", true) => Kind::DirtyRecord,
                (b"4bFR", false) => Kind::CleanRecord,
                (b"4bED", true) => Kind::DirtyDescriptor,
                (b"4bED", false) => Kind::CleanDescriptor,
                _ => Kind::Free,
            };
            found.push(area(kind, at, stride));
            if matches!(kind, Kind::DirtyDescriptor | Kind::CleanDescriptor) {
                found.push(area(Kind::Data, data + slot * class, 4096));
            }
        }
    }

    /// Recovers, and judges what is found; then again after new work and another start.
    pub(crate) fn judge(&self, disk: SimDisk, kind: Kind, thorough: bool) -> Result<(), String> {
        let rig = Rig::on(disk).map_err(|error| format!("no recovery: {error}"))?;
        let before = observe(&rig, kind, "at the start", &[2])?;
        if !thorough {
            return Ok(());
        }
        let mut rig = rig;
        rig.tier.allow_eviction();
        rig.settle();
        if observe(&rig, kind, "after cleaning up", &[2])? != before {
            return Err("cleaning up changed what there is".to_owned());
        }
        // The written file once more, and a process that ends before the older record is erased.
        let mut seeds: &[u64] = &[2];
        if before == Found::Whole {
            rig.write_file(&dirty(), DIRTY_LENGTH, &[], 3).map_err(|e| format!("writing: {e}"))?;
            seeds = &[3];
            rig = rig.restart();
            rig.tier.allow_eviction();
            observe(&rig, kind, "after one more write", seeds)?;
        }
        // Whatever is free is written over.
        let mut number = 0;
        while rig.write_file(&name(&format!("t/{number}")), EXTENT, &[], 99).is_ok() {
            number += 1;
        }
        rig.settle();
        let rig = rig.restart();
        if observe(&rig, kind, "after another start", seeds)? != before {
            return Err("another start found something else".to_owned());
        }
        if before != Found::Whole && !self.is_kept(&rig.disk) {
            return Err("what is left of the dirty file was written over".to_owned());
        }
        Ok(())
    }

    /// Something of the dirty file, or all that tells of it, is gone: that is reported at each start,
    /// its bytes stay where they are, and none of another's are served for them.
    pub(crate) fn judge_lost(&self, disk: SimDisk) -> Result<(), String> {
        let mut rig = Rig::on(disk).map_err(|error| format!("no recovery: {error}"))?;
        for start in 0..3 {
            let findings = rig.report.findings;
            let told = rig.report.quarantined.contains(&dirty())
                || findings.nameless_records + findings.damaged_slabs > 0;
            if !told {
                return Err(format!("start {start}: not reported: {:?}", rig.report));
            }
            if let Some(file) = rig.find(&dirty()) {
                check_extents(&rig, &file.newest(), &[2])?;
            }
            rig.tier.allow_eviction();
            rig.settle();
            let mut number = 0;
            while rig.write_file(&name(&format!("t{start}/{number}")), EXTENT, &[], 99).is_ok() {
                number += 1;
            }
            rig.settle();
            if !self.is_kept(&rig.disk) {
                return Err(format!("start {start}: what is left was written over"));
            }
            rig = rig.restart();
        }
        Ok(())
    }

    /// Whether all of the dirty file's bytes are still where they were.
    fn is_kept(&self, disk: &SimDisk) -> bool {
        self.dirty_data.iter().all(|(at, bytes)| {
            let mut was = vec![0; *bytes];
            self.image.read(at.offset, &mut was);
            disk.peek(*at, *bytes) == was
        })
    }

    /// Whether the damage to an area of data is noticed when it is read. Never a wrong byte.
    pub(crate) fn notices_damage(&self, disk: SimDisk, area: &Area) -> bool {
        let rig = Rig::on(disk).expect("only data is damaged");
        let slot = |found: &forebay_nvme_tier::Extent| {
            let bytes = u64::from(found.length());
            (found.at().offset..found.at().offset + bytes).contains(&area.bytes.start)
        };
        for (file, seed) in [(clean(), 7), (dirty(), 2)] {
            let newest = rig.find(&file).expect("its metadata is whole").newest();
            for index in 0..2 {
                let found = newest.extent(ExtentIndex(index)).expect("resident");
                if slot(&found) {
                    return rig.read(&newest, &found).is_none();
                }
                assert!(rig.holds(&newest, index, seed), "the others are as they were");
            }
        }
        // An older extent's place: nothing depends on it.
        true
    }
}

/// How the dirty file was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Whole,
    Quarantined { extents: u32 },
}

fn observe(rig: &Rig, kind: Kind, when: &str, seeds: &[u64]) -> Result<Found, String> {
    if let Some(file) = rig.find(&clean()) {
        let newest = file.newest();
        check_extents(rig, &newest, &[7])
            .map_err(|what| format!("{when}: the clean file: {what}"))?;
        let costs = matches!(kind, Kind::CleanDescriptor | Kind::CleanRecord);
        if !costs && newest.resident_extents() != 2 && when == "at the start" {
            return Err(format!("{when}: the clean file lost an extent"));
        }
    } else if kind != Kind::CleanRecord {
        return Err(format!("{when}: the clean file was forgotten"));
    }
    let file = rig.find(&dirty()).ok_or(format!("{when}: the dirty file is gone"))?;
    let newest = file.newest();
    let extents = check_extents(rig, &newest, seeds)
        .map_err(|what| format!("{when}: the dirty file: {what}"))?;
    if newest.state() != State::Dirty {
        return Err(format!("{when}: the dirty file is clean"));
    }
    let whole = extents == 2 && newest.mark().is_none();
    let quarantined = newest.mark() == Some(Mark::Quarantined);
    let reported = rig.report.quarantined.contains(&dirty());
    match kind {
        _ if whole => Ok(Found::Whole),
        Kind::DirtyDescriptor if quarantined && reported && extents == 1 => {
            Ok(Found::Quarantined { extents })
        }
        _ => Err(format!(
            "{when}: the dirty file has {extents} extents, is marked {:?}, reported {reported}",
            newest.mark()
        )),
    }
}

/// Every extent that is there holds the bytes of one of the seeds.
fn check_extents(rig: &Rig, generation: &FileGeneration, seeds: &[u64]) -> Result<u32, String> {
    let here = (0..2).filter(|index| generation.extent(ExtentIndex(*index)).is_some());
    for index in here.clone() {
        if !seeds.iter().any(|seed| rig.holds(generation, index, *seed)) {
            return Err(format!("extent {index} holds wrong bytes"));
        }
    }
    Ok(u32::try_from(here.count()).expect("two at most"))
}

const fn area(kind: Kind, start: u64, bytes: u64) -> Area {
    Area { kind, bytes: start..start + bytes }
}

fn clean() -> FileName {
    name("s/clean")
}

fn dirty() -> FileName {
    name("s/dirty")
}
