use std::sync::atomic::{AtomicU64, Ordering};

use extent::{Kind, Result};

/// How many ids are reserved ahead.
pub(crate) const RESERVE: u64 = 1 << 20;

/// The counter that attempts, slab epochs and sequences are drawn from. It never gives a number
/// twice, also across restarts: only numbers below the durable limit are given, and a start begins
/// at the limit it finds.
#[derive(Debug)]
pub(crate) struct Ids {
    next: AtomicU64,
    limit: AtomicU64,
}

impl Ids {
    /// Numbers from `first` on, as far as `limit`, which is durable.
    pub(crate) const fn new(first: u64, limit: u64) -> Self {
        Self { next: AtomicU64::new(first), limit: AtomicU64::new(limit) }
    }

    /// The next number.
    pub(crate) fn take(&self) -> Result<u64> {
        let limit = self.limit.load(Ordering::Acquire);
        let below = |next| (next < limit).then_some(next + 1);
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).map_err(|_| {
            Kind::Busy.error("all reserved ids are used up: try again once more are reserved")
        })
    }

    /// How many may be taken before the limit must be raised.
    pub(crate) fn left(&self) -> u64 {
        let next = self.next.load(Ordering::Relaxed);
        self.limit.load(Ordering::Acquire).saturating_sub(next)
    }

    /// The limit to make durable next.
    pub(crate) fn next_limit(&self) -> u64 {
        self.next.load(Ordering::Relaxed) + RESERVE
    }

    /// The limit is durable.
    pub(crate) fn raise(&self, limit: u64) {
        self.limit.fetch_max(limit, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_given_beyond_the_limit() {
        let ids = Ids::new(5, 7);
        assert_eq!((ids.take().ok(), ids.take().ok()), (Some(5), Some(6)));
        assert_eq!(ids.take().expect_err("none left").kind(), Kind::Busy);
        ids.raise(ids.next_limit());
        assert_eq!((ids.take().ok(), ids.left()), (Some(7), RESERVE - 1));
    }
}
