//! The mover: brings extents up from silos, takes generations back down. It runs on tokio, away
//! from the shards, and speaks to them through their inboxes.

mod admission;
mod buffers;
mod copies;
mod fetch;
mod leftovers;
mod resolve;
mod scrub;
mod writeback;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dma::{Buffer, Pool, Region};
use extent::{Error, ExtentIndex, FileId, FileName, Generation, Kind, Result};
use nvme_tier::{Done, Extent, File, FileGeneration, Mark, Reservation, State, Tier};
use parking_lot::Mutex;
use silo::{Mount, ObjectMeta, Silo};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::handle::Progress;
use crate::inbox::{Fetched, Inbox, Message};
use crate::node::NodeOptions;
use crate::slots::Key;
use crate::stats::MoverStats;

use admission::Admission;
use buffers::Buffers;
use fetch::Fetches;
use scrub::ScrubState;

pub use leftovers::remove_leftovers;

/// What a shard asks for.
pub(crate) enum Demand {
    /// Fetch an extent that a client waits for.
    Recall { generation: Arc<FileGeneration>, index: ExtentIndex, inbox: Arc<Inbox>, op: Key },
    /// Make a silo's object known, for a client that opens it by name.
    Adopt { name: FileName, inbox: Arc<Inbox>, request: Key },
}

/// A file, and its newest generation.
type Known = (Arc<File>, Arc<FileGeneration>);

/// How often a silo is asked about a file that changes meanwhile.
const LOOKS: usize = 8;

/// See the module.
pub(crate) struct Mover {
    tier: Arc<Tier>,
    silos: HashMap<String, Arc<dyn Silo>>,
    shards: Vec<Arc<Inbox>>,
    next_shard: AtomicUsize,
    buffers: Buffers,
    fetches: Fetches,
    admission: Admission,
    demand_lane: Arc<Semaphore>,
    bulk_lane: Arc<Semaphore>,
    /// How many places both lanes have.
    lanes: (usize, usize),
    pub(crate) scrub: ScrubState,
    busy: Mutex<HashMap<FileId, Busy>>,
    /// Extents of one promote fetched side by side.
    width: usize,
    pub(crate) stats: MoverStats,
}

/// What is going on with a file.
#[derive(Default)]
struct Busy {
    promotes: u32,
    writebacks: u32,
    /// Held by the one writeback that runs.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Mover {
    pub(crate) fn new(
        tier: Arc<Tier>,
        silos: &[Mount],
        shards: Vec<Arc<Inbox>>,
        pool: Pool,
        options: &NodeOptions,
    ) -> Arc<Self> {
        Arc::new(Self {
            tier,
            silos: silos.iter().map(|m| (m.name.clone(), Arc::clone(&m.silo))).collect(),
            shards,
            next_shard: AtomicUsize::new(0),
            buffers: Buffers::new(pool),
            fetches: Fetches::default(),
            admission: Admission::default(),
            demand_lane: Arc::new(Semaphore::new(options.demand_fetches)),
            bulk_lane: Arc::new(Semaphore::new(options.bulk_fetches)),
            lanes: (options.demand_fetches, options.bulk_fetches),
            scrub: ScrubState::new(options.scrub_bytes_per_s),
            busy: Mutex::default(),
            width: options.bulk_fetches.div_ceil(4),
            stats: MoverStats::default(),
        })
    }

    /// Answers the shards until they are gone.
    pub(crate) async fn run(self: Arc<Self>, mut demands: mpsc::Receiver<Demand>) {
        while let Some(demand) = demands.recv().await {
            let mover = Arc::clone(&self);
            match demand {
                Demand::Recall { generation, index, inbox, op } => {
                    tokio::spawn(async move {
                        let (result, joined) = mover.recall(&generation, index).await;
                        inbox.send(Message::Arrived { op, result, joined });
                    });
                }
                Demand::Adopt { name, inbox, request } => {
                    tokio::spawn(async move {
                        let result = mover.register(&name, None).await;
                        inbox.send(Message::Opened { request, result });
                    });
                }
            }
        }
    }

