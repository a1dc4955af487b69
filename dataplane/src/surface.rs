//! The node as the control plane sees it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use dma::Pool;
use extent::{ByteRange, FileName, Generation, Kind, Result};
use hdrhistogram::Histogram;
use nvme_tier::device::HealthWatch;
use nvme_tier::{File, FileGeneration, Mark, State, Tier};
use silo::Mount;

use crate::bugs::{self, Bug};
use crate::clock::unix_ms;
use crate::handle::{
    Candidate, DeviceStatus, FileStatus, Handle, Keep, NodeStatus, Progress, PromoteOptions,
    RdmaStatus, Residency, SiloStatus,
};
use crate::mover::Mover;
use crate::node::DrainReport;
use crate::scrub::{ScrubOptions, ScrubReport, ScrubStatus};
use crate::shard::Surroundings;
use crate::stats::{Counter, ShardStats};

/// See the module.
pub(crate) struct Surface {
    mover: Arc<Mover>,
    node: Arc<Surroundings>,
    stats: Vec<Arc<ShardStats>>,
    pools: Vec<Pool>,
    silos: Vec<Mount>,
    devices: Vec<DeviceStatus>,
    health: HealthWatch,
}

impl Surface {
    pub(crate) fn new(
        mover: Arc<Mover>,
        node: Arc<Surroundings>,
        stats: Vec<Arc<ShardStats>>,
        pools: Vec<Pool>,
        silos: Vec<Mount>,
        (devices, health): (Vec<DeviceStatus>, HealthWatch),
    ) -> Self {
        Self { mover, node, stats, pools, silos, devices, health }
    }

    pub(crate) async fn drain(&self, progress: &Progress) -> Result<DrainReport> {
        self.node.start_draining();
        progress.check()?;
        self.mover.ask(|done| self.tier().flush(done)).await?;
        let mut dirty = Vec::new();
        let mut after: Option<FileName> = None;
        loop {
            let page =
                self.tier().list("", after.as_ref().map(ToString::to_string).as_deref(), 1000);
            let Some(last) = page.last() else { return Ok(DrainReport { dirty }) };
            after = Some(last.name().clone());
            dirty.extend(
                page.iter()
                    .filter(|file| file.newest().state() == State::Dirty)
                    .map(|file| file.name().clone()),
            );
        }
    }

    fn tier(&self) -> &Arc<Tier> {
        &self.node.tier
    }

    fn known(&self, name: &FileName) -> Result<Arc<File>> {
        self.tier().file(name.id()).ok_or_else(|| {
            Kind::NotFound.error(format!("{name} is not known here: register or promote it first"))
        })
    }

    fn describe(&self, file: &File) -> FileStatus {
        let newest = file.newest();
        let now = unix_ms();
        let live = |(owner, until): (String, u64)| (until > now).then_some(owner);
        FileStatus {
            name: file.name().clone(),
            id: file.id(),
            generation: newest.number(),
            length: newest.length(),
            version: newest.version(),
            residency: residency(&newest, self.mover.activity(file.id())),
            extent_bytes: newest.extent_bytes(),
            total_extents: newest.extent_count(),
            resident_extents: newest.resident_extents(),
            resident_bytes: newest.resident_bytes(),
            pins: file.pins().into_iter().filter_map(live).collect(),
        }
    }

    fn sum(&self, which: impl Fn(&ShardStats) -> &Counter) -> u64 {
        self.stats.iter().map(|stats| which(stats).get()).sum()
    }

    fn sessions(&self) -> Vec<(String, u64)> {
        let of = |fabric: usize| {
            self.stats.iter().map(|s| s.sessions[fabric].load(Ordering::Relaxed)).sum::<u64>()
        };
        let names = ["shm", "tcp", "rdma", "sim"];
        let all = names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), of(at)));
        // The simulated fabric is of no interest outside of simulations.
        all.filter(|(name, count)| name != "sim" || *count > 0).collect()
    }

    fn silo_status(&self) -> Vec<SiloStatus> {
        let of = |mount: &Mount| {
            let capabilities = mount.silo.capabilities();
            let counts = mount.counters.counts();
            SiloStatus {
                name: mount.name.clone(),
                kind: capabilities.kind.to_owned(),
                writable: capabilities.writable,
                conditional: capabilities.conditional,
                read_bytes: counts.read_bytes,
                written_bytes: counts.written_bytes,
                errors: counts.errors,
            }
        };
        self.silos.iter().map(of).collect()
    }

    fn buffers(&self) -> (u64, u64) {
        let mut total = self.mover.buffer_use();
        for usage in self.pools.iter().flat_map(Pool::usage) {
            total.0 += usage.taken as u64;
            total.1 += usage.class.count as u64;
        }
        total
    }

    fn scrub_status(&self) -> ScrubStatus {
        let stats = &self.mover.stats;
        ScrubStatus {
            extents: stats.scrubbed_extents.get(),
            bytes: stats.scrubbed_bytes.get(),
            damaged: stats.scrub_damaged.get(),
            unreadable: stats.scrub_unreadable.get(),
            repaired: stats.scrub_repaired.get(),
            quarantined: stats.scrub_quarantined.get(),
            metadata_damaged: stats.scrub_metadata_damaged.get(),
            running: *self.mover.scrub.running.lock(),
            last: *self.mover.scrub.last.lock(),
        }
    }

    fn read_percentiles(&self) -> (u64, u64) {
        let mut all: Option<Histogram<u64>> = None;
        for stats in &self.stats {
            let one = stats.read_ns.lock();
            match &mut all {
                None => all = Some(one.clone()),
                Some(all) => all.add(&*one).expect("the same bounds everywhere"),
            }
        }
        all.map_or((0, 0), |all| (all.value_at_quantile(0.5), all.value_at_quantile(0.99)))
    }
}

