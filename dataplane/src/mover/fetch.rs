//! One fetch for everybody who wants the same extent.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use extent::{Attempt, ByteRange, Error, ExtentIndex, FileId, Kind, Result, checksum};
use nvme_tier::{FileGeneration, State};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};

use super::Mover;
use crate::inbox::Fetched;

/// Fetches that run, by what they fetch.
#[derive(Default)]
pub(super) struct Fetches(Mutex<HashMap<(FileId, Attempt, ExtentIndex), Arc<Fetch>>>);

/// One fetch that runs.
pub(super) struct Fetch {
    phase: watch::Sender<Phase>,
    /// Somebody waits for the bytes: leave the bulk lane.
    urgent: AtomicBool,
    hurry: Notify,
    /// Somebody wants them in the tier.
    keep: AtomicBool,
}

#[derive(Clone)]
enum Phase {
    Waiting,
    /// The bytes are here; they may be on their way into the tier.
    Arrived(Arc<Fetched>),
    /// Over, and the extent is in the tier.
    Stored,
    /// Over, and the extent is not in the tier: nobody asked for that.
    Passed,
    Failed(Arc<Error>),
}

/// How to take part in a fetch.
enum Joined {
    /// There is nothing to fetch.
    Resident,
    /// Whether somebody else had begun it.
    Fetch(watch::Receiver<Phase>, bool),
}

impl Mover {
    /// The bytes of an extent for a client that waits, and whether somebody else had begun to
    /// fetch them; `None` if it is in the tier after all.
    pub(super) async fn recall(
        self: &Arc<Self>,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
    ) -> (Result<Option<Arc<Fetched>>>, bool) {
        match self.join(generation, index, true, false) {
            Joined::Resident => (Ok(None), true),
            Joined::Fetch(mut phase, joined) => {
                let arrived = match phase.wait_for(|phase| !matches!(phase, Phase::Waiting)).await {
                    Ok(phase) => phase.clone(),
                    Err(_) => Phase::Failed(Arc::new(super::stopped())),
                };
                let result = match arrived {
                    Phase::Arrived(fetched) => Ok(Some(fetched)),
                    Phase::Failed(error) => Err(error.duplicate()),
                    // We came too late for the bytes themselves; the reader looks again.
                    Phase::Stored | Phase::Passed | Phase::Waiting => Ok(None),
                };
                (result, joined)
            }
        }
    }

    /// Returns once an extent is in the tier.
    pub(super) async fn fetch_into_tier(
        self: &Arc<Self>,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
    ) -> Result<()> {
        loop {
            let mut phase = match self.join(generation, index, false, true) {
                Joined::Resident => return Ok(()),
                Joined::Fetch(phase, _) => phase,
            };
            let over =
                phase.wait_for(|phase| !matches!(phase, Phase::Waiting | Phase::Arrived(_))).await;
            match over.map_err(|_| super::stopped())?.clone() {
                Phase::Stored => return Ok(()),
                Phase::Failed(error) => return Err(error.duplicate()),
                // It was decided before we joined: once more, and this time to keep.
                Phase::Passed | Phase::Waiting | Phase::Arrived(_) => {}
            }
        }
    }

    fn join(
        self: &Arc<Self>,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
        urgent: bool,
        keep: bool,
    ) -> Joined {
        let key = (generation.file_id(), generation.attempt(), index);
        let mut table = self.fetches.0.lock();
        if let Some(fetch) = table.get(&key) {
            fetch.keep.fetch_or(keep, Ordering::AcqRel);
            if urgent && !fetch.urgent.swap(true, Ordering::AcqRel) {
                fetch.hurry.notify_one();
            }
            return Joined::Fetch(fetch.phase.subscribe(), true);
        }
        // Looked up under the lock: a fetch leaves the table only after its extent can be found.
        if generation.extent(index).is_some() {
            return Joined::Resident;
        }
        let (phase, receiver) = watch::channel(Phase::Waiting);
        let fetch = Arc::new(Fetch {
            phase,
            urgent: AtomicBool::new(urgent),
            hurry: Notify::new(),
            keep: AtomicBool::new(keep),
        });
        table.insert(key, Arc::clone(&fetch));
        let (mover, generation) = (Arc::clone(self), Arc::clone(generation));
        tokio::spawn(async move {
            let last = match mover.fetch(&fetch, &generation, index).await {
                Ok(true) => Phase::Stored,
                Ok(false) => Phase::Passed,
                Err(error) => Phase::Failed(Arc::new(error)),
            };
            mover.fetches.0.lock().remove(&key);
            fetch.phase.send_replace(last);
        });
        Joined::Fetch(receiver, false)
    }

