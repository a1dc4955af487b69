//! What the sessions of one tenant over one device share: a protection domain, a completion queue,
//! receives and registered memory. What belongs to one tenant is of no use to another's connections.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use dma::{Region, RegionId, Span};
use extent::wire::LONG_REQUEST_BYTES;
use extent::{Kind, Result};

use super::adapter::{Adapter, Limits};
use super::completion::{CompletionQueue, Wake, WorkCompletion};
use super::connection::CmId;
use super::memory::{MemoryRegion, ProtectionDomain, Rights};
use super::queue_pair::{QueuePair, Receives};
use super::receive::SharedReceiveQueue;
use super::send_queue::Local;

/// Requests that may have come and not been looked at, if the device takes so many.
const RECEIVES: u32 = 4096;
/// Work requests of all sessions that may be with the device, likewise.
const SENDS: u32 = 16 << 10;
/// The same of one session.
const DEPTH: u32 = 128;

/// See the module.
#[derive(Debug)]
pub(super) struct Tenant {
    adapter: Adapter,
    limits: Limits,
    domain: Arc<ProtectionDomain>,
    queue: Arc<CompletionQueue>,
    receives: Arc<SharedReceiveQueue>,
    registered: Vec<(RegionId, MemoryRegion)>,
    /// Entries of the completion queue that nothing is due for: what may still be posted.
    pub(super) room: u32,
    /// Whether its completion queue failed: nothing comes of it any more.
    pub(super) is_broken: bool,
    /// Which completion makes the descriptor readable.
    armed: Option<Wake>,
}

impl Tenant {
    pub(super) fn new(adapter: Adapter) -> Result<Self> {
        let limits = adapter.limits()?;
        let receives = RECEIVES.min(limits.shared_receives).min(limits.completions / 4);
        let sends = SENDS.min(limits.completions.saturating_sub(receives));
        if receives == 0 || sends < DEPTH {
            return Err(Kind::Unsupported.error(format!(
                "{} has too small queues: {} completions, {} shared receives",
                adapter.name(),
                limits.completions,
                limits.shared_receives
            )));
        }
        let domain = ProtectionDomain::new(adapter)?;
        let queue = CompletionQueue::new(adapter, receives + sends)?;
        let bytes = u32::try_from(LONG_REQUEST_BYTES).expect("short");
        let shared = SharedReceiveQueue::new(&domain, bytes, receives)?;
        Ok(Self {
            adapter,
            limits,
            domain,
            queue,
            receives: shared,
            registered: Vec::new(),
            room: sends,
            is_broken: false,
            armed: None,
        })
    }

    pub(super) fn adapter(&self) -> Adapter {
        self.adapter
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn readiness(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    /// A queue pair for a connection, and how many work requests it takes at a time.
    pub(super) fn queue_pair(&self, id: CmId) -> Result<(QueuePair, u32)> {
        let depth = DEPTH.min(self.limits.queue_depth);
        let receives = Receives::Shared(Arc::clone(&self.receives));
        Ok((QueuePair::new(id, &self.domain, &self.queue, receives, depth)?, depth))
    }

    /// Registers memory, with rights for work requests of this side only, unless it is already.
    pub(super) fn register(&mut self, region: &Arc<Region>) -> Result<u32> {
        let known = self.registered.iter().find(|(id, _)| *id == region.id());
        if let Some((_, memory)) = known {
            return Ok(memory.local_key());
        }
        let memory = MemoryRegion::new(&self.domain, region, Rights::Local)?;
        let key = memory.local_key();
        self.registered.push((region.id(), memory));
        Ok(key)
    }

    #[cfg(test)]
    pub(super) fn first_key(&self) -> Option<u32> {
        self.registered.first().map(|(_, memory)| memory.local_key())
    }

    /// Memory as work requests name it.
    pub(super) fn local(&mut self, span: Span<'_>) -> Result<Local> {
        let key = self.register(span.region)?;
        let address = span.region.at(span.offset, span.length).addr().get() as u64;
        let length = u32::try_from(span.length)
            .map_err(|_| Kind::Invalid.error("a transfer of 4 GiB or more"))?;
        Ok(Local { address, length, key })
    }

    pub(super) fn poll(&self, out: &mut Vec<WorkCompletion>) -> Result<bool> {
        self.queue.poll(out)
    }

    /// The request in a slot, of 128 bytes at most.
    pub(super) fn copy_request(&self, slot: u32, capsule: &mut [u8]) {
        self.receives.slots().copy_out(slot, capsule);
    }

    /// Makes slots ready for requests again.
    pub(super) fn post_receives(&self, slots: &[u32]) -> Result<()> {
        self.receives.post(slots)
    }

    /// Asks to be woken. What is asked for once comes, though less be asked for afterwards.
    pub(super) fn arm(&mut self, wake: Wake) -> Result<()> {
        if self.armed != Some(wake) && self.armed != Some(Wake::Everything) {
            self.queue.arm(wake)?;
            self.armed = Some(wake);
        }
        Ok(())
    }

    /// Takes the event that woke the shard, if it was of this queue.
    pub(super) fn disarm(&mut self) {
        self.queue.clear();
        self.armed = None;
    }
}
