//! What stands for simulated things: dropping one ends what it stands for.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dma::Region;
use extent::{Kind, Result};

use super::super::adapter::Limits;
use super::super::completion::{Wake, WorkCompletion};
use super::super::connection::{CmEvent, ConnectionParameters};
use super::super::events::DeviceEvent;
use super::super::memory::Rights;
use super::super::provider::{self, Provider};
use super::super::queue_pair::Receives;
use super::super::receive::{RECEIVE, Slots};
use super::super::send_queue::{Posting, Postings, Wire, Work};
use super::connection::IdRef;
use super::device_region::SimDeviceRegion;
use super::pair::{Inbound, Pair, Sending, SimWork};
use super::queue::{PairRef, Queue, Receive, ReceiveQueue};
use super::world::{Registered, Shared, lock};

/// Completions taken at a time.
const BATCH: usize = 32;
/// Looks at RDMA CM, of which there is one in so many polls, that make a tick.
const LOOKS_A_TICK: u32 = 8;

/// Simulated devices on a simulated network, for tests.
#[derive(Clone, Debug)]
pub struct Simulated(pub(super) Shared);

impl Provider for Simulated {
    type Adapter = SimAdapter;
    type EventChannel = SimEvents;
    type CmId = SimId;
    type ProtectionDomain = SimDomain;
    type MemoryRegion = SimMemory;
    type DeviceRegion = SimDeviceRegion;
    type CompletionQueue = SimQueue;
    type SharedReceiveQueue = SimReceives;
    type QueuePair = SimPair;
    type Ticker = SimTicker;
    type Watch = SimWatch;

    fn event_channel(&self) -> Result<Arc<SimEvents>> {
        let mut world = lock(&self.0);
        let number = world.next_number();
        world.channels.insert(number, VecDeque::new());
        Ok(Arc::new(SimEvents { world: Arc::clone(&self.0), number }))
    }

    /// One that counts how often it is asked.
    fn ticker(&self, _: libc::time_t) -> Result<SimTicker> {
        Ok(SimTicker(AtomicU32::new(0)))
    }
}

/// A device.
#[derive(Clone, Debug)]
pub(crate) struct SimAdapter {
    world: Shared,
    number: u8,
}

impl PartialEq for SimAdapter {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl provider::Adapter for SimAdapter {
    fn name(&self) -> String {
        format!("sim{}", self.number)
    }

    fn limits(&self) -> Result<Limits> {
        lock(&self.world).options.limits()
    }

