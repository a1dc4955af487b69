//! Taking a generation back to its silo.

use std::sync::Arc;

use bytes::Bytes;
use dma::Frozen;
use extent::{ByteRange, Error, ExtentIndex, Kind, Result, SourceVersion, checksum};
use futures::StreamExt;
use nvme_tier::{Done, File, FileGeneration, Mark, State};
use silo::{Condition, ObjectMeta, Silo, Upload, UploadTags};

use super::Mover;
use crate::handle::Progress;

/// Extents that are read ahead of the upload.
const READ_AHEAD: usize = 4;

impl Mover {
    /// Copies a file's newest generation to its silo, verifies the copy, and takes note that the
    /// two are the same. Does nothing for a file that is clean.
    pub(crate) async fn writeback(&self, file: &Arc<File>, progress: &Progress) -> Result<()> {
        let _busy = self.begin(file.id(), |busy| &mut busy.writebacks);
        let turn = {
            let busy = self.busy.lock();
            Arc::clone(&busy.get(&file.id()).expect("begun above").turn)
        };
        let _turn = turn.lock().await;
        // A commit during the upload makes a newer generation, which is dirty in its turn.
        loop {
            let generation = file.newest();
            if generation.state() == State::Clean {
                return Ok(());
            }
            self.writeback_one(file, &generation, progress).await?;
            if file.newest().attempt() == generation.attempt() {
                return Ok(());
            }
        }
    }

    async fn writeback_one(
        &self,
        file: &Arc<File>,
        generation: &Arc<FileGeneration>,
        progress: &Progress,
    ) -> Result<()> {
        match generation.mark() {
            Some(Mark::Quarantined) => {
                return Err(Kind::Corrupt.error(format!(
                    "{} is damaged and was written only here: it is kept, not written back",
                    file.name()
                )));
            }
            Some(Mark::Conflict) => return Err(conflict(file)),
            Some(Mark::Lost) | None => {}
        }
        let silo = self.silo(file.name().silo())?;
        progress.expect(2 * generation.length());
        let meta = self.upload(silo.as_ref(), file, generation, progress).await?;
        self.verify(silo.as_ref(), file, generation, &meta.version, progress).await?;
        self.ask(|done| self.tier.settle(generation, meta.version, done)).await
    }

    async fn upload(
        &self,
        silo: &dyn Silo,
        file: &Arc<File>,
        generation: &Arc<FileGeneration>,
        progress: &Progress,
    ) -> Result<ObjectMeta> {
        let tags = UploadTags { file: file.id(), attempt: generation.attempt() };
        let key = file.name().key();
        let condition = generation.base().map_or(Condition::Absent, Condition::Version);
        let started = silo.upload(key, generation.length(), condition, tags).await;
        let finished = match started {
            Ok(mut upload) => {
                if let Err(error) = self.append_all(upload.as_mut(), generation, progress).await {
                    upload.abort().await;
                    return Err(error);
                }
                upload.finish().await
            }
            Err(error) => Err(error),
        };
        match finished {
            Err(error) if error.kind() == Kind::Stale => {
                // Either somebody else wrote the object, or we did, and died before we could
                // take note of it.
                let found = silo.head(key).await?;
                if found.tags == Some(tags) && found.length == generation.length() {
                    return Ok(found);
                }
                self.ask(|done| self.tier.mark(generation, Some(Mark::Conflict), done)).await?;
                Err(conflict(file).caused_by(error))
            }
            other => other,
        }
    }

    async fn append_all(
        &self,
        upload: &mut dyn Upload,
        generation: &Arc<FileGeneration>,
        progress: &Progress,
    ) -> Result<()> {
        let parts = futures::stream::iter(0..generation.extent_count())
            .map(|index| self.part(generation, ExtentIndex(index)));
        let mut parts = parts.buffered(READ_AHEAD);
        while let Some(part) = parts.next().await {
            progress.check()?;
            let part = part?;
            let bytes = part.len() as u64;
            upload.append(part).await?;
            progress.advance(bytes);
        }
        Ok(())
    }

    /// An extent's bytes, verified; zeroes where nothing was ever written.
    async fn part(&self, generation: &Arc<FileGeneration>, index: ExtentIndex) -> Result<Bytes> {
        let length = generation.extent_length(index) as usize;
        let block = self.tier.checksum_block_bytes() as usize;
        let mut buffer = self.buffers.take(length.next_multiple_of(block)).await;
        match generation.extent(index) {
            Some(extent) => {
                let loaded = self.load(extent, buffer).await;
                if let Err(error) = &loaded
                    && error.kind() == Kind::Corrupt
                {
                    self.tier.mark(generation, Some(Mark::Quarantined), Done::ignore());
                }
                buffer = loaded?;
            }
            None => buffer.as_mut_slice()[..length].fill(0),
        }
        Ok(Bytes::from_owner(Part { buffer: Arc::new(buffer), length }))
    }

    /// Reads the copy back and compares it with the checksums of what was written here.
    async fn verify(
        &self,
        silo: &dyn Silo,
        file: &Arc<File>,
        generation: &Arc<FileGeneration>,
        version: &SourceVersion,
        progress: &Progress,
    ) -> Result<()> {
        let checks = futures::stream::iter(0..generation.extent_count())
            .map(|index| self.verify_extent(silo, file, generation, version, ExtentIndex(index)));
        let mut checks = checks.buffer_unordered(READ_AHEAD);
        while let Some(bytes) = checks.next().await {
            progress.check()?;
            progress.advance(bytes?);
        }
        Ok(())
    }

    async fn verify_extent(
        &self,
        silo: &dyn Silo,
        file: &Arc<File>,
        generation: &Arc<FileGeneration>,
        version: &SourceVersion,
        index: ExtentIndex,
    ) -> Result<u64> {
        let length = generation.extent_length(index) as usize;
        let block = self.tier.checksum_block_bytes() as usize;
        let padded = length.next_multiple_of(block);
        let range = ByteRange::new(u64::from(index.0) * generation.extent_bytes(), length as u64)?;
        let buffer = self.buffers.take(padded).await;
        let (mut buffer, result) = silo.read(file.name().key(), version, range, buffer).await;
        result?;
        buffer.as_mut_slice()[length..padded].fill(0);
        let copy = &buffer.as_slice()[..padded];
        let same = match generation.extent(index) {
            Some(extent) => checksum::first_mismatch(copy, block, extent.checksums()).is_none(),
            None => copy.iter().all(|byte| *byte == 0),
        };
        if !same {
            return Err(Kind::Corrupt.error(format!(
                "the silo's copy of {} differs in bytes {range}: it stays dirty here; write it back again",
                file.name()
            )));
        }
        Ok(length as u64)
    }
}

/// An extent's bytes on their way to a silo.
struct Part {
    buffer: Frozen,
    length: usize,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.as_slice()[..self.length]
    }
}

fn conflict(file: &File) -> Error {
    Kind::Stale.error(format!(
        "{} was changed in its silo and written here since: both are kept, and somebody must choose",
        file.name()
    ))
}
