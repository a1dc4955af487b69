//! What the sessions of one tenant over one device share: a protection domain, a completion queue,
//! receives and registered memory. What belongs to one tenant is of no use to another's connections.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dma::{Region, RegionId, Span};
use extent::wire::LONG_REQUEST_BYTES;
use extent::{Kind, Result, TenantName};

use super::adapter::Limits;
use super::completion::{Wake, WorkCompletion};
use super::events::{DeviceEvent, Subject};
use super::memory::Rights;
use super::provider::{
    Adapter as _, CompletionQueue as _, MemoryRegion as _, ProtectionDomain as _, Provider,
    QueuePair as _, SharedReceiveQueue as _, Watch as _,
};
use super::queue_pair::Receives;
use super::rdma_core::RdmaCore;
use super::send_queue::Local;

/// Requests that may have come and not been looked at, if the device takes so many.
const RECEIVES: u32 = 4096;
/// Work requests of all sessions that may be with the device, likewise.
const SENDS: u32 = 16 << 10;
/// The same of one session.
const DEPTH: u32 = 128;

/// See the module.
#[derive(Debug)]
pub(super) struct Tenant<P: Provider = RdmaCore> {
    adapter: P::Adapter,
    name: TenantName,
    limits: Limits,
    domain: Arc<P::ProtectionDomain>,
    queue: Arc<P::CompletionQueue>,
    receives: Arc<P::SharedReceiveQueue>,
    registered: Vec<(RegionId, P::MemoryRegion)>,
    /// Entries of the completion queue that nothing is due for: what may still be posted.
    pub(super) room: u32,
    /// Whether its completion queue failed: nothing comes of it any more.
    pub(super) is_broken: bool,
    /// Sessions, those included that have ended but for their queue pairs.
    pub(super) sessions: usize,
    /// Ticks without one.
    pub(super) idle_ticks: u32,
    /// Which completion makes the descriptor readable.
    armed: Option<Wake>,
    /// What the device tells unasked.
    watch: P::Watch,
    /// Whether the device tells when a queue pair that ended takes no more receives: not all do.
    pub(super) tells_of_last: bool,
    /// Whether the device is to tell when receives run low.
    warns: bool,
}

impl<P: Provider> Tenant<P> {
    pub(super) fn new(adapter: P::Adapter, name: TenantName) -> Result<Self> {
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
        let domain = P::ProtectionDomain::new(&adapter)?;
        let queue = P::CompletionQueue::new(&adapter, receives + sends)?;
        let bytes = u32::try_from(LONG_REQUEST_BYTES).expect("short");
        let shared = P::SharedReceiveQueue::new(&domain, bytes, receives)?;
        Ok(Self {
            watch: P::Watch::new(&adapter)?,
            adapter,
            name,
            limits,
            domain,
            queue,
            receives: shared,
            registered: Vec::new(),
            room: sends,
            is_broken: false,
            sessions: 0,
            idle_ticks: 0,
            armed: None,
            tells_of_last: false,
            warns: false,
        })
    }

    pub(super) fn adapter(&self) -> &P::Adapter {
        &self.adapter
    }

    pub(super) fn name(&self) -> &TenantName {
        &self.name
    }

    /// Whether it is this tenant, by this device.
    pub(super) fn is_for(&self, adapter: &P::Adapter, name: &TenantName) -> bool {
        self.adapter == *adapter && self.name == *name
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.queue.readiness()
    }

    /// The descriptor of what the device tells unasked, if it has one.
    pub(super) fn news(&self) -> Option<BorrowedFd<'_>> {
        self.watch.readiness()
    }

    /// What it told since.
    pub(super) fn take_news(&self, news: &mut Vec<DeviceEvent>) {
        self.watch.take(news);
    }

    /// Whether something that the device told is about a part of this tenant's.
    pub(super) fn has(&self, subject: Subject) -> bool {
        match subject {
            Subject::CompletionQueue(address) => self.queue.identity() == address,
            Subject::Receives(address) => self.receives.identity() == address,
            Subject::QueuePair(_) | Subject::Port(_) | Subject::Device => true,
        }
    }

    /// What an event of this kind is about.
    #[cfg(test)]
    pub(super) fn part(&self, kind: super::events::EventKind) -> Subject {
        match kind {
            super::events::EventKind::CompletionQueueError => {
                Subject::CompletionQueue(self.queue.identity())
            }
            super::events::EventKind::ReceivesError => Subject::Receives(self.receives.identity()),
            _ => Subject::Device,
        }
    }

    /// Asks to be told (again) when receives run low. Who cannot tell goes on without.
    pub(super) fn warn_when_low(&mut self) {
        if !self.warns && self.receives.warn_when_low().is_ok() {
            self.warns = true;
        }
    }

    /// It told, and does so once.
    pub(super) fn warned(&mut self) {
        self.warns = false;
    }

    /// A queue pair for a connection, and how many work requests it takes at a time.
    pub(super) fn queue_pair(&self, id: P::CmId) -> Result<(P::QueuePair, u32)> {
        // A power of two, so that a place of the queue keeps its number whatever was sent before.
        let depth = 1 << DEPTH.min(self.limits.queue_depth).max(1).ilog2();
        let receives = Receives::Shared(Arc::clone(&self.receives));
        Ok((P::QueuePair::new(id, &self.domain, &self.queue, receives, depth)?, depth))
    }

    /// Registers memory, with rights for work requests of this side only, unless it is already.
    pub(super) fn register(&mut self, region: &Arc<Region>) -> Result<u32> {
        let known = self.registered.iter().find(|(id, _)| *id == region.id());
        if let Some((_, memory)) = known {
            return Ok(memory.local_key());
        }
        let memory = P::MemoryRegion::new(&self.domain, region, Rights::Local)?;
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
