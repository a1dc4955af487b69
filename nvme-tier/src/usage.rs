use std::sync::atomic::{AtomicBool, AtomicU64};

/// How full a tier is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TierUsage {
    /// Each device, in order.
    pub devices: Vec<DeviceUsage>,
    /// Files known.
    pub files: u64,
    /// Files whose newest generation the silo does not have.
    pub dirty_files: u64,
    /// Bytes of those generations.
    pub dirty_bytes: u64,
    /// Files of which something is damaged that only existed here.
    pub quarantined_files: u64,
    /// Dirty files that were committed on two devices, and of which an extent is on one.
    pub files_missing_copy: u64,
    /// Files with a pin that has not expired.
    pub pinned_files: u64,
    /// Extents on the tier.
    pub resident_extents: u64,
    /// File bytes in them.
    pub resident_bytes: u64,
    /// Bytes of slots in use: by extents, reservations and what is yet to be erased.
    pub slot_bytes: u64,
    /// Extents evicted since start.
    pub evicted_extents: u64,
    /// Bytes of memory that checksums take.
    pub checksum_bytes: u64,
    /// Bytes that they may take; `u64::MAX` where all of them stay.
    pub checksum_limit_bytes: u64,
    /// How many extents' checksums were dropped from memory since start.
    pub dropped_checksums: u64,
}

/// How full a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceUsage {
    /// Bytes that slots can take.
    pub capacity_bytes: u64,
    /// Bytes of slots in use.
    pub used_bytes: u64,
    /// Bytes that it was told nobody needs, since start.
    pub deallocated_bytes: u64,
    /// Whether what was written may be lost in a power cut until it is flushed.
    pub volatile_cache: bool,
    /// Whether it failed a write or a flush, and nothing new is put on it.
    pub failed: bool,
}

/// What the ledger counts, for [`TierUsage`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) dirty_files: AtomicU64,
    pub(crate) dirty_bytes: AtomicU64,
    pub(crate) quarantined_files: AtomicU64,
    pub(crate) evicted_extents: AtomicU64,
    pub(crate) devices: Vec<DeviceCounters>,
}

#[derive(Debug, Default)]
pub(crate) struct DeviceCounters {
    pub(crate) capacity_bytes: AtomicU64,
    pub(crate) used_bytes: AtomicU64,
    pub(crate) deallocated_bytes: AtomicU64,
    pub(crate) failed: AtomicBool,
    pub(crate) volatile_cache: bool,
}
