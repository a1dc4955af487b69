//! A node of simulated parts, and a client that waits for its answers.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::{Completed, Options, Session, Ticket};
use dataplane::{Handle, NodeOptions, Parts, ShardParts, Stepped};
use dma::{HugePages, Pool, SizeClass};
use extent::wire::{OpenMode, Reply, Served};
use extent::{FileName, Result};
use nvme_tier::device::sim::{SimDisk, SimOptions};
use nvme_tier::device::{DeviceIndex, HealthWatch};
use nvme_tier::{Copies, FormatOptions, TierOptions, format, recover_without};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use rdma::{Channel, SimChannel, SimFabric, Transport};
use silo::sim::SimSilo;
use silo::{LimitOptions, Limits, Mount};

use crate::wired::Wired;

pub(crate) const EXTENT_BYTES: usize = 64 << 10;
pub(crate) const CREDITS: u16 = 8;

/// Runs a test on a clock that jumps whenever everybody sleeps.
pub(crate) fn in_virtual_time(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(test);
}

/// Bytes that tell where they belong.
pub(crate) fn contents(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A node with one shard and two silos: `data`, and `fixed`, which is read-only.
pub(crate) struct Lab {
    pub(crate) disk: SimDisk,
    pub(crate) data: SimSilo,
    pub(crate) fabric: SimFabric,
    pub(crate) handle: Arc<dyn Handle>,
    node: Arc<Mutex<Stepped>>,
    driver: tokio::task::JoinHandle<()>,
    ways: Ways,
}

/// How a node is to be.
#[derive(Clone, Copy)]
pub(crate) struct Ways {
    /// Bytes of memory for checksums. If not all stay, none lie beside their slots.
    pub(crate) checksum_memory_bytes: u64,
    /// Whether devices may write to clients' memory.
    pub(crate) windows: bool,
    /// On how many devices what is dirty stands.
    pub(crate) dirty_copies: Copies,
}

/// As nodes are unless told.
pub(crate) const USUAL: Ways =
    Ways { checksum_memory_bytes: u64::MAX, windows: true, dirty_copies: Copies::One };
/// Two copies of what is dirty.
pub(crate) const TWICE: Ways = Ways { dirty_copies: Copies::Two, ..USUAL };

impl Default for Ways {
    fn default() -> Self {
        USUAL
    }
}

impl Ways {
    fn tier_options(self) -> TierOptions {
        let Self { checksum_memory_bytes, dirty_copies, .. } = self;
        let most_checksums_beside = if checksum_memory_bytes == u64::MAX { 16 } else { 0 };
        TierOptions {
            checksum_memory_bytes,
            most_checksums_beside,
            dirty_copies,
            ..TierOptions::default()
        }
    }
}

impl Lab {
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        Self::with(SimOptions { capacity_bytes, ..SimOptions::default() })
    }

    /// A new tier on disks like these.
    pub(crate) fn with(sim: SimOptions) -> Self {
        Self::made(sim, Ways::default())
    }

    pub(crate) fn made(sim: SimOptions, ways: Ways) -> Self {
        let disk = SimDisk::new(sim);
        let options = FormatOptions {
            slab_bytes: Some(512 << 10),
            extent_bytes: EXTENT_BYTES as u64,
            ..FormatOptions::default()
        };
        format(&mut disk.queue(), &pool(), &options).expect("formatting");
        Self::without(disk, SimSilo::new(1), ways, &[])
    }

    /// The tier that is on some disks, as another process finds it.
    pub(crate) fn on(disk: SimDisk, data: SimSilo) -> Self {
        Self::without(disk, data, Ways::default(), &[])
    }

    /// A new tier on two disks, with two copies of what is dirty.
    pub(crate) fn twice(capacity_bytes: u64) -> Self {
        Self::made(SimOptions { devices: 2, capacity_bytes, ..SimOptions::default() }, TWICE)
    }

    /// The tier that is on some disks without others.
    pub(crate) fn without(
        disk: SimDisk,
        data: SimSilo,
        ways: Ways,
        absent: &[DeviceIndex],
    ) -> Self {
        let fabric = SimFabric::new(3).with_windows(ways.windows);
        let transport: Box<dyn Transport> = Box::new(fabric.transport());
        let mut node = stepped(&disk, &data, ways, absent, vec![transport]);
        let handle = node.handle();
        drop(node.start_mover());
        let node = Arc::new(Mutex::new(node));
        let driver = tokio::spawn(drive(Arc::clone(&node)));
        Self { disk, data, fabric, handle, node, driver, ways }
    }

    /// Comes to rest and ends.
    pub(crate) async fn stop(self) -> Self {
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.driver.abort();
        self
    }

    /// Another process, after this one came to rest and ended.
    pub(crate) async fn restart(self) -> Self {
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.driver.abort();
        let (disk, data, ways) = (self.disk.clone(), self.data.clone(), self.ways);
        drop(self);
        Self::without(disk, data, ways, &[])
    }

    pub(crate) fn client(&self) -> Client {
        let channel = Wired::new(self.fabric.connect(0), Arc::clone(&self.node));
        let session = Session::connect(Box::new(channel), &Options::default());
        Client::new(session.expect("connected"))
    }

    /// The next replies of a channel that is used by hand.
    pub(crate) async fn replies(&self, channel: &mut SimChannel, count: usize) -> Vec<Reply> {
        let mut replies = Vec::new();
        for _ in 0..1_000_000 {
            channel.poll(&mut replies).expect("connected");
            if replies.len() >= count {
                return replies;
            }
            tokio::time::sleep(Duration::from_micros(3)).await;
        }
        panic!("{count} replies were expected and {} came", replies.len());
    }

    /// After the last client has left, everything is back where it belongs.
    pub(crate) async fn end(self, client: Client) {
        drop(client);
        self.end_without_clients().await;
    }

    pub(crate) async fn end_without_clients(self) {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let status = self.handle.status().await;
        assert_eq!(status.buffers.0, 1, "only the shard's zeroes are out");
        assert!(status.sessions.iter().all(|(_, count)| *count == 0), "{:?}", status.sessions);
    }
}

