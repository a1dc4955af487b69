//! What a client does that wants more than it may have. Needs an RDMA device, whose address is in
//! `FOREBAY_TEST_RDMA`: runs in the lab.

mod capsules;
mod failures;
mod fairness;
mod keys;
mod proofs;
mod victim;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dma::{HugePages, Region, Window};
use extent::wire::{Command, LONG_REQUEST_BYTES, Request, Segment, Segments};
use extent::{ByteRange, Proof};

use super::adapter::Adapter;
use super::channel;
use super::completion::{CompletionQueue, WorkCompletion, WorkStatus};
use super::connection::{CmEventKind, CmId, ConnectionParameters, EventChannel};
use super::greeting::Hello;
use super::memory::{MemoryRegion, ProtectionDomain, Rights};
use super::queue_pair::{QueuePair, Receives};
use super::receive::Slots;
use super::send_queue::{Local, Message, SendQueue, Work};

/// How often a test looks before it takes the node for hung.
const MANY: usize = 5_000_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an intruder's memory.
const MEMORY_BYTES: usize = 4096;

/// How an intruder asks for a connection.
struct Ask {
    /// RDMA READs that it answers at a time.
    reads_in: u8,
    /// How often the node is to wait for receives.
    patience: u8,
    proof: Option<Proof>,
}

impl Default for Ask {
    /// As a client does that has no proof.
    fn default() -> Self {
        Self { reads_in: 1, patience: 6, proof: None }
    }
}

/// A connection with nothing in its way.
struct Intruder {
    pair: QueuePair,
    send: SendQueue,
    queue: Arc<CompletionQueue>,
    memory: Option<MemoryRegion>,
    region: Arc<Region>,
    adapter: Adapter,
    _channel: Arc<EventChannel>,
}

/// One that has all it takes to ask for a connection.
struct Prepared {
    pair: QueuePair,
    queue: Arc<CompletionQueue>,
    domain: Arc<ProtectionDomain>,
    adapter: Adapter,
    channel: Arc<EventChannel>,
}

impl Intruder {
    fn new(address: SocketAddr) -> Self {
        Self::connect(address, Ask::default()).expect("accepted")
    }

    fn with_proof(address: SocketAddr, proof: Proof) -> extent::Result<Self> {
        Self::connect(address, Ask { proof: Some(proof), ..Ask::default() })
    }

    fn connect(address: SocketAddr, ask: Ask) -> extent::Result<Self> {
        let Ask { reads_in, patience, proof } = ask;
        Self::greet(address, reads_in, patience, &Hello::new(4, proof).encode())
    }

    /// The same, with other words.
    fn greet(
        address: SocketAddr,
        reads_in: u8,
        patience: u8,
        greeting: &[u8],
    ) -> extent::Result<Self> {
        let prepared = Prepared::new(address);
        prepared.ask(reads_in, patience, greeting);
        prepared.conclude()
    }

    fn memory(&self) -> &MemoryRegion {
        self.memory.as_ref().expect("still registered")
    }

    fn local(&self) -> Local {
        Local { address: self.address(), length: 64, key: self.memory().local_key() }
    }

    /// Where its memory begins.
    fn address(&self) -> u64 {
        self.region.at(0, MEMORY_BYTES).addr().get() as u64
    }

    fn key(&self) -> u32 {
        self.memory().remote_key().expect("the node may use it")
    }

