//! One pass over everything on the tier.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use extent::{ExtentIndex, Kind, Result};
use nvme_tier::device::DeviceIndex;
use nvme_tier::{Extent, File, FileGeneration, Looked, Mark, State};
use tokio::time::{Instant, sleep};

use super::super::copies::Copies;
use super::{Mover, Pace};
use crate::handle::Progress;
use crate::scrub::ScrubReport;

/// Bytes of one read: little, so that a client's read never waits long behind it.
pub(super) const CHUNK_BYTES: u32 = 256 << 10;
/// How often something is read before it is believed to be damaged.
pub(super) const LOOKS: usize = 3;
/// Extents whose descriptors are looked at together.
const WINDOW: u32 = 64;
/// Files asked for at a time.
const PAGE: usize = 256;
/// While the mover has other work, a chunk waits for its end; but no longer than this, so that a scrub
/// gets on, slowly, on a node that is never idle.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
const GLANCE: Duration = Duration::from_millis(5);

/// One scrub that runs.
pub(super) struct Pass<'a> {
    pub(super) mover: &'a Arc<Mover>,
    pub(super) progress: &'a Progress,
    pub(super) report: ScrubReport,
    pub(super) pace: Pace,
}

/// What became of an extent that was read.
pub(super) enum Verdict {
    Sound,
    Corrupt,
    Unreadable,
}

