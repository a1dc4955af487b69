//! The node, what it stands on, and what happens to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dataplane::{
    DeviceStatus, Handle, NodeOptions, Parts, Progress, PromoteOptions, Residency, ScrubOptions,
    ShardParts, Stepped,
};
use dma::{HugePages, Pool, SizeClass};
use extent::{FileName, Generation, Kind};
use nvme_tier::device::HealthWatch;
use nvme_tier::device::sim::{
    Fault, FaultPlan, FaultRule, Operation, SimDisk, SimOptions, Survival, When,
};
use nvme_tier::{FormatOptions, TierOptions, format, recover};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use silo::sim::{Faults, SimSilo};
use silo::{LimitOptions, Limits, Mount, Silo};

use crate::model::{Model, any_length, contents};
use crate::network::Network;
use crate::player::Player;

/// Bytes of an extent: small, so that files have several.
pub(crate) const EXTENT_BYTES: usize = 64 << 10;
pub(crate) const SHARDS: u16 = 2;
const PLAYERS: u16 = 2;
/// Files that are in the silo from the start.
const FILES: u16 = 6;

/// See the module.
pub(crate) struct World {
    seed: u64,
    rng: SmallRng,
    disk: SimDisk,
    data: SimSilo,
    out: SimSilo,
    model: Model,
    /// Bytes of memory for checksums.
    checksum_memory: u64,
}

/// A node that runs, and the task that steps it.
struct Running {
    node: Arc<Mutex<Stepped>>,
    handle: Arc<dyn Handle>,
    network: Network,
    over: Arc<AtomicBool>,
    driver: tokio::task::JoinHandle<()>,
    mover: tokio::task::JoinHandle<()>,
}