    /// Whether the node has written nothing there.
    fn is_untouched(&self) -> bool {
        self.bytes().iter().all(|byte| *byte == 0)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY_BYTES];
        Window::new(Arc::clone(&self.region), 0, MEMORY_BYTES)
            .expect("inside")
            .copy_out(&mut bytes);
        bytes
    }

    /// Asks the node to write 64 bytes there. What the tag means the victim says.
    fn ask_for(&mut self, tag: u32, address: u64, key: u32) {
        let into = Segments::one(Segment { address, length: 64, key });
        let range = ByteRange::new(0, 64).expect("small");
        let command = Command::Read { handle: 1, range, into };
        let mut capsule = [0; LONG_REQUEST_BYTES];
        let length = Request { tag, payload_crc: None, command }.encode(&mut capsule);
        let sent = self.try_out(Work::Send(Message::new(&capsule[..length])));
        assert_eq!(sent, WorkStatus::SUCCESS);
    }

    /// Has a device forget a key: its own, or the node's by a message of 64 bytes. Says how that ended; `None` if the
    /// device did not even begin.
    fn invalidate(&self, key: u32, at_node: bool) -> Option<WorkStatus> {
        let message = at_node.then(|| self.local());
        self.pair.invalidate(key, message).ok()?;
        Some(self.next_completion().status)
    }

    /// Posts one work request and says how it ended.
    fn try_out(&mut self, work: Work) -> WorkStatus {
        self.send.push(work);
        self.send.post(1, &mut self.pair).expect("posted");
        let completion = self.next_completion();
        if completion.status == WorkStatus::SUCCESS {
            self.send.complete(completion.id, &mut Vec::new());
        }
        completion.status
    }

    /// Waits for one work request or receive to end.
    fn next_completion(&self) -> WorkCompletion {
        let mut completions: Vec<WorkCompletion> = Vec::new();
        for _ in 0..MANY {
            if !completions.is_empty() {
                break;
            }
            self.queue.poll(&mut completions).expect("a sound queue");
            thread::yield_now();
        }
        *completions.first().expect("the device says how it ended")
    }
}

impl Prepared {
    fn new(address: SocketAddr) -> Self {
        let channel = EventChannel::new().expect("RDMA");
        let id = CmId::new(&channel).expect("RDMA");
        id.resolve_address(None, address, 5000).expect("resolves");
        channel::await_event(&channel, CmEventKind::AddressResolved, PATIENCE).expect("a device");
        id.resolve_route(5000).expect("resolves");
        channel::await_event(&channel, CmEventKind::RouteResolved, PATIENCE).expect("a route");
        let adapter = id.adapter().expect("bound");
        let domain = ProtectionDomain::new(adapter).expect("room");
        let queue = CompletionQueue::new(adapter, 64).expect("room");
        let slots = Receives::Own(Slots::new(&domain, 256, 4).expect("memory"));
        let pair = QueuePair::new(id, &domain, &queue, slots, 16).expect("room");
        Self { pair, queue, domain, adapter, channel }
    }

    /// Asks for the connection.
    fn ask(&self, reads_in: u8, patience: u8, greeting: &[u8]) {
        let parameters = ConnectionParameters {
            private_data: greeting,
            reads_in,
            reads_out: 1,
            peer_patience: patience,
        };
        self.pair.id().connect(parameters).expect("asks");
    }

    /// Waits for the answer, and takes the last step.
    fn conclude(self) -> extent::Result<Intruder> {
        let Self { pair, queue, domain, adapter, channel } = self;
        channel::await_event(&channel, CmEventKind::Established, PATIENCE)?;
        let region = Region::anonymous(MEMORY_BYTES, HugePages::Never).expect("memory");
        let memory = MemoryRegion::new(&domain, &region, Rights::Remote).expect("room");
        let send = SendQueue::new(1, 16);
        let memory = Some(memory);
        Ok(Intruder { pair, send, queue, memory, region, adapter, _channel: channel })
    }
}

/// Waits until something was counted so often.
fn reaches(counter: &AtomicUsize, count: usize) {
    eventually(|| counter.load(Ordering::Acquire) >= count, "it never came to that");
}

/// Waits until something holds.
fn eventually(mut holds: impl FnMut() -> bool, what: &str) {
    for _ in 0..MANY {
        if holds() {
            return;
        }
        thread::yield_now();
    }
    panic!("in vain: {what}");
}
