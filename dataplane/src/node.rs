//! A node: its parts, its threads, its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use dma::{HugePages, Pool, SizeClass};
use extent::{Error, FileName, Kind, Result};
use nvme_tier::device::{Device, HealthWatch};
use nvme_tier::{Ledger, Tier};
use rdma::Transport;
use silo::Mount;
use tokio::sync::mpsc;
use tokio::task::JoinHandle as TaskHandle;

use crate::handle::{DeviceStatus, Handle, Progress};
use crate::inbox::{Inbox, Message};
use crate::ledger::LedgerThread;
use crate::mover::{Demand, Mover};
use crate::shard::{self, Shard, Surroundings};
use crate::stats::ShardStats;
use crate::surface::Surface;

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The most requests that one session may have in flight.
    pub credits: u16,
    /// How long an idle shard spins before it sleeps, in nanoseconds; if `None`, each one judges by
    /// its recent pauses.
    pub spin_ns: Option<u64>,
    /// Bytes of buffers of each shard.
    pub shard_buffer_bytes: usize,
    /// How much one session's reads may have on its way in a shard's buffers, or as zeroes, in bytes.
    pub session_share_bytes: u64,
    /// Extents that may be on their way from silos because a client waits.
    pub demand_fetches: usize,
    /// Extents that may be on their way from silos because of a promote.
    pub bulk_fetches: usize,
    /// The most that a scrub reads, in bytes a second, unless it is told otherwise.
    pub scrub_bytes_per_s: u64,
    /// Whether buffers are made of huge pages.
    pub huge_pages: HugePages,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            credits: 256,
            spin_ns: None,
            shard_buffer_bytes: 64 << 20,
            session_share_bytes: 16 << 20,
            demand_fetches: 16,
            bulk_fetches: 16,
            scrub_bytes_per_s: 64 << 20,
            huge_pages: HugePages::Try,
        }
    }
}

/// What one shard drives.
pub struct ShardParts {
    /// Its own queues over the tier's devices.
    pub device: Box<dyn Device>,
    /// Its own endpoint of the fabrics.
    pub transport: Box<dyn Transport>,
}

/// Everything that a node is made of.
pub struct Parts {
    /// The tier, recovered.
    pub tier: Arc<Tier>,
    /// Its ledger, and queues for it alone.
    pub ledger: Ledger,
    /// See `ledger`.
    pub ledger_device: Box<dyn Device>,
    /// One for each shard; at least one.
    pub shards: Vec<ShardParts>,
    /// Where files come from.
    pub silos: Vec<Mount>,
    /// What each device is called and how it is driven, in the tier's order; space is filled in.
    pub devices: Vec<DeviceStatus>,
    /// What tells of their own state, in the same order.
    pub health: HealthWatch,
    /// What the operator chose.
    pub options: NodeOptions,
}

/// What a drain found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DrainReport {
    /// Files that only this node has. They are durable on the tier.
    pub dirty: Vec<FileName>,
}

/// A running node.
pub struct Node {
    surface: Arc<Surface>,
    inboxes: Vec<Arc<Inbox>>,
    threads: Vec<JoinHandle<()>>,
    ledger: LedgerThread,
    mover: TaskHandle<()>,
}

/// A node whose shards and ledger are not running yet: a simulation steps them itself.
pub struct Stepped {
    pub(crate) surface: Arc<Surface>,
    pub(crate) mover: Arc<Mover>,
    pub(crate) demands: mpsc::Receiver<Demand>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) inboxes: Vec<Arc<Inbox>>,
    pub(crate) ledger: Ledger,
    pub(crate) ledger_device: Box<dyn Device>,
    spin_ns: Option<u64>,
}

impl Stepped {
    /// Puts the parts together.
    ///
    /// # Errors
    /// [`Kind::Invalid`] without a shard; [`Kind::NoSpace`] if the buffers' memory is not there.
    pub fn new(parts: Parts) -> Result<Self> {
        let Parts { tier, ledger, ledger_device, shards, silos, devices, health, options } = parts;
        if shards.is_empty() {
            return Err(Kind::Invalid.error("a node needs at least one shard"));
        }
        let inboxes: Vec<_> = shards.iter().map(|_| Inbox::new()).collect::<Result<_>>()?;
        let fetch_pool = Pool::new(&fetch_classes(&tier, &options), options.huge_pages)?;
        let mover = Mover::new(Arc::clone(&tier), &silos, inboxes.clone(), fetch_pool, &options);
        let (demand_sender, demands) = mpsc::channel(4096);
        let node = Arc::new(Surroundings {
            tier: Arc::clone(&tier),
            demands: demand_sender,
            silos: silos
                .iter()
                .map(|m| (m.name.clone(), m.silo.capabilities().writable))
                .collect::<HashMap<_, _>>(),
            options: options.clone(),
            draining: AtomicBool::new(false),
        });
        let mut ready = Vec::new();
        let mut stats = Vec::new();
        let mut pools = Vec::new();
        for (mut parts, inbox) in shards.into_iter().zip(&inboxes) {
            let pool = Pool::new(&shard_classes(&options), options.huge_pages)?;
            parts.device.register(mover.buffer_region())?;
            parts.transport.register(mover.buffer_region())?;
            let counters = Arc::new(ShardStats::default());
            stats.push(Arc::clone(&counters));
            pools.push(pool.clone());
            ready.push(Shard::new(
                parts.device,
                parts.transport,
                Arc::clone(&node),
                Arc::clone(inbox),
                counters,
                pool,
            )?);
        }
        let surface =
            Surface::new(Arc::clone(&mover), node, stats, pools, silos, (devices, health));
        Ok(Self {
            surface: Arc::new(surface),
            mover,
            demands,
            shards: ready,
            inboxes,
            ledger,
            ledger_device,
            spin_ns: options.spin_ns,
        })
    }

