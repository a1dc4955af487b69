mod records;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use extent::{Attempt, ExtentIndex, FileId, Kind, Result};
use parking_lot::{Mutex, RwLock};

use crate::bugs::{self, Bug};
use crate::codec::TierId;
use crate::holdings::Holdings;
use crate::ids::Ids;
use crate::index::Index;
use crate::layout::Layout;
use crate::operation::{Operation, Queue, Reserve, closed};
use crate::reservation::ReservedFor;
use crate::usage::Counters;
use crate::{
    Copies, DeviceUsage, Done, Draft, Extent, File, FileGeneration, Reservation, State,
    TierOptions, TierUsage,
};

/// Everything that is known and kept on a set of devices. Shared by all threads; nothing here
/// blocks. What changes the devices' metadata is queued for the [`crate::Ledger`].
#[derive(Debug)]
pub struct Tier {
    pub(crate) id: TierId,
    pub(crate) extent_bytes: u64,
    /// For the size classes only, which are the same on all devices.
    pub(crate) layout: Layout,
    pub(crate) options: TierOptions,
    pub(crate) index: RwLock<Index>,
    pub(crate) queue: Mutex<Queue>,
    pub(crate) holdings: Arc<Holdings>,
    pub(crate) ids: Ids,
    pub(crate) counters: Counters,
    eviction_allowed: AtomicBool,
    pinned: Mutex<HashSet<FileId>>,
    /// Files of which a second copy turned out to be missing, and the attempts that made them.
    pub(crate) missing: Mutex<HashMap<FileId, Attempt>>,
    /// Files of which a part is on a device that it runs without, and the attempts that made them.
    pub(crate) waiting: Mutex<HashMap<FileId, Attempt>>,
}

/// What recovery makes a tier of.
pub(crate) struct TierParts {
    pub(crate) id: TierId,
    pub(crate) extent_bytes: u64,
    pub(crate) layout: Layout,
    pub(crate) options: TierOptions,
    pub(crate) ids: Ids,
    pub(crate) counters: Counters,
    pub(crate) holdings: Arc<Holdings>,
}

impl Tier {
    pub(crate) fn new(parts: TierParts) -> Arc<Self> {
        let TierParts { id, extent_bytes, layout, options, ids, counters, holdings } = parts;
        Arc::new(Self {
            id,
            extent_bytes,
            layout,
            options,
            index: RwLock::default(),
            queue: Mutex::default(),
            holdings,
            ids,
            counters,
            eviction_allowed: AtomicBool::new(false),
            pinned: Mutex::default(),
            missing: Mutex::default(),
            waiting: Mutex::default(),
        })
    }

    /// Calls `wake` whenever the ledger has something to do.
    pub fn on_work(&self, wake: Arc<dyn Fn() + Send + Sync>) {
        self.holdings.signal.on_raise(wake);
    }

    /// The random number the tier got when it was formatted.
    #[must_use]
    pub fn id(&self) -> TierId {
        self.id
    }

    /// Bytes that one checksum covers.
    #[must_use]
    pub fn checksum_block_bytes(&self) -> u32 {
        self.layout.checksum_block_bytes
    }

    /// Bytes of a full extent of new files.
    #[must_use]
    pub fn extent_bytes(&self) -> u64 {
        self.extent_bytes
    }

    /// A file by its id.
    #[must_use]
    pub fn file(&self, id: FileId) -> Option<Arc<File>> {
        self.index.read().find(id).cloned()
    }

    /// Up to `limit` files whose `silo/key` begins with `prefix` and comes after `after`, in byte
    /// order.
    #[must_use]
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Arc<File>> {
        self.index.read().list(prefix, after, limit)
    }

    /// A slot to fill one extent of a clean generation. Evicts others if it must.
    ///
    /// Fails with [`Kind::Stale`] if the generation is not the newest any more; [`Kind::Invalid`]
    /// if it is dirty or has no such extent; [`Kind::NoSpace`] if everything left is pinned,
    /// dirty or in use; [`Kind::Busy`] if too much waits already.
    pub fn reserve(
        &self,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
        done: Done<Reservation>,
    ) {
        if generation.is_superseded() {
            return done
                .call(Err(Kind::Stale.error("the file has a newer generation: open it again")));
        }
        if generation.state() == State::Dirty {
            return done.call(Err(Kind::Invalid.error(
                "an extent of a dirty generation cannot be filled from a silo that does not have it",
            )));
        }
        let purpose = ReservedFor::Fill(Arc::clone(generation));
        self.reserve_for(purpose, index, generation.extent_length(index), done);
    }

