//! Mistakes that this crate does not make, for tests to make on purpose.
//!
//! A test that cannot fail proves nothing. Each of these mistakes is one condition in the code; a
//! test turns one on and must then find that something is wrong. Without the feature
//! `seeded-bugs` [`is`] is always false and nothing of this is left in the program; the node
//! refuses to be built with the feature.
#![cfg_attr(
    not(feature = "seeded-bugs"),
    allow(unreachable_pub, reason = "only with the feature is this module public")
)]

extent::mistakes! {
    /// A commit's record is written before its data and descriptors are flushed.
    UnflushedDescriptors,
    /// A commit is acknowledged before its record is flushed.
    UnflushedRecords,
    /// A slot is used again before the erasure of its entry is flushed.
    UnflushedErasures,
    /// Slots are used for the first time before the erasure of their entries is flushed.
    UnflushedWindows,
    /// Recovery does not make durable what it believes.
    UnflushedRecovery,
    /// A flush that failed passes for one that succeeded.
    FailedFlushIgnored,
    /// A flush that failed is tried again, and believed when it then succeeds.
    FailedFlushRetried,
    /// A write that failed passes for one that succeeded.
    FailedWriteIgnored,
    /// A record's checksum is not compared.
    RecordUnchecked,
    /// A record that was never written whole passes for one that was, and was damaged.
    TornTakenForDamaged,
    /// A record counts wherever it stands.
    RecordAnywhere,
    /// Of a file's records the oldest counts.
    OldestRecordWins,
    /// The record of a dirty file is written once.
    OneRecordCopy,
    /// A damaged copy of a record may pass for a newer one.
    DamagedCopyIsNewer,
    /// What is to be kept on two devices is kept twice on one.
    CopiesTogether,
    /// Of what is kept on two devices one is flushed before the record is written.
    CopyUnflushed,
    /// Both copies of the record of what is kept on two devices are on one.
    RecordCopiesTogether,
    /// A record that is newer than others on two devices stands on one.
    OutvotedOnce,
    /// What a record that stands on one of its two devices replaces is erased before it stands on both.
    IncompleteServed,
    /// Second copies are kept although the silo has the file.
    CopiesKept,
    /// Without a second copy that was damaged or lost, a file passes for lost.
    CopyForgotten,
    /// Tombstones go although a device is absent that may hold what they bury.
    AbsentForgotten,
    /// What was registered without knowing a dirty record on an absent device replaces that.
    BlindRecordWins,
    /// Of a device that fails while the tier runs the others are not told.
    FailureUntold,
    /// A descriptor's checksum is not compared.
    DescriptorUnchecked,
    /// A descriptor counts wherever it stands.
    DescriptorAnywhere,
    /// A descriptor of an earlier use of its slab counts.
    AnyEpoch,
    /// A descriptor of another attempt at its file counts.
    AnyAttempt,
    /// A dirty file that lacks extents is served, with holes.
    LostExtentUnnoticed,
    /// A slab has one header.
    OneHeader,
    /// A higher limit of ids is written to one superblock only.
    OneSuperblockRaised,
    /// Ids that were given out before a restart are given out again.
    IdsReused,
    /// A tombstone is erased together with what it buries.
    TombstoneTooEarly,
    /// The slots of the old generation are free before the record of the new one is flushed.
    OldSlotsTooEarly,
    /// A slot comes back while somebody still reads it.
    ReadersIgnored,
    /// Dirty extents are evicted and released.
    DirtyEvicted,
    /// Pinned extents are evicted and released.
    PinnedEvicted,
    /// A device is told that a slot is not needed before the erasure of its entry is flushed.
    DiscardedTooEarly,
    /// A slot is given out while its device is still being told that nobody needs it.
    GrantedWhileDiscarded,
    /// A descriptor that was read for its checksums is not asked whose it is.
    VectorUnidentified,
    /// Checksums may go before their descriptor is written, or while nothing but them tells.
    VectorDroppedEarly,
    /// A slot that is used again keeps the checksums of what was in it before.
    VectorOfEarlierUse,
}
