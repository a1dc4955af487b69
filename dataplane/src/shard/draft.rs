//! A generation being written: which blocks of which extents are on the device, and what is still
//! in pieces.

use std::collections::BTreeMap;

use extent::checksum::crc32c;
use extent::wire::OpenBody;
use extent::{Error, Generation, Kind, Result};
use nvme_tier::device::Location;
use nvme_tier::{Draft, Reservation, Tier};

use super::open::identity;
use crate::slots::Key;

/// The most blocks that a draft holds in memory because only parts of them were written.
const MAX_PARTIAL_BLOCKS: usize = 4096;

/// See the module.
pub(super) struct DraftState {
    pub(super) draft: Option<Draft>,
    block_bytes: u32,
    extents: BTreeMap<u32, DraftExtent>,
    partial: BTreeMap<(u32, u32), PartialBlock>,
    /// The end of the furthest write.
    written_end: u64,
    /// Device commands and reservations running.
    pub(super) outstanding: u32,
    /// WRITEs that are not answered yet.
    pub(super) writers: u32,
    /// The COMMIT that waits for the two above to become zero.
    pub(super) commit: Option<Key>,
    error: Option<Error>,
    abandoned: bool,
}

/// One extent of a draft.
#[derive(Default)]
struct DraftExtent {
    reservation: Option<Reservation>,
    /// One a block, of what was last sent to the device.
    checksums: Vec<Option<u32>>,
    /// Blocks under a device command, or about to be: (first, end).
    locked: Vec<(u32, u32)>,
}

/// A block of which some bytes were written.
struct PartialBlock {
    bytes: Box<[u8]>,
    /// What was written, in order and without overlap: (begin, end).
    covered: Vec<(u32, u32)>,
}

/// Where to put a run of blocks.
pub(super) struct Place {
    pub(super) location: Location,
    /// Where else, on another device, if there are to be two copies.
    pub(super) copy: Option<Location>,
}

/// What became of bytes that did not fill their block.
pub(super) enum Merged {
    /// They wait for the rest.
    Kept,
    /// The block is whole.
    Whole(Box<[u8]>),
    /// The block is on the device, and must be read before these bytes can go over it.
    OnDevice,
}

impl DraftState {
    pub(super) fn new(draft: Draft, block_bytes: u32) -> Self {
        Self {
            draft: Some(draft),
            block_bytes,
            extents: BTreeMap::new(),
            partial: BTreeMap::new(),
            written_end: 0,
            outstanding: 0,
            writers: 0,
            commit: None,
            error: None,
            abandoned: false,
        }
    }

    /// The draft, which is there until it is committed.
    pub(super) fn inner(&self) -> &Draft {
        self.draft.as_ref().expect("a draft is taken only by its commit, which ends its handle")
    }

    pub(super) fn body(&self, tier: &Tier) -> OpenBody {
        let draft = self.inner();
        OpenBody {
            file: draft.id(),
            generation: Generation(0),
            length: self.written_end,
            extent_bytes: draft.extent_bytes(),
            resident_extents: u32::try_from(self.extents.len()).unwrap_or(u32::MAX),
            total_extents: u32::try_from(self.extents.len()).unwrap_or(u32::MAX),
            identity: identity(tier, draft.attempt()),
        }
    }

    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// Whether nobody needs it any more.
    pub(super) fn is_over(&self) -> bool {
        self.abandoned && self.outstanding == 0 && self.writers == 0 && self.commit.is_none()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.outstanding == 0 && self.writers == 0
    }

    /// The first error is what every later write and the commit get to hear.
    pub(super) fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    pub(super) fn check(&self) -> Result<()> {
        match &self.error {
            Some(error) => {
                Err(error.duplicate().while_doing("an earlier write of this handle failed"))
            }
            None if self.commit.is_some() => {
                Err(Kind::Invalid.error("this handle is being committed"))
            }
            None => Ok(()),
        }
    }

    pub(super) fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    pub(super) fn note_end(&mut self, end: u64) {
        self.written_end = self.written_end.max(end);
    }

    pub(super) fn written_end(&self) -> u64 {
        self.written_end
    }

    /// How many bytes extent `index` may hold, by what was announced at OPEN.
    pub(super) fn extent_room(&self, index: u32) -> Result<u32> {
        let draft = self.inner();
        let (size, expected) = (draft.extent_bytes(), draft.expected_length());
        let begin = u64::from(index) * size;
        let room = if expected == 0 { size } else { expected.saturating_sub(begin).min(size) };
        if room == 0 {
            return Err(past_the_announced(expected));
        }
        Ok(u32::try_from(room).expect("an extent is smaller than 4 GiB"))
    }

