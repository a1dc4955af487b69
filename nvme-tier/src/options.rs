use crate::clock;

/// How to lay out a tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormatOptions {
    /// Bytes of a slab, a power of two; `None` chooses by the size of the smallest device.
    pub slab_bytes: Option<u64>,
    /// Bytes of a full extent of new files: a power of two.
    pub extent_bytes: u64,
    /// Bytes that one checksum covers: 4, 16 or 64 KiB.
    pub checksum_block_bytes: u32,
    /// Bytes of the smallest slot: 64 KiB, or 16 KiB for tiers of small files.
    pub min_class_bytes: u64,
    /// Whether devices that take such advice are told that nothing on them is needed.
    pub deallocate: bool,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            slab_bytes: None,
            extent_bytes: 4 << 20,
            checksum_block_bytes: 4096,
            min_class_bytes: 64 << 10,
            deallocate: true,
        }
    }
}

/// What devices are told of freed space, where they take such advice.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Discard {
    /// Nothing.
    Off,
    /// Of slabs in which nothing is left. Large pieces cost a device little, and small ones much.
    #[default]
    Slabs,
    /// Of every slot, neighbours together.
    Slots,
}

/// On how many devices a file that is written here stands until its silo has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Copies {
    /// On one: losing a device loses what was not written back.
    #[default]
    One,
    /// On two: every extent, its descriptor and the file's record.
    Two,
}

/// How a tier behaves while it runs.
#[derive(Clone, Copy, Debug)]
pub struct TierOptions {
    /// The share of slot bytes in use at which eviction starts.
    pub high_watermark: f64,
    /// The share at which it stops.
    pub low_watermark: f64,
    /// How many operations may wait for the ledger before more are refused as Busy.
    pub queue_limit: usize,
    /// What devices are told of freed space.
    pub discard: Discard,
    /// Bytes that checksums may take in memory; `u64::MAX` for all of them. Those of dirty generations,
    /// and those that lie beside their slots, stay even beyond it.
    pub checksum_memory_bytes: u64,
    /// Of slots with at most so many checksums they lie beside the slot.
    pub most_checksums_beside: u32,
    /// How many copies there are of what is written from now on, until it is written back.
    pub dirty_copies: Copies,
    /// Milliseconds since 1970, by which pins expire. Tests and simulators bring their own clock.
    pub now_unix_ms: fn() -> u64,
}

impl Default for TierOptions {
    fn default() -> Self {
        Self {
            high_watermark: 0.95,
            low_watermark: 0.90,
            queue_limit: 4096,
            discard: Discard::default(),
            checksum_memory_bytes: u64::MAX,
            most_checksums_beside: 16,
            dirty_copies: Copies::One,
            now_unix_ms: clock::unix_ms,
        }
    }
}
