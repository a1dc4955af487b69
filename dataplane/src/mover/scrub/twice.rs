//! Extents of which there are two copies: what does not hold of one is written again from the other.

use std::sync::Arc;

use extent::{Kind, Result};
use nvme_tier::{Extent, FileGeneration};

use super::super::copies::Copies;
use super::pass::{CHUNK_BYTES, LOOKS, Pass, Verdict};

impl Pass<'_> {
    /// Reads both copies of an extent piece by piece, and mends the one that does not hold. What became
    /// of it, and whether it is whole now if it was not.
    pub(super) async fn both(
        &mut self,
        generation: &Arc<FileGeneration>,
        copies: &Copies,
    ) -> Result<(Verdict, bool)> {
        let block = self.mover.tier.checksum_block_bytes();
        let blocks = copies.first.length().div_ceil(block);
        let step = (CHUNK_BYTES / block).max(1);
        let (mut found, mut whole) = (Verdict::Sound, true);
        let mut first = 0;
        while first < blocks {
            let range = first..(first + step).min(blocks);
            for extent in copies.each() {
                let verdict = self.verdict(extent, range.clone()).await?;
                if matches!(verdict, Verdict::Sound) {
                    continue;
                }
                tracing::warn!(
                    file = %generation.file_id(),
                    index = %extent.index(),
                    device = extent.at().device.0,
                    "a copy of a dirty extent does not hold: mending it from the other one"
                );
                whole &= self.mend(copies, extent, range.clone()).await?;
                found = verdict;
            }
            first = range.end;
        }
        Ok((found, whole))
    }

    /// What some blocks of one copy are, after several looks.
    async fn verdict(&mut self, extent: &Extent, blocks: std::ops::Range<u32>) -> Result<Verdict> {
        let mut verdict = Verdict::Sound;
        for _ in 0..LOOKS {
            verdict = self.read_blocks(extent, blocks.clone()).await?;
            if matches!(verdict, Verdict::Sound) {
                break;
            }
        }
        Ok(verdict)
    }

    /// Writes blocks of one copy again. Whether they hold now.
    async fn mend(
        &mut self,
        copies: &Copies,
        bad: &Extent,
        blocks: std::ops::Range<u32>,
    ) -> Result<bool> {
        if !self.mover.tier.is_trusted(bad.at().device) {
            // Nothing that is written there counts before a restart.
            return Ok(false);
        }
        let bytes = blocks.len() * self.mover.tier.checksum_block_bytes() as usize;
        let buffer = self.mover.buffers.take(bytes).await;
        let sound = match self.mover.load_sound(copies, blocks.clone(), buffer).await {
            Ok(sound) => sound,
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Io) => return Ok(false),
            Err(error) => return Err(error),
        };
        let written = self.mover.mend_blocks(bad.clone(), blocks.clone(), sound.buffer).await;
        match written {
            Err(error) if matches!(error.kind(), Kind::Io | Kind::Corrupt) => {
                tracing::warn!(%error, "a copy was not mended");
                Ok(false)
            }
            Err(error) => Err(error),
            Ok(()) => Ok(matches!(self.read_blocks(bad, blocks).await?, Verdict::Sound)),
        }
    }
}
