//! Where a file's records go.

use extent::{Error, FileId, Kind, Result};

use super::Ledger;
use super::batch::Run;
use super::io::DeviceSet;
use crate::bugs::{self, Bug};
use crate::codec::FileRecord;
use crate::device::DeviceIndex;
use crate::layout::Purpose;

/// Record slots that only operations may take that make room, or settle what is wrong.
const SPARE_RECORDS: u32 = 16;

/// Why nothing can be kept twice.
pub(super) const ONE_DEVICE: &str = "dirty_copies = 2, and only one device of the tier is trusted: replace the other one, or \
     restart the node with dirty_copies = 1";

/// The devices that a record goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Homes {
    home: DeviceIndex,
    /// Of the second copy, if that must not be where the first one is.
    apart: Option<DeviceIndex>,
}

impl Homes {
    pub(super) fn devices(self) -> DeviceSet {
        let apart = self.apart.map_or_else(DeviceSet::default, DeviceSet::of);
        DeviceSet::of(self.home).union(apart)
    }

    /// The one of the first copy.
    pub(super) fn first(self) -> DeviceSet {
        DeviceSet::of(self.home)
    }

    /// The device of each of so many copies.
    pub(super) fn each(self, copies: usize) -> impl Iterator<Item = DeviceIndex> {
        [self.home, self.apart.unwrap_or(self.home)].into_iter().take(copies)
    }

    /// What is left of them without devices that failed.
    fn without(self, failed: DeviceSet) -> Option<Self> {
        let trusted = |device: &DeviceIndex| !failed.contains(*device);
        let mut left = [Some(self.home), self.apart].into_iter().flatten().filter(trusted);
        Some(Self { home: left.next()?, apart: left.next() })
    }
}

impl Ledger {
    /// The devices for a record, and how many copies there are to be. It goes to two devices if it
    /// is of a generation that was committed twice and is dirty, and if it is newer than records
    /// that stand, or may stand, elsewhere than on its home: else these would count again once that
    /// is lost.
    pub(super) fn homes(&self, file: FileId, record: &FileRecord) -> (Homes, usize) {
        let healthy = self.space.healthy();
        let count = healthy.len().max(1);
        let at = usize::try_from(file.0 % count as u128).expect("a small remainder");
        let home = healthy.get(at).copied().unwrap_or(DeviceIndex(0));
        let older = self.book.devices(file);
        // What is absent may have older ones, too.
        let elsewhere = !older.is_within(DeviceSet::of(home)) || !self.io.absent().is_empty();
        let outvotes = elsewhere && !bugs::is(Bug::OutvotedOnce);
        let apart = (record.dirty && record.twice || outvotes)
            .then(|| healthy.get((at + 1) % count).copied())
            .flatten()
            .filter(|apart| *apart != home && !bugs::is(Bug::RecordCopiesTogether));
        let twice = record.dirty || record.tombstone || self.book.has_stale(file);
        let twice = twice && !bugs::is(Bug::OneRecordCopy) || apart.is_some();
        (Homes { home, apart }, if twice { 2 } else { 1 })
    }

    /// Whether there are devices to keep a generation twice.
    pub(super) fn can_keep_twice(&self) -> Result<()> {
        if self.space.healthy().len() > 1 {
            return Ok(());
        }
        Err(Kind::Io.error(ONE_DEVICE))
    }

    /// Takes slots for the record of a run, on those of its homes that are trusted.
    ///
    /// # Errors
    /// [`Kind::Io`] if none is, or one is not that a commit needs; [`Kind::NoSpace`].
    pub(super) fn take_record_slots(&mut self, run: &mut Run) -> Result<()> {
        let failed = self.io.failed();
        let needed = run.change.devices().union(run.homes.devices());
        run.homes = match run.homes.without(failed) {
            Some(left) if left == run.homes || !run.change.is_commit() => left,
            _ => return Err(self.io.failure_of(needed).expect("one of them has failed")),
        };
        if let Some(error) = self.io.failure_of(run.change.devices()) {
            return Err(error);
        }
        let spare = if run.vital { 0 } else { SPARE_RECORDS };
        let full = run.homes.devices().iter().any(|home| {
            let here = run.homes.each(run.copies).filter(|other| *other == home).count();
            let wanted = u32::try_from(here).expect("one or two") + spare;
            self.space.device(home).free_slots(Purpose::Records, wanted) < wanted
        });
        if full {
            return Err(no_room());
        }
        for (number, home) in run.homes.each(run.copies).enumerate() {
            let apart = run.slots[0].filter(|first| first.device == home);
            run.slots[number] = self.space.take_record(home, apart);
        }
        if run.slots.iter().flatten().count() == run.copies {
            return Ok(());
        }
        let taken = std::mem::take(&mut run.slots);
        taken.into_iter().flatten().for_each(|slot| self.space.give_back(slot));
        Err(no_room())
    }
}

fn no_room() -> Error {
    Kind::NoSpace
        .error("no room for another file record: forget or write back files, or add a device")
}
