use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;

use dma::{DmaBuf, Region};
use extent::{Error, Result};

use crate::sys;

use super::adapter::{Adapter, Limits};
use super::completion::{CompletionQueue, Wake, WorkCompletion};
use super::connection::{CmEvent, CmId, ConnectionParameters, EventChannel};
use super::device_region::DeviceRegion;
use super::events::{DeviceEvent, Watch};
use super::memory::{MemoryRegion, ProtectionDomain, Rights};
use super::provider::{self, Provider};
use super::queue_pair::{QueuePair, Receives};
use super::receive::{SharedReceiveQueue, Slots};

/// rdma-core's libraries, and the devices that they find.
#[derive(Clone, Copy, Debug)]
pub struct RdmaCore;

impl Provider for RdmaCore {
    type Adapter = Adapter;
    type EventChannel = EventChannel;
    type CmId = CmId;
    type ProtectionDomain = ProtectionDomain;
    type MemoryRegion = MemoryRegion;
    type DeviceRegion = DeviceRegion;
    type CompletionQueue = CompletionQueue;
    type SharedReceiveQueue = SharedReceiveQueue;
    type QueuePair = QueuePair;
    type Ticker = sys::Ticker;
    type Watch = Watch;

    fn event_channel(&self) -> Result<Arc<EventChannel>> {
        EventChannel::new()
    }

    fn ticker(&self, seconds: libc::time_t) -> Result<sys::Ticker> {
        sys::Ticker::new(seconds).map_err(|e| Error::io("making a timer", e))
    }
}

impl provider::Adapter for Adapter {
    #[inline]
    fn name(&self) -> String {
        Adapter::name(*self)
    }

    #[inline]
    fn limits(&self) -> Result<Limits> {
        Adapter::limits(*self)
    }

    fn aside(&self, work: Box<dyn FnOnce() + Send>) -> Result<()> {
        let thread = thread::Builder::new().name("forebay-register".into()).spawn(work);
        thread.map(drop).map_err(|e| Error::io("starting a thread that registers memory", e))
    }
}

impl provider::EventChannel<RdmaCore> for EventChannel {
    #[inline]
    fn next(self: &Arc<Self>) -> Result<Option<CmEvent>> {
        EventChannel::next(self)
    }

    #[inline]
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl provider::CmId<RdmaCore> for CmId {
    #[inline]
    fn number(&self) -> usize {
        CmId::number(self)
    }

    #[inline]
    fn adapter(&self) -> Result<Adapter> {
        CmId::adapter(self)
    }

    #[inline]
    fn peer(&self) -> String {
        CmId::peer(self)
    }

    #[inline]
    fn connect(&self, parameters: ConnectionParameters<'_>) -> Result<()> {
        CmId::connect(self, parameters)
    }

    #[inline]
    fn accept(&self, parameters: ConnectionParameters<'_>) -> Result<()> {
        CmId::accept(self, parameters)
    }

    #[inline]
    fn reject(&self, private_data: &[u8]) {
        CmId::reject(self, private_data);
    }

    #[inline]
    fn stands(&self) {
        CmId::stands(self);
    }

    #[inline]
    fn disconnect(&self) {
        CmId::disconnect(self);
    }

    #[inline]
    fn migrate(&mut self, channel: &Arc<EventChannel>) -> Result<()> {
        CmId::migrate(self, channel)
    }

    #[inline]
    fn set_acknowledge_timeout(&self, exponent: u8) {
        CmId::set_acknowledge_timeout(self, exponent);
    }

    #[inline]
    fn set_traffic_class(&self, class: u8) {
        CmId::set_traffic_class(self, class);
    }
}

impl provider::ProtectionDomain<RdmaCore> for ProtectionDomain {
    #[inline]
    fn new(adapter: &Adapter) -> Result<Arc<Self>> {
        ProtectionDomain::new(*adapter)
    }
}

impl provider::MemoryRegion<RdmaCore> for MemoryRegion {
    #[inline]
    fn new(domain: &Arc<ProtectionDomain>, region: &Arc<Region>, rights: Rights) -> Result<Self> {
        MemoryRegion::new(domain, region, rights)
    }