    /// Makes a silo's object known at its present version.
    pub(crate) async fn register(
        &self,
        name: &FileName,
        expected: Option<Generation>,
    ) -> Result<Arc<File>> {
        let known = self.tier.file(name.id());
        // Not to ask the silo in vain; what counts is checked where the record is made.
        match (&known, expected) {
            (Some(file), _) => drop(file.newest_at(expected)?),
            (None, None | Some(Generation(0))) => {}
            (None, Some(expected)) => {
                return Err(Kind::Stale.error(format!(
                    "the node does not know {name}, and generation {expected} was expected: \
                     register it and decide again"
                )));
            }
        }
        let (known, head) = self.look(name).await?;
        let meta = match head {
            Ok(meta) => meta,
            // A file that was written here and never written back is nowhere else.
            Err(error) if error.kind() == Kind::NotFound => match known {
                Some((file, newest)) if newest.state() == State::Dirty => return Ok(file),
                Some((_, newest)) => {
                    self.mark_lost(&newest);
                    return Err(error);
                }
                None => return Err(error),
            },
            Err(error) => return Err(error),
        };
        if let Some((file, newest)) = known {
            let is_dirty = newest.state() == State::Dirty;
            let is_base = newest.base().is_some_and(|base| base == meta.version);
            let is_ours = self.is_upload_of(&meta, &file, &newest);
            let is_version = newest.version().is_some_and(|version| version == meta.version);
            if is_dirty && (is_base || is_ours) || is_version {
                self.mark_found(&newest);
                return Ok(file);
            }
        }
        let (name, version) = (name.clone(), meta.version);
        self.ask(|done| self.tier.register_at(name, meta.length, version, expected, done)).await
    }

    /// What the silo has of a file, and what was known here all the while that it was asked: a write-back that ended
    /// meanwhile would have the silo's answer taken for somebody else's change.
    async fn look(&self, name: &FileName) -> Result<(Option<Known>, Result<ObjectMeta>)> {
        let now = || {
            let file = self.tier.file(name.id())?;
            let newest = file.newest();
            let facts = (newest.attempt(), newest.state(), newest.base());
            Some(((file, newest), facts))
        };
        for _ in 0..LOOKS {
            let before = now();
            let head = self.silo(name.silo())?.head(name.key()).await;
            let after = now();
            if before.as_ref().map(|(_, facts)| facts) == after.as_ref().map(|(_, facts)| facts) {
                return Ok((after.map(|(known, _)| known), head));
            }
        }
        Err(Kind::Busy.error(format!("{name} is being written again and again: try again")))
    }

    /// Asks the silo whether it still has a file of which nothing was written here. It may have another version, which
    /// is newer.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if not: then what is here may be all that there is. What the silo answers, if that is not known.
    pub(crate) async fn check_source(
        &self,
        file: &File,
        generation: &Arc<FileGeneration>,
    ) -> Result<()> {
        let name = file.name();
        match self.silo(name.silo())?.head(name.key()).await {
            Err(error) if error.kind() == Kind::NotFound => {
                self.mark_lost(generation);
                Err(Kind::NotFound
                    .error(format!(
                        "{name} is not in its silo any more, and what is here is kept: copy it somewhere, or let it go \
                         with `forebay release`"
                    ))
                    .caused_by(error))
            }
            head => {
                let found = head?.version;
                if generation.version().is_some_and(|version| version == found) {
                    self.mark_found(generation);
                }
                Ok(())
            }
        }
    }

    /// Takes note of a silo that has nothing any more of what a generation was adopted at.
    fn mark_lost(&self, generation: &Arc<FileGeneration>) {
        self.tier.mark(generation, Some(Mark::Lost), Done::ignore());
    }

    /// The silo has it again, as after a mount that was away.
    fn mark_found(&self, generation: &Arc<FileGeneration>) {
        if generation.mark() == Some(Mark::Lost) {
            self.tier.mark(generation, None, Done::ignore());
        }
    }

