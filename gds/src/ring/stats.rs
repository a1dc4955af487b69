/// What a ring did. Bytes and counts since it was made, or the highest that they ever were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingStats {
    /// Pieces of host memory that it has.
    pub slots: usize,
    /// Bytes of each.
    pub slot_bytes: usize,
    /// Most that were lent or being copied at once.
    pub peak_slots: usize,
    /// Most that were being copied at once.
    pub peak_copies: usize,
    /// Host memory that is pinned now.
    pub pinned_bytes: usize,
    /// The most that ever was.
    pub peak_pinned_bytes: usize,
    /// Copies that were begun, and their bytes.
    pub copies: u64,
    /// Bytes of those.
    pub copied_bytes: u64,
    /// Those of them from memory that is not pinned.
    pub unpinned_copies: u64,
    /// Copies that failed.
    pub failures: u64,
    /// How often somebody wanted a piece and all were in use.
    pub waits: u64,
}
