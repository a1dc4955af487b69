use std::fs::File;
use std::io::Read;

use dma::Pool;
use extent::{Error, Kind, Result};

use crate::FormatOptions;
use crate::codec::{SUPERBLOCK_BYTES, Superblock, TierId};
use crate::device::{Command, Device, DeviceIndex, Geometry, Location};
use crate::ids::RESERVE;
use crate::layout::{
    self, Class, PAGE_BYTES, SLAB_BYTES_RANGE, SUPERBLOCK_OFFSETS, largest_class, to_usize,
};
use crate::ledger::io::DeviceSet;
use crate::reader::DeviceReader;

/// What was laid out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormatReport {
    /// The random number that the tier is known by.
    pub tier: TierId,
    /// Bytes of a slab.
    pub slab_bytes: u64,
    /// Bytes of a full extent of new files.
    pub extent_bytes: u64,
    /// Slabs on each device.
    pub slabs: Vec<u32>,
    /// Bytes of each device that it was told nobody needs; zero where it takes no such advice.
    pub deallocated_bytes: Vec<u64>,
}

/// Lays a tier out on all devices of a set. Whatever was on them is lost. Only the superblocks are
/// written: what else is there belongs to no tier any more, and is never believed.
///
/// # Errors
/// [`Kind::Invalid`] if the options do not fit the devices; [`Kind::Unsupported`] for blocks that
/// are not 512 to 4096 bytes; [`Kind::Io`].
pub fn format(
    device: &mut dyn Device,
    pool: &Pool,
    options: &FormatOptions,
) -> Result<FormatReport> {
    let count = u16::try_from(device.count()).unwrap_or(u16::MAX);
    if count == 0 || usize::from(count) > DeviceSet::MOST {
        return Err(Kind::Invalid.error(format!("a tier is made of 1 to 64 devices, not {count}")));
    }
    let geometries: Vec<Geometry> = (0..count).map(|i| device.geometry(DeviceIndex(i))).collect();
    geometries.iter().try_for_each(check_geometry)?;
    let (slab_bytes, max_class) = sizes(&geometries, options)?;
    let tier = random_id()?;
    let mut slabs = Vec::with_capacity(geometries.len());
    let mut deallocated_bytes = Vec::with_capacity(geometries.len());
    let mut reader = DeviceReader::new(device, pool)?;
    for (index, geometry) in (0..count).zip(&geometries) {
        deallocated_bytes.push(if options.deallocate {
            deallocate(&mut reader, DeviceIndex(index), geometry)
        } else {
            0
        });
        slabs.push(layout::slab_count(geometry.capacity_bytes, slab_bytes)?);
        let superblock = Superblock {
            tier,
            device: index,
            devices: count,
            block_bytes: geometry.block_bytes,
            checksum_block_bytes: options.checksum_block_bytes,
            capacity_bytes: geometry.capacity_bytes,
            slab_bytes,
            extent_bytes: options.extent_bytes,
            min_class_bytes: options.min_class_bytes,
            max_class_bytes: max_class.bytes(),
            sequence: 1,
            id_limit: RESERVE,
            without: 0,
        };
        for (offset, sequence) in SUPERBLOCK_OFFSETS.into_iter().zip(1..) {
            write_superblock(&mut reader, &Superblock { sequence, ..superblock }, offset)?;
        }
    }
    reader.run((0..count).map(|index| Command::Flush(DeviceIndex(index))))?;
    Ok(FormatReport {
        tier,
        slab_bytes,
        extent_bytes: options.extent_bytes,
        slabs,
        deallocated_bytes,
    })
}

/// Tells a device that nothing on it is needed; how many bytes it took that of. It is advice: a
/// device that refuses is formatted all the same.
fn deallocate(reader: &mut DeviceReader<'_>, device: DeviceIndex, geometry: &Geometry) -> u64 {
    let Some(takes) = geometry.deallocation else { return 0 };
    let mut told = 0;
    let Some(mut range) = takes.whole_units(0..geometry.capacity_bytes) else { return 0 };
    while !range.is_empty() {
        let bytes = takes.next_bytes(&range);
        let at = Location { device, offset: range.start };
        if let Err(error) = reader.run([Command::Deallocate { at, bytes }]) {
            tracing::warn!(device = device.0, %error, "a device takes no advice on unused blocks");
            break;
        }
        told += bytes;
        range.start += bytes;
    }
    told
}

/// Writes one superblock, without a flush.
pub(crate) fn write_superblock(
    reader: &mut DeviceReader<'_>,
    superblock: &Superblock,
    offset: u64,
) -> Result<()> {
    let mut page = vec![0; to_usize(PAGE_BYTES)];
    superblock.encode(offset, &mut page[..SUPERBLOCK_BYTES]);
    reader.write(Location { device: DeviceIndex(superblock.device), offset }, &page)
}

fn random_id() -> Result<TierId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::io("reading /dev/urandom for the tier's id", error))?;
    Ok(TierId(u128::from_le_bytes(bytes)))
}

