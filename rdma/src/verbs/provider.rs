//! What sessions stand on: rdma-core and a device, or the simulated one of [`super::sim`]. Everything
//! above is the same code for both, and which it is is known when it is compiled.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dma::{DmaBuf, Region};
use extent::Result;

use super::adapter::Limits;
use super::completion::{Wake, WorkCompletion};
use super::connection::{CmEvent, ConnectionParameters};
use super::events::DeviceEvent;
use super::memory::Rights;
use super::queue_pair::Receives;
use super::receive::Slots;
use super::send_queue::Wire;

/// Makes what does not come of something else, and names the types of the rest. The traits below say
/// what is used of those; each is documented where rdma-core's is.
pub(super) trait Provider: Debug + Sized + Send + Sync + 'static {
    type Adapter: Adapter;
    type EventChannel: EventChannel<Self>;
    type CmId: CmId<Self>;
    type ProtectionDomain: ProtectionDomain<Self>;
    type MemoryRegion: MemoryRegion<Self>;
    type DeviceRegion: DeviceRegion<Self>;
    type CompletionQueue: CompletionQueue<Self>;
    type SharedReceiveQueue: SharedReceiveQueue<Self>;
    type QueuePair: QueuePair<Self>;
    type Ticker: Ticker;
    type Watch: Watch<Self>;

    /// Where events of connections come.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] where there is no RDMA device or library.
    fn event_channel(&self) -> Result<Arc<Self::EventChannel>>;

    /// What tells that so many seconds are over, again and again.
    fn ticker(&self, seconds: libc::time_t) -> Result<Self::Ticker>;
}

pub(super) trait Adapter: Clone + PartialEq + Debug + Send {
    /// The kernel's name for it, such as `mlx5_0`.
    fn name(&self) -> String;

    fn limits(&self) -> Result<Limits>;

    /// Does what takes its time, where nobody waits for it: on a thread of its own. It is dropped
    /// here if there is none to be had.
    fn aside(&self, work: Box<dyn FnOnce() + Send>) -> Result<()>;
}

pub(super) trait EventChannel<P: Provider>: Debug + Send + Sync {
    /// The next event, if there is one.
    fn next(self: &Arc<Self>) -> Result<Option<CmEvent<P::CmId>>>;

    /// What to sleep on, if one can.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}

pub(super) trait CmId<P: Provider>: Debug + Send + Sized {
    /// What events call it.
    fn number(&self) -> usize;

    /// The device that it is bound to.
    fn adapter(&self) -> Result<P::Adapter>;

    /// The address of the other end.
    fn peer(&self) -> String;

