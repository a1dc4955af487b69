//! How slots come back: whoever held one last, on whichever thread, hands it to the ledger.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::TierId;
use crate::checksums::ChecksumMemory;
use crate::device::DeviceIndex;

/// One slot of the tier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct SlotId {
    pub(crate) device: DeviceIndex,
    pub(crate) slab: u32,
    pub(crate) slot: u32,
}

/// A slot that nobody holds any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Returned {
    pub(crate) slot: SlotId,
    /// Whether its descriptor may have been written, and must be erased before it is used again.
    pub(crate) described: bool,
}

/// Calls the ledger's owner when there is something to do; once until the ledger looks.
#[derive(Default)]
pub(crate) struct Signal {
    wake: RwLock<Option<Arc<dyn Fn() + Send + Sync>>>,
    raised: AtomicBool,
}

impl Signal {
    pub(crate) fn on_raise(&self, wake: Arc<dyn Fn() + Send + Sync>) {
        *self.wake.write() = Some(wake);
    }

    pub(crate) fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel)
            && let Some(wake) = &*self.wake.read()
        {
            wake();
        }
    }

    /// The ledger is about to look. What is raised from here on wakes it again.
    pub(crate) fn lower(&self) {
        self.raised.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signal")
    }
}

/// What all extents of a tier share. The list is bounded by the number of slots.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    /// What stands on the devices says so, too.
    pub(crate) tier: TierId,
    pub(crate) checksums: Arc<ChecksumMemory>,
    returned: Mutex<Vec<Returned>>,
    pub(crate) signal: Signal,
    pub(crate) extents: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Holdings {
    pub(crate) fn new(tier: TierId, checksums: ChecksumMemory) -> Self {
        Self { tier, checksums: Arc::new(checksums), ..Self::default() }
    }

    /// Nobody holds a slot any more.
    pub(crate) fn give_back(&self, returned: Returned) {
        self.returned.lock().push(returned);
        self.signal.raise();
    }

    /// Extents became visible.
    pub(crate) fn count(&self, extents: u64, bytes: u64) {
        self.extents.fetch_add(extents, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Extents are not to be seen any more, though some may still be read.
    pub(crate) fn discount(&self, extents: u64, bytes: u64) {
        self.extents.fetch_sub(extents, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// All that came back since the last call.
    pub(crate) fn take_returned(&self) -> Vec<Returned> {
        mem::take(&mut *self.returned.lock())
    }

    pub(crate) fn has_returned(&self) -> bool {
        !self.returned.lock().is_empty()
    }
}
