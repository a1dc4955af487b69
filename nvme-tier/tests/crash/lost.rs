//! Slots that are used again.
//!
//! Nothing that was known of an earlier use counts. Writes that were reported as done and are lost leave what was there before: the data and the
//! descriptor of an earlier use of the slot, which fit each other. Where checksums are not in memory,
//! only the descriptor's identity tells.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::sync::Arc;

use extent::ExtentIndex;
use forebay_nvme_tier::device::Location;
use forebay_nvme_tier::{FileGeneration, TierOptions};

use crate::common::{EXTENT, Rig, name, options, pattern, small_disk, small_format};
use crate::enumeration::{Failure, calmly};

/// An extent as it stood on the device.
struct Stood {
    at: Location,
    data: Vec<u8>,
    descriptor: (Location, Vec<u8>),
}

/// Of which other one the slot was before.
#[derive(Clone, Copy, Debug)]
enum Before {
    File,
    Generation,
    Index,
}

/// Each kind of earlier use, once. How many there were.
pub fn lose_writes() -> Result<u64, Failure> {
    let kinds = [Before::File, Before::Generation, Before::Index];
    for (after, before) in (1u64..).zip(kinds) {
        let told = |what| format!("{before:?}: {what}");
        let outcome = calmly(|| {
            lose(before, u64::MAX).map_err(told)?;
            lose(before, 0).map_err(told)
        });
        outcome.map_err(|what| Failure { what, after })?;
    }
    Ok(kinds.len() as u64)
}

fn lose(before: Before, checksum_memory_bytes: u64) -> Result<(), String> {
    let disk = Rig::new(small_disk(4, 1, 512, 1), &small_format()).disk;
    let options = TierOptions { checksum_memory_bytes, most_checksums_beside: 0, ..options() };
    let mut rig = Rig::with(disk, options).expect("recovers");
    let file = rig.register(&name("s/a"), 2 * EXTENT, "v1").expect("registers");
    rig.fill(&file, 0, 1).expect("fills");
    rig.settle();
    let first = file.newest();
    let stood = Stood::of(&rig, &first, 0);
    rig.ask(|tier, done| tier.release(&first, 0..2, done)).expect("it is clean");
    drop(first);
    let (second, index) = match before {
        Before::File => (("s/b", "v1"), 0),
        Before::Generation => (("s/a", "v2"), 0),
        Before::Index => (("s/a", "v1"), 1),
    };
    let file = rig.register(&name(second.0), 2 * EXTENT, second.1).expect("registers");
    let generation = file.newest();
    // Until it comes to lie in that slot.
    for _ in 0..40 {
        rig.settle();
        rig.fill(&file, index, 2).expect("fills");
        rig.settle();
        if Stood::of(&rig, &generation, index).at == stood.at {
            return stood.comes_back(&rig, &generation, index);
        }
        rig.ask(|tier, done| tier.release(&generation, 0..2, done)).expect("it is clean");
    }
    panic!("the slot is never used again");
}

impl Stood {
    fn of(rig: &Rig, generation: &FileGeneration, index: u32) -> Self {
        let extent = generation.extent(ExtentIndex(index)).expect("resident");
        let (at, bytes) = extent.descriptor();
        let length = extent.length() as usize;
        Self {
            at: extent.at(),
            data: rig.disk.peek(extent.at(), length),
            descriptor: (at, rig.disk.peek(at, bytes)),
        }
    }

    /// The writes of the later use are lost.
    fn comes_back(
        &self,
        rig: &Rig,
        generation: &Arc<FileGeneration>,
        index: u32,
    ) -> Result<(), String> {
        let extent = generation.extent(ExtentIndex(index)).expect("resident");
        let now = rig.read(generation, &extent).ok_or("what was just filled is damaged")?;
        let length = extent.length() as usize;
        assert_eq!(now, pattern(2, index, length)[..length], "it is there");
        let limit = rig.tier.usage().checksum_limit_bytes;
        assert_eq!(extent.has_checksums(), limit != 0, "as there is memory for them");
        rig.disk.poke(self.at, &self.data);
        rig.disk.poke(self.descriptor.0, &self.descriptor.1);
        match rig.read(generation, &extent) {
            None => Ok(()),
            Some(_) => Err("what was there before is believed".to_owned()),
        }
    }
}
