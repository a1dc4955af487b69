//! A tier on a sparse file, whose metadata is written directly: ten million promotes would take
//! hours, and write 160 GB that nobody reads.

use std::path::{Path, PathBuf};

use dma::{HugePages, Pool, SizeClass};
use extent::{Error, Kind, Result};
use nvme_tier::device::{Media, MediaOptions};
use nvme_tier::layout::{Class, Layout, PAGE_BYTES, Purpose, SLABS_OFFSET, Shape, largest_class};
use nvme_tier::{FormatOptions, Recovered, TierOptions, format, recover};

use super::content::Content;
use super::sectors::Sectors;
use super::tables;
use crate::files;

/// Bytes that one checksum covers.
pub const CHECKSUM_BLOCK_BYTES: u32 = 4096;
const SLAB_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: u32 = 512;
const QUEUE_DEPTH: usize = 64;

/// A tier made for measuring.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
    /// What it holds.
    pub content: Content,
}

/// Where the tables of one purpose stand: the same range of each of some slabs in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Where the first begins.
    pub offset: u64,
    /// Bytes of each.
    pub bytes: u64,
    /// From the beginning of one to that of the next.
    pub every: u64,
    /// How many there are.
    pub count: u32,
}

impl Image {
    /// Makes it.
    ///
    /// # Errors
    /// [`Kind::Io`], [`Kind::NoSpace`].
    pub fn make(path: &Path, content: Content) -> Result<Self> {
        let image = Self { path: path.to_owned(), content };
        let sizes = content.files();
        files::write_sparse(path, image.bytes(sizes.len() as u64))?;
        let options = FormatOptions {
            slab_bytes: Some(SLAB_BYTES),
            extent_bytes: content.extent_bytes,
            checksum_block_bytes: CHECKSUM_BLOCK_BYTES,
            min_class_bytes: smallest(content.extent_bytes),
            ..FormatOptions::default()
        };
        let report = format(&mut image.open()?, &pool()?, &options)?;
        tables::write(path, report.tier, &image.layout(sizes.len() as u64), content, &sizes)?;
        Ok(image)
    }

    /// One that was made before.
    #[must_use]
    pub fn known(path: &Path, content: Content) -> Self {
        Self { path: path.to_owned(), content }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Recovers the tier.
    ///
    /// # Errors
    /// As [`recover`]; [`Kind::Corrupt`] if not everything was found again.
    pub fn recover(&self) -> Result<Recovered> {
        self.recover_with(TierOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`Image::recover`].
    pub fn recover_with(&self, options: TierOptions) -> Result<Recovered> {
        let recovered = recover(&mut self.open()?, &pool()?, options)?;
        let found = (recovered.report.extents, recovered.report.findings);
        if found != (self.content.extents, nvme_tier::Findings::default()) {
            return Err(Kind::Corrupt
                .error(format!("of {} extents recovery found {found:?}", self.content.extents)));
        }
        Ok(recovered)
    }

    /// The tables that recovery reads besides superblocks and slab headers.
    #[must_use]
    pub fn spans(&self) -> [Span; 2] {
        let files = self.content.files().len() as u64;
        let layout = self.layout(files);
        let (records, data) =
            (layout.shape(Purpose::Records), layout.shape(data_purpose(self.content.extent_bytes)));
        let record_slabs = slabs_for(files, &records);
        let span = |first, count, shape: &Shape| Span {
            offset: layout.slab_offset(first) + shape.entry_offset(0),
            bytes: shape.table_bytes(),
            every: SLAB_BYTES,
            count,
        };
        [
            span(0, record_slabs, &records),
            span(record_slabs, slabs_for(self.content.extents, &data), &data),
        ]
    }

    /// Bytes of the records and descriptors in use, without the rest of their tables.
    #[must_use]
    pub fn table_bytes(&self, files: u64) -> u64 {
        let layout = self.layout(files);
        let stride = |purpose| u64::from(layout.shape(purpose).stride);
        files * stride(Purpose::Records)
            + self.content.extents * stride(data_purpose(self.content.extent_bytes))
    }

    fn open(&self) -> Result<Sectors> {
        let media = Media::open(std::slice::from_ref(&self.path), MediaOptions::default())?;
        Ok(Sectors::new(media.queue(QUEUE_DEPTH)?))
    }

    fn bytes(&self, files: u64) -> u64 {
        SLABS_OFFSET + u64::from(self.layout(files).slab_count) * SLAB_BYTES
    }

    fn layout(&self, files: u64) -> Layout {
        let max_class = largest_class(SLAB_BYTES, BLOCK_BYTES, CHECKSUM_BLOCK_BYTES, 1 << 20);
        let max_class = max_class.expect("the sizes above fit each other");
        let mut layout = Layout {
            block_bytes: BLOCK_BYTES,
            slab_bytes: SLAB_BYTES,
            slab_count: 0,
            checksum_block_bytes: CHECKSUM_BLOCK_BYTES,
            min_class: class(smallest(self.content.extent_bytes)),
            max_class,
        };
        let (records, data) =
            (layout.shape(Purpose::Records), layout.shape(data_purpose(self.content.extent_bytes)));
        // One more, so that there is a free one.
        layout.slab_count = slabs_for(files, &records) + slabs_for(self.content.extents, &data) + 1;
        layout
    }
}

pub(super) fn data_purpose(extent_bytes: u64) -> Purpose {
    Purpose::Data(class(extent_bytes))
}

/// The smallest slot of a tier of such extents.
fn smallest(extent_bytes: u64) -> u64 {
    extent_bytes.min(64 << 10)
}

fn class(extent_bytes: u64) -> Class {
    Class::of(extent_bytes).expect("a size of slots")
}

fn slabs_for(entries: u64, shape: &Shape) -> u32 {
    u32::try_from(entries.div_ceil(u64::from(shape.slots))).expect("some hundred slabs")
}

/// Buffers for recovery: what a node has.
fn pool() -> Result<Pool> {
    let classes = [
        SizeClass { bytes: usize::try_from(PAGE_BYTES).unwrap_or(4096), count: 16 },
        SizeClass { bytes: 1 << 20, count: 32 },
    ];
    Pool::new(&classes, HugePages::Try)
}

/// Removes an image when it is not needed any more.
#[derive(Debug)]
pub struct Scratch(pub Image);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(self.0.path()) {
            let _told = Error::io("removing a tier's file", error);
        }
    }
}

#[cfg(test)]
mod tests {
    use extent::ExtentIndex;

    use super::super::content::{EXTENT_BYTES, Sizes};
    use super::*;

    #[test]
    fn what_is_written_is_recovered() {
        let directory = tempfile::tempdir().expect("a directory");
        for sizes in [Sizes::Mixed, Sizes::Equal(1)] {
            let content = Content { extents: 3000, sizes, extent_bytes: EXTENT_BYTES };
            let image = Image::make(&directory.path().join("tier"), content).expect("made");
            let recovered = match image.recover() {
                Err(error) if [Kind::Unsupported, Kind::Denied].contains(&error.kind()) => return,
                other => other.expect("recovers"),
            };
            let counts = content.files();
            assert_eq!(recovered.report.files, counts.len() as u64);
            for (number, count) in (0u64..).zip(counts) {
                let name = Content::name(number).expect("a good name");
                let file = recovered.tier.file(name.id()).expect("known");
                let newest = file.newest();
                assert_eq!((newest.extent_count(), newest.resident_extents()), (count, count));
                let last = newest.extent(ExtentIndex(count - 1)).expect("resident");
                assert_eq!(last.checksums().map(|sums| sums.len()), Some(4));
            }
        }
    }
}
