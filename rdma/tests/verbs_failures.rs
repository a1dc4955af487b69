//! What can go wrong with an RDMA connection, over real verbs, one thing at a time: afterwards queue pairs,
//! memory, receives and buffers are what they were before, and an honest client has noticed nothing. They need
//! the lab (`ci/lab/run --rxe`): they pull its cable.

mod common;

use std::net::SocketAddr;
use std::process::{Child, Command as Process, Stdio};
use std::thread;
use std::time::Duration;

use common::lab::{
    Bystander, Cable, FILE, FILE_BYTES, Node, PATIENCE, Resources, addresses, over_the_cable,
};
use common::network::READ;
use common::{TestClient, pattern, range};
use extent::Kind;
use extent::wire::{Command, OpenMode, Segments};
use forebay_rdma::{
    Channel, Fabrics, Listener, ListenerOptions, RdmaDevice, ShmOptions, Transport, VerbsChannel,
    VerbsOptions,
};

/// Tells a process that it plays a client, where the node is and what it does.
const ROLE: &str = "FOREBAY_TEST_ROLE";
/// More than one client that stands still can hold: the node of these tests hands out buffers in order.
const BUFFERS: usize = FILE_BYTES / common::PIECE_BYTES + 32;

/// Starts a process that transfers, one transfer after the other, until it is killed.
fn start_client(node: &Node, doing: &str) -> Child {
    let program = std::env::current_exe().expect("a path");
    let mut child = Process::new(program);
    child.args(["--ignored", "--exact", "a_client_in_a_process_of_its_own"]);
    child.env(ROLE, format!("{} {doing}", node.address)).stdout(Stdio::null());
    child.spawn().expect("a process")
}

/// Not a test of its own: what [`start_client`] runs. By itself, it reads once.
#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_client_in_a_process_of_its_own() {
    let Ok(role) = std::env::var(ROLE) else {
        let node = Node::new(4);
        let mut client = node.client(FILE_BYTES, VerbsOptions::default());
        return read_all(&mut client);
    };
    let (address, doing) = role.split_once(' ').expect("an address and a word");
    let channel = VerbsChannel::connect(address, PATIENCE, 64, over_the_cable());
    let mut client = TestClient::new(channel.expect("connected"), FILE_BYTES);
    loop {
        match doing {
            "reads" => read_all(&mut client),
            _ => write_all(&mut client),
        }
    }
}

/// Reads the node's file and compares.
fn read_all(client: &mut TestClient<VerbsChannel>) {
    let mut turn = thread::yield_now;
    let handle = client.open(FILE, READ, &mut turn).expect("connected").value;
    let into = Segments::one(client.segment(0, FILE_BYTES));
    let read = Command::Read { handle, range: range(0, FILE_BYTES), into };
    assert_eq!(client.call(read, &mut turn).expect("connected").value, FILE_BYTES as u64);
    assert!(client.bytes(0, FILE_BYTES) == pattern(FILE_BYTES));
    client.call(Command::Close { handle }, &mut turn).expect("connected");
}

/// Writes a file of the same size.
fn write_all(client: &mut TestClient<VerbsChannel>) {
    let mut turn = thread::yield_now;
    let handle = client.open("s/new", OpenMode::Write(0), &mut turn).expect("connected").value;
    let from = Segments::one(client.segment(0, FILE_BYTES));
    let write = Command::Write { handle, range: range(0, FILE_BYTES), from };
    client.call(write, &mut turn).expect("connected").status.expect("written");
}

/// Asks for a read of the whole file without waiting for it.
fn begin_read(client: &mut TestClient<VerbsChannel>) {
    let mut turn = thread::yield_now;
    let handle = client.open(FILE, READ, &mut turn).expect("connected").value;
    let into = Segments::one(client.segment(0, FILE_BYTES));
    client.send(Command::Read { handle, range: range(0, FILE_BYTES), into }, None);
    client.channel.kick().expect("connected");
}

/// Asks for a write of the whole file without waiting for it.
fn begin_write(client: &mut TestClient<VerbsChannel>) {
    let mut turn = thread::yield_now;
    let handle = client.open("s/new", OpenMode::Write(0), &mut turn).expect("connected").value;
    let from = Segments::one(client.segment(0, FILE_BYTES));
    client.send(Command::Write { handle, range: range(0, FILE_BYTES), from }, None);
    client.channel.kick().expect("connected");
}

