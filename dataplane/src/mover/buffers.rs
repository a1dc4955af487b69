//! Buffers that whole extents pass through.

use std::sync::Arc;

use dma::{Buffer, Pool, Region};
use tokio::sync::Notify;

/// A pool whose users wait their turn.
pub(super) struct Buffers {
    pool: Pool,
    returned: Arc<Notify>,
}

impl Buffers {
    pub(super) fn new(pool: Pool) -> Self {
        let returned = Arc::new(Notify::new());
        let hook = Arc::clone(&returned);
        pool.on_return(move || hook.notify_waiters());
        Self { pool, returned }
    }

    /// A buffer of at least that size, as soon as there is one.
    pub(super) async fn take(&self, bytes: usize) -> Buffer {
        loop {
            let returned = self.returned.notified();
            let mut returned = std::pin::pin!(returned);
            // From here on a buffer that comes back is noticed, whether or not we found one.
            returned.as_mut().enable();
            if let Some(buffer) = self.pool.take(bytes) {
                return buffer;
            }
            returned.await;
        }
    }

    pub(super) fn usage(&self) -> (u64, u64) {
        let usage = self.pool.usage();
        let taken = usage.iter().map(|class| class.taken as u64).sum();
        (taken, usage.iter().map(|class| class.class.count as u64).sum())
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        self.pool.region()
    }
}
