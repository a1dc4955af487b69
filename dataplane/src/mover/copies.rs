//! Reading what only this node has, from whichever copy of it holds.

use std::ops::Range;

use dma::Buffer;
use extent::{Error, Kind, Result};
use nvme_tier::{Extent, FileGeneration, Tier};
use tokio::sync::oneshot;

use super::{Mover, stopped};
use crate::bugs::{self, Bug};
use crate::inbox::Message;
use crate::looks::{Looks, Next};

/// An extent and its second copy, if it has one.
pub(super) struct Copies {
    pub(super) first: Extent,
    pub(super) second: Option<Extent>,
}

/// Bytes that hold, and whether they came from the second copy.
pub(super) struct Sound {
    pub(super) buffer: Buffer,
    pub(super) second: bool,
}

impl Copies {
    /// Those of an extent that somebody holds.
    pub(super) fn of(generation: &FileGeneration, first: Extent) -> Self {
        // What lacks its checksums is clean by now.
        let second = generation.copy(first.index());
        let second = second.filter(|_| first.has_checksums() && !bugs::is(Bug::CopyIgnored));
        Self { first, second }
    }

    /// Whether there may be a sound copy on a device that cannot be read.
    pub(super) fn may_be_elsewhere(&self, tier: &Tier, generation: &FileGeneration) -> bool {
        self.second.is_none() && generation.is_twice() && tier.is_incomplete()
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &Extent> {
        [Some(&self.first), self.second.as_ref()].into_iter().flatten()
    }
}

impl Mover {
    /// Reads blocks of an extent, verified, into a buffer, from whichever copy holds; block by block if
    /// the copies are damaged in different places.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if a block reads damaged in every copy there is, again and again;
    /// [`Kind::Io`] if a device could not read its copy, which may be sound; and what else a shard
    /// says.
    pub(super) async fn load_sound(
        &self,
        copies: &Copies,
        blocks: Range<u32>,
        buffer: Buffer,
    ) -> Result<Sound> {
        let error = match self.load_either(copies, blocks.clone(), buffer).await {
            Err(error) if copies.second.is_some() && blocks.len() > 1 && is_damage(&error) => error,
            other => return other,
        };
        tracing::warn!(%error, "both copies of an extent are damaged: reading them block by block");
        let size = self.tier.checksum_block_bytes() as usize;
        // Beside the buffers, of which nobody waits for one while it has another.
        let mut bytes = Vec::with_capacity(blocks.len() * size);
        for block in blocks {
            let one = self.buffers.take(size).await;
            let one = self.load_either(copies, block..block + 1, one).await?;
            bytes.extend_from_slice(&one.buffer.as_slice()[..size]);
        }
        let mut whole = self.buffers.take(bytes.len()).await;
        whole.as_mut_slice()[..bytes.len()].copy_from_slice(&bytes);
        Ok(Sound { buffer: whole, second: true })
    }

    async fn load_either(
        &self,
        copies: &Copies,
        blocks: Range<u32>,
        buffer: Buffer,
    ) -> Result<Sound> {
        let bytes = blocks.len() * self.tier.checksum_block_bytes() as usize;
        let has_copy = copies.second.is_some();
        let mut looks = Looks::default();
        let mut buffer = Some(buffer);
        let mut unread = None;
        loop {
            let second = copies.second.as_ref().filter(|_| looks.second);
            let from = second.unwrap_or(&copies.first).clone();
            let into = match buffer.take() {
                Some(buffer) => buffer,
                None => self.buffers.take(bytes).await,
            };
            let error = match self.load_blocks(from, blocks.clone(), into).await {
                Ok(buffer) => return Ok(Sound { buffer, second: looks.second }),
                Err(error) if is_damage(&error) => error,
                Err(error) => return Err(error),
            };
            tracing::warn!(%error, second = looks.second, "reading a dirty extent failed");
            let unreadable = error.kind() == Kind::Io;
            match looks.after(unreadable, has_copy) {
                Next::Again(again) => looks = again,
                Next::Lost => return Err(error),
                // It may be sound, whatever the other one is.
                Next::Unreadable => return Err(unread.unwrap_or(error)),
            }
            if unreadable {
                unread = Some(error);
            }
        }
    }

    /// Has a shard write blocks of an extent where they stand, since what stands there does not hold.
    /// Whoever calls it has a sound copy, which a torn write leaves as it is.
    pub(super) async fn mend_blocks(
        &self,
        extent: Extent,
        blocks: Range<u32>,
        buffer: Buffer,
    ) -> Result<()> {
        let (done, receiver) = oneshot::channel();
        self.shard().send(Message::Mend { extent, blocks, buffer, done });
        receiver.await.map_err(|_| stopped())?
    }
}

fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::Io)
}