    /// What the control plane talks to.
    #[must_use]
    pub fn handle(&self) -> Arc<dyn Handle> {
        Arc::clone(&self.surface) as Arc<dyn Handle>
    }

    /// Starts the mover on the tokio runtime that is current; call it once.
    pub fn start_mover(&mut self) -> TaskHandle<()> {
        let (_, closed) = mpsc::channel(1);
        let demands = std::mem::replace(&mut self.demands, closed);
        tokio::spawn(Arc::clone(&self.mover).run(demands))
    }

    /// Bytes of memory that the sessions of all shards have taken, without what fabric devices have and
    /// what requests in flight do; `None` where a fabric does not count them.
    #[must_use]
    pub fn session_bytes(&self) -> Option<usize> {
        self.shards.iter().map(Shard::session_bytes).sum()
    }

    /// Takes one step of every shard and of the ledger; whether anything happened.
    pub fn step(&mut self, now_ns: u64) -> bool {
        let mut busy = self.ledger.step(self.ledger_device.as_mut());
        for shard in &mut self.shards {
            busy |= shard.step(now_ns);
        }
        busy
    }
}

impl Node {
    /// Starts the threads, and the mover on the tokio runtime that is current.
    ///
    /// # Errors
    /// As [`Stepped::new`]; [`Kind::Io`] if a thread cannot be started.
    pub fn start(parts: Parts) -> Result<Self> {
        let tier = Arc::clone(&parts.tier);
        let mut stepped = Stepped::new(parts)?;
        let mover = stepped.start_mover();
        let Stepped { surface, shards, inboxes, ledger, ledger_device, spin_ns, .. } = stepped;
        let ledger = LedgerThread::start(&tier, ledger, ledger_device)?;
        let mut threads = Vec::new();
        for (number, shard) in shards.into_iter().enumerate() {
            let thread = std::thread::Builder::new()
                .name(format!("shard-{number}"))
                .spawn(move || shard::run(shard, spin_ns))
                .map_err(|e| Error::io("starting a shard's thread", e))?;
            threads.push(thread);
        }
        Ok(Self { surface, inboxes, threads, ledger, mover })
    }

    /// What the control plane talks to.
    #[must_use]
    pub fn handle(&self) -> Arc<dyn Handle> {
        Arc::clone(&self.surface) as Arc<dyn Handle>
    }

    /// Refuses new writes from now on, makes what is committed durable, and names the files that
    /// only this node has.
    ///
    /// # Errors
    /// [`Kind::Io`] if a device cannot be flushed.
    pub async fn drain(&self, progress: &Progress) -> Result<DrainReport> {
        self.surface.drain(progress).await
    }

    /// Ends the sessions, waits until nothing runs, and joins the threads. Blocks.
    pub fn stop(self) {
        for inbox in &self.inboxes {
            inbox.send(Message::Stop);
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a shard's thread had panicked");
            }
        }
        self.mover.abort();
        self.ledger.stop();
    }
}

/// Buffers of a shard: half of the bytes for large pieces, the rest for small ones.
fn shard_classes(options: &NodeOptions) -> [SizeClass; 3] {
    let part = |bytes: usize, share: usize| SizeClass {
        bytes,
        count: (options.shard_buffer_bytes / share / bytes).max(4),
    };
    [part(16 << 10, 4), part(128 << 10, 4), part(1 << 20, 2)]
}

/// Buffers of the mover: every fetch that may run finds one that is large enough.
fn fetch_classes(tier: &Tier, options: &NodeOptions) -> Vec<SizeClass> {
    let lanes = options.demand_fetches + options.bulk_fetches;
    let extent = usize::try_from(tier.extent_bytes()).expect("an extent fits the address space");
    let mut classes = vec![SizeClass { bytes: extent, count: lanes + 8 }];
    for bytes in [64 << 10, 512 << 10] {
        if bytes < extent {
            classes.push(SizeClass { bytes, count: 2 * lanes });
        }
    }
    classes
}

impl Surroundings {
    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}
