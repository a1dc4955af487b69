use std::sync::Arc;

use extent::{ExtentIndex, FileId, Result};

use super::{DamagedRecord, Entry, FileScan, FoundExtent, Nameless, Scan, SightedRecord};
use crate::TierId;
use crate::bugs::{self, Bug};
use crate::codec::{Descriptor, FileRecord, Found, Mark, Place, seal_of};
use crate::device::{DeviceIndex, Location};
use crate::hash::IdMap;
use crate::holdings::SlotId;
use crate::layout::{self, Layout, Purpose, Shape, TABLE_OFFSET, to_usize};
use crate::reader::{DeviceReader, Piece};
use crate::shelf::Shelf;

/// Tables smaller than this together are parsed where they are read: threads would not pay, and
/// a simulated run has to be the same each time.
const PARSE_BESIDE_BYTES: u64 = 64 << 20;

/// One slab whose entries are read.
#[derive(Clone)]
struct Table {
    tier: TierId,
    device: DeviceIndex,
    slab: u32,
    epoch: u64,
    offset: u64,
    shape: Shape,
    layout: Layout,
    shelf: Option<Arc<Shelf>>,
}

/// What descriptors are judged by.
#[derive(Clone, Copy)]
struct Known<'a> {
    files: &'a IdMap<FileScan>,
    keep_orphans: bool,
}

/// What a damaged record's bytes still tell.
#[derive(Clone, Copy)]
struct Remains {
    place: Place,
    /// The CRC32C that it had when it was whole.
    seal: u32,
    file: FileId,
    sequence: u64,
    dirty: bool,
}

/// What a descriptor says that may count.
#[derive(Clone, Copy)]
struct Described {
    entry: Entry,
    /// The number of its file, if it counts.
    file: u32,
    index: ExtentIndex,
    sequence: u64,
}

impl Scan {
    /// Reads every record.
    pub(super) fn read_records(&mut self, reader: &mut DeviceReader<'_>) -> Result<()> {
        let tables = self.tables(|purpose| purpose == Purpose::Records);
        let parse = |table: &Table, slot, bytes: &[u8], _: &mut Vec<u32>| {
            let place = table.place(slot);
            let found = FileRecord::decode(&place, table.layout.block_bytes, bytes);
            let remains = matches!(found, Found::Damaged(_)).then(|| Remains::of(place, bytes));
            (found, remains)
        };
        read_tables(reader, &tables, parse, |slots| match slots {
            None => self.findings.unreadable_entries += 1,
            Some(found) => {
                found.for_each(|(slot, (record, remains))| self.on_record(slot, record, remains));
            }
        })
    }

    /// Reads every descriptor.
    pub(super) fn read_descriptors(&mut self, reader: &mut DeviceReader<'_>) -> Result<()> {
        let tables = self.tables(|purpose| purpose != Purpose::Records);
        let mut extents: Vec<Vec<FoundExtent>> = Vec::new();
        for (number, file) in (0u32..).zip(self.files.values_mut()) {
            file.number = number;
            extents.push(Vec::new());
        }
        let files = std::mem::take(&mut self.files);
        let keep_orphans = self.keep_orphans;
        let parse = |table: &Table, slot, bytes: &[u8], checksums: &mut Vec<u32>| {
            let known = Known { files: &files, keep_orphans };
            table.describe(known, slot, bytes, checksums)
        };
        read_tables(reader, &tables, parse, |slots| match slots {
            None => self.findings.unreadable_entries += 1,
            Some(found) => found.for_each(|(slot, described)| {
                self.count(described.entry);
                self.set_entry(slot, described.entry);
                if described.entry == Entry::Live {
                    let Described { index, sequence, .. } = described;
                    extents[described.file as usize].push(FoundExtent { index, sequence, slot });
                }
            }),
        })?;
        self.files = files;
        for file in self.files.values_mut() {
            file.extents = std::mem::take(&mut extents[file.number as usize]);
        }
        Ok(())
    }

    fn count(&mut self, descriptor: Entry) {
        match descriptor {
            Entry::Torn => self.findings.torn_entries += 1,
            Entry::Suspect => self.findings.damaged_descriptors += 1,
            Entry::Stale => self.findings.stale_entries += 1,
            Entry::Blank | Entry::Stranger | Entry::Live | Entry::Withheld => {}
        }
    }

