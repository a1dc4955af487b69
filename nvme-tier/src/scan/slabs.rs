use std::sync::Arc;

use extent::Result;

use super::{Entry, Scan};
use crate::codec::{Found, Place, SlabHeader};
use crate::device::{DeviceIndex, Location};
use crate::layout::{HEADER_OFFSETS, PAGE_BYTES, Purpose, Shape, TABLE_OFFSET};
use crate::reader::{DeviceReader, Piece};
use crate::shelf::Shelf;
use crate::space::{no_shape, shelf};

/// A slab as it was found.
#[derive(Debug)]
pub(crate) struct SlabScan {
    pub(crate) health: SlabHealth,
    pub(crate) epoch: u64,
    pub(crate) shape: Shape,
    /// One for each slot.
    pub(crate) entries: Vec<Entry>,
    /// Of a data slab, with the checksums of what is in it.
    pub(crate) shelf: Option<Arc<Shelf>>,
}

/// What a slab's two headers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SlabHealth {
    /// It was never used.
    Unassigned,
    /// In use.
    Sound(Purpose),
    /// In use; one header is to be written again.
    OneHeader(Purpose),
    /// It was in use, and what for cannot be told.
    Damaged,
}

impl SlabScan {
    pub(crate) fn purpose(&self) -> Option<Purpose> {
        match self.health {
            SlabHealth::Sound(purpose) | SlabHealth::OneHeader(purpose) => Some(purpose),
            SlabHealth::Unassigned | SlabHealth::Damaged => None,
        }
    }

    /// The first of the slots at the end that were never used in this epoch.
    pub(crate) fn virgin_from(&self) -> usize {
        let used = self.entries.iter().rposition(|entry| *entry != Entry::Stranger);
        used.map_or(0, |last| last + 1)
    }
}

impl Scan {
    /// Reads both headers of every slab.
    pub(super) fn read_headers(&mut self, reader: &mut DeviceReader<'_>) -> Result<()> {
        let tier = self.tier();
        for (index, layout) in (0u16..).zip(&self.layouts) {
            let device = DeviceIndex(index);
            let mut found: Vec<[Option<Found<SlabHeader>>; 2]> =
                vec![[None, None]; layout.slab_count as usize];
            let pieces = (0..layout.slab_count).map(|slab| Piece {
                at: Location { device, offset: layout.slab_offset(slab) },
                bytes: TABLE_OFFSET,
                unit: PAGE_BYTES,
                tag: u64::from(slab),
            });
            reader.read(pieces, |piece, bytes| {
                let slab = u32::try_from(piece.tag).expect("a slab's number");
                let Ok(bytes) = bytes else { return };
                let begin = piece.at.offset - layout.slab_offset(slab);
                for (copy, within) in HEADER_OFFSETS.into_iter().enumerate() {
                    let Some(from) = within.checked_sub(begin).filter(|from| *from < piece.bytes)
                    else {
                        continue;
                    };
                    let offset = layout.slab_offset(slab) + within;
                    let place = Place { tier, at: Location { device, offset }, epoch: 0 };
                    let bytes = &bytes[crate::layout::to_usize(from)..];
                    let header = SlabHeader::decode(&place, layout.block_bytes, bytes);
                    found[slab as usize][copy] = Some(header);
                }
            })?;
            let slabs = (0u32..).zip(found).map(|(number, headers)| {
                let (health, epoch) = judge(&headers);
                let mut slab =
                    SlabScan { health, epoch, shape: no_shape(), entries: Vec::new(), shelf: None };
                match slab.purpose() {
                    Some(Purpose::Data(class)) if class > layout.max_class => {
                        slab.health = SlabHealth::Damaged;
                    }
                    Some(purpose) => {
                        slab.shape = layout.shape(purpose);
                        slab.shelf =
                            shelf(&self.holdings, device, (number, epoch), layout, purpose);
                    }
                    None => {}
                }
                slab.entries = vec![Entry::Withheld; slab.shape.slots as usize];
                slab
            });
            self.slabs.push(slabs.collect());
        }
        let count = |health: fn(&SlabHealth) -> bool| {
            self.slabs.iter().flatten().filter(|slab| health(&slab.health)).count() as u64
        };
        self.findings.repaired_slabs = count(|h| matches!(h, SlabHealth::OneHeader(_)));
        self.findings.damaged_slabs = count(|h| matches!(h, SlabHealth::Damaged));
        Ok(())
    }
}

/// What two headers say together: the sound one of the higher epoch counts. A missing one could
/// not be read.
fn judge(headers: &[Option<Found<SlabHeader>>; 2]) -> (SlabHealth, u64) {
    let sound = |found: &Option<Found<SlabHeader>>| match found {
        Some(Found::Sound(header)) => Some(*header),
        _ => None,
    };
    match (sound(&headers[0]), sound(&headers[1])) {
        (Some(a), Some(b)) if a == b => (SlabHealth::Sound(a.purpose), a.epoch),
        (Some(a), Some(b)) => {
            let newer = if a.epoch > b.epoch { a } else { b };
            (SlabHealth::OneHeader(newer.purpose), newer.epoch)
        }
        (Some(one), None) | (None, Some(one)) => (SlabHealth::OneHeader(one.purpose), one.epoch),
        (None, None) => {
            let lost =
                |found: &Option<Found<SlabHeader>>| matches!(found, None | Some(Found::Damaged(_)));
            let damaged = headers.iter().any(lost);
            (if damaged { SlabHealth::Damaged } else { SlabHealth::Unassigned }, 0)
        }
    }
}
