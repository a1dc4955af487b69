//! Receives: places for messages of the other side.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use dma::{HugePages, Region, Target, Window};
use extent::Result;

use super::adapter::{check, made, none};
use super::ffi;
use super::memory::{ProtectionDomain, Rights};
use super::provider::{MemoryRegion as _, Provider};
use super::rdma_core::RdmaCore;
use super::send_queue::Local;

/// What the ids of receives have set, and those of sends have not.
pub(super) const RECEIVE: u64 = 1 << 63;
/// Receives posted with one call.
const BATCH: usize = 32;

/// Places of one size in one region, each named by its number.
#[derive(Debug)]
pub(super) struct Slots<P: Provider = RdmaCore> {
    memory: P::MemoryRegion,
    slot_bytes: u32,
    count: u32,
}

impl<P: Provider> Slots<P> {
    pub(super) fn new(
        domain: &Arc<P::ProtectionDomain>,
        slot_bytes: u32,
        count: u32,
    ) -> Result<Self> {
        let region = Region::anonymous(slot_bytes as usize * count as usize, HugePages::Never)?;
        let memory = P::MemoryRegion::new(domain, &region, Rights::Local)?;
        Ok(Self { memory, slot_bytes, count })
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The first bytes of a slot.
    pub(super) fn copy_out(&self, slot: u32, bytes: &mut [u8]) {
        self.window(slot, bytes.len()).copy_out(bytes);
    }

    /// Fills a slot's first bytes.
    pub(super) fn copy_in(&self, slot: u32, bytes: &[u8]) {
        Target::Window(self.window(slot, bytes.len())).copy_in(bytes);
    }

    /// A slot's first bytes as a work request names them.
    pub(super) fn local(&self, slot: u32, length: u32) -> Local {
        let offset = slot as usize * self.slot_bytes as usize;
        let address = self.memory.address(offset, length as usize);
        Local { address, length, key: self.memory.local_key() }
    }

    /// All of a slot, likewise.
    pub(super) fn whole(&self, slot: u32) -> Local {
        self.local(slot, self.slot_bytes)
    }

    fn window(&self, slot: u32, length: usize) -> Window {
        let offset = u64::from(slot) * u64::from(self.slot_bytes);
        let region = Arc::clone(self.memory.region());
        Window::new(region, offset, length).expect("slots lie in their region")
    }
}

impl Slots {
    /// A slot's first bytes as rdma-core takes them.
    pub(super) fn element(&self, slot: u32, length: u32) -> ffi::ibv_sge {
        let Local { address: addr, length, key: lkey } = self.local(slot, length);
        ffi::ibv_sge { addr, length, lkey }
    }

    /// Calls `post` with lists of receives into the slots.
    fn post(
        &self,
        slots: &[u32],
        mut post: impl FnMut(*mut ffi::ibv_recv_wr) -> Result<()>,
    ) -> Result<()> {
        for slots in slots.chunks(BATCH) {
            // Most lists are short: none is written that is not used.
            let mut elements = [const { MaybeUninit::uninit() }; BATCH];
            let mut list = [const { MaybeUninit::uninit() }; BATCH];
            let mut next = none();
            let places = elements.iter_mut().zip(&mut list);
            for (slot, (element, entry)) in slots.iter().zip(places).rev() {
                let Local { address: addr, length, key: lkey } = self.whole(*slot);
                let sg_list = element.write(ffi::ibv_sge { addr, length, lkey });
                let wr_id = RECEIVE | u64::from(*slot);
                next = entry.write(ffi::ibv_recv_wr { wr_id, next, sg_list, num_sge: 1 });
            }
            post(next)?;
        }
        Ok(())
    }
}

/// Receives that many queue pairs of one domain share.
#[derive(Debug)]
pub(super) struct SharedReceiveQueue {
    queue: NonNull<ffi::ibv_srq>,
    slots: Slots,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for SharedReceiveQueue {}
// SAFETY: as above.
unsafe impl Sync for SharedReceiveQueue {}

impl SharedReceiveQueue {
    /// A queue whose every slot is posted.
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        slot_bytes: u32,
        count: u32,
    ) -> Result<Arc<Self>> {
        let slots = Slots::new(domain, slot_bytes, count)?;
        let mut attributes = ffi::ibv_srq_init_attr {
            srq_context: none(),
            attr: ffi::ibv_srq_attr { max_wr: count, max_sge: 1, srq_limit: 0 },
        };
        // SAFETY: the domain is live, and the attributes are read and written during the call only.
        let queue =
            unsafe { (ffi::library()?.ibv_create_srq)(domain.as_ptr(), &raw mut attributes) };
        let queue = made(queue, "making a shared receive queue")?;
        let made = Arc::new(Self { queue, slots, _domain: Arc::clone(domain) });
        made.post(&(0..count).collect::<Vec<_>>())?;
        Ok(made)
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::ibv_srq {
        self.queue.as_ptr()
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Has the device tell once when fewer than an eighth are left.
    pub(super) fn warn_when_low(&self) -> Result<()> {
        let limit = self.slots.count() / 8;
        let mut attributes = ffi::ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit: limit };
        let library = ffi::library()?;
        // SAFETY: the queue is live; the attributes are read during the call.
        let failed = unsafe {
            (library.ibv_modify_srq)(self.as_ptr(), &raw mut attributes, ffi::IBV_SRQ_LIMIT)
        };
        check(failed, "asking to be told when receives run low")
    }

    /// Makes slots ready for messages (again).
    pub(super) fn post(&self, slots: &[u32]) -> Result<()> {
        self.slots.post(slots, |list| {
            let mut bad = none();
            // SAFETY: the queue is live; so is the list until this returns, and the slots as long as
            // the queue.
            let failed = unsafe { ffi::post_srq_recv(self.as_ptr(), list, &raw mut bad) };
            check(failed, "posting receives")
        })
    }
}

impl Drop for SharedReceiveQueue {
    fn drop(&mut self) {
        let Ok(library) = ffi::library() else { return };
        // SAFETY: queue pairs that use it hold an `Arc` of it, so there are none.
        let failed = unsafe { (library.ibv_destroy_srq)(self.queue.as_ptr()) };
        if let Err(error) = check(failed, "destroying a shared receive queue") {
            tracing::warn!(%error, "a shared receive queue is leaked");
        }
    }
}

/// Posts receives into slots to one queue pair.
pub(super) fn post_to(qp: *mut ffi::ibv_qp, slots: &Slots, which: &[u32]) -> Result<()> {
    slots.post(which, |list| {
        let mut bad = none();
        // SAFETY: the caller's queue pair is live and keeps the slots; the list lives until this
        // returns.
        let failed = unsafe { ffi::post_recv(qp, list, &raw mut bad) };
        check(failed, "posting receives")
    })
}
