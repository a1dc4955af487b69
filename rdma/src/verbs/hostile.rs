//! What a client does that wants more than it may have. Needs an RDMA device, whose address is in
//! `FOREBAY_TEST_RDMA`: runs in the lab.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
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
const GUESSES: u32 = 300;
/// How often a test looks before it takes the node for hung.
const MANY: usize = 5_000_000;
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
        Self::connect(address, 1, 6).expect("accepted")
    }

    /// One that answers so many RDMA READs, and has the node wait so often for receives.
    fn connect(address: SocketAddr, reads_in: u8, patience: u8) -> extent::Result<Self> {
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
            reads_in,
            reads_out: 1,
            peer_patience: patience,
        };
        pair.id().connect(parameters).expect("asks");
        channel::await_event(&channel, CmEventKind::Established, PATIENCE)?;
        let region = dma::Region::anonymous(4096, HugePages::Never).expect("memory");
        let memory = MemoryRegion::new(&domain, &region, Rights::Remote).expect("room");
        let send = SendQueue::new(1, 16);
        Ok(Self { pair, send, queue, memory, _channel: channel })
    }

    fn local(&self) -> Local {
        Local { address: self.memory.address(0, 64), length: 64, key: self.memory.local_key() }
    }

    /// Posts one work request and says how it ended.
    fn try_out(&mut self, work: Work) -> WorkStatus {
        self.send.push(work);
        self.send.post(1, &mut self.pair).expect("posted");
        let mut completions: Vec<WorkCompletion> = Vec::new();
        for _ in 0..MANY {
            if !completions.is_empty() {
                break;
            }
            self.queue.poll(&mut completions).expect("a sound queue");
            thread::yield_now();
        }
        completions.first().expect("the device says how it ended").status
    }
}

/// A node that serves until dropped, with some memory of its own.
struct Victim {
    address: SocketAddr,
    pool: Pool,
    /// The key of its memory, once there is a session.
    key: Arc<AtomicU32>,
    closed: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
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
        let mut all: Vec<_> = std::iter::from_fn(|| pool.take(1)).collect();
        all.iter_mut().for_each(|buffer| buffer.as_mut_slice().fill(0x5A));
        drop(all);
        fabrics.register(pool.region()).expect("memory that may be locked");
        let stop = Arc::new(AtomicBool::new(false));
        let (key, closed, requests): (Arc<AtomicU32>, Arc<AtomicUsize>, Arc<AtomicUsize>) =
            Default::default();
        let shared =
            (Arc::clone(&stop), Arc::clone(&key), Arc::clone(&closed), Arc::clone(&requests));
        let thread = thread::spawn(move || {
            let (stop, key, closed, requests) = shared;
            let mut events = Vec::new();
            while !stop.load(Ordering::Acquire) {
                fabrics.poll(&mut events);
                fabrics.kick();
                if let Some(found) = fabrics.verbs().and_then(|verbs| verbs.first_key()) {
                    key.store(found, Ordering::Release);
                }
                for event in events.drain(..) {
                    match event {
                        Event::Closed { .. } => closed.fetch_add(1, Ordering::Release),
                        Event::Request { .. } => requests.fetch_add(1, Ordering::Release),
                        _ => 0,
                    };
                }
            }
        });
        let address = listener.rdma_addrs()[0];
        Self {
            address,
            pool,
            key,
            closed,
            requests,
            stop,
            thread: Some(thread),
            _listener: listener,
        }
    }

    fn is_untouched(&self) -> bool {
        let all: Vec<_> = std::iter::from_fn(|| self.pool.take(1)).collect();
        all.iter().all(|buffer| buffer.as_slice().iter().all(|byte| *byte == 0x5A))
    }

    fn closes(&self, count: usize) {
        reaches(&self.closed, count);
    }
}

/// Waits until something was counted so often.
fn reaches(counter: &AtomicUsize, count: usize) {
    for _ in 0..MANY {
        if counter.load(Ordering::Acquire) >= count {
            return;
        }
        thread::yield_now();
    }
    panic!("it never came to {count}");
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
    // The client knows where the node's memory is, which one elsewhere would not, and its very key.
    let target = victim.pool.region().base().addr().get() as u64;
    drop(Intruder::new(victim.address));
    victim.closes(1);
    let real = victim.key.load(Ordering::Acquire);
    assert_ne!(real, 0, "the node has registered its memory");
    let guesses = std::env::var("FOREBAY_TEST_GUESSES");
    let guesses = guesses.map_or(GUESSES, |number| number.parse().expect("a number"));
    for guess in 0..guesses {
        // Keys are an index and eight bits that change.
        let key = match guess {
            0 => real,
            _ if guess % 4 == 0 => real.wrapping_sub(guess),
            _ => ((real >> 8).wrapping_sub(guess / 16) << 8) | ((guess * 7) % 256),
        };
        let mut intruder = Intruder::new(victim.address);
        let remote = Remote { address: target, key };
        let local = intruder.local();
        // An RDMA READ would never leave: the node answers none, and said so when it was connected.
        let work = Work::Write { from: local, to: remote, immediate: None, end: None };
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
    for (count, length) in [0, 1, 63, 65, 127].into_iter().enumerate() {
        let mut intruder = Intruder::new(victim.address);
        let sent = intruder.try_out(Work::Send(Message::new(&vec![3; length])));
        assert_eq!(sent, WorkStatus::SUCCESS);
        victim.closes(count + 1);
    }
    // One that is longer than a receive is the device's to refuse.
    let mut intruder = Intruder::new(victim.address);
    assert_ne!(intruder.try_out(Work::Send(Message::new(&[3; 200]))), WorkStatus::SUCCESS);
    victim.closes(6);
    assert_eq!(victim.requests.load(Ordering::Acquire), 0);
    let sent = bystander.try_out(Work::Send(Message::new(&[0; 64])));
    assert_eq!(sent, WorkStatus::SUCCESS, "others go on");
    reaches(&victim.requests, 1);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn connections_that_a_node_cannot_live_with_are_refused() {
    let victim = Victim::new();
    for (reads_in, patience) in [(0, 6), (1, 7)] {
        let refused = Intruder::connect(victim.address, reads_in, patience);
        let error = refused.map(drop).expect_err("refused");
        assert_eq!(error.kind(), extent::Kind::Invalid, "{error}");
    }
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn receives_outlive_the_sessions_that_used_them() {
    let victim = Victim::new();
    // Each leaves with requests that nobody looked at; together more than there are receives.
    for count in 1..=40 {
        let mut intruder = Intruder::new(victim.address);
        let bad = [1].into_iter().chain(std::iter::repeat_n(64, 120));
        bad.for_each(|length| {
            intruder.send.push(Work::Send(Message::new(&vec![3; length])));
        });
        // It may be cut off in the middle.
        while intruder.send.wants_to_post() {
            let mut completions = Vec::new();
            intruder.queue.poll(&mut completions).expect("a sound queue");
            if completions.iter().any(|completion| completion.status != WorkStatus::SUCCESS) {
                break;
            }
            for completion in completions {
                intruder.send.complete(completion.id, &mut Vec::new());
            }
            intruder.send.post(16, &mut intruder.pair).expect("posted");
        }
        victim.closes(count);
    }
    let mut bystander = Intruder::new(victim.address);
    let before = victim.requests.load(Ordering::Acquire);
    assert_eq!(bystander.try_out(Work::Send(Message::new(&[0; 64]))), WorkStatus::SUCCESS);
    reaches(&victim.requests, before + 1);
}