    fn tables(&self, wanted: impl Fn(Purpose) -> bool) -> Vec<Table> {
        let mut tables = Vec::new();
        for ((device, slabs), layout) in (0u16..).zip(&self.slabs).zip(&self.layouts) {
            for (slab, scan) in (0u32..).zip(slabs) {
                if scan.purpose().is_some_and(&wanted) {
                    tables.push(Table {
                        tier: self.tier(),
                        device: DeviceIndex(device),
                        slab,
                        epoch: scan.epoch,
                        offset: layout.slab_offset(slab),
                        shape: scan.shape,
                        layout: *layout,
                        shelf: scan.shelf.clone(),
                    });
                }
            }
        }
        tables
    }

    fn on_record(&mut self, slot: SlotId, found: Found<FileRecord>, remains: Option<Remains>) {
        let entry = match found {
            Found::Blank => Entry::Blank,
            Found::Stranger => Entry::Stranger,
            Found::Torn => {
                self.findings.torn_entries += 1;
                Entry::Torn
            }
            Found::Damaged(record) => {
                self.findings.damaged_records += 1;
                self.on_damaged(slot, record, remains.expect("a damaged record leaves some"));
                // Unless it turns out to be the only trace of something dirty.
                Entry::Stale
            }
            Found::Sound(record) => {
                self.add_record(record, slot);
                Entry::Live
            }
        };
        self.set_entry(slot, entry);
    }

    fn on_damaged(&mut self, slot: SlotId, record: Option<FileRecord>, remains: Remains) {
        let Remains { place, seal, file, sequence, dirty } = remains;
        if let Some(record) = record {
            self.order.push(record.file);
            let file = self.files.entry(record.file).or_default();
            file.damaged.push(DamagedRecord { record, slot, place, seal });
        } else if dirty {
            self.nameless.push(Nameless { file, sequence, slot });
        }
    }

    fn add_record(&mut self, record: FileRecord, slot: SlotId) {
        let file = self.files.entry(record.file).or_default();
        if file.record.is_none() {
            self.order.push(record.file);
        }
        let newest = file.record.as_ref().map(|newest| newest.sequence);
        // From here on the one that is there counts as newer, if it is older.
        let newest = match newest {
            Some(newest) if bugs::is(Bug::OldestRecordWins) && newest != record.sequence => {
                if newest < record.sequence {
                    Some(u64::MAX)
                } else {
                    None
                }
            }
            newest => newest,
        };
        match newest {
            Some(newest) if record.sequence < newest => {
                file.stale.push(slot);
                file.note_sighted(record, &[slot]);
            }
            Some(newest) if record.sequence == newest => file.slots.push(slot),
            _ => {
                if let Some(older) = file.record.replace(record) {
                    let slots = std::mem::take(&mut file.slots);
                    file.stale.extend(&slots);
                    file.note_sighted(older, &slots);
                }
                file.slots.push(slot);
            }
        }
    }

    /// Decides for each file which record counts, once all are read.
    pub(super) fn choose_records(&mut self) {
        let mut entries = Vec::new();
        let (mut stale, mut conflicts) = (0, 0);
        for file in self.files.values_mut() {
            let newest = file.record.as_ref().map_or(0, |record| record.sequence);
            let damaged = std::mem::take(&mut file.damaged);
            let sound = file.record.clone();
            let is_copy = |damaged: &DamagedRecord| {
                sound.as_ref().is_some_and(|sound| damaged.was_copy_of(sound))
            };
            let lost = damaged.into_iter().filter(|damaged| {
                damaged.record.dirty && damaged.record.sequence > newest && !is_copy(damaged)
            });
            for DamagedRecord { record, slot, .. } in lost {
                // The only trace of something that only existed here.
                entries.push((slot, Entry::Withheld));
                let known = file.record.as_ref().map_or(0, |record| record.sequence);
                if !file.lost_record || record.sequence > known {
                    file.lost_record = true;
                    // What was dirty is never forgotten: that flag is what was damaged.
                    file.record = Some(FileRecord { tombstone: false, ..record });
                }
            }
            let sighted = file.sighted.take();
            if file.lost_record {
                file.stale.append(&mut file.slots);
                entries.extend(file.stale.iter().map(|slot| (*slot, Entry::Withheld)));
            } else {
                conflicts += u64::from(file.prefer_dirty(sighted));
                // More than two copies do not happen; if they do, two are enough.
                let extra = file.slots.split_off(file.slots.len().min(2));
                file.stale.extend(extra);
                entries.extend(file.stale.iter().map(|slot| (*slot, Entry::Stale)));
                stale += file.stale.len() as u64;
            }
        }
        self.findings.stale_entries += stale;
        self.findings.conflicts += conflicts;
        entries.into_iter().for_each(|(slot, entry)| self.set_entry(slot, entry));
        self.files.retain(|_, file| file.record.is_some());
        let unreadable = self.findings.unreadable_entries + self.findings.damaged_slabs > 0
            || !self.absent.is_empty();
        self.keep_nameless();
        self.keep_orphans = unreadable || self.findings.nameless_records > 0;
    }