    /// Asks the other side, once there is a queue pair.
    fn connect(&self, parameters: ConnectionParameters<'_>) -> Result<()>;

    /// Answers a request, once there is a queue pair.
    fn accept(&self, parameters: ConnectionParameters<'_>) -> Result<()>;

    /// Turns a request down, with a reason.
    fn reject(&self, private_data: &[u8]);

    /// Tells RDMA CM that the connection stands, since a message came over it. The event follows.
    fn stands(&self);

    /// Ends the connection: what is posted is flushed.
    fn disconnect(&self);

    /// Has its events come elsewhere from now on. Those that came before must have been taken.
    fn migrate(&mut self, channel: &Arc<P::EventChannel>) -> Result<()>;

    /// How long the device waits for an acknowledgement before it sends again: 4.096 µs times two to
    /// this power.
    fn set_acknowledge_timeout(&self, exponent: u8);

    /// The traffic class (DSCP and ECN bits) of its packets.
    fn set_traffic_class(&self, class: u8);
}

pub(super) trait ProtectionDomain<P: Provider>: Debug + Send + Sync + Sized {
    fn new(adapter: &P::Adapter) -> Result<Arc<Self>>;
}

pub(super) trait MemoryRegion<P: Provider>: Debug + Send + Sync + Sized {
    fn new(domain: &Arc<P::ProtectionDomain>, region: &Arc<Region>, rights: Rights)
    -> Result<Self>;

    /// The key for work requests of this side.
    fn local_key(&self) -> u32;

    /// The key to hand to the other side.
    ///
    /// # Errors
    /// [`extent::Kind::Denied`] for memory without remote rights.
    fn remote_key(&self) -> Result<u32>;

    fn region(&self) -> &Arc<Region>;

    /// The address of byte `offset`, as work requests name it.
    fn address(&self, offset: usize, length: usize) -> u64 {
        self.region().at(offset, length).addr().get() as u64
    }
}

pub(super) trait DeviceRegion<P: Provider>: Debug + Send + Sync + Sized {
    /// Lets the other side write there.
    fn new(domain: &Arc<P::ProtectionDomain>, memory: &Arc<DmaBuf>) -> Result<Self>;

    /// The key to hand to the other side.
    fn remote_key(&self) -> u32;

    /// Where it is, as the other device counts, and how long.
    fn place(&self) -> (u64, usize);
}

pub(super) trait CompletionQueue<P: Provider>: Debug + Send + Sync + Sized {
    /// A queue of at least `capacity` entries. More completions than that must never be due: a queue
    /// that overflows takes its queue pairs with it.
    fn new(adapter: &P::Adapter, capacity: u32) -> Result<Arc<Self>>;

    /// Takes what has completed, at most a batch. Whether there may be more.
    fn poll(&self, out: &mut Vec<WorkCompletion>) -> Result<bool>;

    /// Makes the descriptor readable at the next completion that is worth waking for. Those that came
    /// before may not do so: poll once more before sleeping.
    fn arm(&self, wake: Wake) -> Result<()>;

    /// Takes the events that made the descriptor readable.
    fn clear(&self);

    /// What devices call it.
    fn identity(&self) -> usize;

    /// What to sleep on, if one can.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}

pub(super) trait SharedReceiveQueue<P: Provider>: Debug + Send + Sync + Sized {
    /// A queue whose every slot is posted.
    fn new(domain: &Arc<P::ProtectionDomain>, slot_bytes: u32, count: u32) -> Result<Arc<Self>>;

    fn slots(&self) -> &Slots<P>;

    /// What devices call it.
    fn identity(&self) -> usize;

    /// Has the device tell, once, when few slots are left.
    ///
    /// # Errors
    /// Whatever says that it cannot.
    fn warn_when_low(&self) -> Result<()>;

    /// Makes slots ready for messages (again).
    fn post(&self, slots: &[u32]) -> Result<()>;
}

pub(super) trait QueuePair<P: Provider>: Wire + Debug + Send + Sized {
    /// Makes a queue pair for a connection. All its completions come to one queue.
    fn new(
        id: P::CmId,
        domain: &Arc<P::ProtectionDomain>,
        queue: &Arc<P::CompletionQueue>,
        receives: Receives<P>,
        depth: u32,
    ) -> Result<Self>;

    /// What completions call it.
    fn number(&self) -> u32;

    fn id(&self) -> &P::CmId;

    fn receives(&self) -> &Receives<P>;

    /// Makes slots of its own ready for messages (again).
    fn post_receives(&self, which: &[u32]) -> Result<()>;

    /// Takes from the other side of a connection that can send whatever right it has to memory of
    /// this one, and has it try again soon where it finds no receive.
    fn settle(&self) -> Result<()>;
}

/// Somebody who hears what a device tells unasked.
pub(super) trait Watch<P: Provider>: Debug + Send + Sized {
    fn new(adapter: &P::Adapter) -> Result<Self>;

    /// What was told since.
    fn take(&self, out: &mut Vec<DeviceEvent>);

    /// What to sleep on, if one can.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}

pub(super) trait Ticker: Send {
    /// Whether the time was over since the last call.
    fn ticked(&self) -> bool;

    /// What to sleep on, if one can.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
}