    /// A slot for `length` bytes of a draft, or one on each of two devices, as the tier's options say.
    /// Evicts others if it must.
    ///
    /// Fails as [`Tier::reserve`] does; with [`Kind::Io`] if two devices are needed and fewer are
    /// trusted.
    pub fn reserve_draft(
        &self,
        draft: &Draft,
        index: ExtentIndex,
        length: u32,
        done: Done<Reservation>,
    ) {
        if u64::from(length) > draft.extent_bytes {
            return done.call(Err(Kind::Invalid
                .error(format!("{length} bytes in an extent of {}", draft.extent_bytes))));
        }
        self.reserve_for(ReservedFor::Draft(draft.attempt), index, length, done);
    }

    /// The extent's data was written to the slot, and those writes have completed. It becomes
    /// visible at once; done when its descriptor is written, without a flush: after a power cut
    /// the extent may be gone, and its checksums tell if its data is.
    ///
    /// If the extent is resident already, that one stays and the slot is given back.
    ///
    /// Fails with [`Kind::Invalid`] for a draft's slot or a wrong number of checksums;
    /// [`Kind::Io`] if the descriptor could not be written.
    pub fn publish(&self, reservation: Reservation, checksums: Box<[u32]>, done: Done<()>) {
        if let Err(error) = self.check_checksums(&reservation, &checksums) {
            return done.call(Err(error));
        }
        let (index, length) = (reservation.index(), reservation.length());
        let (hold, _none, purpose) = reservation.into_parts();
        let ReservedFor::Fill(generation) = purpose else {
            return done
                .call(Err(Kind::Invalid.error("a draft's slot is committed, not published")));
        };
        if length != generation.extent_length(index) {
            return done.call(Err(Kind::Invalid
                .error(format!("extent {index} of a fill has {length} bytes: fill all of it"))));
        }
        hold.set_checksums(checksums.into_iter());
        let extent = generation.extent_of(index, hold.clone());
        if bugs::is(Bug::VectorDroppedEarly) {
            hold.offer();
        }
        if generation.insert(index, hold).is_err() {
            return done.call(Ok(()));
        }
        self.push(Operation::Publish { extent, generation, done });
    }

    /// Lets go the resident extents of a clean generation whose indexes are in a range. Done with
    /// the file bytes freed; slots come back once nobody reads them.
    ///
    /// Fails with [`Kind::Denied`] if the generation is dirty, quarantined or pinned.
    pub fn release(&self, generation: &Arc<FileGeneration>, indexes: Range<u32>, done: Done<u64>) {
        if !generation.is_evictable(self.now_unix_ms()) {
            return done.call(Err(Kind::Denied.error(
                "only clean, unpinned files can be released: write it back or unpin it first",
            )));
        }
        let extents = generation.resident(indexes);
        let freed = extents
            .iter()
            .filter(|(index, slot)| generation.remove(*index, *slot))
            .map(|(index, _)| u64::from(generation.extent_length(*index)))
            .sum();
        done.call(Ok(freed));
    }

    /// Forgets a damaged extent of a clean generation, so that it is fetched again. Extents of
    /// dirty generations stay: nothing else has their bytes.
    pub fn discard(&self, generation: &FileGeneration, extent: &Extent) {
        if generation.state() == State::Clean {
            generation.remove(extent.index(), extent.slot());
        }
    }

    /// Whether an extent of a generation is still the one at its index.
    #[must_use]
    pub fn is_resident(&self, generation: &FileGeneration, extent: &Extent) -> bool {
        generation.has(extent.index(), extent.slot())
    }

    /// Done when everything written before is durable.
    pub fn flush(&self, done: Done<()>) {
        self.push_limited(Operation::Flush(done));
    }

    /// Protects a file from eviction and release until a time, under an owner's name. A second pin
    /// of the same owner replaces the first. Pins are not durable here: the control plane keeps
    /// them.
    pub fn pin(&self, file: &File, owner: &str, until_unix_ms: u64) {
        file.pin_set().pin(owner, until_unix_ms);
        self.pinned.lock().insert(file.id());
    }