/// One world from its beginning to its end. Panics if anything is wrong with it.
pub(crate) fn run(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut world = World::new(seed);
        for _ in 0..3 {
            world.play().await;
            world.cut_power();
        }
        world.play().await;
        world.settle_and_compare().await;
    });
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = SimDisk::new(SimOptions {
            devices: 1 + u16::from(seed.is_multiple_of(3)),
            capacity_bytes: 12 << 20,
            block_bytes: if seed.is_multiple_of(2) { 4096 } else { 512 },
            deallocates: true,
            seed,
            ..SimOptions::default()
        });
        let options = FormatOptions {
            slab_bytes: Some(512 << 10),
            extent_bytes: EXTENT_BYTES as u64,
            min_class_bytes: 16 << 10,
            ..FormatOptions::default()
        };
        format(&mut disk.queue(), &pool(), &options).expect("formatting");
        let (data, out) = (SimSilo::new(seed), SimSilo::new(seed + 1));
        let model = Model::default();
        for number in 0..FILES {
            let name = FileName::new("data", format!("file{number}")).expect("a name");
            let bytes = contents(rng.random(), any_length(&mut rng, EXTENT_BYTES));
            data.put(name.key(), bytes.to_vec());
            let entry = model.sending(&name, &bytes);
            model.acknowledged(&name, entry);
        }
        // Half of the worlds remember the checksums of nothing, of a few extents, or of some.
        let checksum_memory = [u64::MAX, 0, u64::MAX, 700, u64::MAX, 3000][(seed % 6) as usize];
        Self { seed, rng, disk, data, out, model, checksum_memory }
    }

    /// Two clients and an operator at work, while things fail now and then.
    async fn play(&mut self) {
        let running = self.start();
        self.set_faults();
        let mut players: Vec<_> = (0..PLAYERS).map(|n| self.player(n, &running)).collect();
        let operator_seed = self.rng.random();
        let operator = operate(&running, &self.model, operator_seed);
        let all = futures::future::join_all(players.iter_mut().map(|player| player.play(40)));
        // What is acknowledged is noted at once, so that the power can go in the middle of anything.
        let all = futures::future::join(operator, all);
        let in_the_middle = self.rng.random_ratio(1, 3);
        let patience = Duration::from_micros(self.rng.random_range(500..10_000));
        let patience = if in_the_middle { patience } else { Duration::from_secs(100_000) };
        let over = tokio::time::timeout(patience, all).await.is_ok();
        self.disk.set_faults(FaultPlan::new());
        self.data.set_faults(Faults::default());
        self.out.set_faults(Faults::default());
        let gently = self.rng.random::<bool>() && over;
        running.stop(gently).await;
    }

    /// What was not flushed survives, or not, or in part, block by block.
    fn cut_power(&mut self) {
        let rng = &mut self.rng;
        let block_bytes = self.disk.options().block_bytes;
        self.disk = self.disk.crash(&mut |write| {
            let bytes = u32::try_from(write.data.len()).expect("short writes");
            match rng.random_range(0..3) {
                0 => Survival::Lost,
                1 => Survival::Whole,
                _ => Survival::Torn((0..bytes / block_bytes).filter(|_| rng.random()).collect()),
            }
        });
    }

    /// Everything is read once more, written back, and compared with the silos.
    async fn settle_and_compare(&mut self) {
        let running = self.start();
        running.network.calm();
        let mut player = self.player(0, &running);
        for name in self.model.names() {
            let acknowledged = self.model.of(&name).floor().is_some();
            match player.read_whole(&name).await {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::NotFound && !acknowledged => continue,
                Err(error) => panic!("{name} cannot be read: {error:?}"),
            }
            if name.silo() == "out" {
                let status = running.handle.demote(&name, None, None, &Progress::new()).await;
                let status = status.unwrap_or_else(|error| panic!("demoting {name}: {error:?}"));
                assert_eq!(status.resident_extents, 0, "{name}");
                let copy = self.out.bytes(name.key()).expect("just written back");
                let whole = self.model.of(&name).allows(None, 0, &copy, copy.len() as u64);
                assert!(whole, "the silo's copy of {name} is none of what was committed");
            }
        }
        drop(player);
        running.settle().await;
        let status = running.handle.status().await;
        assert_eq!((status.dirty_files, status.sessions), (0, no_sessions().to_vec()));
        assert_eq!(status.buffers.0, u64::from(SHARDS), "only the shards' zeroes are out");
        running.network.assert_at_rest(usize::from(SHARDS));
        running.stop(false).await;
    }

    fn start(&mut self) -> Running {
        let checksum_memory_bytes = self.checksum_memory;
        let most_checksums_beside = if checksum_memory_bytes == u64::MAX { 16 } else { 0 };
        let options =
            TierOptions { checksum_memory_bytes, most_checksums_beside, ..TierOptions::default() };
        let recovered = recover(&mut self.disk.queue(), &pool(), options).expect("recovery");
        recovered.tier.allow_eviction();
        let network = Network::new(self.seed, self.rng.random(), self.rng.random());
        let shards = (0..SHARDS).map(|shard| ShardParts {
            device: Box::new(self.disk.queue()),
            transport: network.transport(shard),
        });
        let parts = Parts {
            tier: recovered.tier,
            ledger: recovered.ledger,
            ledger_device: Box::new(self.disk.queue()),
            shards: shards.collect(),
            silos: vec![mount("data", &self.data), mount("out", &self.out)],
            devices: Vec::<DeviceStatus>::new(),
            health: HealthWatch::default(),
            options: NodeOptions {
                credits: 16,
                shard_buffer_bytes: 8 << 20,
                session_share_bytes: 1 << 20,
                demand_fetches: 3,
                bulk_fetches: 2,
                huge_pages: HugePages::Never,
                ..NodeOptions::default()
            },
        };
        let mut node = Stepped::new(parts).expect("a node");
        let (handle, mover) = (node.handle(), node.start_mover());
        let node = Arc::new(Mutex::new(node));
        let over = Arc::new(AtomicBool::new(false));
        let driver = tokio::spawn(drive(Arc::clone(&node), Arc::clone(&over)));
        Running { node, handle, network, over, driver, mover }
    }

    fn player(&mut self, number: u16, running: &Running) -> Player {
        let (network, node) = (running.network.clone(), Arc::clone(&running.node));
        Player::new(number, network, node, self.model.clone(), self.rng.random())
    }

    /// Devices that fail reads, or flip a bit in one; a silo that fails and stalls.
    fn set_faults(&mut self) {
        // Apart, so that no dirty extent reads damaged three times in a row: that is data loss.
        let mut nth = |range| When::Nth(self.rng.random_range(range));
        let (flip, misdirect) = (nth(1..100), nth(120..200));
        let rule = |when, fault| FaultRule::new(Operation::Read, when, fault);
        self.disk.set_faults(
            FaultPlan::new()
                .with(rule(When::Chance(0.01), Fault::Fail))
                .with(rule(flip, Fault::FlipBit))
                .with(rule(misdirect, Fault::Misdirect)),
        );
        let faults = Faults {
            errors: vec![(Kind::Io, 0.03), (Kind::Busy, 0.02)],
            stall: Some((0.05, Duration::from_millis(20))),
            lost_answer: 0.1,
            spoilt_upload: 0.0,
        };
        self.data.set_faults(faults.clone());
        self.out.set_faults(faults);
    }
}