    /// Fetches what is missing of a generation's extents in `indexes`, and returns when all of it
    /// is in the tier.
    pub(crate) async fn promote(
        self: &Arc<Self>,
        generation: &Arc<FileGeneration>,
        indexes: std::ops::Range<u32>,
        progress: &Progress,
    ) -> Result<()> {
        use futures::StreamExt;

        let _busy = self.begin(generation.file_id(), |busy| &mut busy.promotes);
        let fetches = futures::stream::iter(indexes).map(|index| {
            let index = ExtentIndex(index);
            async move {
                progress.check()?;
                self.fetch_into_tier(generation, index).await?;
                progress.advance(generation.extent_length(index).into());
                Ok::<(), Error>(())
            }
        });
        let mut fetches = fetches.buffer_unordered(self.width.max(1));
        loop {
            tokio::select! {
                biased;
                () = progress.cancelled() => return progress.check(),
                next = fetches.next() => match next {
                    Some(result) => result?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// The silo of that name.
    pub(crate) fn silo(&self, name: &str) -> Result<&Arc<dyn Silo>> {
        self.silos.get(name).ok_or_else(|| {
            Kind::NotFound
                .error(format!("there is no silo {name:?}: add [silo.{name}] to the configuration"))
        })
    }

    /// Whether a file is being promoted or written back.
    pub(crate) fn activity(&self, file: FileId) -> (bool, bool) {
        let busy = self.busy.lock();
        busy.get(&file).map_or((false, false), |b| (b.promotes > 0, b.writebacks > 0))
    }

    /// Buffers in use, and in all.
    pub(crate) fn buffer_use(&self) -> (u64, u64) {
        self.buffers.usage()
    }

    pub(crate) fn buffer_region(&self) -> &Arc<Region> {
        self.buffers.region()
    }

    /// Calls something of the tier and waits for its answer.
    pub(crate) async fn ask<T: Send + 'static>(&self, call: impl FnOnce(Done<T>)) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        call(Done::new(move |result| drop(sender.send(result))));
        receiver.await.map_err(|_| stopped())?
    }

    /// Has a shard write bytes to their slot.
    async fn store(&self, reservation: Reservation, fetched: &Arc<Fetched>) -> Result<Reservation> {
        let (done, receiver) = oneshot::channel();
        let fetched = Arc::clone(fetched);
        self.shard().send(Message::Store { reservation, fetched, done });
        receiver.await.map_err(|_| stopped())?
    }

    /// An extent with its checksums, from its descriptor if they are not in memory. They are not kept
    /// for others: whoever reads everything once would only drive out what is read often.
    async fn with_checksums(&self, generation: &FileGeneration, extent: Extent) -> Result<Extent> {
        if extent.has_checksums() {
            return Ok(extent);
        }
        let (_, bytes) = extent.descriptor();
        let buffer = self.buffers.take(bytes).await;
        let (done, receiver) = oneshot::channel();
        self.shard().send(Message::LoadDescriptor { extent: extent.clone(), buffer, done });
        let buffer = receiver.await.map_err(|_| stopped())??;
        generation.believe(&extent, &buffer.as_slice()[..bytes])
    }

    /// Has a shard read and verify some checksum blocks of an extent that has its checksums.
    async fn load_blocks(
        &self,
        extent: Extent,
        blocks: std::ops::Range<u32>,
        buffer: Buffer,
    ) -> Result<Buffer> {
        let (done, receiver) = oneshot::channel();
        self.shard().send(Message::Load { extent, blocks, buffer, done });
        receiver.await.map_err(|_| stopped())?
    }

    fn shard(&self) -> &Arc<Inbox> {
        let next = self.next_shard.fetch_add(1, Ordering::Relaxed);
        &self.shards[next % self.shards.len()]
    }

    /// Held by the one write-back of a file that runs. Its activity has begun.
    fn turn_of(&self, file: FileId) -> Arc<tokio::sync::Mutex<()>> {
        let busy = self.busy.lock();
        Arc::clone(&busy.get(&file).expect("it has begun").turn)
    }

    /// Counts an activity of a file until the guard is dropped.
    fn begin(&self, file: FileId, which: fn(&mut Busy) -> &mut u32) -> BusyGuard<'_> {
        *which(self.busy.lock().entry(file).or_default()) += 1;
        BusyGuard { mover: self, file, which }
    }
}

struct BusyGuard<'a> {
    mover: &'a Mover,
    file: FileId,
    which: fn(&mut Busy) -> &mut u32,
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        let mut busy = self.mover.busy.lock();
        let entry = busy.get_mut(&self.file).expect("counted in before");
        *(self.which)(entry) -= 1;
        if entry.promotes == 0 && entry.writebacks == 0 {
            busy.remove(&self.file);
        }
    }
}

fn stopped() -> Error {
    Kind::Disconnected.error("the node is stopping")
}