fn mid_transfer(node: &Node) {
    node.until("a transfer", |node| node.transfers_in_flight() > 2);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_client_that_is_killed_in_the_middle_leaves_nothing() {
    let node = Node::new(BUFFERS);
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    for (ended, doing) in ["reads", "writes"].into_iter().enumerate() {
        let mut client = start_client(&node, doing);
        // In the middle of its second transfer or later.
        let first = 2 * FILE_BYTES / common::PIECE_BYTES;
        node.ask(|node| node.completed = (0, 0));
        node.until("transfers", move |node| node.completed.0 > first);
        client.kill().expect("it runs");
        client.wait().expect("it was killed");
        node.closes(ended + 1);
        bystander.goes_on();
        before.come_back();
    }
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_cable_that_is_pulled_for_a_moment_costs_time_only() {
    let (node, cable) = (Node::with(BUFFERS, VerbsOptions::default(), |_| ()), Cable::new());
    let bystander = Bystander::new(&node);
    let patient = VerbsOptions { acknowledge_timeout: 18, ..over_the_cable() };
    let mut client = node.client(FILE_BYTES, patient);
    for _ in 0..3 {
        begin_read(&mut client);
        mid_transfer(&node);
        cable.pull();
        bystander.goes_on();
        cable.plug();
        let replies = client.finish(&mut thread::yield_now).expect("connected");
        assert!(replies.values().all(|reply| reply.value == FILE_BYTES as u64));
        assert!(client.bytes(0, FILE_BYTES) == pattern(FILE_BYTES));
        client.fill(0, &vec![0xEE; FILE_BYTES]);
    }
    assert_eq!(node.ask(|node| node.closed.len()), 0, "no session ended");
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_client_that_vanishes_is_given_up_in_bounded_time() {
    let (node, cable) = (Node::new(BUFFERS), Cable::new());
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    type Begin = fn(&mut TestClient<VerbsChannel>);
    let doing: [(Begin, bool); 3] = [(begin_read, true), (begin_write, true), (|_| (), false)];
    for (ended, (begin, transfers)) in doing.into_iter().enumerate() {
        let mut client = node.client(FILE_BYTES, over_the_cable());
        begin(&mut client);
        if transfers {
            mid_transfer(&node);
        }
        cable.lose_all();
        // Without a transfer it is the probe that finds out, half a minute later.
        node.closes(ended + 1);
        let reason = node.last_reason();
        assert!(reason.contains("does not answer"), "{reason}");
        bystander.goes_on();
        // It may not hear of it: its own deadline has it tear down its connection.
        drop(client);
        cable.disturb(&["loss", "0%"]);
        before.come_back();
    }
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn completions_that_come_late_find_what_they_need() {
    let (node, cable) = (Node::with(BUFFERS, VerbsOptions::default(), |_| ()), Cable::new());
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    let patient = VerbsOptions { acknowledge_timeout: 18, ..over_the_cable() };
    cable.disturb(&["delay", "200ms"]);
    for leaves in [true, false] {
        let mut client = node.client(FILE_BYTES, patient);
        begin_read(&mut client);
        mid_transfer(&node);
        if leaves {
            drop(client);
            node.closes(1);
        } else {
            node.ask(|node| {
                let session = node.opened.last().expect("it connected").0;
                let reason = Kind::Busy.error("the node has had enough");
                node.transport.close(session, reason);
            });
            node.closes(2);
            // What was under way may have arrived, reply and all: then it is right.
            match client.finish(&mut thread::yield_now) {
                Ok(_) => assert!(client.bytes(0, FILE_BYTES) == pattern(FILE_BYTES)),
                Err(over) => assert_eq!(over.kind(), Kind::Disconnected, "{over}"),
            }
        }
        bystander.goes_on();
    }
    drop(cable);
    before.come_back();
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_client_with_a_smaller_mtu_is_served_in_smaller_packets() {
    let (node, cable) = (Node::new(BUFFERS), Cable::new());
    // Its session is the first, and has the node make what they share.
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    cable.set_mtu("v1", 1500);
    let mut client = node.client(FILE_BYTES, over_the_cable());
    read_all(&mut client);
    drop(client);
    node.closes(1);
    drop(cable);
    bystander.goes_on();
    before.come_back();
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn addresses_that_no_device_has_are_told_apart() {
    let before = Resources::now();
    let patience = Duration::from_secs(2);
    let here = addresses()[0];
    let nowhere = |to: &str, source: Option<&str>| {
        let to = SocketAddr::new(to.parse().expect("an address"), 7443);
        let source = source.map(|source| source.parse().expect("an address"));
        let options = VerbsOptions { source, ..VerbsOptions::default() };
        let error = VerbsChannel::connect(to, patience, 8, options).map(drop);
        error.expect_err("nobody is there")
    };
    let here = here.to_string();
    let cases = [
        (nowhere("10.77.0.77", None), "reach"),
        (nowhere("192.0.2.1", None), "rout"),
        (nowhere(&here, Some("192.0.2.1")), "no RDMA device has this address"),
        (nowhere(&here, None), "nobody listens"),
    ];
    for (error, says) in cases {
        assert!(error.to_string().contains(says), "{says:?} is not in {error}");
    }
    // A node cannot listen where no device is.
    let fabrics = Fabrics::new(0, ShmOptions::default(), Some(VerbsOptions::default()));
    let rdma = vec!["192.0.2.1:0".parse().expect("an address")];
    let options = ListenerOptions { rdma, ..ListenerOptions::default() };
    let error = Listener::start(options, vec![fabrics.expect("RDMA").inbox()]).map(drop);
    let error = error.expect_err("no such address");
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    before.come_back();
}

/// Of a machine whose devices were taken away (`rdma link delete`): a process of its own, since one that has
/// a device open keeps it there.
#[test]
#[ignore = "needs a machine without RDMA devices: the lab's, at the end"]
fn without_a_device_errors_say_so() {
    let devices = RdmaDevice::all().expect("rdma-core is there");
    assert!(devices.is_empty(), "{devices:?}");
    let options = VerbsOptions::default();
    let error = VerbsChannel::connect("10.77.0.1:7443", PATIENCE, 8, options).map(drop);
    let error = error.expect_err("no device");
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    assert!(error.to_string().contains("no RDMA device"), "{error}");
    let rdma = vec!["10.77.0.1:0".parse().expect("an address")];
    let listening = ListenerOptions { rdma, ..ListenerOptions::default() };
    let fabrics = Fabrics::new(0, ShmOptions::default(), None).expect("other fabrics");
    let error = Listener::start(listening, vec![fabrics.inbox()]).map(drop);
    let error = error.expect_err("no device");
    assert!(matches!(error.kind(), Kind::Invalid | Kind::Unsupported), "{error}");
}
