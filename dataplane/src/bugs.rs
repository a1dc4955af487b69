//! Mistakes that this crate does not make, for tests to make on purpose: see
//! [`extent::mistakes`].
#![cfg_attr(
    not(feature = "seeded-bugs"),
    allow(unreachable_pub, reason = "only with the feature is this module public")
)]

extent::mistakes! {
    /// What a device read is not compared with its checksums.
    ReadUnverified,
    /// What is read without its checksums in memory is served before its descriptor is there.
    AbsentUnverified,
    /// A read is answered before all its bytes have left, and its client has its memory back.
    ReplyBeforeData,
    /// A read that begins within a block is answered from the block's start.
    BlockStartServed,
    /// A recalled extent is served from its start, wherever the read begins.
    ExtentStartServed,
    /// Extents that were let go read as holes.
    ReleasedIsHole,
    /// The first damage that is seen of something dirty is believed.
    FirstDamageBelieved,
    /// What reads damaged in its first copy passes for lost.
    CopyIgnored,
    /// Second copies are not written.
    CopyUnwritten,
    /// A block of which part is written again loses the rest.
    RestOfBlockLost,
    /// The generation that a caller expects is not compared with the one there is.
    ExpectedIgnored,
    /// Of the requests that wait for room, the last to come goes on first.
    NewestFirst,
}
