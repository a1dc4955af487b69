use extent::Result;

use super::{DamagedRecord, Entry, FoundExtent, Scan};
use crate::bugs::{self, Bug};
use crate::codec::{Descriptor, FileRecord, Found, Place, seal_of};
use crate::device::{DeviceIndex, Location};
use crate::holdings::SlotId;
use crate::layout::{self, Layout, Purpose, Shape, TABLE_OFFSET, to_usize};
use crate::reader::DeviceReader;

/// One slab whose entries are read.
#[derive(Clone, Copy)]
struct Table {
    device: DeviceIndex,
    slab: u32,
    epoch: u64,
    offset: u64,
    shape: Shape,
    layout: Layout,
}

impl Scan {
    /// Reads every record.
    pub(super) fn read_records(&mut self, reader: &mut DeviceReader<'_>) -> Result<()> {
        let tables = self.tables(|purpose| purpose == Purpose::Records);
        self.read_tables(reader, &tables, Self::on_record)
    }

    /// Reads every descriptor.
    pub(super) fn read_descriptors(&mut self, reader: &mut DeviceReader<'_>) -> Result<()> {
        let tables = self.tables(|purpose| purpose != Purpose::Records);
        self.read_tables(reader, &tables, Self::on_descriptor)
    }

    fn tables(&self, wanted: impl Fn(Purpose) -> bool) -> Vec<Table> {
        let mut tables = Vec::new();
        for ((device, slabs), layout) in (0u16..).zip(&self.slabs).zip(&self.layouts) {
            for (slab, scan) in (0u32..).zip(slabs) {
                if scan.purpose().is_some_and(&wanted) {
                    tables.push(Table {
                        device: DeviceIndex(device),
                        slab,
                        epoch: scan.epoch,
                        offset: layout.slab_offset(slab),
                        shape: scan.shape,
                        layout: *layout,
                    });
                }
            }
        }
        tables
    }

    /// Reads tables in order with a deep queue, and hands over entry by entry. What cannot be read
    /// stays withheld.
    fn read_tables(
        &mut self,
        reader: &mut DeviceReader<'_>,
        tables: &[Table],
        on_entry: fn(&mut Self, &Table, SlotId, &[u8]),
    ) -> Result<()> {
        let mut pieces = Vec::with_capacity(tables.len());
        for (number, table) in (0u64..).zip(tables) {
            let at = Location { device: table.device, offset: table.offset + TABLE_OFFSET };
            let unit = u64::from(table.shape.stride);
            pieces.push(reader.pieces(at, table.shape.table_bytes(), unit, number));
        }
        reader.read(pieces.into_iter().flatten(), |piece, bytes| {
            let table = &tables[to_usize(piece.tag)];
            let stride = u64::from(table.shape.stride);
            let first = (piece.at.offset - table.offset - TABLE_OFFSET) / stride;
            let Ok(bytes) = bytes else {
                self.findings.unreadable_entries += 1;
                return;
            };
            for (number, entry) in (first..).zip(bytes.chunks_exact(to_usize(stride))) {
                let slot = u32::try_from(number).expect("a slot's number");
                on_entry(
                    self,
                    table,
                    SlotId { device: table.device, slab: table.slab, slot },
                    entry,
                );
            }
        })
    }

    fn place(&self, table: &Table, slot: SlotId) -> Place {
        let offset = table.offset + table.shape.entry_offset(slot.slot);
        let at = Location { device: table.device, offset };
        Place { tier: self.tier(), at, epoch: table.epoch }
    }