    #[inline]
    fn local_key(&self) -> u32 {
        MemoryRegion::local_key(self)
    }

    #[inline]
    fn remote_key(&self) -> Result<u32> {
        MemoryRegion::remote_key(self)
    }

    #[inline]
    fn region(&self) -> &Arc<Region> {
        MemoryRegion::region(self)
    }

    #[inline]
    fn address(&self, offset: usize, length: usize) -> u64 {
        MemoryRegion::address(self, offset, length)
    }
}

impl provider::DeviceRegion<RdmaCore> for DeviceRegion {
    fn new(domain: &Arc<ProtectionDomain>, memory: &Arc<DmaBuf>) -> Result<Self> {
        DeviceRegion::new(domain, memory)
    }

    #[inline]
    fn remote_key(&self) -> u32 {
        DeviceRegion::remote_key(self)
    }

    #[inline]
    fn place(&self) -> (u64, usize) {
        DeviceRegion::place(self)
    }
}

impl provider::CompletionQueue<RdmaCore> for CompletionQueue {
    #[inline]
    fn new(adapter: &Adapter, capacity: u32) -> Result<Arc<Self>> {
        CompletionQueue::new(*adapter, capacity)
    }

    #[inline]
    fn poll(&self, out: &mut Vec<WorkCompletion>) -> Result<bool> {
        CompletionQueue::poll(self, out)
    }

    #[inline]
    fn arm(&self, wake: Wake) -> Result<()> {
        CompletionQueue::arm(self, wake)
    }

    #[inline]
    fn clear(&self) {
        CompletionQueue::clear(self);
    }

    #[inline]
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    #[inline]
    fn identity(&self) -> usize {
        self.as_ptr().addr()
    }
}

impl provider::SharedReceiveQueue<RdmaCore> for SharedReceiveQueue {
    #[inline]
    fn new(domain: &Arc<ProtectionDomain>, slot_bytes: u32, count: u32) -> Result<Arc<Self>> {
        SharedReceiveQueue::new(domain, slot_bytes, count)
    }

    #[inline]
    fn slots(&self) -> &Slots {
        SharedReceiveQueue::slots(self)
    }

    #[inline]
    fn post(&self, slots: &[u32]) -> Result<()> {
        SharedReceiveQueue::post(self, slots)
    }

    #[inline]
    fn identity(&self) -> usize {
        self.as_ptr().addr()
    }

    #[inline]
    fn warn_when_low(&self) -> Result<()> {
        SharedReceiveQueue::warn_when_low(self)
    }
}

impl provider::QueuePair<RdmaCore> for QueuePair {
    #[inline]
    fn new(
        id: CmId,
        domain: &Arc<ProtectionDomain>,
        queue: &Arc<CompletionQueue>,
        receives: Receives,
        depth: u32,
    ) -> Result<Self> {
        QueuePair::new(id, domain, queue, receives, depth)
    }

    #[inline]
    fn number(&self) -> u32 {
        QueuePair::number(self)
    }

    #[inline]
    fn id(&self) -> &CmId {
        QueuePair::id(self)
    }

    #[inline]
    fn receives(&self) -> &Receives {
        QueuePair::receives(self)
    }

    #[inline]
    fn post_receives(&self, which: &[u32]) -> Result<()> {
        QueuePair::post_receives(self, which)
    }

    #[inline]
    fn settle(&self) -> Result<()> {
        QueuePair::settle(self)
    }
}

impl provider::Ticker for sys::Ticker {
    #[inline]
    fn ticked(&self) -> bool {
        sys::Ticker::ticked(self)
    }

    #[inline]
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl provider::Watch<RdmaCore> for Watch {
    fn new(adapter: &Adapter) -> Result<Self> {
        Watch::new(*adapter)
    }

    #[inline]
    fn take(&self, out: &mut Vec<DeviceEvent>) {
        Watch::take(self, out);
    }

    #[inline]
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}
