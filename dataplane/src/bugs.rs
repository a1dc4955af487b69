//! Mistakes that this crate does not make, for tests to make on purpose: as in `nvme_tier`'s module
//! of the same name, and under the same feature.
#![cfg_attr(
    not(feature = "seeded-bugs"),
    allow(unreachable_pub, reason = "only with the feature is this module public")
)]

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// What a device read is not compared with its checksums.
    ReadUnverified,
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
    /// A block of which part is written again loses the rest.
    RestOfBlockLost,
    /// The generation that a caller expects is not compared with the one there is.
    ExpectedIgnored,
}

/// Whether the code is to make this mistake: never.
#[cfg(not(feature = "seeded-bugs"))]
pub const fn is(_: Bug) -> bool {
    false
}

#[cfg(feature = "seeded-bugs")]
pub use seeded::{during, is};

#[cfg(feature = "seeded-bugs")]
mod seeded {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static SEEDED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether the code is to make this mistake, in this thread.
    #[must_use]
    pub fn is(bug: Bug) -> bool {
        SEEDED.get() == Some(bug)
    }

    /// Makes a mistake for as long as `body` runs, in this thread.
    pub fn during<T>(bug: Option<Bug>, body: impl FnOnce() -> T) -> T {
        /// Also when `body` panics.
        struct Unseed;
        impl Drop for Unseed {
            fn drop(&mut self) {
                SEEDED.set(None);
            }
        }
        SEEDED.set(bug);
        let _unseed = Unseed;
        body()
    }
}

#[cfg(feature = "seeded-bugs")]
impl Bug {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::ReadUnverified,
        Self::ReplyBeforeData,
        Self::BlockStartServed,
        Self::ExtentStartServed,
        Self::ReleasedIsHole,
        Self::FirstDamageBelieved,
        Self::RestOfBlockLost,
        Self::ExpectedIgnored,
    ];
}