    fn aside(&self, work: Box<dyn FnOnce() + Send>) -> Result<()> {
        lock(&self.world).put_aside(work);
        Ok(())
    }
}

/// Where events of connections come.
#[derive(Debug)]
pub(crate) struct SimEvents {
    pub(super) world: Shared,
    pub(super) number: u32,
}

impl provider::EventChannel<Simulated> for SimEvents {
    fn next(self: &Arc<Self>) -> Result<Option<CmEvent<SimId>>> {
        let next = lock(&self.world).next_told(self.number);
        Ok(next.map(|(id, told)| CmEvent {
            kind: told.kind,
            id: id.number,
            request: told.request.map(|id| SimId { channel: Arc::clone(self), id }),
            status: 0,
            private_data: told.private_data,
            peer_reads: told.peer_reads,
            peer_patience: told.peer_patience,
        }))
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimEvents {
    fn drop(&mut self) {
        lock(&self.world).channels.remove(&self.number);
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct SimId {
    pub(super) channel: Arc<SimEvents>,
    pub(super) id: IdRef,
}

impl SimId {
    fn world(&self) -> &Shared {
        &self.channel.world
    }
}

impl provider::CmId<Simulated> for SimId {
    fn number(&self) -> usize {
        self.id.number
    }

    fn adapter(&self) -> Result<SimAdapter> {
        let number = lock(self.world()).id(self.id).expect("it is live").device;
        Ok(SimAdapter { world: Arc::clone(self.world()), number })
    }

    fn peer(&self) -> String {
        format!("simulated client {}", self.id.life)
    }

    fn connect(&self, parameters: ConnectionParameters<'_>) -> Result<()> {
        let ConnectionParameters { private_data, reads_in, peer_patience, .. } = parameters;
        lock(self.world()).ask(self.id, private_data, reads_in, peer_patience)
    }

    fn accept(&self, parameters: ConnectionParameters<'_>) -> Result<()> {
        let ConnectionParameters { private_data, peer_patience, .. } = parameters;
        lock(self.world()).accept(self.id, private_data, peer_patience)
    }

    fn reject(&self, private_data: &[u8]) {
        lock(self.world()).reject(self.id, private_data);
    }

    fn stands(&self) {}

    fn disconnect(&self) {
        lock(self.world()).disconnect(self.id);
    }

    fn migrate(&mut self, channel: &Arc<SimEvents>) -> Result<()> {
        lock(self.world()).id(self.id).expect("it is live").channel = channel.number;
        self.channel = Arc::clone(channel);
        Ok(())
    }

    fn set_acknowledge_timeout(&self, _: u8) {}

    fn set_traffic_class(&self, _: u8) {}
}

impl Drop for SimId {
    fn drop(&mut self) {
        lock(self.world()).drop_id(self.id);
    }
}

/// A protection domain.
#[derive(Debug)]
pub(crate) struct SimDomain {
    pub(super) world: Shared,
    pub(super) number: u32,
}

impl provider::ProtectionDomain<Simulated> for SimDomain {
    fn new(adapter: &SimAdapter) -> Result<Arc<Self>> {
        let mut world = lock(&adapter.world);
        world.domains += 1;
        let number = world.next_number();
        Ok(Arc::new(Self { world: Arc::clone(&adapter.world), number }))
    }
}

impl Drop for SimDomain {
    fn drop(&mut self) {
        lock(&self.world).domains -= 1;
    }
}

/// Registered memory.
#[derive(Debug)]
pub(crate) struct SimMemory {
    key: u32,
    rights: Rights,
    region: Arc<Region>,
    domain: Arc<SimDomain>,
}

impl provider::MemoryRegion<Simulated> for SimMemory {
    fn new(domain: &Arc<SimDomain>, region: &Arc<Region>, rights: Rights) -> Result<Self> {
        let known = Registered::whole(domain.number, rights, region);
        let key = lock(&domain.world).register(known);
        Ok(Self { key, rights, region: Arc::clone(region), domain: Arc::clone(domain) })
    }

    fn local_key(&self) -> u32 {
        self.key
    }

    fn remote_key(&self) -> Result<u32> {
        match self.rights {
            Rights::Local => Err(Kind::Denied.error("this memory is for nobody else")),
            Rights::Remote | Rights::RemoteWrite => Ok(self.key),
        }
    }

    fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

impl Drop for SimMemory {
    fn drop(&mut self) {
        lock(&self.domain.world).memory.remove(&self.key);
    }
}

/// A completion queue. A look at it is what lets time pass.
#[derive(Debug)]
pub(crate) struct SimQueue {
    world: Shared,
    number: u32,
}

impl provider::CompletionQueue<Simulated> for SimQueue {
    fn new(adapter: &SimAdapter, capacity: u32) -> Result<Arc<Self>> {
        let mut world = lock(&adapter.world);
        let number = world.next_number();
        world.queues.insert(number, Queue::new(capacity));
        Ok(Arc::new(Self { world: Arc::clone(&adapter.world), number }))
    }

    fn poll(&self, out: &mut Vec<WorkCompletion>) -> Result<bool> {
        let mut world = lock(&self.world);
        world.step();
        let queue = world.queues.get_mut(&self.number).expect("it is live");
        let taken: Vec<_> = std::iter::from_fn(|| queue.pop()).take(BATCH).collect();
        for entry in &taken {
            world.reclaim(entry);
            out.push(entry.completion);
        }
        Ok(taken.len() == BATCH)
    }

    fn arm(&self, _: Wake) -> Result<()> {
        Ok(())
    }

    fn clear(&self) {}

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn identity(&self) -> usize {
        self.number as usize
    }
}

impl Drop for SimQueue {
    fn drop(&mut self) {
        lock(&self.world).queues.remove(&self.number);
    }
}

/// Receives that queue pairs share.
#[derive(Debug)]
pub(crate) struct SimReceives {
    number: u32,
    slots: Slots<Simulated>,
    domain: Arc<SimDomain>,
}

impl provider::SharedReceiveQueue<Simulated> for SimReceives {
    fn new(domain: &Arc<SimDomain>, slot_bytes: u32, count: u32) -> Result<Arc<Self>> {
        let slots = Slots::new(domain, slot_bytes, count)?;
        let mut world = lock(&domain.world);
        let number = world.next_number();
        let queue = ReceiveQueue {
            capacity: count as usize,
            domain: domain.number,
            posted: VecDeque::new(),
            waiting: VecDeque::new(),
            queue: None,
        };
        world.shared.insert(number, queue);
        drop(world);
        let made = Arc::new(Self { number, slots, domain: Arc::clone(domain) });
        made.post(&(0..count).collect::<Vec<_>>())?;
        Ok(made)
    }

    fn slots(&self) -> &Slots<Simulated> {
        &self.slots
    }

    fn post(&self, slots: &[u32]) -> Result<()> {
        lock(&self.domain.world).post_shared(self.number, &receives(&self.slots, slots));
        Ok(())
    }

    fn identity(&self) -> usize {
        self.number as usize
    }

    fn warn_when_low(&self) -> Result<()> {
        Err(Kind::Unsupported.error("a simulated device does not say when receives run low"))
    }
}

impl Drop for SimReceives {
    fn drop(&mut self) {
        lock(&self.domain.world).shared.remove(&self.number);
    }
}

fn receives(slots: &Slots<Simulated>, which: &[u32]) -> Vec<Receive> {
    let of = |slot: &u32| Receive { id: RECEIVE | u64::from(*slot), place: slots.whole(*slot) };
    which.iter().map(of).collect()
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct SimPair {
    pub(super) pair: PairRef,
    receives: Receives<Simulated>,
    // In the order in which they go.
    id: SimId,
    _queue: Arc<SimQueue>,
    domain: Arc<SimDomain>,
}

impl provider::QueuePair<Simulated> for SimPair {
    fn new(
        id: SimId,
        domain: &Arc<SimDomain>,
        queue: &Arc<SimQueue>,
        receives: Receives<Simulated>,
        depth: u32,
    ) -> Result<Self> {
        let mut world = lock(&domain.world);
        let life = world.next_serial();
        // The number of one that just went is what may be mistaken for it.
        let number = world.free_pairs.pop().unwrap_or_else(|| world.next_number());
        let inbound = match &receives {
            Receives::Own(_) => Inbound::Own(VecDeque::new()),
            Receives::Shared(shared) => {
                world.attach(shared.number, queue.number);
                Inbound::Shared(shared.number)
            }
        };
        let made = Pair::new(life, queue.number, domain.number, inbound, depth);
        world.pairs.insert(number, made);
        let pair = PairRef { number, life };
        world.id(id.id).expect("it is live").pair = Some(pair);
        drop(world);
        let (queue, domain) = (Arc::clone(queue), Arc::clone(domain));
        Ok(Self { pair, receives, id, _queue: queue, domain })
    }

    fn number(&self) -> u32 {
        self.pair.number
    }

    fn id(&self) -> &SimId {
        &self.id
    }

    fn receives(&self) -> &Receives<Simulated> {
        &self.receives
    }

    fn post_receives(&self, which: &[u32]) -> Result<()> {
        match &self.receives {
            Receives::Shared(shared) => provider::SharedReceiveQueue::post(&**shared, which),
            Receives::Own(slots) => {
                let list = receives(slots, which);
                lock(&self.domain.world).post_own(self.pair, &list, slots.count());
                Ok(())
            }
        }
    }

    fn settle(&self) -> Result<()> {
        let mut world = lock(&self.domain.world);
        world.pairs.get_mut(&self.pair.number).expect("it is live").is_open = false;
        Ok(())
    }
}

impl Wire for SimPair {
    fn post<'a>(&mut self, postings: impl Postings<'a>) -> (usize, Result<()>) {
        let sending = |posting: Posting<'_>| {
            let work = match posting.work {
                Work::Write { from, to, immediate, .. } => {
                    SimWork::Write { from: *from, to: *to, immediate: *immediate }
                }
                Work::Read { into, from, .. } => SimWork::Read { into: *into, from: *from },
                Work::Send(message) => SimWork::Send(message.as_slice().into()),
            };
            Sending::new(posting.id, posting.signalled, work)
        };
        let count = postings.len();
        let sends = postings.map(sending).collect();
        match lock(&self.domain.world).post_sends(self.pair, sends) {
            Ok(()) => (count, Ok(())),
            refused => (0, refused),
        }
    }
}

impl Drop for SimPair {
    fn drop(&mut self) {
        lock(&self.domain.world).destroy(self.pair);
    }
}

/// Tells that a time is over whenever it was asked so many times.
#[derive(Debug)]
pub(crate) struct SimTicker(AtomicU32);

impl provider::Ticker for SimTicker {
    fn ticked(&self) -> bool {
        (self.0.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(LOOKS_A_TICK)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Nothing is told unasked.
#[derive(Debug)]
pub(crate) struct SimWatch;

impl provider::Watch<Simulated> for SimWatch {
    fn new(_: &SimAdapter) -> Result<Self> {
        Ok(Self)
    }

    fn take(&self, _: &mut Vec<DeviceEvent>) {}

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