    pub(super) fn has_reservation(&self, index: u32) -> Option<bool> {
        self.extents.get(&index).map(|extent| extent.reservation.is_some())
    }

    /// Remembers that a slot for extent `index` was asked for.
    pub(super) fn expect_reservation(&mut self, index: u32) {
        self.extents.insert(index, DraftExtent::default());
        self.outstanding += 1;
    }

    pub(super) fn reserved(&mut self, index: u32, result: Result<Reservation>) {
        self.outstanding -= 1;
        match result {
            Ok(reservation) => {
                let blocks = reservation.length().div_ceil(self.block_bytes) as usize;
                let extent = self.extents.entry(index).or_default();
                extent.checksums = vec![None; blocks];
                extent.reservation = Some(reservation);
            }
            Err(error) => {
                self.extents.remove(&index);
                self.fail(error);
            }
        }
    }

    /// Keeps everybody else away from the blocks that `begin .. end` touches. `false` if somebody
    /// is there already.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the bytes are past what was announced at OPEN.
    pub(super) fn lock(&mut self, index: u32, begin: u64, end: u64) -> Result<bool> {
        let expected = self.inner().expected_length();
        let block = u64::from(self.block_bytes);
        let extent = self.extents.get_mut(&index).expect("reserved before");
        let narrow = |n: u64| u32::try_from(n).expect("within an extent");
        let (first, last) = (narrow(begin / block), narrow(end.div_ceil(block)));
        let room = extent.reservation.as_ref().map_or(0, |r| u64::from(r.length()));
        if end > room {
            return Err(past_the_announced(expected));
        }
        if extent.locked.iter().any(|(from, to)| *from < last && first < *to) {
            return Ok(false);
        }
        extent.locked.push((first, last));
        Ok(true)
    }

    /// Adds a lock beside one that the caller already holds on the same blocks.
    pub(super) fn relock(&mut self, index: u32, begin: u64, end: u64) {
        let block = u64::from(self.block_bytes);
        let narrow = |n: u64| u32::try_from(n).expect("within an extent");
        let extent = self.extents.get_mut(&index).expect("reserved before");
        extent.locked.push((narrow(begin / block), narrow(end.div_ceil(block))));
    }

    /// The opposite of [`DraftState::lock`], with the same bytes.
    pub(super) fn unlock(&mut self, index: u32, begin: u64, end: u64) {
        let block = u64::from(self.block_bytes);
        let narrow = |n: u64| u32::try_from(n).expect("within an extent");
        let range = (narrow(begin / block), narrow(end.div_ceil(block)));
        if let Some(extent) = self.extents.get_mut(&index) {
            let at = extent.locked.iter().position(|locked| *locked == range);
            extent.locked.swap_remove(at.expect("locked before"));
        }
    }

    /// Takes note of whole blocks that go to the device now, and says where.
    pub(super) fn place(&mut self, index: u32, first: u32, blocks: &[u8]) -> Place {
        let block = self.block_bytes;
        let extent = self.extents.get_mut(&index).expect("reserved before");
        for (number, bytes) in (first..).zip(blocks.chunks(block as usize)) {
            extent.checksums[number as usize] = Some(crc32c(bytes));
            self.partial.remove(&(index, number));
        }
        place_of(extent, first, block)
    }

    /// Where a block of an extent is on the device, and its checksum.
    pub(super) fn on_device(&self, index: u32, block: u32) -> (Place, u32) {
        let extent = &self.extents[&index];
        let checksum = extent.checksums[block as usize].expect("written before");
        (place_of(extent, block, self.block_bytes), checksum)
    }

    /// Adds bytes that do not fill their block.
    ///
    /// # Errors
    /// [`Kind::Busy`] if too many blocks are in pieces.
    pub(super) fn merge(
        &mut self,
        index: u32,
        block: u32,
        at: u32,
        bytes: &[u8],
    ) -> Result<Merged> {
        let size = self.block_bytes as usize;
        if !self.partial.contains_key(&(index, block)) {
            if self.extents[&index].checksums[block as usize].is_some() {
                return Ok(Merged::OnDevice);
            }
            if self.partial.len() >= MAX_PARTIAL_BLOCKS {
                return Err(Kind::Busy.error(format!(
                    "{MAX_PARTIAL_BLOCKS} blocks are written in part: write whole blocks of {size} bytes"
                )));
            }
        }
        let entry = self.partial.entry((index, block)).or_insert_with(|| PartialBlock {
            bytes: vec![0; size].into_boxed_slice(),
            covered: Vec::new(),
        });
        entry.add(at, bytes);
        if !entry.is_whole() {
            return Ok(Merged::Kept);
        }
        let whole = self.partial.remove(&(index, block)).expect("just added to");
        Ok(Merged::Whole(whole.bytes))
    }

