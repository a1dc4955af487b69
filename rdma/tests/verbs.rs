//! The two ends of the RDMA fabric against each other, over real verbs. They need RDMA devices, whose
//! addresses are in `FOREBAY_TEST_RDMA`, separated by commas: `ci/lab/run --rxe` has two.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use common::crowd::{many_clients, many_reads};
use common::lab::addresses;
use common::network::{PATIENCE, READ};
use common::{PIECE_BYTES, TestClient, TestNode, pattern, range, until};
use dma::{DmaBuf, Region};
use extent::wire::{Command, OpenMode, Segment, Segments};
use extent::{Kind, checksum};
use forebay_rdma::{
    Channel, Fabric, Fabrics, Listener, ListenerOptions, RdmaDevice, ShmOptions, Transport,
    VerbsChannel, VerbsOptions,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

struct Network {
    node: TestNode<Fabrics>,
    address: SocketAddr,
    _listener: Listener,
}

impl Network {
    fn new(buffers: usize) -> Self {
        let fabrics = Fabrics::new(0, ShmOptions::default(), Some(VerbsOptions::default()))
            .expect("an RDMA device");
        let options = ListenerOptions {
            rdma: vec![SocketAddr::new(addresses()[0], 0)],
            ..ListenerOptions::default()
        };
        let listener = Listener::start(options, vec![fabrics.inbox()]).expect("a port");
        let address = listener.rdma_addrs()[0];
        let mut node = TestNode::new(fabrics, buffers);
        let region = Arc::clone(node.pool.region());
        node.transport.register(&region).expect("memory that may be locked");
        Self { node, address, _listener: listener }
    }

    fn channel(&mut self) -> VerbsChannel {
        let address = self.address;
        let connecting = thread::spawn(move || {
            VerbsChannel::connect(address, PATIENCE, 64, VerbsOptions::default())
        });
        until(&mut self.node, |_| connecting.is_finished());
        connecting.join().expect("no panic").expect("connected")
    }

    fn client(&mut self, bytes: usize) -> TestClient<VerbsChannel> {
        TestClient::new(self.channel(), bytes)
    }
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn devices_are_listed_with_their_addresses() {
    let devices = RdmaDevice::all().expect("rdma-core");
    for address in addresses() {
        let IpAddr::V4(address) = address else { panic!("the lab's addresses are of IPv4") };
        let mapped = address.to_ipv6_mapped();
        let ports = || devices.iter().flat_map(|device| &device.ports);
        let found = ports().find(|port| port.gids.iter().any(|gid| gid.address == mapped));
        let port = found.expect("a port with this address");
        assert!(port.active && port.ethernet, "{port:?}");
        assert!(port.gids.iter().any(|gid| gid.kind == "RoCE v2" && !gid.interface.is_empty()));
    }
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn any_ranges_go_between_any_segments() {
    const EACH: usize = 300_100;
    let mut random = SmallRng::seed_from_u64(3);
    let mut random = |below: usize| random.random_range(0..below);
    for buffers in [1, 5] {
        let mut network = Network::new(buffers);
        let mut client = network.client(EACH * 12);
        let node = &mut network.node;
        let mut turn = || {
            node.step();
        };
        let handle = client.open("s/new", OpenMode::Write(0), &mut turn).expect("connected").value;
        let memory = pattern(EACH * 12);
        client.fill(0, &memory);
        let mut file = Vec::new();
        for index in 0..12 {
            let (offset, length) = (random(400_000), random(300_000));
            let cuts = [random(1 << 20), random(1 << 20), random(1 << 20)];
            let list = client.scattered(index * EACH, length, &cuts[..index % 4]);
            let place = |segment: &Segment| usize::try_from(segment.address).expect("small");
            let part = |s: &Segment| memory[place(s)..place(s) + s.length as usize].to_vec();
            let bytes: Vec<u8> = list.iter().flat_map(part).collect();
            file.resize(file.len().max(offset + length), 0);
            file[offset..offset + length].copy_from_slice(&bytes);
            let from = Segments::from_slice(&list).expect("at most four");
            let command = Command::Write { handle, range: range(offset, length), from };
            let tag = client.send(command, Some(checksum::crc32c(&bytes)));
            let reply =
                client.finish(&mut turn).expect("connected").remove(&tag).expect("its reply");
            assert_eq!(reply.status, Ok(()));
        }
        let length = file.len() as u64;
        client.call(Command::Commit { handle, length }, &mut turn).expect("there");
        let untouched = vec![0xEE; EACH * 12];
        client.fill(0, &untouched);
        let mut expected = untouched;
        for index in 0..12 {
            let (offset, length) = (random(file.len() + 1000), random(300_000));
            let list = client.scattered(index * EACH, length, &[random(1 << 20), random(1 << 20)]);
            let begin = offset.min(file.len());
            let mut rest = &file[begin..(offset + length).min(file.len()).max(begin)];
            for segment in &list {
                let (part, behind) = rest.split_at(rest.len().min(segment.length as usize));
                let at = usize::try_from(segment.address).expect("small");
                expected[at..at + part.len()].copy_from_slice(part);
                rest = behind;
            }
            let into = Segments::from_slice(&list).expect("at most four");
            client.send(Command::Read { handle, range: range(offset, length), into }, None);
        }
        let replies = client.finish(&mut turn).expect("connected");
        assert!(replies.values().all(|reply| reply.status == Ok(())));
        assert!(client.bytes(0, EACH * 12) == expected, "bytes land where they belong only");
        until(node, |node| node.buffers_out() == 0);
    }
}

/// Neither soft-RoCE, which takes none, nor a device that does: this is none.
#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn memory_that_is_no_devices_is_refused_with_the_reason() {
    let mut network = Network::new(4);
    let (memory, file) = Region::shareable(1 << 16).expect("memory");
    let memory = DmaBuf::new(file, 0, 0xFB00_0000_0000_0000, memory.length());
    let mut client = network.client(PIECE_BYTES);
    let error = client.channel.register_device(&memory).expect_err("no exporter's");
    assert_eq!(error.kind(), Kind::Unsupported);
    let said = error.to_string();
    assert!(said.contains("registers no dma-buf (E") || said.contains("rdma-core 34"), "{said}");
    // The session goes on.
    let node = &mut network.node;
    let mut turn = || {
        node.step();
    };
    assert_eq!(client.call(Command::Ping, &mut turn).expect("connected").status, Ok(()));
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn many_requests_are_answered_from_few_buffers() {
    let mut network = Network::new(2);
    let client = network.client(600 * 4096);
    many_reads(&mut network.node, client, (600, 60));
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn many_clients_are_served_at_once_and_their_queue_pairs_go_with_them() {
    let mut network = Network::new(8);
    let clients = (0..40).map(|_| network.client(PIECE_BYTES)).collect();
    many_clients(&mut network.node, clients, Fabric::Verbs);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_client_that_leaves_in_the_middle_costs_nobody_else_anything() {
    const LARGE: usize = 8 << 20;
    let mut network = Network::new(16);
    let file = pattern(LARGE);
    network.node.add_file("s/file", file.clone());
    let mut staying = network.client(LARGE);
    let mut leaving = network.client(LARGE);
    let node = &mut network.node;
    let mut turn = || {
        node.step();
    };
    let handle = leaving.open("s/file", READ, &mut turn).expect("connected").value;
    let into = Segments::one(leaving.segment(0, LARGE));
    leaving.send(Command::Read { handle, range: range(0, LARGE), into }, None);
    leaving.channel.kick().expect("connected");
    until(node, |node| node.transfers_in_flight() > 0);
    drop(leaving);
    until(node, |node| node.closed.len() == 1 && node.buffers_out() == 0);
    let mut turn = || {
        node.step();
    };
    let handle = staying.open("s/file", READ, &mut turn).expect("connected").value;
    let into = Segments::one(staying.segment(0, LARGE));
    let read = Command::Read { handle, range: range(0, LARGE), into };
    assert_eq!(staying.call(read, &mut turn).expect("connected").value, LARGE as u64);
    assert!(staying.bytes(0, LARGE) == file);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn memory_that_the_client_took_back_is_not_written() {
    const LENGTH: usize = 1 << 20;
    let mut network = Network::new(64);
    network.node.add_file("s/file", pattern(LENGTH));
    let mut client = network.client(LENGTH);
    let node = &mut network.node;
    let mut turn = || {
        node.step();
    };
    let handle = client.open("s/file", READ, &mut turn).expect("connected").value;
    client.fill(0, &vec![0xEE; LENGTH]);
    let into = Segments::one(client.segment(0, LENGTH));
    client.send(Command::Read { handle, range: range(0, LENGTH), into }, None);
    // The request is on its way with a key that is gone when the node uses it.
    client.channel.kick().expect("connected");
    let region = Arc::clone(&client.region);
    client.channel.release(&region);
    until(node, |node| node.closed.len() == 1 && node.buffers_out() == 0);
    assert_eq!(node.closed[0].1.kind(), Kind::Disconnected);
    assert!(client.bytes(0, LENGTH).iter().all(|byte| *byte == 0xEE), "not a byte landed");
    let over = client.finish(&mut || ()).expect_err("the session is over");
    assert_eq!(over.kind(), Kind::Disconnected);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn memory_of_a_channel_that_is_gone_may_be_the_next_ones() {
    const LENGTH: usize = 1 << 20;
    let mut network = Network::new(64);
    let file = pattern(LENGTH);
    network.node.add_file("s/file", file.clone());
    let mut client = network.client(LENGTH);
    let mut turn = || {
        network.node.step();
    };
    let handle = client.open("s/file", READ, &mut turn).expect("connected").value;
    client.fill(0, &vec![0xEE; LENGTH]);
    let into = Segments::one(client.segment(0, LENGTH));
    client.send(Command::Read { handle, range: range(0, LENGTH), into }, None);
    client.channel.kick().expect("connected");
    let region = Arc::clone(&client.region);
    drop(client);
    // The node has not even looked at the request, and carries it out when the memory is there again.
    let mut next = network.client(LENGTH);
    next.channel.register(&region).expect("room");
    next.region = region;
    let node = &mut network.node;
    until(node, |node| node.closed.len() == 1 && node.buffers_out() == 0);
    assert!(next.bytes(0, LENGTH).iter().all(|byte| *byte == 0xEE), "not a byte landed");
    let mut turn = || {
        node.step();
    };
    let handle = next.open("s/file", READ, &mut turn).expect("connected").value;
    let into = Segments::one(next.segment(0, LENGTH));
    let read = Command::Read { handle, range: range(0, LENGTH), into };
    assert_eq!(next.call(read, &mut turn).expect("connected").value, LENGTH as u64);
    assert!(next.bytes(0, LENGTH) == file);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn whoever_is_turned_away_is_told_why() {
    let wrong = SocketAddr::new(addresses()[0], 1);
    let connect = |address: SocketAddr, timeout| {
        VerbsChannel::connect(address, timeout, 8, VerbsOptions::default()).map(drop)
    };
    let error = connect(wrong, PATIENCE).expect_err("nobody listens there");
    assert_eq!(error.kind(), Kind::Disconnected);
    // A node that takes one session.
    let fabrics = Fabrics::new(1, ShmOptions::default(), Some(VerbsOptions::default()));
    let mut fabrics = fabrics.expect("an RDMA device");
    let options = ListenerOptions {
        rdma: vec![SocketAddr::new(addresses()[0], 0)],
        max_sessions: 1,
        ..ListenerOptions::default()
    };
    let listener = Listener::start(options, vec![fabrics.inbox()]).expect("a port");
    let address = listener.rdma_addrs()[0];
    let (told, first) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        scope.spawn(|| {
            let first = VerbsChannel::connect(address, PATIENCE, 8, VerbsOptions::default());
            told.send(Box::new(first)).map_err(drop).expect("somebody listens");
        });
        let first = loop {
            fabrics.poll(&mut Vec::new());
            if let Ok(first) = first.try_recv() {
                break first.expect("connected");
            }
        };
        let error = connect(address, PATIENCE).expect_err("the node is full");
        assert_eq!(error.kind(), Kind::Busy, "{error}");
        drop(first);
    });
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn both_sides_sleep_and_are_woken() {
    let mut network = Network::new(4);
    let file = pattern(100_000);
    network.node.add_file("s/file", file.clone());
    let mut client = network.client(100_000);
    let (stop, slept) = (AtomicBool::new(false), AtomicBool::new(false));
    let node = &mut network.node;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                if !node.step() && node.transport.arm() {
                    let fd = node.transport.readiness().expect("something to sleep on");
                    let rung = poll(fd, 10);
                    node.transport.disarm(rung);
                    // A tick rings, too: what counts is what comes with it.
                    slept.fetch_or(rung && node.step(), Ordering::AcqRel);
                }
            }
        });
        for _ in 0..20 {
            let mut sleep = || ();
            client.channel.kick().expect("connected");
            let opened = client.open("s/file", READ, &mut sleep).expect("connected").value;
            let into = Segments::one(client.segment(0, 100_000));
            let read = Command::Read { handle: opened, range: range(0, 100_000), into };
            client.send(read, None);
            client.channel.kick().expect("connected");
            client.channel.wait(PATIENCE).expect("connected");
            client.finish(&mut sleep).expect("connected");
            assert!(client.bytes(0, 100_000) == file);
        }
        stop.store(true, Ordering::Release);
    });
    assert!(slept.load(Ordering::Acquire), "nothing ever woke the node");
}

/// Waits until a descriptor is readable; whether it is.
fn poll(fd: std::os::fd::BorrowedFd<'_>, timeout_s: i64) -> bool {
    let mut list = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let time = rustix::event::Timespec { tv_sec: timeout_s, tv_nsec: 0 };
    rustix::event::poll(&mut list, Some(&time)).is_ok_and(|count| count > 0)
}
