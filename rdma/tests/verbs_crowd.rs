//! A thousand RDMA sessions of one node, over real verbs and two devices: memory stays bounded, all are served,
//! and when they leave nothing of them stays. It needs the lab (`ci/lab/run --rxe`) and `ulimit -n 16384`.

mod common;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command as Process, Stdio};
use std::{fs, thread};

use common::lab::{Bystander, FILE, FILE_BYTES, Node, PATIENCE, Resources, over_the_cable};
use common::network::READ;
use common::{TestClient, pattern, range};
use extent::wire::{Command, Segments};
use forebay_rdma::{VerbsChannel, VerbsOptions};

/// Tells a process that it plays the clients, and where the node is.
const ROLE: &str = "FOREBAY_TEST_ROLE";
const SESSIONS: usize = 1000;
/// Clients that connect at a time.
const THREADS: usize = 8;
const BLOCK: usize = 4096;
/// What a session may take of the node's own memory, and of what its device's driver maps into the process.
const OWN_BYTES: u64 = 64 << 10;
const DRIVER_BYTES: u64 = 192 << 10;

/// Kilobytes that a line of a file in `/proc` tells of.
fn kilobytes(file: &str, what: &str) -> u64 {
    let text = fs::read_to_string(file).expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).expect("a number of kilobytes")
}

/// Bytes of this process's own memory, of what drivers map into it, and of the kernel's that are not pages
/// of files.
fn memory() -> [u64; 3] {
    let own = kilobytes("/proc/self/status", "RssAnon");
    let mapped = kilobytes("/proc/self/status", "RssFile");
    let kernel: u64 =
        ["Slab", "VmallocUsed", "Percpu"].iter().map(|what| kilobytes("/proc/meminfo", what)).sum();
    [own << 10, mapped << 10, kernel << 10]
}

fn connect(address: &str, far: bool) -> TestClient<VerbsChannel> {
    let options = if far { over_the_cable() } else { VerbsOptions::default() };
    let channel = VerbsChannel::connect(address, PATIENCE, 16, options);
    TestClient::new(channel.expect("connected"), BLOCK)
}

/// Reads a block of its own and compares.
fn read_once(client: &mut TestClient<VerbsChannel>, number: usize, file: &[u8]) {
    let mut turn = thread::yield_now;
    let handle = client.open(FILE, READ, &mut turn).expect("connected").value;
    let at = number * 7919 % (FILE_BYTES - BLOCK);
    let into = Segments::one(client.segment(0, BLOCK));
    let read = Command::Read { handle, range: range(at, BLOCK), into };
    client.call(read, &mut turn).expect("connected");
    assert!(client.bytes(0, BLOCK) == file[at..at + BLOCK], "client {number}");
}

/// Not a test of its own: the clients, in a process of their own, so that the node's memory is the node's.
/// By itself it is one.
#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn clients_in_a_process_of_their_own() {
    let file = pattern(FILE_BYTES);
    let Ok(address) = std::env::var(ROLE) else {
        let node = Node::new(16);
        return read_once(&mut connect(&node.address.to_string(), false), 0, &file);
    };
    thread::scope(|scope| {
        let mut crowd = Vec::new();
        for first in 0..THREADS {
            let (address, file) = (&address, &file);
            crowd.push(scope.spawn(move || {
                let mut clients = Vec::new();
                for number in (first..SESSIONS).step_by(THREADS) {
                    clients.push((number, connect(address, number % 2 == 1)));
                }
                for (number, client) in &mut clients {
                    read_once(client, *number, file);
                }
                clients
            }));
        }
        let all: Vec<_> =
            crowd.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        writeln!(io::stderr(), "all are there").expect("somebody listens");
        // Until whoever started this closes it.
        io::stdin().read_to_end(&mut Vec::new()).expect("a pipe");
        drop(all);
    });
}

fn start_clients(node: &Node) -> Child {
    let program = std::env::current_exe().expect("a path");
    let mut child = Process::new(program);
    child.args(["--ignored", "--exact", "clients_in_a_process_of_their_own", "--nocapture"]);
    child.env(ROLE, node.address.to_string());
    child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    child.spawn().expect("a process")
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
#[expect(clippy::print_stderr, reason = "the figures that it is for")]
fn a_thousand_sessions_come_and_go() {
    let node = Node::new(64);
    let bystander = Bystander::new(&node);
    let (before, [own, mapped, kernel]) = (Resources::now(), memory());
    let mut clients = start_clients(&node);
    let mut said = BufReader::new(clients.stderr.take().expect("a pipe")).lines();
    let ready = said.by_ref().map_while(Result::ok).any(|line| line == "all are there");
    assert!(ready, "the clients gave up: raise `ulimit -n` to 16384");
    assert_eq!(node.ask(|node| node.opened.len()), SESSIONS + 1);
    let with = Resources::now();
    let [own_with, mapped_with, kernel_with] = memory();
    let each = |with: u64, without: u64| with.saturating_sub(without) / SESSIONS as u64;
    eprintln!(
        "{SESSIONS} sessions, each: {} bytes of the node's own, {} mapped by the driver, and {} of the kernel's, \
         of both sides; {} queue pairs of {}",
        each(own_with, own),
        each(mapped_with, mapped),
        each(kernel_with, kernel),
        with.total("qp"),
        before.total("qp"),
    );
    assert!(each(own_with, own) <= OWN_BYTES && each(mapped_with, mapped) <= DRIVER_BYTES);
    // Nothing that sessions share grows with their number.
    assert_eq!(with.total("srq"), before.total("srq"), "one shared receive queue");
    bystander.goes_on();
    drop(clients.stdin.take());
    assert!(clients.wait().expect("it ends").success());
    node.closes(SESSIONS);
    bystander.goes_on();
    before.come_back();
    let [own_after, ..] = memory();
    eprintln!(
        "afterwards, of the node's own: {} bytes for each that was there",
        each(own_after, own)
    );
}