    /// Keeps damaged records that are not the other copy of a sound one: they are all that is left
    /// of something dirty.
    fn keep_nameless(&mut self) {
        let sequences = self.files.values().filter_map(|file| file.record.as_ref());
        let sequences: std::collections::HashSet<u64> =
            sequences.map(|record| record.sequence).collect();
        for nameless in std::mem::take(&mut self.nameless) {
            let explained =
                self.files.contains_key(&nameless.file) || sequences.contains(&nameless.sequence);
            if !explained {
                self.findings.nameless_records += 1;
                self.set_entry(nameless.slot, Entry::Withheld);
            }
        }
    }

    /// Of several descriptors of one extent the newest counts, and of what was committed twice the
    /// newest on another device; the others become stale.
    pub(crate) fn drop_duplicates(&mut self) {
        let mut stale = Vec::new();
        for file in self.files.values_mut() {
            file.extents.sort_unstable_by_key(|e| (e.index, std::cmp::Reverse(e.sequence)));
            let record = file.record.as_ref();
            let twice = record.is_some_and(|record| record.dirty && record.twice);
            let copies = &mut file.copies;
            let is_copied = |copies: &[FoundExtent], index| {
                copies.last().is_some_and(|copy: &FoundExtent| copy.index == index)
            };
            file.extents.dedup_by(|later, kept| {
                let same = later.index == kept.index;
                let apart = later.slot.device != kept.slot.device;
                if same && apart && twice && !is_copied(copies, later.index) {
                    copies.push(FoundExtent { ..*later });
                } else if same {
                    stale.push(later.slot);
                }
                same
            });
            if twice && !file.is_quarantined() {
                let missing = file.extents.len() - file.copies.len();
                self.findings.missing_copies += missing as u64;
            }
        }
        self.findings.stale_entries += stale.len() as u64;
        for slot in stale {
            self.set_entry(slot, Entry::Stale);
            if let Some(shelf) = &self.slab(slot).shelf {
                shelf.forget_checksums(slot.slot);
            }
        }
    }
}

impl FileScan {
    /// A record that is older than another one.
    fn note_sighted(&mut self, record: FileRecord, slots: &[SlotId]) {
        if record.is_blind() {
            return;
        }
        match &mut self.sighted {
            Some(known) if record.sequence < known.record.sequence => {}
            Some(known) if record.sequence == known.record.sequence => known.slots.extend(slots),
            sighted => *sighted = Some(Box::new(SightedRecord { record, slots: slots.to_vec() })),
        }
    }

    /// Whoever made the newest record blind did not know the dirty one: that counts, and is in conflict
    /// with it. Whether it is so.
    fn prefer_dirty(&mut self, sighted: Option<Box<SightedRecord>>) -> bool {
        let blind = self.record.as_ref().is_some_and(FileRecord::is_blind);
        let Some(dirty) = sighted.filter(|older| blind && older.record.dirty) else { return false };
        if bugs::is(Bug::BlindRecordWins) {
            return false;
        }
        let SightedRecord { mut record, slots } = *dirty;
        tracing::warn!(
            name = %record.name,
            "written here and not written back, and registered anew while the device with its record \
             was absent: what was written counts, in conflict with the silo"
        );
        // What is damaged stays set aside.
        record.mark = record.mark.or(Some(Mark::Conflict));
        self.stale.retain(|slot| !slots.contains(slot));
        self.stale.append(&mut self.slots);
        self.slots = slots;
        self.record = Some(record);
        self.in_conflict = true;
        true
    }
}

impl Table {
    fn place(&self, slot: u32) -> Place {
        let offset = self.offset + self.shape.entry_offset(slot);
        Place { tier: self.tier, at: Location { device: self.device, offset }, epoch: self.epoch }
    }