    /// Ends a pin. Whether there was one.
    pub fn unpin(&self, file: &File, owner: &str) -> bool {
        file.pin_set().unpin(owner)
    }

    /// All pins are loaded: from now on extents may be evicted.
    pub fn allow_eviction(&self) {
        self.eviction_allowed.store(true, Ordering::Release);
        self.holdings.signal.raise();
    }

    /// How full the tier is.
    #[must_use]
    pub fn usage(&self) -> TierUsage {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let devices: Vec<DeviceUsage> = self
            .counters
            .devices
            .iter()
            .map(|device| DeviceUsage {
                capacity_bytes: read(&device.capacity_bytes),
                used_bytes: read(&device.used_bytes),
                deallocated_bytes: read(&device.deallocated_bytes),
                volatile_cache: device.volatile_cache,
                failed: device.failed.load(Ordering::Relaxed),
            })
            .collect();
        TierUsage {
            files: self.index.read().len() as u64,
            dirty_files: read(&self.counters.dirty_files),
            dirty_bytes: read(&self.counters.dirty_bytes),
            quarantined_files: read(&self.counters.quarantined_files),
            pinned_files: self.pinned_files(),
            files_missing_copy: self.files_missing_copy(),
            resident_extents: read(&self.holdings.extents),
            resident_bytes: read(&self.holdings.bytes),
            slot_bytes: devices.iter().map(|device| device.used_bytes).sum(),
            evicted_extents: read(&self.counters.evicted_extents),
            checksum_bytes: self.holdings.checksums.bytes(),
            checksum_limit_bytes: self.holdings.checksums.limit_bytes(),
            dropped_checksums: self.holdings.checksums.dropped(),
            devices,
        }
    }

    pub(crate) fn is_eviction_allowed(&self) -> bool {
        self.eviction_allowed.load(Ordering::Acquire)
    }

    pub(crate) fn now_unix_ms(&self) -> u64 {
        (self.options.now_unix_ms)()
    }

    fn pinned_files(&self) -> u64 {
        let now = self.now_unix_ms();
        let mut pinned = self.pinned.lock();
        pinned.retain(|id| self.file(*id).is_some_and(|file| file.pin_set().is_pinned(now)));
        pinned.len() as u64
    }

    fn reserve_for(
        &self,
        purpose: ReservedFor,
        index: ExtentIndex,
        length: u32,
        done: Done<Reservation>,
    ) {
        let class = self.layout.class_for(u64::from(length)).filter(|_| length > 0);
        let Some(class) = class else {
            return done.call(Err(Kind::Invalid.error(format!(
                "extent {index} has {length} bytes: there is nothing to reserve a slot for"
            ))));
        };
        let mut queue = self.queue.lock();
        let refusal = if queue.closed {
            Some(closed())
        } else if queue.reserves.len() >= self.options.queue_limit {
            Some(busy())
        } else {
            None
        };
        if let Some(error) = refusal {
            drop(queue);
            return done.call(Err(error));
        }
        let copies = match purpose {
            ReservedFor::Fill(_) => Copies::One,
            ReservedFor::Draft(_) => self.options.dirty_copies,
        };
        queue.reserves.push_back(Reserve { class, copies, index, length, purpose, done });
        drop(queue);
        self.holdings.signal.raise();
    }

    /// Queues an operation, or refuses it if too many wait.
    pub(crate) fn push_limited(&self, operation: Operation) {
        let full = self.queue.lock().operations.len() >= self.options.queue_limit;
        if full { operation.fail(busy()) } else { self.push(operation) }
    }

    /// Queues an operation of which there cannot be more than slots.
    fn push(&self, operation: Operation) {
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            return operation.fail(closed());
        }
        queue.operations.push_back(operation);
        drop(queue);
        self.holdings.signal.raise();
    }

    fn check_checksums(&self, reservation: &Reservation, checksums: &[u32]) -> Result<()> {
        let blocks = reservation.length().div_ceil(self.layout.checksum_block_bytes) as usize;
        if blocks != checksums.len() {
            return Err(Kind::Invalid.error(format!(
                "{} checksums for an extent of {blocks} checksum blocks",
                checksums.len()
            )));
        }
        Ok(())
    }
}

fn busy() -> extent::Error {
    Kind::Busy.error("too much waits for the tier's ledger: try again in a moment")
}
