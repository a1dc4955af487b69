//! The one writer of metadata.
//!
//! # What holds, whenever the power goes
//! The fault model: a logical block is atomic; a longer write may tear at any block; whatever was
//! not flushed may be there or gone, block by block, in any order; a bit may rot; a write may land
//! elsewhere.
//!
//! 1. **Nothing acknowledged is overwritten where it stands.** A new record goes to a slot whose
//!    entry is durably erased. The old record is erased in a later batch than the one that made
//!    the new one durable. A forgotten file leaves a tombstone of a higher sequence until all its
//!    older records are durably erased ([`book`]).
//! 2. **A slot is used again only after what freed it is durable**, and after its own descriptor
//!    is durably erased: extents of a superseded generation are dropped once the new record is
//!    flushed; evicted ones were clean. Nobody holds the slot then: extents and reservations are
//!    owned, and the last owner hands the slot in. A device that is told of freed space knows it
//!    before anybody gets the slot ([`discard`]).
//! 3. **No attempt, epoch or sequence is ever given twice.** All three come from one counter whose
//!    limit is made durable ahead, in both superblocks; a start begins at the limit it finds. A descriptor counts only
//!    under its slab's epoch, at its own address, and under a record of its file with the same
//!    attempt and generation. So what an attempt that never committed left behind is nothing.
//! 4. **A commit's record is written only after its data and descriptors are flushed** on every
//!    device they are on, and acknowledged only after the record is. Data and descriptors share a
//!    flush, since by 3 a descriptor means nothing without the record. Fills of clean generations
//!    are not flushed at all: their checksums tell, and the silo repairs.
//! 5. **Slab headers, and records that a dirty file depends on, exist twice** in different pages. That
//!    includes tombstones and the record that ends dirtiness, for if it rotted while an older dirty
//!    one is still there, that one would come back.
//! 6. **A dirty record says how many extents were committed.** If fewer descriptors are found, one
//!    is lost, and the file is quarantined: an absent extent would read as zeroes.
//! 7. **A device that fails a write or a flush is distrusted** from then on: nothing is
//!    acknowledged that needs it, nothing on it is reused, the command is not tried again. What was
//!    about to be committed when its record's device failed may be found committed after a restart, so
//!    its slots are kept until then.
//!    It is named in the superblocks of the others before anything is acknowledged that they alone have:
//!    should one of them be used without the others later, both are known to differ ([`failures`]).
//! 8. **What is kept twice** (`dirty_copies = 2`) survives a cut and the loss of any one device. Each
//!    extent of such a generation, with its descriptor, is in slots on two devices; its record is on two
//!    devices; all of them are flushed before the record is written, and both records before the
//!    commit is acknowledged. A record of any kind that is newer than records standing elsewhere
//!    than on its own device, or that may stand on one that is absent, goes to two devices, too
//!    ([`homes`]): a settled, marked, registered or forgotten file does not become again what it was
//!    when a device is lost. That of a file that was never kept twice stands where its older ones do,
//!    and is lost with them.
//!    What stands on one device and should on two after a cut is recorded on the other one before it
//!    is served and before anything that it replaces is erased. Where one device is left, records
//!    go there, and commits that are to be kept twice are refused.
//! 9. **A device that is absent is neither read nor written, and nothing is forgotten that it may hold**:
//!    tombstones stay, and so do descriptors under no record. When it is back, the highest
//!    sequence counts as ever: sequences go on from the highest limit of all that were there. But who
//!    registered a file, not knowing that it is dirty on an absent device, did not replace it: the dirty
//!    record counts, marked as a conflict. Devices of which each was used without the other are
//!    refused, since sequences were given twice.
//! 10. **A slab changes its purpose only when nothing in it is held**, under a new epoch, whose two
//!     headers are durable before any slot of it is used.
//!
//! # Batches
//! Everything runs in batches, one at a time; what arrives meanwhile makes up the next one. So many
//! commits share the flushes of one, and no two changes of one file ever overlap.
//! ```text
//! prepare   slab headers, erasure of entries never used before, counter limit   then flush
//! write     descriptors of fills and commits, erasures of what earlier batches freed
//! flush     the devices touched, if there are commits, erasures or explicit flushes
//! record    file records to fresh slots, some on two devices                    then flush
//! tell      a device that has failed is named in the others' superblocks        then flush
//!           acknowledge; superseded records and extents are freed, for the next batch to erase
//! ```
//! A class without room takes a free slab, then evicts of its own, then empties the emptiest slab
//! without dirty, pinned or busy extents. Dirty extents are not moved yet: a tier full of them
//! answers NoSpace until some are written back.

mod apply;
mod batch;
pub(crate) mod book;
mod discard;
mod failures;
mod homes;
pub(crate) mod io;
mod look;
mod plan;
mod room;

use std::collections::VecDeque;
use std::sync::Arc;

use extent::{Error, FileId};

use crate::codec::{Place, Superblock};
use crate::device::{Device, DeviceIndex};
use crate::eviction::Evictor;
use crate::holdings::SlotId;
use crate::operation::{Operation, Reserve, closed};
use crate::space::Space;
use crate::{FileGeneration, Tier};

use batch::Batch;
use book::RecordBook;
use discard::Discards;
use io::Io;