    /// What the descriptor of a slot says. The checksums of one that counts go to the shelf.
    fn describe(
        &self,
        known: Known<'_>,
        slot: u32,
        bytes: &[u8],
        checksums: &mut Vec<u32>,
    ) -> Described {
        let nothing = |entry| Described { entry, file: 0, index: ExtentIndex(0), sequence: 0 };
        let block = self.layout.block_bytes;
        match Descriptor::decode_into(&self.place(slot), block, bytes, checksums) {
            Found::Blank => nothing(Entry::Blank),
            Found::Stranger => nothing(Entry::Stranger),
            Found::Torn => nothing(Entry::Torn),
            Found::Damaged(_) => nothing(Entry::Suspect),
            Found::Sound(descriptor) => match self.judge(known, &descriptor, checksums.len()) {
                Ok((file, dirty)) => {
                    let shelf = self.shelf.as_ref().expect("data slabs have shelves");
                    let sums = checksums.iter().copied();
                    if dirty && !bugs::is(Bug::VectorDroppedEarly) {
                        shelf.set_checksums(slot, sums);
                    } else {
                        shelf.offer_checksums(slot, sums);
                    }
                    let Descriptor { index, sequence, .. } = descriptor;
                    Described { entry: Entry::Live, file, index, sequence }
                }
                Err(entry) => nothing(entry),
            },
        }
    }

    /// The number of the file that a sound descriptor belongs to, and whether that is dirty; or what
    /// it is instead.
    fn judge(
        &self,
        known: Known<'_>,
        descriptor: &Descriptor,
        checksums: usize,
    ) -> Result<(u32, bool), Entry> {
        let orphan = if known.keep_orphans { Entry::Withheld } else { Entry::Stale };
        let file = known.files.get(&descriptor.file).ok_or(orphan)?;
        let record = file.record.as_ref().ok_or(orphan)?;
        let same = (record.attempt == descriptor.attempt || bugs::is(Bug::AnyAttempt))
            && (record.generation == descriptor.generation || bugs::is(Bug::AnyAttempt))
            && !record.tombstone;
        if !same {
            // Attempts only grow: the record of a later one may be on a device that is not read.
            let later = known.keep_orphans && descriptor.attempt > record.attempt;
            return Err(if file.lost_record || later { Entry::Withheld } else { Entry::Stale });
        }
        let length = layout::extent_length(record.length, record.extent_bytes, descriptor.index);
        let blocks = length.div_ceil(self.layout.checksum_block_bytes) as usize;
        let fits = u64::from(length) <= self.shape.slot_bytes;
        if length == 0 || length != descriptor.length || blocks != checksums || !fits {
            return Err(Entry::Suspect);
        }
        Ok((file.number, record.dirty))
    }
}

impl Remains {
    fn of(place: Place, bytes: &[u8]) -> Self {
        let (file, sequence, dirty) = FileRecord::trace(bytes);
        Self { place, seal: seal_of(bytes), file, sequence, dirty }
    }
}

/// Reads tables in order with a deep queue, and hands over what their entries were parsed to, piece
/// by piece; `None` for one that cannot be read and stays withheld.
fn read_tables<T: Send>(
    reader: &mut DeviceReader<'_>,
    tables: &[Table],
    parse: impl Fn(&Table, u32, &[u8], &mut Vec<u32>) -> T + Sync,
    mut each: impl FnMut(Option<&mut dyn Iterator<Item = (SlotId, T)>>),
) -> Result<()> {
    let mut pieces = Vec::with_capacity(tables.len());
    for (number, table) in (0u64..).zip(tables) {
        let at = Location { device: table.device, offset: table.offset + TABLE_OFFSET };
        let unit = u64::from(table.shape.stride);
        pieces.push(reader.pieces(at, table.shape.table_bytes(), unit, number));
    }
    let pieces = pieces.into_iter().flatten();
    let first_slot = |piece: &Piece| {
        let table = &tables[to_usize(piece.tag)];
        let before = piece.at.offset - table.offset - TABLE_OFFSET;
        u32::try_from(before / u64::from(table.shape.stride)).expect("a slot's number")
    };
    let parse_all = |piece: &Piece, bytes: &[u8]| -> Vec<T> {
        let table = &tables[to_usize(piece.tag)];
        let entries = bytes.chunks_exact(table.shape.stride as usize);
        let slots = (first_slot(piece)..).zip(entries);
        let mut scratch = Vec::new();
        slots.map(|(slot, entry)| parse(table, slot, entry, &mut scratch)).collect()
    };
    let mut hand_over = |piece: &Piece, parsed: Result<Vec<T>>| {
        let Table { device, slab, .. } = tables[to_usize(piece.tag)];
        match parsed {
            Err(_) => each(None),
            Ok(parsed) => {
                let slots = (first_slot(piece)..).map(|slot| SlotId { device, slab, slot });
                each(Some(&mut slots.zip(parsed)));
            }
        }
    };
    if tables.iter().map(|table| table.shape.table_bytes()).sum::<u64>() < PARSE_BESIDE_BYTES {
        return reader.read(pieces, |piece, bytes| {
            hand_over(piece, bytes.map(|bytes| parse_all(piece, bytes)));
        });
    }
    reader.read_parsed(pieces, parse_all, hand_over)
}