/// Devices are the process's, not a shard's.
fn rdma_status() -> Vec<RdmaStatus> {
    let status = |report: rdma::verbs::DeviceReport| RdmaStatus {
        device: report.device,
        ports: report.ports,
        events: report.events.into_iter().map(|(event, n)| (event.to_owned(), n)).collect(),
    };
    rdma::verbs::device_reports().into_iter().map(status).collect()
}

#[async_trait]
impl Handle for Surface {
    async fn register(&self, name: &FileName, expected: Option<Generation>) -> Result<FileStatus> {
        let file = self.mover.register(name, expected).await?;
        Ok(self.describe(&file))
    }

    async fn get(&self, name: &FileName) -> Result<FileStatus> {
        Ok(self.describe(&*self.known(name)?))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&FileName>,
        limit: usize,
    ) -> Result<Vec<FileStatus>> {
        let after = after.map(ToString::to_string);
        let files = self.tier().list(prefix, after.as_deref(), limit);
        Ok(files.iter().map(|file| self.describe(file)).collect())
    }

    async fn discover(
        &self,
        silo: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Candidate>> {
        let page = self.mover.silo(silo)?.list(prefix, after, limit).await?;
        page.objects
            .into_iter()
            .map(|object| {
                let name = FileName::new(silo, object.key)?;
                Ok(Candidate { name, length: object.length })
            })
            .collect()
    }

    async fn probe(&self, silo: &str) -> Result<()> {
        let silo = self.mover.silo(silo)?;
        match silo.list("", None, 1).await {
            Err(error) if error.kind() == Kind::Unsupported => {}
            listed => return listed.map(drop),
        }
        match silo.head(".forebay-probe").await {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            found => found.map(drop),
        }
    }

    async fn promote(
        &self,
        name: &FileName,
        options: PromoteOptions,
        progress: &Progress,
    ) -> Result<FileStatus> {
        progress.check()?;
        let file = self.mover.register(name, None).await?;
        let generation = file.newest_at(options.expected)?;
        if generation.state() == State::Clean {
            let indexes = indexes(&generation, options.range)?;
            let expected = indexes
                .clone()
                .map(|index| u64::from(generation.extent_length(extent::ExtentIndex(index))));
            progress.expect(expected.sum());
            self.mover.promote(&generation, indexes, progress).await?;
        }
        if options.durable {
            self.mover.ask(|done| self.tier().flush(done)).await?;
        }
        Ok(self.describe(&file))
    }

    async fn writeback(
        &self,
        name: &FileName,
        expected: Option<Generation>,
        progress: &Progress,
    ) -> Result<FileStatus> {
        let file = self.known(name)?;
        self.mover.writeback(&file, expected, progress).await?;
        Ok(self.describe(&file))
    }

    async fn resolve(
        &self,
        name: &FileName,
        keep: Keep,
        expected: Option<Generation>,
    ) -> Result<FileStatus> {
        let file = self.known(name)?;
        self.mover.resolve(&file, keep, expected).await?;
        Ok(self.describe(&file))
    }

    async fn release(
        &self,
        name: &FileName,
        range: Option<ByteRange>,
        expected: Option<Generation>,
    ) -> Result<FileStatus> {
        let file = self.known(name)?;
        let expected = expected.filter(|_| !bugs::is(Bug::ExpectedIgnored));
        // What is decided here is done to this generation, whatever is committed meanwhile.
        let newest = file.newest_at(expected)?;
        if newest.state() == State::Dirty {
            return Err(Kind::Denied.error(format!(
                "{name} was written here and its silo has no copy: demote it, or write it back first"
            )));
        }
        let pins = self.describe(&file).pins;
        if !pins.is_empty() {
            return Err(Kind::Denied
                .error(format!("{name} is pinned by {}: unpin it first", pins.join(", "))));
        }
        let indexes = indexes(&newest, range)?;
        self.mover.ask(|done| self.tier().release(&newest, indexes, done)).await?;
        Ok(self.describe(&file))
    }

    async fn demote(
        &self,
        name: &FileName,
        range: Option<ByteRange>,
        expected: Option<Generation>,
        progress: &Progress,
    ) -> Result<FileStatus> {
        let file = self.known(name)?;
        let was_clean = file.newest().state() == State::Clean;
        let written = self.mover.writeback(&file, expected, progress).await?;
        if was_clean {
            // What was just written back was also read back.
            self.mover.check_source(&file, &written).await?;
        }
        self.release(name, range, Some(written.number())).await
    }

    async fn pin(&self, name: &FileName, owner: &str, ttl: Duration) -> Result<FileStatus> {
        let file = self.known(name)?;
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.tier().pin(&file, owner, unix_ms().saturating_add(ttl));
        Ok(self.describe(&file))
    }

    async fn unpin(&self, name: &FileName, owner: &str) -> Result<FileStatus> {
        let file = self.known(name)?;
        if !self.tier().unpin(&file, owner) {
            return Err(Kind::NotFound.error(format!("{name} is not pinned by {owner:?}")));
        }
        Ok(self.describe(&file))
    }

    async fn scrub(&self, options: ScrubOptions, progress: &Progress) -> Result<ScrubReport> {
        self.mover.scrub(options, progress).await
    }

    async fn status(&self) -> NodeStatus {
        let usage = self.tier().usage();
        let mut devices = self.devices.clone();
        for (index, (device, used)) in devices.iter_mut().zip(&usage.devices).enumerate() {
            device.health = self.health.of(index);
            device.health_missing = self.health.why_not(index);
            device.capacity_bytes = used.capacity_bytes;
            device.used_bytes = used.used_bytes;
            device.deallocated_bytes = used.deallocated_bytes;
            device.failed = used.failed;
        }
        let (read_p50_ns, read_p99_ns) = self.read_percentiles();
        NodeStatus {
            devices,
            silos: self.silo_status(),
            shards: u32::try_from(self.stats.len()).unwrap_or(u32::MAX),
            sessions: self.sessions(),
            rdma: rdma_status(),
            files: usage.files,
            dirty_files: usage.dirty_files,
            dirty_bytes: usage.dirty_bytes,
            pinned_files: usage.pinned_files,
            resident_extents: usage.resident_extents,
            resident_bytes: usage.resident_bytes,
            slot_bytes: usage.slot_bytes,
            reads: self.sum(|s| &s.reads),
            read_bytes: self.sum(|s| &s.read_bytes),
            hits: self.sum(|s| &s.hits),
            misses: self.sum(|s| &s.misses),
            writes: self.sum(|s| &s.writes),
            written_bytes: self.sum(|s| &s.written_bytes),
            commits: self.sum(|s| &s.commits),
            fetched_extents: self.mover.stats.fetched_extents.get(),
            evicted_extents: usage.evicted_extents,
            checksum_errors: self.sum(|s| &s.checksum_errors),
            repairs: self.sum(|s| &s.repairs),
            checksum_memory_bytes: usage.checksum_bytes,
            checksum_memory_limit_bytes: match usage.checksum_limit_bytes {
                u64::MAX => 0,
                limit => limit,
            },
            checksum_hits: self.sum(|s| &s.checksum_hits),
            checksum_misses: self.sum(|s| &s.checksum_misses),
            dropped_checksums: usage.dropped_checksums,
            second_copy_reads: self.sum(|s| &s.second_copy_reads),
            files_missing_copy: usage.files_missing_copy,
            errors: self.sum(|s| &s.errors),
            buffers: self.buffers(),
            read_p50_ns,
            read_p99_ns,
            draining: self.node.draining.load(Ordering::Relaxed),
            scrub: self.scrub_status(),
        }
    }
}

/// The extents that a range of a file touches; all without one.
fn indexes(generation: &FileGeneration, range: Option<ByteRange>) -> Result<Range<u32>> {
    let Some(range) = range else { return Ok(0..generation.extent_count()) };
    if range.offset() >= generation.length() || range.is_empty() {
        return Err(Kind::Invalid.error(format!(
            "range {range} holds no byte of a file of {} bytes",
            generation.length()
        )));
    }
    let size = generation.extent_bytes();
    let end = range.end().min(generation.length()).div_ceil(size);
    let narrow = |n: u64| u32::try_from(n).expect("a file has at most 2^32 extents");
    Ok(narrow(range.offset() / size)..narrow(end))
}

fn residency(newest: &FileGeneration, (promoting, writing): (bool, bool)) -> Residency {
    match (newest.mark(), newest.state()) {
        (Some(Mark::Quarantined), _) => Residency::Quarantined,
        (Some(Mark::Conflict), _) => Residency::Conflict,
        (Some(Mark::Lost), _) => Residency::Lost,
        (None, State::Dirty) if writing => Residency::WritingBack,
        (None, State::Dirty) => Residency::Dirty,
        (None, State::Clean) => {
            let (here, all) = (newest.resident_extents(), newest.extent_count());
            if here == all {
                Residency::Clean
            } else if promoting {
                Residency::Promoting
            } else if here == 0 {
                Residency::Absent
            } else {
                Residency::Partial
            }
        }
    }
}
