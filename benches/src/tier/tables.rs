//! Writing a tier's tables as the ledger would have left them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use extent::{Attempt, Error, ExtentIndex, Generation, Result, SourceVersion};
use nvme_tier::TierId;
use nvme_tier::codec::{Descriptor, FileRecord, Place, SlabHeader};
use nvme_tier::device::{DeviceIndex, Location};
use nvme_tier::layout::{HEADER_OFFSETS, Layout, Purpose, Shape};

use super::content::Content;
use super::image::{CHECKSUM_BLOCK_BYTES, data_purpose};

const EPOCH: u64 = 1;
const SEQUENCE: u64 = 2;
const ATTEMPT: Attempt = Attempt(3);
/// Entries are gathered to writes of about this many bytes.
const WRITE_BYTES: usize = 8 << 20;

/// Writes records and descriptors of files of so many extents each, and makes them durable.
pub(super) fn write(
    path: &Path,
    tier: TierId,
    layout: &Layout,
    content: Content,
    sizes: &[u32],
) -> Result<()> {
    let extent_bytes = content.extent_bytes;
    let file = OpenOptions::new().write(true).open(path);
    let file = file.map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
    let version = SourceVersion::new("\"9b2cf535f27731c974343645a3985328\"")?;
    let mut names = Vec::with_capacity(sizes.len());
    for number in 0..sizes.len() as u64 {
        names.push(Content::name(number)?);
    }
    let ids: Vec<_> = names.iter().map(extent::FileName::id).collect();
    let mut writer = TableWriter::new(&file, tier, layout, Purpose::Records, 0);
    for ((name, id), extents) in names.into_iter().zip(&ids).zip(sizes) {
        let record = FileRecord {
            file: *id,
            name,
            generation: Generation(1),
            attempt: ATTEMPT,
            sequence: SEQUENCE,
            length: u64::from(*extents) * extent_bytes,
            extent_bytes,
            extents_written: 0,
            dirty: false,
            written: false,
            twice: false,
            tombstone: false,
            blind: false,
            mark: None,
            source: Some(version.clone()),
        };
        writer.add(|place, bytes| record.encode(place, bytes))?;
    }
    let next = writer.finish()?;
    let mut writer = TableWriter::new(&file, tier, layout, data_purpose(extent_bytes), next);
    let blocks = u32::try_from(extent_bytes / u64::from(CHECKSUM_BLOCK_BYTES)).unwrap_or(1);
    let stride = writer.shape.stride;
    let mut sums = vec![0; blocks as usize];
    for (number, index) in Content::arrivals(sizes) {
        let descriptor = Descriptor {
            file: ids[usize::try_from(number).unwrap_or(usize::MAX)],
            generation: Generation(1),
            attempt: ATTEMPT,
            index: ExtentIndex(index),
            length: u32::try_from(extent_bytes).unwrap_or(u32::MAX),
            sequence: SEQUENCE,
        };
        for (block, sum) in (0..blocks).zip(&mut sums) {
            *sum = extent::checksum::crc32c(
                &(number << 32 | u64::from(index * blocks + block)).to_le_bytes(),
            );
        }
        writer.add(|place, bytes| descriptor.encode(place, stride, &sums, bytes))?;
    }
    writer.finish()?;
    file.sync_all().map_err(|e| Error::io("making a tier durable", e))
}

/// Fills slab after slab with entries.
struct TableWriter<'a> {
    file: &'a File,
    tier: TierId,
    layout: &'a Layout,
    purpose: Purpose,
    shape: Shape,
    slab: u32,
    slot: u32,
    pending: Vec<u8>,
    pending_at: u64,
}

impl<'a> TableWriter<'a> {
    fn new(file: &'a File, tier: TierId, layout: &'a Layout, purpose: Purpose, slab: u32) -> Self {
        let shape = layout.shape(purpose);
        let (pending, pending_at) = (Vec::with_capacity(WRITE_BYTES), 0);
        Self { file, tier, layout, purpose, shape, slab, slot: 0, pending, pending_at }
    }

    fn add(&mut self, encode: impl FnOnce(&Place, &mut [u8])) -> Result<()> {
        if self.slot == self.shape.slots {
            self.flush()?;
            self.slab += 1;
            self.slot = 0;
        }
        if self.slot == 0 {
            self.write_headers()?;
        }
        let offset = self.layout.slab_offset(self.slab) + self.shape.entry_offset(self.slot);
        if self.pending.is_empty() {
            self.pending_at = offset;
        }
        let begin = self.pending.len();
        self.pending.resize(begin + self.shape.stride as usize, 0);
        encode(&self.place(offset), &mut self.pending[begin..]);
        self.slot += 1;
        if self.pending.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what is left; the number of the next slab.
    fn finish(mut self) -> Result<u32> {
        self.flush()?;
        Ok(self.slab + 1)
    }

    fn write_headers(&mut self) -> Result<()> {
        let header = SlabHeader { epoch: EPOCH, purpose: self.purpose };
        for within in HEADER_OFFSETS {
            let offset = self.layout.slab_offset(self.slab) + within;
            let mut bytes = [0; SlabHeader::BYTES];
            header.encode(&self.place(offset), &mut bytes);
            self.write_at(&bytes, offset)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.write_at(&pending, self.pending_at)?;
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    fn place(&self, offset: u64) -> Place {
        let at = Location { device: DeviceIndex(0), offset };
        Place { tier: self.tier, at, epoch: EPOCH }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| Error::io("writing a tier's tables", e))
    }
}