/// The one writer of a tier's metadata. Its owner calls [`Ledger::step`] in a loop on a thread of
/// its own, and sleeps on the device's readiness and [`Tier::on_work`] when there is no progress.
#[derive(Debug)]
pub struct Ledger {
    tier: Arc<Tier>,
    space: Space,
    evictor: Evictor,
    book: RecordBook,
    io: Io,
    /// The newest superblock of each device, and where its next one goes.
    superblocks: Vec<(Superblock, usize)>,
    /// The limit in the superblocks that were written last. Ids are given below what both say.
    id_limit: u64,
    /// Entries that nobody needs any more.
    erasures: VecDeque<Erasure>,
    /// Slabs of which a header copy is missing or old.
    repairs: Vec<(DeviceIndex, u32)>,
    /// Wishes for slots that could not be granted yet.
    starved: VecDeque<Reserve>,
    batch: Option<Batch>,
    /// Between the high watermark and the low one.
    evicting: bool,
    /// Generations that may be found committed after a restart.
    limbo: Vec<Arc<FileGeneration>>,
    /// A superblock does not hold: they are written again.
    renew_superblocks: bool,
    /// What devices are told that nobody needs.
    discards: Discards,
}

/// An entry that nobody needs any more.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Erasure {
    /// Of a data slot, in a slab of this epoch.
    Descriptor { slot: SlotId, epoch: u64 },
    /// Of a file's older record.
    Record { slot: SlotId, file: FileId },
    /// Of a record that belongs to no file.
    Stray { slot: SlotId },
}

impl Erasure {
    pub(crate) const fn slot(&self) -> SlotId {
        match self {
            Self::Descriptor { slot, .. } | Self::Record { slot, .. } | Self::Stray { slot } => {
                *slot
            }
        }
    }
}

/// What recovery hands over.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) tier: Arc<Tier>,
    pub(crate) space: Space,
    pub(crate) evictor: Evictor,
    pub(crate) book: RecordBook,
    pub(crate) io: Io,
    pub(crate) superblocks: Vec<(Superblock, usize)>,
    pub(crate) erasures: VecDeque<Erasure>,
    pub(crate) repairs: Vec<(DeviceIndex, u32)>,
}

impl Ledger {
    pub(crate) fn new(parts: Parts) -> Self {
        let limits = parts.superblocks.iter().map(|(superblock, _)| superblock.id_limit);
        let discards = Discards::new(parts.tier.options.discard, parts.io.deallocations());
        let mut ledger = Self {
            discards,
            id_limit: limits.max().unwrap_or(0),
            tier: parts.tier,
            space: parts.space,
            evictor: parts.evictor,
            book: parts.book,
            io: parts.io,
            superblocks: parts.superblocks,
            erasures: parts.erasures,
            repairs: parts.repairs,
            starved: VecDeque::new(),
            batch: None,
            evicting: false,
            limbo: Vec::new(),
            renew_superblocks: false,
        };
        // Those that are absent are known to be from the start.
        ledger.note_failures();
        ledger.space.publish(&ledger.tier.counters.devices);
        ledger
    }

    /// Does whatever can be done without waiting. Whether anything was; if not, nothing will
    /// change before a command completes or [`Tier::on_work`] calls.
    pub fn step(&mut self, device: &mut dyn Device) -> bool {
        self.tier.holdings.signal.lower();
        let mut progress = self.io.reap(device);
        self.note_failures();
        progress |= self.collect_discards();
        progress |= self.collect_returned();
        progress |= self.grant();
        loop {
            let advanced = if self.batch.is_some() { self.advance() } else { self.begin() };
            progress |= advanced | self.io.pump(device);
            if !advanced {
                break;
            }
        }
        progress |= self.discard(device);
        if progress {
            self.space.publish(&self.tier.counters.devices);
        }
        progress
    }

    /// Takes back what was to be erased, but for what belongs to no file.
    pub(crate) fn withhold_erasures(&mut self) -> VecDeque<Erasure> {
        let is_stray = |erasure: &Erasure| matches!(erasure, Erasure::Stray { .. });
        let (strays, others) = std::mem::take(&mut self.erasures).into_iter().partition(is_stray);
        self.erasures = strays;
        others
    }

    /// Erases what was withheld after all.
    pub(crate) fn resume_erasures(&mut self, withheld: VecDeque<Erasure>) {
        self.erasures.extend(withheld);
    }

    /// Whether nothing is running or waiting, apart from advice to devices.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let queue = self.tier.queue.lock();
        self.batch.is_none()
            && queue.operations.is_empty()
            && queue.reserves.is_empty()
            && self.starved.is_empty()
            && self.erasures.is_empty()
            && self.repairs.is_empty()
            && !self.tier.holdings.has_returned()
    }

    /// The tier whose metadata this writes.
    #[must_use]
    pub fn tier(&self) -> &Arc<Tier> {
        &self.tier
    }

    fn place(&self, slot: SlotId) -> Place {
        let at = self.space.entry_at(slot);
        Place { tier: self.tier.id, at, epoch: self.space.slab(slot).epoch }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let (operations, reserves) = {
            let mut queue = self.tier.queue.lock();
            queue.closed = true;
            (std::mem::take(&mut queue.operations), std::mem::take(&mut queue.reserves))
        };
        if let Some(batch) = self.batch.take() {
            batch.fail(&closed());
        }
        operations.into_iter().for_each(|operation: Operation| operation.fail(closed()));
        let waiting = reserves.into_iter().chain(self.starved.drain(..));
        waiting.for_each(|reserve| reserve.done.call(Err::<_, Error>(closed())));
    }
}