impl Running {
    /// Waits until nothing moves any more.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }

    /// Ends the node at once, or after it has come to rest.
    async fn stop(self, gently: bool) {
        if gently {
            self.network.calm();
            self.settle().await;
            self.network.assert_at_rest(usize::from(SHARDS));
        }
        self.over.store(true, Ordering::Relaxed);
        self.mover.abort();
        self.driver.await.expect("the driver does not panic");
    }
}

/// Steps the node for as long as it is wanted.
async fn drive(node: Arc<Mutex<Stepped>>, over: Arc<AtomicBool>) {
    let start = tokio::time::Instant::now();
    while !over.load(Ordering::Relaxed) {
        let now = u64::try_from(start.elapsed().as_nanos()).expect("not that long");
        node.lock().expect("nobody panics under the lock").step(now);
        tokio::time::sleep(Duration::from_micros(2)).await;
    }
}

/// Promotes, releases, demotes and pins whatever there is.
async fn operate(running: &Running, model: &Model, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let handle = &running.handle;
    for _ in 0..30 {
        let names = model.names();
        let name = &names[rng.random_range(0..names.len())];
        let progress = Progress::new();
        let options = PromoteOptions { durable: rng.random(), ..PromoteOptions::default() };
        let elsewhere = handle.release(name, None, Some(Generation(u64::MAX))).await;
        assert!(elsewhere.is_err(), "{name} was released at a generation that it is not at");
        let result = match rng.random_range(0..6) {
            5 => match handle.scrub(scrub_options(), &progress).await {
                // Whatever fails now and then is read again: nothing is really damaged.
                Ok(report) => {
                    assert_eq!((report.damaged, report.quarantined), (0, 0), "{report:?}");
                    continue;
                }
                Err(error) => Err(error),
            },
            0 | 1 => handle.promote(name, options, &progress).await,
            2 => handle.release(name, None, None).await,
            3 => handle.demote(name, None, None, &progress).await,
            _ => handle.pin(name, "operator", Duration::from_secs(1)).await,
        };
        match result {
            Ok(status) => assert_ne!(status.residency, Residency::Quarantined, "{name}"),
            Err(error) => tracing::debug!(%error, %name, "the operator was refused"),
        }
        tokio::time::sleep(Duration::from_micros(rng.random_range(1..400))).await;
    }
}

fn scrub_options() -> ScrubOptions {
    ScrubOptions { rate_bytes_per_s: Some(1 << 40) }
}

fn mount(name: &str, silo: &SimSilo) -> Mount {
    let limits = Limits::new(&LimitOptions::default());
    let silo: Arc<dyn Silo> = Arc::new(silo.clone());
    Mount { name: name.to_owned(), silo, counters: Arc::clone(limits.counters()), limits }
}

fn no_sessions() -> [(String, u64); 3] {
    ["shm", "tcp", "rdma"].map(|name| (name.to_owned(), 0))
}

fn pool() -> Pool {
    let classes = [SizeClass { bytes: 4096, count: 8 }, SizeClass { bytes: 1 << 20, count: 4 }];
    Pool::new(&classes, HugePages::Never).expect("memory")
}