impl Pass<'_> {
    /// All of it, once.
    pub(super) async fn run(&mut self) -> Result<()> {
        for device in 0..self.mover.tier.device_count() {
            self.device(DeviceIndex(device)).await?;
        }
        let mut after: Option<String> = None;
        loop {
            let page = self.mover.tier.list("", after.as_deref(), PAGE);
            let Some(last) = page.last() else { break };
            after = Some(last.name().to_string());
            for file in &page {
                self.file(file).await?;
            }
        }
        if self.report.metadata_repaired > 0 {
            match self.mover.ask(|done| self.mover.tier.flush(done)).await {
                Err(error) if error.kind() == Kind::Io => {
                    tracing::warn!(%error, "what was written again may not last");
                    self.report.unrepaired += self.report.metadata_repaired;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Superblocks and slab headers. The ledger writes again what does not hold.
    async fn device(&mut self, device: DeviceIndex) -> Result<()> {
        let mut slab = Some(0);
        while let Some(first) = slab {
            self.progress.check()?;
            let tier = &self.mover.tier;
            let looked = self.ask(|done| tier.look_at_device(device, first, done)).await?;
            self.count(&looked);
            self.report.metadata_repaired += looked.damaged;
            self.spend(looked.bytes).await;
            slab = looked.next_slab;
        }
        Ok(())
    }

    async fn file(&mut self, file: &Arc<File>) -> Result<()> {
        let generation = file.newest();
        self.records(file).await?;
        let (mut first, mut lonely) = (0, false);
        let unrepaired = self.report.unrepaired;
        while first < generation.extent_count() {
            let end = first.saturating_add(WINDOW).min(generation.extent_count());
            let extents = self.mover.tier.residents(&generation, first..end);
            lonely |= extents.iter().any(|extent| generation.copy(extent.index()).is_none());
            if !extents.is_empty() {
                self.descriptors(&generation, first..end).await?;
            }
            for extent in extents {
                self.extent(&generation, extent).await?;
            }
            first = end;
        }
        // Whatever was thought before: this is what was found.
        if lonely || self.report.unrepaired > unrepaired {
            self.note_lonely(&generation);
        } else {
            self.mover.tier.note_whole(&generation);
        }
        self.report.files += 1;
        let marked = generation.mark() == Some(Mark::Quarantined);
        self.report.quarantined += u64::from(marked);
        Ok(())
    }

    /// Both copies of a dirty file's record, the one of a clean file's.
    async fn records(&mut self, file: &Arc<File>) -> Result<()> {
        self.progress.check()?;
        let mut looked = Looked::default();
        for _ in 0..LOOKS {
            let tier = &self.mover.tier;
            looked = self.ask(|done| tier.look_at_records(file, done)).await?;
            self.spend(looked.bytes).await;
            if looked.damaged == 0 {
                break;
            }
        }
        self.count(&looked);
        if looked.damaged > 0 {
            tracing::warn!(file = %file.name(), "a copy of a file's record is damaged: rewritten");
            let tier = &self.mover.tier;
            let written = self.ask(|done| tier.rewrite_record(file, done)).await;
            self.note_rewritten(looked.damaged, written)?;
        }
        Ok(())
    }

    async fn descriptors(
        &mut self,
        generation: &Arc<FileGeneration>,
        indexes: std::ops::Range<u32>,
    ) -> Result<()> {
        let mut looked = Looked::default();
        for _ in 0..LOOKS {
            let tier = &self.mover.tier;
            let look = |done| tier.look_at_descriptors(generation, indexes.clone(), done);
            looked = self.ask(look).await?;
            self.spend(looked.bytes).await;
            if looked.damaged == 0 {
                break;
            }
        }
        self.count(&looked);
        let firsts = looked.extents.iter().map(|index| self.resident(generation, *index));
        let seconds = looked.copies.iter().map(|index| generation.copy(*index));
        let bad: Vec<Extent> = firsts.chain(seconds).flatten().collect();
        for extent in &bad {
            let index = extent.index();
            if !extent.has_checksums() {
                // Its checksums are lost with it, and so is what they vouched for.
                let repaired = self.repair(generation, extent, &Verdict::Unreadable).await?;
                self.report.metadata_repaired += u64::from(repaired);
                self.report.unrepaired += u64::from(!repaired);
                continue;
            }
            tracing::warn!(file = %generation.file_id(), %index, "a descriptor is damaged: rewritten");
            let tier = &self.mover.tier;
            let written = self.ask(|done| tier.rewrite_descriptor(generation, extent, done)).await;
            self.note_rewritten(1, written)?;
        }
        Ok(())
    }

    fn note_rewritten(&mut self, damaged: u64, written: Result<()>) -> Result<()> {
        match written {
            Ok(()) => self.report.metadata_repaired += damaged,
            Err(error) if error.kind() == Kind::Disconnected => return Err(error),
            // The file has moved on, or its device is not trusted any more.
            Err(error) => {
                tracing::warn!(%error, "damaged metadata was not rewritten");
                self.report.unrepaired += damaged;
            }
        }
        self.show();
        Ok(())
    }

    async fn extent(&mut self, generation: &Arc<FileGeneration>, extent: Extent) -> Result<()> {
        let mut verdict = Verdict::Sound;
        let mut mended = false;
        let copies = Copies::of(generation, extent.clone());
        if copies.second.is_some() {
            (verdict, mended) = self.both(generation, &copies).await?;
        } else {
            for _ in 0..LOOKS {
                verdict = self.read(generation, &extent).await?;
                if matches!(verdict, Verdict::Sound) {
                    break;
                }
            }
        }
        let bytes = u64::from(extent.length());
        self.report.extents += 1;
        self.report.bytes += bytes;
        self.progress.advance(bytes);
        let stats = &self.mover.stats;
        stats.scrubbed_extents.add(1);
        stats.scrubbed_bytes.add(bytes);
        let index = extent.index();
        let newest = self.mover.tier.file(generation.file_id()).map(|file| file.newest());
        // Nothing else comes to the place of an extent that is held.
        let is_here = newest.is_some_and(|newest| Arc::ptr_eq(&newest, generation))
            && self.resident(generation, index).is_some_and(|now| now.at() == extent.at());
        match verdict {
            Verdict::Sound => {
                self.show();
                return Ok(());
            }
            // It was released, evicted, repaired or written over meanwhile.
            _ if !is_here => return Ok(()),
            Verdict::Corrupt => {
                self.report.damaged += 1;
                self.mover.stats.scrub_damaged.add(1);
            }
            Verdict::Unreadable => {
                self.report.unreadable += 1;
                self.mover.stats.scrub_unreadable.add(1);
            }
        }
        let repaired = mended || self.repair(generation, &extent, &verdict).await?;
        self.report.repaired += u64::from(repaired);
        self.report.unrepaired += u64::from(!repaired);
        self.mover.stats.scrub_repaired.add(u64::from(repaired));
        self.show();
        Ok(())
    }

    /// What a read would do: a clean extent is dropped and fetched again; a dirty one is nowhere
    /// else. Whether it is whole again.
    async fn repair(
        &mut self,
        generation: &Arc<FileGeneration>,
        extent: &Extent,
        verdict: &Verdict,
    ) -> Result<bool> {
        let (file, index) = (generation.file_id(), extent.index());
        if generation.state() == State::Clean {
            tracing::warn!(%file, %index, "a clean extent is damaged: repairing");
            self.mover.tier.discard(generation, extent);
            return match self.mover.fetch_into_tier(generation, index).await {
                Ok(()) => Ok(true),
                // Perhaps its silo is down. That the node stops shows at the next read.
                Err(error) => {
                    tracing::warn!(%file, %index, %error, "a damaged extent was dropped, not repaired");
                    Ok(false)
                }
            };
        }
        let is_new = generation.mark() != Some(Mark::Quarantined);
        let lost = is_new && matches!(verdict, Verdict::Corrupt);
        if lost && self.is_lost(generation, extent).await? {
            tracing::error!(%file, %index, "a dirty extent is damaged: quarantined");
            self.mover.stats.scrub_quarantined.add(1);
            let mark = Some(Mark::Quarantined);
            let marked = self.ask(|done| self.mover.tier.mark(generation, mark, done)).await;
            if let Err(error) = marked {
                tracing::warn!(%file, %error, "a quarantine was not written down");
            }
        }
        Ok(false)
    }

    /// Reads an extent piece by piece.
    async fn read(&mut self, generation: &FileGeneration, extent: &Extent) -> Result<Verdict> {
        let extent = match self.mover.with_checksums(generation, extent.clone()).await {
            Ok(extent) => extent,
            Err(error) if error.kind() == Kind::Corrupt => return Ok(Verdict::Corrupt),
            Err(error) if error.kind() == Kind::Io => return Ok(Verdict::Unreadable),
            Err(error) => return Err(error),
        };
        let block = self.mover.tier.checksum_block_bytes();
        let blocks = extent.length().div_ceil(block);
        let step = (CHUNK_BYTES / block).max(1);
        let mut first = 0;
        while first < blocks {
            let end = (first + step).min(blocks);
            match self.read_blocks(&extent, first..end).await? {
                Verdict::Sound => first = end,
                bad => return Ok(bad),
            }
        }
        Ok(Verdict::Sound)
    }

    /// Reads some blocks of an extent.
    pub(super) async fn read_blocks(
        &mut self,
        extent: &Extent,
        blocks: Range<u32>,
    ) -> Result<Verdict> {
        let bytes = blocks.len() * self.mover.tier.checksum_block_bytes() as usize;
        loop {
            self.progress.check()?;
            self.give_way().await;
            let buffer = self.mover.buffers.take(bytes).await;
            let read = self.mover.load_blocks(extent.clone(), blocks.clone(), buffer).await;
            let result = read.map(drop);
            self.spend(bytes as u64).await;
            match result {
                Ok(()) => return Ok(Verdict::Sound),
                Err(error) => match error.kind() {
                    Kind::Corrupt => return Ok(Verdict::Corrupt),
                    Kind::Io => return Ok(Verdict::Unreadable),
                    Kind::Busy => sleep(LONGEST_WAIT).await,
                    // Nothing is wrong with the extent, and nothing of it must be thrown away.
                    _ => return Err(error),
                },
            }
        }
    }

    /// Whether no copy of an extent can be made out of what there is, and none may be sound.
    async fn is_lost(&mut self, generation: &FileGeneration, extent: &Extent) -> Result<bool> {
        let copies = Copies::of(generation, extent.clone());
        if copies.second.is_none() {
            return Ok(!copies.may_be_elsewhere(&self.mover.tier, generation));
        }
        let blocks = extent.length().div_ceil(self.mover.tier.checksum_block_bytes());
        for block in 0..blocks {
            let buffer =
                self.mover.buffers.take(self.mover.tier.checksum_block_bytes() as usize).await;
            match self.mover.load_sound(&copies, block..block + 1, buffer).await {
                Err(error) if error.kind() == Kind::Corrupt => return Ok(true),
                Err(error) if error.kind() != Kind::Io => return Err(error),
                _ => {}
            }
        }
        Ok(false)
    }

    fn note_lonely(&self, generation: &FileGeneration) {
        if generation.is_twice() && generation.state() == State::Dirty {
            self.mover.tier.note_missing_copy(generation);
        }
    }

    fn resident(&self, generation: &FileGeneration, index: ExtentIndex) -> Option<Extent> {
        self.mover.tier.residents(generation, index.0..index.0 + 1).pop()
    }

    /// Asks the tier, and again while it is busy.
    async fn ask<T: Send + 'static>(&self, call: impl Fn(nvme_tier::Done<T>)) -> Result<T> {
        loop {
            match self.mover.ask(&call).await {
                Err(error) if error.kind() == Kind::Busy => {
                    self.progress.check()?;
                    sleep(LONGEST_WAIT).await;
                }
                other => return other,
            }
        }
    }

    fn count(&mut self, looked: &Looked) {
        self.report.metadata_entries += looked.entries;
        self.report.metadata_damaged += looked.damaged;
        self.mover.stats.scrub_metadata_damaged.add(looked.damaged);
    }

    fn show(&self) {
        *self.mover.scrub.running.lock() = Some(self.report);
    }

    /// Lets more urgent work of the mover go first, for a while.
    async fn give_way(&self) {
        let until = Instant::now() + LONGEST_WAIT;
        while !self.mover.is_at_leisure() && Instant::now() < until {
            sleep(GLANCE).await;
        }
    }

    async fn spend(&mut self, bytes: u64) {
        tokio::select! {
            () = self.pace.spend(bytes) => {}
            () = self.progress.cancelled() => {}
        }
    }
}
