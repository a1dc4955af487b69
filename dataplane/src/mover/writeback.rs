//! Taking a generation back to its silo.

use std::sync::Arc;

use bytes::Bytes;
use dma::{Buffer, Frozen};
use extent::{ByteRange, Error, ExtentIndex, Generation, Kind, Result, SourceVersion, checksum};
use futures::StreamExt;
use nvme_tier::{Done, Extent, File, FileGeneration, Mark, State};
use silo::{Condition, ObjectMeta, Silo, Upload, UploadTags};

use super::copies::Copies;
use super::{Mover, leftovers};
use crate::handle::Progress;

/// How often an upload starts over because an earlier one of ours turned up.
const MAX_UPLOADS: usize = 3;
/// Extents that are read ahead of the upload.
const READ_AHEAD: usize = 4;

impl Mover {
    /// Copies a file's newest generation to its silo, verifies the copy, and takes note that the
    /// two are the same. Does nothing for a file that is clean.
    pub(crate) async fn writeback(
        &self,
        file: &Arc<File>,
        expected: Option<Generation>,
        progress: &Progress,
    ) -> Result<Arc<FileGeneration>> {
        let _busy = self.begin(file.id(), |busy| &mut busy.writebacks);
        let turn = self.turn_of(file.id());
        let _turn = turn.lock().await;
        // A commit during the upload makes a newer generation, which is dirty in its turn.
        loop {
            let generation = file.newest_at(expected)?;
            if generation.state() == State::Clean {
                return Ok(generation);
            }
            self.writeback_one(file, &generation, progress).await?;
            if expected.is_some() || file.newest().attempt() == generation.attempt() {
                return Ok(generation);
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
        let Uploaded { meta, by_now } =
            self.upload(silo.as_ref(), file, generation, progress).await?;
        match self.verify(silo.as_ref(), file, generation, &meta.version, progress).await {
            Ok(()) => self.ask(|done| self.tier.settle(generation, meta.version, done)).await,
            Err(error) if error.kind() == Kind::Corrupt && by_now => {
                // Ours, and not what was sent: the next upload replaces it.
                let base = Some(meta.version);
                self.ask(|done| self.tier.rebase(generation, base, done)).await?;
                Err(error)
            }
            // Somebody else may have changed it and kept what it was marked with.
            Err(error) if error.kind() == Kind::Corrupt => {
                Err(self.conflict(file, generation, error).await)
            }
            Err(error) => Err(error),
        }
    }

    /// Uploads a generation over what the silo is known to hold, or over an earlier generation of
    /// ours whose upload took effect without our getting to know.
    async fn upload(
        &self,
        silo: &dyn Silo,
        file: &Arc<File>,
        generation: &Arc<FileGeneration>,
        progress: &Progress,
    ) -> Result<Uploaded> {
        let tags = self.signature(file, generation);
        let key = file.name().key();
        let mut condition = generation.base().map_or(Condition::Absent, Condition::Version);
        for _ in 0..MAX_UPLOADS {
            let uploaded =
                self.upload_over(silo, key, generation, condition.clone(), tags, progress).await;
            let error = match uploaded {
                Ok(meta) => return Ok(Uploaded { meta, by_now: true }),
                Err(error) => error,
            };
            let is_removed = |error: &Error| {
                error.kind() == Kind::NotFound && matches!(condition, Condition::Version(_))
            };
            if is_removed(&error) {
                return Err(self.conflict(file, generation, error).await);
            }
            // An answer may get lost, and a condition fail because of ourselves.
            let lost = error.kind().is_transient();
            if !lost && error.kind() != Kind::Stale {
                return Err(error);
            }
            let found = match silo.head(key).await {
                Ok(found) => found,
                Err(_) if lost => return Err(error),
                Err(head) if is_removed(&head) => {
                    return Err(self.conflict(file, generation, head).await);
                }
                Err(head) => return Err(head),
            };
            match found.tags.filter(|found| found.is_of(&tags)) {
                Some(ours)
                    if ours.attempt == tags.attempt && found.length == generation.length() =>
                {
                    silo.persist(key).await?;
                    return Ok(Uploaded { meta: found, by_now: false });
                }
                Some(ours) if ours.attempt < tags.attempt && !lost => {
                    condition = Condition::Version(found.version);
                }
                _ if lost => return Err(error),
                _ => return Err(self.conflict(file, generation, error).await),
            }
        }
        Err(Kind::Busy.error(format!("{} keeps changing in its silo: try again", file.name())))
    }

    /// Takes note that somebody else changed what a generation was to replace, or removed it.
    async fn conflict(&self, file: &File, generation: &Arc<FileGeneration>, error: Error) -> Error {
        let mark = Some(Mark::Conflict);
        match self.ask(|done| self.tier.mark(generation, mark, done)).await {
            Ok(()) => conflict(file).caused_by(error),
            Err(unmarked) => unmarked,
        }
    }

    async fn upload_over(
        &self,
        silo: &dyn Silo,
        key: &str,
        generation: &Arc<FileGeneration>,
        condition: Condition,
        tags: UploadTags,
        progress: &Progress,
    ) -> Result<ObjectMeta> {
        let mut upload = silo.upload(key, generation.length(), condition, tags).await?;
        if let Err(error) = self.append_all(upload.as_mut(), generation, progress).await {
            upload.abort().await;
            return Err(error);
        }
        upload.finish().await
    }

    /// What tells our uploads from anybody else's, another node's included.
    pub(super) fn signature(&self, file: &File, generation: &FileGeneration) -> UploadTags {
        let file = leftovers::mix(&self.tier, file.id());
        UploadTags { file, attempt: generation.attempt(), over: stands_for(generation.base()) }
    }

    /// Whether an object is an upload of a dirty generation, or of one before it, that has not been settled yet.
    pub(super) fn is_upload_of(
        &self,
        meta: &ObjectMeta,
        file: &File,
        generation: &FileGeneration,
    ) -> bool {
        let ours = self.signature(file, generation);
        meta.tags.is_some_and(|tags| tags.is_of(&ours) && tags.attempt <= ours.attempt)
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
        while let Some(part) = next(&mut parts, progress).await? {
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
        let padded = length.next_multiple_of(block);
        let extent = self.written(generation, index).await?;
        let mut buffer = self.buffers.take(padded).await;
        match extent {
            Some(extent) => buffer = self.load_dirty(generation, &extent, buffer).await?,
            None => buffer.as_mut_slice()[..length].fill(0),
        }
        Ok(Bytes::from_owner(Part { buffer: Arc::new(buffer), length }))
    }

    /// An extent that was written here, with its checksums; `None` for a hole.
    async fn written(
        &self,
        generation: &FileGeneration,
        index: ExtentIndex,
    ) -> Result<Option<Extent>> {
        match generation.extent(index) {
            Some(extent) => self.with_checksums(generation, extent).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads an extent that nobody else has, from whichever copy of it holds. It is lost if every copy
    /// reads damaged again and again.
    async fn load_dirty(
        &self,
        generation: &Arc<FileGeneration>,
        extent: &Extent,
        buffer: Buffer,
    ) -> Result<Buffer> {
        let blocks = extent.length().div_ceil(self.tier.checksum_block_bytes());
        let copies = Copies::of(generation, extent.clone());
        match self.load_sound(&copies, 0..blocks, buffer).await {
            Ok(sound) => {
                if sound.second {
                    self.tier.note_missing_copy(generation);
                }
                Ok(sound.buffer)
            }
            Err(error) => {
                if error.kind() == Kind::Corrupt && !copies.may_be_elsewhere(&self.tier, generation)
                {
                    self.tier.mark(generation, Some(Mark::Quarantined), Done::ignore());
                }
                Err(error)
            }
        }
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
        while let Some(bytes) = next(&mut checks, progress).await? {
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
        let extent = self.written(generation, index).await?;
        let buffer = self.buffers.take(padded).await;
        let (mut buffer, result) = silo.read(file.name().key(), version, range, buffer).await;
        result?;
        buffer.as_mut_slice()[length..padded].fill(0);
        let copy = &buffer.as_slice()[..padded];
        let same = match extent.as_ref().and_then(Extent::checksums) {
            Some(expected) => checksum::first_mismatch(copy, block, expected).is_none(),
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

/// An upload that is there.
struct Uploaded {
    meta: ObjectMeta,
    /// Whether it is known that this is it, and not one that ended unseen.
    by_now: bool,
}

/// The next of what is being done, unless nobody wants it any more.
async fn next<T>(
    stream: &mut (impl futures::Stream<Item = T> + Unpin),
    progress: &Progress,
) -> Result<Option<T>> {
    tokio::select! {
        biased;
        () = progress.cancelled() => {
            progress.check()?;
            Ok(None)
        }
        next = stream.next() => Ok(next),
    }
}

/// A number for a version, or for none: FNV-1a of its text.
fn stands_for(version: Option<SourceVersion>) -> u64 {
    let Some(version) = version else { return 0 };
    version.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
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
        "{0} was changed in its silo and written here since: both are kept, and `forebay resolve {0} --keep node` \
         or `--keep silo` chooses",
        file.name()
    ))
}
