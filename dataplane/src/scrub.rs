//! What is asked of a scrub, and what it tells.

/// What scrubs have done. Counters run since start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubStatus {
    /// Extents read.
    pub extents: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Extents whose checksums did not hold.
    pub damaged: u64,
    /// Extents that a device could not read.
    pub unreadable: u64,
    /// Of both, those fetched again from their silo.
    pub repaired: u64,
    /// Files set aside because an extent that only this node had is damaged.
    pub quarantined: u64,
    /// Superblocks, slab headers, records and descriptors that did not hold.
    pub metadata_damaged: u64,
    /// The scrub that runs, as far as it has come.
    pub running: Option<ScrubReport>,
    /// The last one that ended since start.
    pub last: Option<ScrubReport>,
}

/// How a scrub goes about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubOptions {
    /// The most to read, in bytes a second; `None` for what the node is set to.
    pub rate_bytes_per_s: Option<u64>,
}

/// What a scrub found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubReport {
    /// When it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// How long it took, in milliseconds; zero while it runs.
    pub elapsed_ms: u64,
    /// The most that it read, in bytes a second.
    pub rate_bytes_per_s: u64,
    /// Whether it came to the end; else it was stopped.
    pub complete: bool,
    /// Files looked at.
    pub files: u64,
    /// Extents read.
    pub extents: u64,
    /// File bytes in them.
    pub bytes: u64,
    /// Superblocks, slab headers, records and descriptors looked at.
    pub metadata_entries: u64,
    /// Extents whose checksums do not hold.
    pub damaged: u64,
    /// Extents that a device could not read.
    pub unreadable: u64,
    /// Of both, those fetched again from their silo.
    pub repaired: u64,
    /// Whatever does not hold and could not be made whole: dirty extents, and clean ones whose
    /// silo did not give them; those were dropped, and are fetched when they are next read.
    pub unrepaired: u64,
    /// Files that are set aside, since now or since before.
    pub quarantined: u64,
    /// Superblocks, slab headers, records and descriptors that do not hold.
    pub metadata_damaged: u64,
    /// Of those, the ones written again.
    pub metadata_repaired: u64,
}
