//! What a client does that wants more than it may have. Needs an RDMA device, whose address is in
//! `FOREBAY_TEST_RDMA`: runs in the lab.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dma::{HugePages, Pool, SizeClass};

use super::completion::{CompletionQueue, WorkCompletion, WorkStatus};
use super::connection::{CmEventKind, CmId, ConnectionParameters, EventChannel};
use super::greeting::Hello;
use super::memory::{MemoryRegion, ProtectionDomain, Rights};
use super::queue_pair::{QueuePair, Receives};
use super::receive::Slots;
use super::send_queue::{Local, Message, Remote, SendQueue, Work};
use super::*;
use crate::{Event, Fabrics, Listener, ListenerOptions, ShmOptions, Transport};

/// Keys that are tried, around those that the node's memory has, unless `FOREBAY_TEST_GUESSES` says
/// another number: each costs a connection.
const GUESSES: u32 = 40;
const PATIENCE: Duration = Duration::from_secs(60);
/// "Remote access error" and "remote invalid request error".
const REFUSED: [WorkStatus; 2] = [WorkStatus(10), WorkStatus(9)];

/// A connection with nothing in its way.
struct Intruder {
    pair: QueuePair,
    send: SendQueue,
    queue: Arc<CompletionQueue>,
    memory: MemoryRegion,
    _channel: Arc<EventChannel>,
}

impl Intruder {
    fn new(address: SocketAddr) -> Self {
        let channel = EventChannel::new().expect("RDMA");
        let id = CmId::new(&channel).expect("RDMA");
        id.resolve_address(address, 5000).expect("resolves");
        channel::await_event(&channel, CmEventKind::AddressResolved, PATIENCE).expect("a device");
        id.resolve_route(5000).expect("resolves");
        channel::await_event(&channel, CmEventKind::RouteResolved, PATIENCE).expect("a route");
        let adapter = id.adapter().expect("bound");
        let domain = ProtectionDomain::new(adapter).expect("room");
        let queue = CompletionQueue::new(adapter, 64).expect("room");
        let slots = Receives::Own(Slots::new(&domain, 256, 4).expect("memory"));
        let pair = QueuePair::new(id, &domain, &queue, slots, 16).expect("room");
        let parameters = ConnectionParameters {
            private_data: &Hello::new(4).encode(),
            reads_in: 1,
            reads_out: 1,
            retries: 7,
            receiver_retries: 7,
        };
        pair.id().connect(parameters).expect("asks");
        channel::await_event(&channel, CmEventKind::Established, PATIENCE).expect("accepted");
        let region = dma::Region::anonymous(4096, HugePages::Never).expect("memory");
        let memory = MemoryRegion::new(&domain, &region, Rights::Remote).expect("room");
        let send = SendQueue::new(1, 16);
        Self { pair, send, queue, memory, _channel: channel }
    }

    fn local(&self) -> Local {
        Local { address: self.memory.address(0, 64), length: 64, key: self.memory.local_key() }
    }

    /// Posts one work request and says how it ended.
    fn try_out(&mut self, work: Work) -> WorkStatus {
        self.send.push(work);
        self.send.post(1, &mut self.pair).expect("posted");
        let mut completions: Vec<WorkCompletion> = Vec::new();
        while completions.is_empty() {
            self.queue.poll(&mut completions).expect("a sound queue");
            thread::yield_now();
        }
        completions[0].status
    }
}

/// A node that serves until dropped, with some memory of its own.
struct Victim {
    address: SocketAddr,
    pool: Pool,
    closed: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    _listener: Listener,
}

impl Victim {
    fn new() -> Self {
        let ip = std::env::var("FOREBAY_TEST_RDMA").expect("FOREBAY_TEST_RDMA names addresses");
        let ip: IpAddr = ip.split(',').next().expect("one").parse().expect("an address");
        let verbs = Some(VerbsOptions::default());
        let mut fabrics = Fabrics::new(0, ShmOptions::default(), verbs).expect("RDMA");
        let rdma = vec![SocketAddr::new(ip, 0)];
        let options = ListenerOptions { rdma, ..ListenerOptions::default() };
        let listener = Listener::start(options, vec![fabrics.inbox()]).expect("a port");
        let sizes = [SizeClass { bytes: 64 << 10, count: 4 }];
        let pool = Pool::new(&sizes, HugePages::Never).expect("memory");
        pool.take(1).expect("free").as_mut_slice().fill(0x5A);
        fabrics.register(pool.region()).expect("memory that may be locked");
        let (stop, closed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, gone) = (Arc::clone(&stop), Arc::clone(&closed));
        let thread = thread::spawn(move || {
            let mut events = Vec::new();
            while !stopped.load(Ordering::Acquire) {
                fabrics.poll(&mut events);
                fabrics.kick();
                for event in events.drain(..) {
                    gone.fetch_add(
                        usize::from(matches!(event, Event::Closed { .. })),
                        Ordering::Release,
                    );
                }
            }
        });
        let address = listener.rdma_addrs()[0];
        Self { address, pool, closed, stop, thread: Some(thread), _listener: listener }
    }

    fn is_untouched(&self) -> bool {
        let buffer = self.pool.take(1).expect("free");
        buffer.as_slice()[..4096].iter().all(|byte| *byte == 0x5A)
    }

    fn closes(&self, count: usize) {
        while self.closed.load(Ordering::Acquire) < count {
            thread::yield_now();
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        assert!(ended, "the node panicked");
    }
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn no_key_opens_the_memory_of_a_node() {
    let victim = Victim::new();
    // The client knows where the node's memory is, which one elsewhere would not.
    let target = victim.pool.region().base().addr().get() as u64;
    let nearest = Intruder::new(victim.address).memory.local_key();
    let guesses = std::env::var("FOREBAY_TEST_GUESSES");
    let guesses = guesses.map_or(GUESSES, |number| number.parse().expect("a number"));
    for guess in 0..guesses {
        // Keys are an index and eight bits that change; the node's are close to the client's own.
        let key = match guess % 4 {
            0 => nearest.wrapping_sub(guess),
            _ => ((nearest >> 8).wrapping_sub(guess / 16) << 8) | ((guess * 7) % 256),
        };
        let mut intruder = Intruder::new(victim.address);
        if key == intruder.memory.local_key() {
            continue;
        }
        let remote = Remote { address: target, key };
        let local = intruder.local();
        let work = match guess % 2 {
            0 => Work::Read { into: local, from: remote, end: None },
            _ => Work::Write { from: local, to: remote, end: None },
        };
        let status = intruder.try_out(work);
        assert!(REFUSED.contains(&status), "key {key:#x}: {status:?}");
    }
    assert!(victim.is_untouched());
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn capsules_of_no_length_end_their_session_alone() {
    let victim = Victim::new();
    let mut bystander = Intruder::new(victim.address);
    for (count, length) in [1, 63, 65, 127].into_iter().enumerate() {
        let mut intruder = Intruder::new(victim.address);
        let sent = intruder.try_out(Work::Send(Message::new(&vec![3; length])));
        assert_eq!(sent, WorkStatus::SUCCESS);
        victim.closes(count + 1);
    }
    // One that is longer than a receive is the device's to refuse.
    let mut intruder = Intruder::new(victim.address);
    assert_ne!(intruder.try_out(Work::Send(Message::new(&[3; 200]))), WorkStatus::SUCCESS);
    victim.closes(5);
    let sent = bystander.try_out(Work::Send(Message::new(&[0; 64])));
    assert_eq!(sent, WorkStatus::SUCCESS, "others go on");
}