    /// One of the blocks in pieces, padded with zeroes: a commit writes them first.
    pub(super) fn next_partial(&self) -> Option<(u32, u32)> {
        self.partial.keys().next().copied()
    }

    pub(super) fn take_partial(&mut self, index: u32, block: u32) -> Option<Box<[u8]>> {
        self.partial.remove(&(index, block)).map(|part| part.bytes)
    }

    /// Runs of blocks that nobody wrote, within a file of `length` bytes: (extent, first, end).
    pub(super) fn gaps(&self, length: u64) -> Vec<(u32, u32, u32)> {
        let size = self.inner().extent_bytes();
        let mut gaps = Vec::new();
        for (index, extent) in &self.extents {
            let blocks = blocks_of(extent, *index, length, size, self.block_bytes);
            let mut begin = None;
            for block in 0..=blocks {
                let missing = block < blocks && extent.checksums[block as usize].is_none();
                match (missing, begin) {
                    (true, None) => begin = Some(block),
                    (false, Some(first)) => {
                        gaps.push((*index, first, block));
                        begin = None;
                    }
                    _ => {}
                }
            }
        }
        gaps
    }

    /// The extents and their checksums, for the tier to commit.
    pub(super) fn take_extents(&mut self, length: u64) -> Vec<(Reservation, Box<[u32]>)> {
        let size = self.inner().extent_bytes();
        let mut out = Vec::with_capacity(self.extents.len());
        for (index, extent) in std::mem::take(&mut self.extents) {
            let blocks = blocks_of(&extent, index, length, size, self.block_bytes);
            let Some(mut reservation) = extent.reservation.filter(|_| blocks > 0) else { continue };
            let bytes = (length - u64::from(index) * size).min(size);
            reservation.shorten(u32::try_from(bytes).expect("an extent is smaller than 4 GiB"));
            let checksums = extent.checksums[..blocks as usize].iter();
            let checksums = checksums.map(|sum| sum.expect("every gap was filled")).collect();
            out.push((reservation, checksums));
        }
        out
    }
}

fn place_of(extent: &DraftExtent, block: u32, block_bytes: u32) -> Place {
    let reservation = extent.reservation.as_ref().expect("reserved before");
    let within = u64::from(block) * u64::from(block_bytes);
    let shift = |at: Location| Location { offset: at.offset + within, ..at };
    Place { location: shift(reservation.at()), copy: reservation.copy_at().map(shift) }
}

/// How many blocks of an extent belong to a file of `length` bytes.
fn blocks_of(extent: &DraftExtent, index: u32, length: u64, size: u64, block_bytes: u32) -> u32 {
    let bytes = length.saturating_sub(u64::from(index) * size).min(size);
    let blocks = bytes.div_ceil(u64::from(block_bytes)).min(extent.checksums.len() as u64);
    u32::try_from(blocks).expect("within an extent")
}

impl PartialBlock {
    fn add(&mut self, at: u32, bytes: &[u8]) {
        let begin = at as usize;
        self.bytes[begin..begin + bytes.len()].copy_from_slice(bytes);
        let end = at + u32::try_from(bytes.len()).expect("within a block");
        self.covered.push((at, end));
        self.covered.sort_unstable();
        self.covered.dedup_by(|next, last| {
            let joins = next.0 <= last.1;
            if joins {
                last.1 = last.1.max(next.1);
            }
            joins
        });
    }

    fn is_whole(&self) -> bool {
        matches!(self.covered[..], [(0, end)] if end as usize == self.bytes.len())
    }
}

fn past_the_announced(expected: u64) -> Error {
    Kind::Invalid.error(format!(
        "a write past the {expected} bytes announced at OPEN: announce more, or 0 for unknown"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_become_a_block(mut cuts in proptest::collection::vec(1u32..64, 0..6), seed: u64) {
            cuts.extend([0, 64]);
            cuts.sort_unstable();
            cuts.dedup();
            let mut pieces: Vec<_> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
            let turn = usize::try_from(seed % pieces.len() as u64).expect("small");
            pieces.rotate_left(turn);
            let want: Vec<u8> = (0..64).collect();
            let mut block = PartialBlock { bytes: vec![0; 64].into(), covered: Vec::new() };
            for (number, (begin, end)) in pieces.iter().enumerate() {
                prop_assert!(!block.is_whole(), "whole before piece {}", number);
                block.add(*begin, &want[*begin as usize..*end as usize]);
            }
            prop_assert!(block.is_whole());
            prop_assert_eq!(&block.bytes[..], &want[..]);
        }
    }
}