fn check_geometry(geometry: &Geometry) -> Result<()> {
    let block = geometry.block_bytes;
    if !(512..=4096).contains(&block) || !block.is_power_of_two() {
        return Err(Kind::Unsupported.error(format!(
            "a device with blocks of {block} bytes: format its namespace with 512 or 4096"
        )));
    }
    Ok(())
}

fn sizes(geometries: &[Geometry], options: &FormatOptions) -> Result<(u64, Class)> {
    let invalid = |context: String| Kind::Invalid.error(context);
    if ![4096, 16384, 65536].contains(&options.checksum_block_bytes) {
        return Err(invalid(format!(
            "a checksum block of {} bytes: choose 4096, 16384 or 65536",
            options.checksum_block_bytes
        )));
    }
    let min = Class::of(options.min_class_bytes).filter(|class| class.bytes() <= 64 << 10);
    let min = min.ok_or_else(|| {
        invalid(format!(
            "a smallest slot of {} bytes: choose 16, 32 or 64 KiB",
            options.min_class_bytes
        ))
    })?;
    let extent =
        Class::of(options.extent_bytes).filter(|class| *class >= min).ok_or_else(|| {
            invalid(format!(
                "extents of {} bytes: choose a power of two from the smallest slot to 64 MiB",
                options.extent_bytes
            ))
        })?;
    if min.bytes() < u64::from(options.checksum_block_bytes) {
        return Err(invalid("the smallest slot must hold a checksum block".to_owned()));
    }
    let smallest = geometries.iter().map(|geometry| geometry.capacity_bytes).min().unwrap_or(0);
    let slab_bytes = options.slab_bytes.unwrap_or_else(|| default_slab(smallest, extent));
    if !slab_bytes.is_power_of_two() || !SLAB_BYTES_RANGE.contains(&slab_bytes) {
        return Err(invalid(format!(
            "slabs of {slab_bytes} bytes: choose a power of two from 256 KiB to 16 GiB"
        )));
    }
    let of = |geometry: &Geometry| {
        let (block, most) = (geometry.block_bytes, geometry.max_transfer_bytes);
        largest_class(slab_bytes, block, options.checksum_block_bytes, most)
    };
    let max = geometries.iter().map(of).min().flatten();
    let max = max.filter(|max| *max >= extent).ok_or_else(|| {
        invalid(format!(
            "extents of {} bytes do not fit slabs of {slab_bytes} (a quarter at most) on these \
             devices: choose smaller extents or larger slabs",
            extent.bytes()
        ))
    })?;
    Ok((slab_bytes, max))
}

/// About 256 slabs of 8 MiB to 1 GiB; on small devices rather a few extents to a slab, so that little
/// is lost to the rest of a slab, as long as there are 64 slabs.
fn default_slab(capacity_bytes: u64, extent: Class) -> u64 {
    let power = |bytes: u64| if bytes == 0 { 1 } else { 1u64 << bytes.ilog2() };
    let mut slab = power(capacity_bytes / 256).clamp(8 << 20, 1 << 30);
    while slab < 16 * extent.bytes() && capacity_bytes / (slab * 2) >= 64 {
        slab *= 2;
    }
    slab.max(4 * extent.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(capacity_bytes: u64, max_transfer_bytes: u32) -> Geometry {
        Geometry {
            capacity_bytes,
            block_bytes: 4096,
            max_transfer_bytes,
            volatile_cache: true,
            deallocation: None,
        }
    }

    #[test]
    fn default_sizes_suit_small_and_large_devices() {
        for (capacity, slab) in
            [(256 << 20, 16 << 20), (1 << 30, 16 << 20), (64 << 30, 256 << 20), (7 << 40, 1 << 30)]
        {
            let (found, max) = sizes(&[geometry(capacity, 1 << 20)], &FormatOptions::default())
                .expect("default options fit");
            assert_eq!(found, slab, "for {capacity} bytes");
            assert!(max.bytes() >= 4 << 20);
        }
    }

    #[test]
    fn options_that_do_not_fit_are_refused() {
        let good = FormatOptions::default();
        let bad = [
            FormatOptions { slab_bytes: Some(8 << 20), ..good },
            FormatOptions { slab_bytes: Some(48 << 20), ..good },
            FormatOptions { extent_bytes: 3 << 20, ..good },
            FormatOptions { extent_bytes: 32 << 10, ..good },
            FormatOptions { checksum_block_bytes: 512, ..good },
            FormatOptions { min_class_bytes: 128 << 10, ..good },
            FormatOptions { min_class_bytes: 16 << 10, checksum_block_bytes: 65536, ..good },
        ];
        for options in bad {
            let error = sizes(&[geometry(1 << 30, 1 << 20)], &options).expect_err("refused");
            assert_eq!(error.kind(), Kind::Invalid, "{options:?}");
        }
        let narrow = geometry(1 << 30, 4096);
        assert!(sizes(&[narrow], &good).is_err(), "no command could move the descriptor");
    }
}
