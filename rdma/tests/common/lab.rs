//! A node over real verbs that serves from a thread of its own, an honest client that reads from it all the
//! while, what the kernel counts of RDMA objects, and the cable between the lab's two devices.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command as Process;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use extent::wire::{Command, Segments};
use forebay_rdma::{
    Fabrics, Listener, ListenerOptions, ShmOptions, Transport, VerbsChannel, VerbsOptions,
};

use super::network::READ;
use super::{TestClient, TestNode, pattern, range};

const NEEDS: &str = "FOREBAY_TEST_RDMA must name two addresses, each of an RDMA device";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// What every node here has, and every honest client reads.
pub(crate) const FILE: &str = "s/file";
pub(crate) const FILE_BYTES: usize = 8 << 20;
/// What a bystander reads at a time.
const BLOCK: usize = 20_000;
/// Rounds of a bystander that show that it goes on as before.
const ROUNDS: usize = 5;
/// How often a test asks before it takes the node for hung: for minutes, in the lab.
const MANY: usize = 3_000_000;

/// Addresses of RDMA devices.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let list = std::env::var("FOREBAY_TEST_RDMA").expect(NEEDS);
    list.split(',').map(|address| address.parse().expect(NEEDS)).collect()
}

/// A client's options whose packets go over the cable, through both devices, and who notices soon that
/// the other side is gone: an acknowledgement is waited for eight times 67 ms.
pub(crate) fn over_the_cable() -> VerbsOptions {
    let acknowledge_timeout = 14;
    VerbsOptions { source: Some(addresses()[1]), acknowledge_timeout, ..VerbsOptions::default() }
}

type Order = Box<dyn FnOnce(&mut TestNode<Fabrics>) + Send>;

/// A node that serves until dropped. What it is asked, its thread answers between two turns.
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    orders: mpsc::SyncSender<Order>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _listener: Listener,
}

impl Node {
    pub(crate) fn new(buffers: usize) -> Self {
        let options = VerbsOptions { acknowledge_timeout: 14, ..VerbsOptions::default() };
        Self::with(buffers, options, |_| ())
    }

    /// One whose fabrics are changed before anybody comes.
    pub(crate) fn with(
        buffers: usize,
        options: VerbsOptions,
        change: impl FnOnce(&mut Fabrics),
    ) -> Self {
        let mut fabrics =
            Fabrics::new(0, ShmOptions::default(), Some(options)).expect("an RDMA device");
        change(&mut fabrics);
        let rdma = vec![SocketAddr::new(addresses()[0], 0)];
        let options = ListenerOptions { rdma, ..ListenerOptions::default() };
        let listener = Listener::start(options, vec![fabrics.inbox()]).expect("a port");
        let address = listener.rdma_addrs()[0];
        let mut node = TestNode::new(fabrics, buffers);
        node.add_file(FILE, pattern(FILE_BYTES));
        let region = Arc::clone(node.pool.region());
        node.transport.register(&region).expect("memory that may be locked");
        let stop = Arc::new(AtomicBool::new(false));
        let (orders, received) = mpsc::sync_channel::<Order>(1);
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                if let Ok(order) = received.try_recv() {
                    order(&mut node);
                }
                if !node.step() {
                    thread::yield_now();
                }
            }
        });
        Self { address, orders, stop, thread: Some(thread), _listener: listener }
    }

    /// What the node answers.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut TestNode<Fabrics>) -> R + Send + 'static,
    ) -> R {
        let (answer, answered) = mpsc::sync_channel(1);
        let order = move |node: &mut TestNode<Fabrics>| {
            answer.send(question(node)).expect("somebody asked");
        };
        self.orders.send(Box::new(order)).expect("the node serves");
        answered.recv().expect("the node serves")
    }

    /// Waits until something holds.
    pub(crate) fn until(
        &self,
        what: &str,
        holds: impl Fn(&mut TestNode<Fabrics>) -> bool + Send + Copy + 'static,
    ) {
        for _ in 0..MANY {
            if self.ask(holds) {
                return;
            }
            thread::yield_now();
        }
        panic!("it never came: {what}");
    }

    /// Waits until so many sessions ended and all their buffers are back.
    pub(crate) fn closes(&self, count: usize) {
        self.until("the end of a session", move |node| {
            node.closed.len() >= count && node.transfers_in_flight() == 0
        });
        self.until("all buffers", |node| node.buffers_out() == 0);
    }

    /// Why the session ended that ended last.
    pub(crate) fn last_reason(&self) -> String {
        self.ask(|node| node.closed.last().map(|(_, reason)| reason.to_string()))
            .expect("one that ended")
    }

    pub(crate) fn client(&self, bytes: usize, options: VerbsOptions) -> TestClient<VerbsChannel> {
        let channel = VerbsChannel::connect(self.address, PATIENCE, 64, options);
        TestClient::new(channel.expect("connected"), bytes)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        assert!(ended || thread::panicking(), "the node panicked");
    }
}

