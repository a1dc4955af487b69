//! The TCP fabric against peers that die, babble, stall or ask for nonsense.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

use common::network::{Network, PATIENCE, READ, capsule};
use common::{RUDE, TestClient, pattern, range, until};
use extent::Kind;
use extent::wire::{Command, OpenMode, REPLY_BYTES, STREAM_MAGIC, Segment, Segments};
use forebay_rdma::{Channel, TcpChannel, Transport};

#[test]
fn a_client_killed_while_it_reads_gives_everything_back() {
    let mut network = Network::new(64);
    network.node.add_file("s/file", pattern(16 << 20));
    let mut client = network.client(16 << 20);
    let node = &mut network.node;
    let handle = client.open("s/file", READ, &mut || {
        node.step();
    });
    let handle = handle.expect("connected").value;
    for _ in 0..8 {
        let into = Segments::one(client.segment(0, 16 << 20));
        client.send(Command::Read { handle, range: range(0, 16 << 20), into }, None);
    }
    client.channel.kick().expect("connected");
    // Until the sockets are full and all buffers wait in the queue.
    until(node, |node| node.buffers_out() == 64 && node.requests == 9);
    drop(client);
    until(node, |node| !node.closed.is_empty());
    assert_eq!(node.closed.len(), 1);
    assert_eq!(node.closed[0].1.kind(), Kind::Disconnected);
    assert!(node.completed.1 > 0, "some transfers could not end well");
    assert_eq!((node.transfers_in_flight(), node.buffers_out()), (0, 0));
    assert_eq!(node.transport.sessions(), 0);
    for _ in 0..100 {
        node.step();
    }
    assert_eq!(node.closed.len(), 1);
}

#[test]
fn a_client_killed_while_it_writes_gives_everything_back() {
    let mut network = Network::new(64);
    let segments = Segments::one(Segment { length: 1 << 20, ..Segment::default() });
    let open = network.client(64);
    let mut raw = network.raw(&STREAM_MAGIC);
    let node = &mut network.node;
    until(node, |node| node.opened.len() == 2);
    let name = Segments::one(Segment { length: 3, ..Segment::default() });
    let file = extent::FileId(0);
    let open_new = extent::wire::Open { file, mode: OpenMode::Write(0), name };
    raw.write_all(&capsule(1, Command::Open(open_new))).expect("room");
    raw.write_all(b"s/n").expect("room");
    until(node, |node| node.completed.0 == 1);
    let range = range(0, 1 << 20);
    raw.write_all(&capsule(2, Command::Write { handle: 2, range, from: segments })).expect("room");
    raw.write_all(&pattern(200_000)).expect("room");
    until(node, |node| node.completed.0 == 4 && node.buffers_out() == 13);
    raw.shutdown(Shutdown::Both).expect("connected");
    until(node, |node| !node.closed.is_empty());
    assert!(node.closed[0].1.to_string().contains("in the middle"), "{}", node.closed[0].1);
    assert_eq!((node.completed, node.buffers_out()), ((4, 13), 0));
    drop(open);
}

#[test]
fn garbage_on_the_port_gets_no_byte_back() {
    let mut network = Network::new(1);
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"FOREBAY2", b"F0", &[0; 300]] {
        let stream = network.raw(first);
        assert_eq!(network.rest_of(stream), b"");
    }
    assert_eq!(network.node.transport.sessions(), 0);
    assert!(network.node.opened.is_empty() && network.node.closed.is_empty());
}

#[test]
fn a_damaged_capsule_ends_the_session_with_a_reason() {
    let mut network = Network::new(1);
    let mut bytes = STREAM_MAGIC.to_vec();
    bytes.extend(capsule(1, Command::Ping));
    bytes.extend(capsule(2, Command::Ping));
    let flipped = bytes.len() - 20;
    bytes[flipped] ^= 4;
    let stream = network.raw(&bytes);
    let heard = network.rest_of(stream);
    assert!(heard.starts_with(&STREAM_MAGIC));
    let node = &network.node;
    assert_eq!((node.requests, node.closed.len()), (1, 1));
    assert_eq!(node.closed[0].1.kind(), Kind::Corrupt);
    assert!(node.closed[0].1.to_string().contains("checksum"));
}

#[test]
fn half_a_capsule_and_silence_block_nobody() {
    let mut network = Network::new(1);
    let mut whole = STREAM_MAGIC.to_vec();
    whole.extend(capsule(7, Command::Ping));
    let (first, second) = whole.split_at(30);
    let mut silent = network.raw(first);
    let _unborn = network.raw(&STREAM_MAGIC[..5]);
    let mut client = network.client(1);
    let node = &mut network.node;
    for _ in 0..10 {
        let mut turn = || {
            node.step();
        };
        assert!(client.call(Command::Ping, &mut turn).expect("connected").status.is_ok());
    }
    assert_eq!(node.requests, 10);
    assert!(node.transport.arm(), "nothing is left to do");
    silent.write_all(second).expect("room");
    until(node, |node| node.requests == 11);
    let mut answer = [0; 8 + REPLY_BYTES];
    silent.read_exact(&mut answer).expect("an answer");
    assert!(answer.starts_with(&STREAM_MAGIC));
}

