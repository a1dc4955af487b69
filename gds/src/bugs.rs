//! Mistakes that this crate does not make, for tests to make on purpose: see [`extent::mistakes`].
#![cfg_attr(
    not(feature = "seeded-bugs"),
    allow(unreachable_pub, reason = "only with the feature is this module public")
)]

extent::mistakes! {
    /// A piece of the ring is lent again before the device has copied it away.
    LentBeforeCopied,
    /// A copy begins at the front of its piece of the ring, wherever the bytes are.
    FrontOfSlice,
    /// A copy that failed passes for one that succeeded.
    FailureIgnored,
    /// A caller's stream does not wait for what was read for it.
    StreamRunsAhead,
    /// The ring's copies do not wait for what a caller's stream still does with the memory.
    StreamOverrun,
    /// Host memory that was replaced is copied without being pinned.
    ReplacedUnpinned,
    /// Pages are exported of which others have a part.
    PagesOfOthers,
    /// Host memory goes back although a device that is lost may still read it.
    FreedUnderDevice,
    /// A read that cuFile does through host memory passes for one that went direct.
    CompatiblePassesForDirect,
    /// A read that cuFile cuts short passes for the file's end.
    ShortReadEnds,
    /// A file is closed before cuFile has given back its handle.
    ClosedWhileRegistered,
    /// Device memory is freed before cuFile has given it back.
    FreedWhileRegistered,
    /// cuFile is given the address inside registered memory for that of its front.
    RegisteredByPart,
    /// Reads are not cut at what cuFile takes at once.
    CutsForgotten,
    /// Device memory goes back although a device that is lost may still write to it.
    FreedUnderStorage,
}
