//! Bits rot and writes land elsewhere, on a tier at rest.
//!
//! Every sector of metadata gets a wrong bit, each in turn: what is dirty is there and right, or, if
//! it was one of its descriptors, quarantined; what is clean is right, or gone, or quarantined. And
//! records and descriptors that stood on the device at any moment turn up in other places, or in
//! their own under a later epoch: they change nothing.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::collections::HashSet;

use extent::FileName;
use forebay_nvme_tier::device::sim::{Event, FaultPlan, SimDisk, Survival};
use forebay_nvme_tier::device::{DeviceIndex, Location};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::{Rig, options_for, pool};
use crate::enumeration::{Failure, calmly};
use crate::model::{Content, Observed, Run, observe};
use crate::player::Beginnings;
use crate::workload::Workload;

const SECTOR: usize = 512;
const SLAB: u64 = 256 << 10;
const SLABS: u64 = 1 << 20;
const TABLE: u64 = 8 << 10;
/// What superblocks, headers, descriptors and records begin with.
const MAGICS: [&[u8]; 4] = [b"4bay", b"4bSH", b"4bED", b"4bFR"];

/// Damages the end of each workload in every way. How many ways there were.
pub fn damage_everything(workloads: &[Workload]) -> Result<u64, Failure> {
    let mut beginnings = Beginnings::default();
    let mut ways = 0;
    for (seed, workload) in (0..).zip(workloads) {
        let mut tried = 0;
        let outcome = calmly(|| {
            let run = beginnings.play(workload, FaultPlan::new());
            let mut rot = Rot::new(&run, seed)?;
            let outcome = rot.rot_every_sector().and_then(|()| rot.displace_everything());
            tried = rot.ways;
            outcome.map_err(|what| format!("{workload:?}: {what}\n{:#?}", run.changes))
        });
        ways += tried;
        outcome.map_err(|what| Failure { what, after: ways })?;
    }
    Ok(ways)
}

struct Rot<'a> {
    run: &'a Run,
    /// The tier at rest, all of it durable.
    disk: SimDisk,
    sound: Observed,
    pool: dma::Pool,
    rng: SmallRng,
    ways: u64,
}

impl<'a> Rot<'a> {
    fn new(run: &'a Run, seed: u64) -> Result<Self, String> {
        let mut recorder = run.recorder.clone();
        let disk = recorder.crash_at(recorder.moments(), &mut |_| Survival::Whole);
        let mut rot = Self {
            run,
            sound: Observed { files: Vec::new(), next_attempt: 0 },
            disk,
            pool: pool(),
            rng: SmallRng::seed_from_u64(seed),
            ways: 0,
        };
        rot.sound = rot.find(&[])?;
        Ok(rot)
    }

    /// What recovery makes of the disk with these pieces replaced.
    fn find(&mut self, pieces: &[(u64, Vec<u8>)]) -> Result<Observed, String> {
        self.ways += 1;
        let disk = SimDisk::from_images(self.disk.options(), self.disk.durable_image());
        for (offset, bytes) in pieces {
            disk.poke(at(*offset), bytes);
        }
        let rig = Rig::pooled(disk, options_for(self.ways), self.pool.clone());
        let rig = rig.map_err(|error| format!("no recovery: {error}"))?;
        let observed = observe(&rig, &self.run.names)?;
        let given = self.run.attempts.iter().map(|(_, attempt)| *attempt).max();
        if given.is_some_and(|given| given >= observed.next_attempt) {
            return Err(format!("attempt {} would be given out again", observed.next_attempt));
        }
        Ok(observed)
    }