/// One client, who waits for every answer.
pub(crate) struct Client {
    session: Session,
    done: Vec<Completed>,
}

impl Client {
    pub(crate) fn new(session: Session) -> Self {
        Self { session, done: Vec::new() }
    }

    pub(crate) async fn open(&mut self, name: &FileName, mode: OpenMode) -> Result<u64> {
        let ticket = self.session.submit_open(name, mode)?;
        Ok(self.finish(ticket).await.opened()?.0)
    }

    pub(crate) async fn read(
        &mut self,
        handle: u64,
        offset: u64,
        length: usize,
    ) -> Result<(Vec<u8>, Served)> {
        let ticket = self.begin_read(handle, offset, length);
        let done = self.finish(ticket).await;
        done.result?;
        let memory = done.memory.expect("it comes back from a read that succeeded");
        let bytes = usize::try_from(done.bytes).expect("a short read");
        Ok((memory.as_slice()[..bytes].to_vec(), done.served))
    }

    pub(crate) fn begin_read(&mut self, handle: u64, offset: u64, length: usize) -> Ticket {
        let memory = self.session.allocate(length.max(1)).expect("memory");
        self.session.submit_read(handle, offset, memory, 0..length).expect("there is room")
    }

    pub(crate) async fn write(&mut self, handle: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        let ticket = self.begin_write(handle, offset, bytes);
        self.finish(ticket).await.result
    }

    pub(crate) fn begin_write(&mut self, handle: u64, offset: u64, bytes: &[u8]) -> Ticket {
        let mut memory = self.session.allocate(bytes.len()).expect("memory");
        memory.as_mut_slice().copy_from_slice(bytes);
        let submitted = self.session.submit_write(handle, offset, memory, 0..bytes.len());
        self.session.kick();
        submitted.expect("there is room")
    }

    pub(crate) async fn commit(&mut self, handle: u64, length: u64) -> Result<()> {
        let ticket = self.session.submit_commit(handle, length)?;
        self.finish(ticket).await.result
    }

    pub(crate) async fn close(&mut self, handle: u64) {
        let ticket = self.session.submit_close(handle).expect("there is room");
        self.finish(ticket).await.result.expect("it was open");
    }

    pub(crate) async fn finish(&mut self, ticket: Ticket) -> Completed {
        for _ in 0..10_000_000 {
            self.session.kick();
            self.session.poll(&mut self.done);
            if let Some(at) = self.done.iter().position(|done| done.ticket == ticket) {
                return self.done.swap_remove(at);
            }
            tokio::time::sleep(Duration::from_micros(3)).await;
        }
        panic!("an answer never came");
    }
}

/// A node with a shard for each of the transports, on a tier that is on some disks.
pub(crate) fn stepped(
    disk: &SimDisk,
    data: &SimSilo,
    ways: Ways,
    absent: &[DeviceIndex],
    transports: Vec<Box<dyn Transport>>,
) -> Stepped {
    let options = ways.tier_options();
    let recovered = recover_without(&mut disk.queue(), &pool(), options, absent);
    let recovered = recovered.expect("recovery");
    recovered.tier.allow_eviction();
    let fixed = SimSilo::new(2);
    fixed.set_read_only(true);
    let parts = Parts {
        tier: recovered.tier,
        ledger: recovered.ledger,
        ledger_device: Box::new(disk.queue()),
        shards: transports
            .into_iter()
            .map(|transport| ShardParts { device: Box::new(disk.queue()), transport })
            .collect(),
        silos: vec![mount("data", data), mount("fixed", &fixed)],
        devices: Vec::new(),
        health: HealthWatch::default(),
        options: NodeOptions {
            credits: CREDITS,
            shard_buffer_bytes: 8 << 20,
            huge_pages: HugePages::Never,
            ..NodeOptions::default()
        },
    };
    Stepped::new(parts).expect("a node")
}

pub(crate) async fn drive(node: Arc<Mutex<Stepped>>) {
    let start = tokio::time::Instant::now();
    loop {
        let now = u64::try_from(start.elapsed().as_nanos()).expect("not that long");
        node.lock().expect("nobody panics under the lock").step(now);
        tokio::time::sleep(Duration::from_micros(2)).await;
    }
}

pub(crate) fn pool() -> Pool {
    let classes = [SizeClass { bytes: 4096, count: 8 }, SizeClass { bytes: 1 << 20, count: 4 }];
    Pool::new(&classes, HugePages::Never).expect("memory")
}

fn mount(name: &str, silo: &SimSilo) -> Mount {
    let limits = Limits::new(&LimitOptions::default());
    let silo = Arc::new(silo.clone());
    Mount { name: name.to_owned(), silo, counters: Arc::clone(limits.counters()), limits }
}
