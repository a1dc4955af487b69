use extent::Result;

/// A piece that was lent, to be given back in one of three ways: copied, unused, or lost.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a piece that is not given back is missing"]
pub struct Lent(pub(super) usize);

/// A copy, by its number. Never used twice in a ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CopyId(pub u64);

/// A copy that was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begun {
    /// Which one.
    pub id: CopyId,
    /// Whether the device reads the memory by itself.
    pub is_pinned: bool,
}

/// A copy that has ended.
#[derive(Debug)]
pub struct Copied {
    /// Which one.
    pub id: CopyId,
    /// Its bytes.
    pub bytes: usize,
    /// What went wrong.
    pub result: Result<()>,
}
