//! How slots come back: whoever held one last, on whichever thread, hands it to the ledger.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

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
    returned: Mutex<Vec<Returned>>,
    pub(crate) signal: Signal,
    pub(crate) extents: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Holdings {
    /// All that came back since the last call.
    pub(crate) fn take_returned(&self) -> Vec<Returned> {
        mem::take(&mut *self.returned.lock())
    }

    pub(crate) fn has_returned(&self) -> bool {
        !self.returned.lock().is_empty()
    }
}

/// Exclusive use of a slot, handed back on drop.
#[derive(Debug)]
pub(crate) struct SlotHold {
    holdings: Arc<Holdings>,
    /// Where the slot's data begins on its device.
    offset: u64,
    slot: SlotId,
    described: bool,
}

impl SlotHold {
    pub(crate) fn new(
        holdings: &Arc<Holdings>,
        slot: SlotId,
        offset: u64,
        described: bool,
    ) -> Self {
        Self { holdings: Arc::clone(holdings), offset, slot, described }
    }

    pub(crate) fn slot(&self) -> SlotId {
        self.slot
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// From here on a descriptor may stand on the device.
    pub(crate) fn describe(&mut self) {
        self.described = true;
    }
}

impl SlotHold {
    pub(crate) fn give_back(&self) {
        let returned = Returned { slot: self.slot, described: self.described };
        self.holdings.returned.lock().push(returned);
        self.holdings.signal.raise();
    }
}

impl Drop for SlotHold {
    fn drop(&mut self) {
        self.give_back();
    }
}