    /// Whether the extent ended in the tier.
    async fn fetch(
        &self,
        fetch: &Fetch,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
    ) -> Result<bool> {
        let _lane = self.lane(fetch).await?;
        let fetched = match self.fetch_bytes(generation, index).await {
            Ok(fetched) => Arc::new(fetched),
            Err(error) => {
                self.on_lost_source(generation, &error).await;
                return Err(error);
            }
        };
        self.stats.fetched_extents.add(1);
        fetch.phase.send_replace(Phase::Arrived(Arc::clone(&fetched)));
        if !self.is_worth_keeping(fetch, generation, index) {
            return Ok(false);
        }
        let keep = || fetch.keep.load(Ordering::Acquire);
        match self.keep(generation, index, &fetched).await {
            Ok(()) => Ok(true),
            Err(error) if !keep() => {
                // The reader has its bytes; that they are not cached is no failure of the read.
                tracing::debug!(%error, "a recalled extent was not kept");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// A place in the bulk lane, or in the demand lane as soon as somebody is in a hurry.
    async fn lane(&self, fetch: &Fetch) -> Result<OwnedSemaphorePermit> {
        let bulk = Arc::clone(&self.bulk_lane).acquire_owned();
        let hurried = async {
            if !fetch.urgent.load(Ordering::Acquire) {
                fetch.hurry.notified().await;
            }
            Arc::clone(&self.demand_lane).acquire_owned().await
        };
        let permit = tokio::select! {
            biased;
            permit = hurried => permit,
            permit = bulk => permit,
        };
        permit.map_err(|_| super::stopped())
    }

    async fn fetch_bytes(
        &self,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
    ) -> Result<Fetched> {
        let file = self.tier.file(generation.file_id()).ok_or_else(|| {
            Kind::NotFound.error("the file was forgotten while one of its extents was fetched")
        })?;
        let version = generation.version().ok_or_else(|| {
            Kind::NotResident.error("this generation was written here, and its silo has no copy")
        })?;
        let silo = self.silo(file.name().silo())?;
        let length = generation.extent_length(index) as usize;
        let block = self.tier.checksum_block_bytes() as usize;
        let padded = length.next_multiple_of(block);
        let range = ByteRange::new(u64::from(index.0) * generation.extent_bytes(), length as u64)?;
        let buffer = self.buffers.take(padded).await;
        let (mut buffer, result) = silo.read(file.name().key(), &version, range, buffer).await;
        result.map_err(|error| error.while_doing(format!("fetching {} {range}", file.name())))?;
        buffer.as_mut_slice()[length..padded].fill(0);
        let checksums = checksum::crc32c_blocks(&buffer.as_slice()[..padded], block).collect();
        Ok(Fetched { buffer: Arc::new(buffer), length, checksums })
    }

    fn is_worth_keeping(
        &self,
        fetch: &Fetch,
        generation: &FileGeneration,
        index: ExtentIndex,
    ) -> bool {
        let second = self.admission.is_second_touch(generation.file_id(), index);
        fetch.keep.load(Ordering::Acquire) || second || self.has_spare_room()
    }

    /// Whether there is room that nothing needs to be evicted for.
    fn has_spare_room(&self) -> bool {
        let usage = self.tier.usage();
        let devices = usage.devices.iter().filter(|device| !device.failed);
        let (used, all) = devices.fold((0, 0), |(used, all), device| {
            (used + device.used_bytes, all + device.capacity_bytes)
        });
        used < all / 10 * 9
    }

    async fn keep(
        &self,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
        fetched: &Arc<Fetched>,
    ) -> Result<()> {
        let reservation = self.ask(|done| self.tier.reserve(generation, index, done)).await?;
        let reservation = self.store(reservation, fetched).await?;
        let checksums = fetched.checksums.clone();
        self.ask(|done| self.tier.publish(reservation, checksums, done)).await
    }

    /// Takes note of a silo that no longer has what a generation was adopted at.
    async fn on_lost_source(&self, generation: &Arc<FileGeneration>, error: &Error) {
        let Some(file) = self.tier.file(generation.file_id()) else { return };
        // A silo that the configuration lacks was not asked.
        if self.silo(file.name().silo()).is_err() {
            return;
        }
        let is_newest = file.newest().attempt() == generation.attempt();
        match error.kind() {
            Kind::Stale if is_newest && generation.state() == State::Clean => {
                if let Err(error) = self.register(file.name(), None).await {
                    tracing::debug!(%error, file = %file.name(), "adopting a new version failed");
                }
            }
            Kind::NotFound if is_newest => {
                self.mark_lost(generation);
            }
            _ => {}
        }
    }
}