/// A client that reads and compares, on a thread of its own, until dropped.
pub(crate) struct Bystander {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Bystander {
    /// One on the device of the node.
    pub(crate) fn new(node: &Node) -> Self {
        Self::with(node, VerbsOptions::default())
    }

    pub(crate) fn with(node: &Node, options: VerbsOptions) -> Self {
        let mut client = node.client(BLOCK, options);
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            let file = pattern(FILE_BYTES);
            let mut turn = thread::yield_now;
            let handle = client.open(FILE, READ, &mut turn).expect("connected").value;
            while !stopped.load(Ordering::Acquire) {
                let round = counted.load(Ordering::Acquire);
                let at = round * 7919 % (FILE_BYTES - BLOCK);
                client.fill(0, &[0xEE; BLOCK]);
                let into = Segments::one(client.segment(0, BLOCK));
                let read = Command::Read { handle, range: range(at, BLOCK), into };
                client.call(read, &mut turn).expect("connected");
                assert!(client.bytes(0, BLOCK) == file[at..at + BLOCK], "the bytes at {at}");
                counted.fetch_add(1, Ordering::AcqRel);
            }
        });
        let made = Self { stop, rounds, thread: Some(thread) };
        made.goes_on();
        made
    }

    /// Waits for a few more rounds, each of the right bytes.
    pub(crate) fn goes_on(&self) {
        let goal = self.rounds.load(Ordering::Acquire) + ROUNDS;
        for _ in 0..MANY * 10 {
            let thread = self.thread.as_ref().expect("until dropped");
            assert!(!thread.is_finished(), "the bystander was disturbed");
            if self.rounds.load(Ordering::Acquire) >= goal {
                return;
            }
            thread::yield_now();
        }
        panic!("the bystander waits for ever");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        assert!(ended || thread::panicking(), "the bystander was disturbed");
    }
}

/// What the kernel counts of each device: protection domains, completion queues, queue pairs, ids,
/// memory regions and shared receive queues.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Resources(BTreeMap<(String, String), u32>);

impl Resources {
    /// As of now (`rdma resource`, of iproute2).
    pub(crate) fn now() -> Self {
        let text = run("rdma", &["resource"]);
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split_whitespace().skip(1);
            let device = words.next().unwrap_or_default().trim_end_matches(':').to_owned();
            while let (Some(what), Some(count)) = (words.next(), words.next()) {
                let count = count.parse().expect("`rdma resource` prints numbers");
                // A device, once opened, stays so.
                if what != "ctx" {
                    counts.insert((device.clone(), what.to_owned()), count);
                }
            }
        }
        assert!(!counts.is_empty(), "`rdma resource` names no device");
        Self(counts)
    }

    /// Of all devices.
    pub(crate) fn total(&self, what: &str) -> u32 {
        self.0.iter().filter(|((_, of), _)| of == what).map(|(_, count)| count).sum()
    }

    /// Waits until there are as many of everything again.
    pub(crate) fn come_back(&self) {
        let mut last = Self::now();
        for _ in 0..500 {
            if last == *self {
                return;
            }
            thread::yield_now();
            last = Self::now();
        }
        panic!("left behind: before {self:?}, now {last:?}");
    }
}

/// What stands between the two devices: whole again when dropped.
pub(crate) struct Cable(());

impl Cable {
    pub(crate) fn new() -> Self {
        Self(())
    }

    /// Pulls it: both ports go down.
    pub(crate) fn pull(&self) {
        run("ip", &["link", "set", "v1", "down"]);
    }

    /// Plugs it in again.
    pub(crate) fn plug(&self) {
        run("ip", &["link", "set", "v1", "up"]);
        let all = addresses();
        let (from, to) = (all[1].to_string(), all[0].to_string());
        let route = ["route", "replace", &to, "dev", "v1", "src", &from, "table", "101"];
        run("ip", &route);
        let mac = std::fs::read_to_string("/sys/class/net/v0/address").expect("the other end");
        let known = ["neighbour", "replace", &to, "lladdr", mac.trim(), "dev", "v1"];
        run("ip", &known);
    }

    /// Has every packet of the second device lost, with both ports up.
    pub(crate) fn lose_all(&self) {
        self.disturb(&["loss", "100%"]);
    }

    /// What the second device sends goes through a `netem` with these arguments.
    pub(crate) fn disturb(&self, how: &[&str]) {
        let mut arguments = vec!["qdisc", "replace", "dev", "v1", "root", "netem"];
        arguments.extend_from_slice(how);
        run("tc", &arguments);
    }

    /// Sets how long the frames of one end may be.
    pub(crate) fn set_mtu(&self, end: &str, bytes: usize) {
        run("ip", &["link", "set", end, "mtu", &bytes.to_string()]);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = Process::new("tc").args(["qdisc", "del", "dev", "v1", "root"]).output();
        self.set_mtu("v0", 9000);
        self.set_mtu("v1", 9000);
        self.plug();
    }
}

/// What a program prints; it must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Process::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
