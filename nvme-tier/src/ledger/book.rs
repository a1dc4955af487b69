use std::collections::HashMap;

use extent::FileId;

use crate::bugs::{self, Bug};
use crate::holdings::SlotId;
use crate::ledger::io::DeviceSet;

/// Where the records of each file stand. A tombstone stays until every older record of its file is
/// durably erased.
#[derive(Debug, Default)]
pub(crate) struct RecordBook {
    files: HashMap<FileId, Entry>,
    /// Some record could not be read, and may be an older one of any file: no tombstone goes.
    keep_tombstones: bool,
}

#[derive(Debug, Default)]
struct Entry {
    /// The newest record, or tombstone.
    newest: [Option<SlotId>; 2],
    is_tombstone: bool,
    /// Whether that was made by somebody who knew every record of the file.
    is_known: bool,
    /// Older records that are not durably erased.
    stale: u32,
    /// Devices that they may be on.
    stale_on: DeviceSet,
}

impl RecordBook {
    /// An empty book; one that never lets a tombstone go if some record could not be read.
    pub(crate) fn new(keep_tombstones: bool) -> Self {
        Self { files: HashMap::new(), keep_tombstones }
    }

    /// The record in these slots is durable and the newest of its file. The slots of the one that
    /// was until now are to be erased.
    pub(crate) fn replace(
        &mut self,
        file: FileId,
        newest: [Option<SlotId>; 2],
        is_tombstone: bool,
    ) -> Vec<SlotId> {
        let entry = self.files.entry(file).or_default();
        let mut old: Vec<SlotId> = entry.newest.into_iter().flatten().collect();
        let (newest, is_tombstone) = if is_tombstone && bugs::is(Bug::TombstoneTooEarly) {
            old.extend(newest.into_iter().flatten());
            ([None, None], false)
        } else {
            (newest, is_tombstone)
        };
        entry.stale += count(&old);
        old.iter().for_each(|slot| entry.stale_on.insert(slot.device));
        entry.newest = newest;
        entry.is_tombstone = is_tombstone;
        if entry.stale == 0 { self.bury(file) } else { old }
    }

    /// Whether the newest record of a file was made by somebody who knew all of them.
    pub(crate) fn note_known(&mut self, file: FileId, is_known: bool) {
        if let Some(entry) = self.files.get_mut(&file) {
            entry.is_known = is_known;
        }
    }

    /// Whether there is, or was, a record of a file that was made by somebody who knew all of them.
    pub(crate) fn is_known(&self, file: FileId) -> bool {
        self.files.get(&file).is_some_and(|entry| entry.is_known)
    }

    /// Recovery found an older record, or one was perhaps written on devices that failed.
    pub(crate) fn add_stale(&mut self, file: FileId, on: DeviceSet) {
        let entry = self.files.entry(file).or_default();
        entry.stale += 1;
        entry.stale_on = entry.stale_on.union(on);
    }

    /// An older record is durably erased. The slots of the tombstone if it was the last one.
    pub(crate) fn erased(&mut self, file: FileId) -> Vec<SlotId> {
        let Some(entry) = self.files.get_mut(&file) else { return Vec::new() };
        entry.stale -= 1;
        if entry.stale > 0 {
            return Vec::new();
        }
        entry.stale_on = DeviceSet::default();
        self.bury(file)
    }

    /// Where the newest record of a file stands.
    pub(crate) fn newest(&self, file: FileId) -> Vec<SlotId> {
        self.files.get(&file).into_iter().flat_map(|entry| entry.newest).flatten().collect()
    }

    /// Devices that any record of a file may be on.
    pub(crate) fn devices(&self, file: FileId) -> DeviceSet {
        let newest = self.newest(file).into_iter().map(|slot| DeviceSet::of(slot.device));
        let stale = self.files.get(&file).map_or_else(DeviceSet::default, |entry| entry.stale_on);
        newest.fold(stale, DeviceSet::union)
    }

    /// Whether records older than the newest may still be on a device.
    pub(crate) fn has_stale(&self, file: FileId) -> bool {
        self.files.get(&file).is_some_and(|entry| entry.stale > 0)
    }

    /// No older record is left: the tombstone may go, and then the entry.
    fn bury(&mut self, file: FileId) -> Vec<SlotId> {
        let Some(entry) = self.files.get_mut(&file) else { return Vec::new() };
        if !entry.is_tombstone {
            if entry.newest == [None, None] {
                self.files.remove(&file);
            }
            return Vec::new();
        }
        if self.keep_tombstones {
            return Vec::new();
        }
        let slots: Vec<SlotId> = std::mem::take(&mut entry.newest).into_iter().flatten().collect();
        entry.is_tombstone = false;
        entry.stale = count(&slots);
        slots.iter().for_each(|slot| entry.stale_on.insert(slot.device));
        slots
    }
}

fn count(slots: &[SlotId]) -> u32 {
    u32::try_from(slots.len()).expect("four at most")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceIndex;

    fn slot(slot: u32) -> SlotId {
        SlotId { device: DeviceIndex(0), slab: 0, slot }
    }

    #[test]
    fn a_tombstone_outlives_what_it_buries() {
        let mut book = RecordBook::default();
        let file = FileId(1);
        assert_eq!(book.replace(file, [Some(slot(1)), Some(slot(2))], false), []);
        assert_eq!(book.replace(file, [Some(slot(3)), None], true), [slot(1), slot(2)]);
        assert_eq!(book.erased(file), []);
        assert_eq!(book.erased(file), [slot(3)], "now the tombstone");
        assert_eq!(book.replace(file, [Some(slot(4)), None], false), [], "while it is erased");
        assert_eq!(book.erased(file), []);
        assert!(!book.has_stale(file));
    }
}