    fn on_record(&mut self, table: &Table, slot: SlotId, bytes: &[u8]) {
        let place = self.place(table, slot);
        let entry = match FileRecord::decode(&place, table.layout.block_bytes, bytes) {
            Found::Blank => Entry::Blank,
            Found::Stranger => Entry::Stranger,
            Found::Torn => {
                self.findings.torn_entries += 1;
                Entry::Torn
            }
            Found::Damaged(record) => {
                self.findings.damaged_records += 1;
                if let Some(record) = record {
                    self.order.push(record.file);
                    let file = self.files.entry(record.file).or_default();
                    file.damaged.push(DamagedRecord { record, slot, place, seal: seal_of(bytes) });
                } else if let (file, sequence, true) = FileRecord::trace(bytes) {
                    self.nameless.push(super::Nameless { file, sequence, slot });
                }
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
            Some(newest) if record.sequence < newest => file.stale.push(slot),
            Some(newest) if record.sequence == newest => file.slots.push(slot),
            _ => {
                file.stale.append(&mut file.slots);
                file.slots.push(slot);
                file.record = Some(record);
            }
        }
    }

    /// Decides for each file which record counts, once all are read.
    pub(super) fn choose_records(&mut self) {
        let mut entries = Vec::new();
        let mut stale = 0;
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
            if file.lost_record {
                file.stale.append(&mut file.slots);
                entries.extend(file.stale.iter().map(|slot| (*slot, Entry::Withheld)));
            } else {
                // More than two copies do not happen; if they do, two are enough.
                let extra = file.slots.split_off(file.slots.len().min(2));
                file.stale.extend(extra);
                entries.extend(file.stale.iter().map(|slot| (*slot, Entry::Stale)));
                stale += file.stale.len() as u64;
            }
        }
        self.findings.stale_entries += stale;
        entries.into_iter().for_each(|(slot, entry)| self.set_entry(slot, entry));
        self.files.retain(|_, file| file.record.is_some());
        let unreadable = self.findings.unreadable_entries + self.findings.damaged_slabs > 0;
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

    fn on_descriptor(&mut self, table: &Table, slot: SlotId, bytes: &[u8]) {
        let place = self.place(table, slot);
        let entry = match Descriptor::decode(&place, table.layout.block_bytes, bytes) {
            Found::Blank => Entry::Blank,
            Found::Stranger => Entry::Stranger,
            Found::Torn => {
                self.findings.torn_entries += 1;
                Entry::Torn
            }
            Found::Damaged(_) => {
                self.findings.damaged_descriptors += 1;
                Entry::Suspect
            }
            Found::Sound((descriptor, checksums)) => {
                let entry = self.add_descriptor(table, &descriptor, checksums, slot);
                self.findings.stale_entries += u64::from(entry == Entry::Stale);
                entry
            }
        };
        self.set_entry(slot, entry);
    }

    fn add_descriptor(
        &mut self,
        table: &Table,
        descriptor: &Descriptor,
        checksums: Box<[u32]>,
        slot: SlotId,
    ) -> Entry {
        let orphan = if self.keep_orphans { Entry::Withheld } else { Entry::Stale };
        let Some(file) = self.files.get_mut(&descriptor.file) else { return orphan };
        let Some(record) = file.record.as_ref() else { return orphan };
        let same = (record.attempt == descriptor.attempt || bugs::is(Bug::AnyAttempt))
            && (record.generation == descriptor.generation || bugs::is(Bug::AnyAttempt))
            && !record.tombstone;
        if !same {
            return if file.lost_record { Entry::Withheld } else { Entry::Stale };
        }
        let length = layout::extent_length(record.length, record.extent_bytes, descriptor.index);
        let blocks = length.div_ceil(table.layout.checksum_block_bytes) as usize;
        let fits = u64::from(length) <= table.shape.slot_bytes;
        if length == 0 || length != descriptor.length || blocks != checksums.len() || !fits {
            self.findings.damaged_descriptors += 1;
            return Entry::Suspect;
        }
        file.extents.push(FoundExtent {
            index: descriptor.index,
            length,
            sequence: descriptor.sequence,
            slot,
            checksums,
        });
        Entry::Live
    }

    /// Of several descriptors of one extent the newest counts; the others become stale.
    pub(crate) fn drop_duplicates(&mut self) {
        let mut stale = Vec::new();
        for file in self.files.values_mut() {
            file.extents.sort_unstable_by_key(|e| (e.index, std::cmp::Reverse(e.sequence)));
            file.extents.dedup_by(|later, kept| {
                let same = later.index == kept.index;
                if same {
                    stale.push(later.slot);
                }
                same
            });
        }
        self.findings.stale_entries += stale.len() as u64;
        stale.into_iter().for_each(|slot| self.set_entry(slot, Entry::Stale));
    }
}