    fn rot_every_sector(&mut self) -> Result<(), String> {
        for offset in self.metadata() {
            let sector = self.disk.peek(at(offset), SECTOR);
            let descriptor = sector.starts_with(b"4bED");
            let byte = self.rng.random_range(0..SECTOR);
            // What comes first says most: it gets its turn, too.
            for byte in [byte, byte % 128] {
                let bit = 1u8 << self.rng.random_range(0..8);
                let rotten = vec![sector[byte] ^ bit];
                let found = self.find(&[(offset + byte as u64, rotten)]);
                let legal = match &found {
                    Ok(found) => self.is_legal(found, descriptor),
                    Err(what) => self.is_legal_quarantine(what, descriptor),
                };
                if !legal {
                    let sound = &self.sound;
                    return Err(format!(
                        "bit {bit} of byte {byte} at {offset}: {found:?} of {sound:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Damage may make a clean record look like that of something dirty, and then nobody can tell;
    /// a dirty one has a second copy, a descriptor has not.
    fn is_legal_quarantine(&self, what: &str, descriptor: bool) -> bool {
        let named = |name: &FileName| what == format!("{name} is quarantined");
        let file = self.run.names.iter().position(named);
        let state = file.map(|file| &self.sound.files[file].content);
        match state {
            Some(Content::Dirty { .. }) => descriptor,
            Some(Content::Clean { .. }) => !descriptor,
            Some(Content::Absent) | None => false,
        }
    }

    fn is_legal(&self, found: &Observed, descriptor: bool) -> bool {
        found.files.iter().zip(&self.sound.files).all(|(now, was)| {
            let gone =
                now.content == Content::Absent && matches!(was.content, Content::Clean { .. });
            let same = now.content == was.content;
            now.lost == was.lost
                && (gone || same)
                && (gone || descriptor || now.extents == was.extents)
        })
    }

    /// What stood anywhere at any time turns up where nothing is, or where a later use of a slab is.
    fn displace_everything(&mut self) -> Result<(), String> {
        for (offset, entry) in self.entries_ever() {
            let blanks: Vec<u64> = self.neighbours(offset, &entry).collect();
            let apart: Vec<u64> = blanks.iter().copied().filter(|blank| *blank != offset).collect();
            let mut places = Vec::new();
            if !apart.is_empty() {
                places.push(apart[self.rng.random_range(0..apart.len())]);
            }
            let other_use = self.epoch_of_slab(offset).is_some_and(|now| now != epoch_of(&entry));
            if other_use && blanks.contains(&offset) {
                places.push(offset);
            }
            for place in places {
                let found = self.find(&[(place, entry.clone())]);
                let same = found.as_ref().is_ok_and(|found| found.files == self.sound.files);
                if !same {
                    let sound = &self.sound;
                    return Err(format!(
                        "the entry of {offset} at {place}: {found:?} of {sound:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Erased places of the same table for an entry of the same kind: of the first three, which
    /// every table has.
    fn neighbours(&self, offset: u64, entry: &[u8]) -> impl Iterator<Item = u64> + use<'_, 'a> {
        let slab = SLABS + (offset - SLABS) / SLAB * SLAB;
        let (bytes, stride) = (entry.len(), entry.len() as u64);
        let places = (0..3).map(move |slot| slab + TABLE + slot * stride);
        places.filter(move |place| self.disk.peek(at(*place), bytes).iter().all(|byte| *byte == 0))
    }

    /// Records and descriptors that were ever written, and where.
    fn entries_ever(&self) -> Vec<(u64, Vec<u8>)> {
        let mut seen = HashSet::new();
        let written = self.run.recorder.events().iter().filter_map(|event| match event {
            Event::WriteStarted { at, data, .. } => Some((at.offset, data)),
            _ => None,
        });
        let entries =
            written.filter(|(_, data)| data.starts_with(b"4bED") || data.starts_with(b"4bFR"));
        let entries = entries.map(|(offset, data)| (offset, data.to_vec()));
        entries.filter(|entry| seen.insert(entry.clone())).collect()
    }

    fn metadata(&self) -> Vec<u64> {
        let superblocks = [0, 64 << 10];
        let begins = |offset: &u64| {
            let bytes = self.disk.peek(at(*offset), 4);
            MAGICS.iter().any(|magic| bytes == *magic)
        };
        let mut all: Vec<u64> =
            superblocks.into_iter().chain(self.tables()).filter(begins).collect();
        // The rest of a record: three more sectors.
        let is_record = |offset: &&u64| self.disk.peek(at(**offset), 4) == b"4bFR";
        let rest: Vec<u64> = all
            .iter()
            .filter(is_record)
            .flat_map(|o| (1..4).map(move |n| o + n * SECTOR as u64))
            .collect();
        all.extend(rest);
        all
    }

    /// Sectors of the beginnings of all slabs.
    fn tables(&self) -> impl Iterator<Item = u64> + use<> {
        let end = self.disk.options().capacity_bytes;
        (SLABS..end).step_by(SECTOR).filter(|offset| (offset - SLABS) % SLAB < 64 << 10)
    }

    fn epoch_of_slab(&self, offset: u64) -> Option<u64> {
        let slab = SLABS + (offset - SLABS) / SLAB * SLAB;
        let header = self.disk.peek(at(slab), SECTOR);
        let epoch = header[32..40].try_into().expect("eight bytes");
        header.starts_with(b"4bSH").then(|| u64::from_le_bytes(epoch))
    }
}

fn epoch_of(entry: &[u8]) -> u64 {
    let from = if entry.starts_with(b"4bED") { 36 } else { 32 };
    u64::from_le_bytes(entry[from..from + 8].try_into().expect("eight bytes"))
}

fn at(offset: u64) -> Location {
    Location { device: DeviceIndex(0), offset }
}