#[test]
fn a_payload_that_nobody_wants_is_passed_over() {
    let mut network = Network::new(2);
    let mut client = network.client(1 << 20);
    client.fill(0, &pattern(1 << 20));
    let node = &mut network.node;
    let mut turn = || {
        node.step();
    };
    for length in [1, 63, 64, 4096, 100_000, 1 << 20] {
        let from = Segments::one(client.segment(0, length));
        let write = Command::Write { handle: 77, range: range(0, length), from };
        let refused = client.send(write, None);
        let from = Segments::one(client.segment(0, length));
        let write = Command::Write { handle: RUDE, range: range(0, length), from };
        client.send(write, None);
        let ping = client.send(Command::Ping, None);
        let replies = client.finish(&mut turn).expect("connected");
        assert_eq!(replies[&refused].status, Err(Kind::NotFound));
        assert_eq!(replies[&ping].status, Ok(()));
    }
    assert_eq!(client.open("no name", READ, &mut turn).expect("there").status, Err(Kind::Invalid));
    assert_eq!(client.open("s/none", READ, &mut turn).expect("there").status, Err(Kind::NotFound));
}

#[test]
fn a_stream_stays_readable_behind_a_senseless_request() {
    let mut network = Network::new(2);
    let segments = Segments::one(Segment { length: 500, ..Segment::default() });
    // Says 400 bytes and brings 500.
    let wrong = Command::Write { handle: 1, range: range(0, 400), from: segments };
    let mut bytes = STREAM_MAGIC.to_vec();
    bytes.extend(capsule(1, wrong));
    bytes.extend(pattern(500));
    bytes.extend(capsule(2, Command::Close { handle: 99 }));
    let from = Segments::one(Segment { length: 3, ..Segment::default() });
    let name = extent::wire::Open { file: extent::FileId(0), mode: OpenMode::Write(0), name: from };
    bytes.extend(capsule(3, Command::Open(name)));
    bytes.extend(b"s/n");
    bytes.extend(capsule(4, Command::Ping));
    let mut stream = network.raw(&bytes);
    until(&mut network.node, |node| node.requests == 4);
    assert_eq!(network.node.completed, (1, 0), "the name was not given up for those before");
    stream.shutdown(Shutdown::Write).expect("connected");
    let mut heard = Vec::new();
    until(&mut network.node, |node| !node.closed.is_empty());
    stream.read_to_end(&mut heard).expect("closed in order");
    let tags: Vec<u8> = replies_in(&heard[8..]).iter().map(|header| header[4]).collect();
    assert_eq!(tags.len(), 4);
    assert!([1, 2, 3, 4].iter().all(|tag| tags.contains(tag)));
}

/// The headers of the replies in a stream without DATA frames.
fn replies_in(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut headers = Vec::new();
    while let Some((header, rest)) = stream.split_at_checked(REPLY_BYTES) {
        headers.push(header);
        stream = &rest[usize::from(u16::from_le_bytes([header[22], header[23]]))..];
    }
    headers
}

#[test]
fn a_client_that_does_not_read_is_not_heard_either() {
    let mut network = Network::new(4);
    let mut flood = network.raw(&STREAM_MAGIC);
    flood.set_nonblocking(true).expect("a socket");
    let pings: Vec<u8> = (0..512).flat_map(|tag| capsule(tag, Command::Ping)).collect();
    let node = &mut network.node;
    let (mut sent, mut refused) = (0usize, 0);
    // The client's socket stays full once the node has stopped reading.
    until(node, |_| {
        match flood.write(&pings[sent % pings.len()..]) {
            Ok(count) => (sent, refused) = (sent + count, 0),
            Err(_) => refused += 1,
        }
        refused > 10_000
    });
    let requests = node.requests;
    for _ in 0..1000 {
        node.step();
    }
    assert_eq!(node.requests, requests, "no request is taken while replies do not go");
    let mut client = network.client(1);
    let node = &mut network.node;
    let mut turn = || {
        node.step();
    };
    assert!(client.call(Command::Ping, &mut turn).expect("connected").status.is_ok());
    // Once it reads, it is heard again.
    let mut buffer = vec![0; 1 << 20];
    until(node, |node| {
        let _ = flood.read(&mut buffer);
        node.requests > requests + 1
    });
}

#[test]
fn a_node_that_talks_nonsense_is_left() {
    let speak = |words: Vec<u8>| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let node = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.read_exact(&mut [0; 8]).expect("the magic");
            stream.write_all(&words).expect("room");
            stream
        });
        let channel = TcpChannel::connect(address, PATIENCE);
        (channel, node.join().expect("no panic"))
    };
    assert_eq!(speak(b"SSH-2.0-".to_vec()).0.expect_err("not a node").kind(), Kind::Corrupt);
    let data = |tag, at, length| {
        let mut header = [0; REPLY_BYTES];
        extent::wire::DataHeader { tag, at, length }.encode(&mut header);
        header.to_vec()
    };
    let reply = |tag, value| {
        let mut out = [0; REPLY_BYTES + 224];
        let reply = extent::wire::Reply { value, ..extent::wire::Reply::success(tag) };
        let length = reply.encode(&mut out);
        out[..length].to_vec()
    };
    let twice = [data(1, 0, 100), vec![0; 100], data(1, 0, 1)].concat();
    for nonsense in [
        data(2, 0, 10),
        data(1, 91, 10),
        data(1, u64::MAX, 10),
        twice,
        reply(3, 0),
        reply(1, 100),
        vec![0; 32],
    ] {
        let (channel, _stream) = speak([STREAM_MAGIC.to_vec(), nonsense].concat());
        let mut client = TestClient::new(channel.expect("it began well"), 4096);
        let into = Segments::one(client.segment(0, 100));
        client.send(Command::Read { handle: 1, range: range(0, 100), into }, None);
        let error = client.finish(&mut || ()).expect_err("nonsense");
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        let again = client.channel.poll(&mut Vec::new()).expect_err("for good");
        assert_eq!(again.kind(), Kind::Corrupt);
        assert_eq!(client.channel.kick().expect_err("for good").kind(), Kind::Disconnected);
    }
}
