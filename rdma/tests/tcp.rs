//! The two ends of the TCP fabric against each other, over loopback.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use common::{PIECE_BYTES, RUDE, TestClient, TestNode, pattern, range, until};
use extent::wire::{
    Command, LONG_REQUEST_BYTES, OpenMode, REPLY_BYTES, Request, STREAM_MAGIC, Segment, Segments,
};
use extent::{Generation, Kind, checksum};
use forebay_rdma::{Channel, Fabric, SessionId, TcpChannel, TcpTransport, Transport};
use proptest::prelude::*;

const PATIENCE: Duration = Duration::from_secs(60);
const READ: OpenMode = OpenMode::Read(Generation(0));

struct Network {
    listener: TcpListener,
    node: TestNode<TcpTransport>,
}

impl Network {
    fn new(buffers: usize) -> Self {
        let transport = TcpTransport::new(SessionId::base(Fabric::Tcp, 3)).expect("an epoll");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self { listener, node: TestNode::new(transport, buffers) }
    }

    fn accept(&mut self) {
        let (stream, peer) = self.listener.accept().expect("a client");
        self.node.transport.adopt(stream, peer.to_string()).expect("room");
    }

    fn client(&mut self, bytes: usize) -> TestClient<TcpChannel> {
        let address = self.listener.local_addr().expect("bound");
        let connecting = thread::spawn(move || TcpChannel::connect(address, PATIENCE));
        self.accept();
        let sessions = self.node.opened.len();
        until(&mut self.node, |node| node.opened.len() > sessions);
        until(&mut self.node, |_| connecting.is_finished());
        TestClient::new(connecting.join().expect("no panic").expect("connected"), bytes)
    }

    /// A client that speaks for itself.
    fn raw(&mut self, first: &[u8]) -> TcpStream {
        let mut stream =
            TcpStream::connect(self.listener.local_addr().expect("bound")).expect("listening");
        stream.write_all(first).expect("room");
        self.accept();
        stream
    }

    /// What the node says until it closes the connection.
    fn rest_of(&mut self, mut stream: TcpStream) -> Vec<u8> {
        stream.set_nonblocking(true).expect("a socket");
        let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
        let mut over = false;
        until(&mut self.node, |_| {
            match stream.read(&mut buffer) {
                Ok(0) => over = true,
                Ok(count) => heard.extend_from_slice(&buffer[..count]),
                Err(error) => over = error.kind() != std::io::ErrorKind::WouldBlock,
            }
            over
        });
        heard
    }
}

fn capsule(tag: u32, command: Command) -> Vec<u8> {
    let mut out = [0; LONG_REQUEST_BYTES];
    let length = Request { tag, payload_crc: None, command }.encode(&mut out);
    out[..length].to_vec()
}

/// Cuts `0..length` at the given places into up to four segments, placed with gaps from `base`.
fn scattered(
    client: &TestClient<TcpChannel>,
    base: usize,
    length: usize,
    cuts: &[usize],
) -> Vec<Segment> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (length + 1)).collect();
    cuts.extend([0, length]);
    cuts.sort_unstable();
    let gap = |index: usize| 7 * index;
    cuts.windows(2)
        .enumerate()
        .map(|(index, ends)| client.segment(base + ends[0] + gap(index), ends[1] - ends[0]))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_ranges_are_read_into_any_segments(
        requests in proptest::collection::vec(
            (0usize..600_000, 0usize..300_000, proptest::collection::vec(any::<usize>(), 0..4)),
            1..12,
        ),
        buffers in 1usize..6,
    ) {
        const EACH: usize = 300_100;
        let mut network = Network::new(buffers);
        let file = pattern(500_000);
        network.node.add_file("s/file", file.clone());
        let mut client = network.client(EACH * 12);
        let node = &mut network.node;
        let mut turn = || { node.step(); };
        let handle = client.open("s/file", READ, &mut turn).expect("connected").value;
        let untouched = vec![0xEE; EACH * 12];
        client.fill(0, &untouched);
        let mut expected = untouched;
        let mut sent = Vec::new();
        for (index, (offset, length, cuts)) in requests.iter().enumerate() {
            let cuts = &cuts[..cuts.len().min(3)];
            let list = scattered(&client, index * EACH, *length, cuts);
            let into = Segments::from_slice(&list).expect("at most four");
            let command = Command::Read { handle, range: range(*offset, *length), into };
            let end = (offset + length).min(file.len());
            let bytes = &file[(*offset).min(end)..end];
            let mut rest = bytes;
            for segment in &list {
                let (part, behind) = rest.split_at(rest.len().min(segment.length as usize));
                let at = usize::try_from(segment.address).expect("small");
                expected[at..at + part.len()].copy_from_slice(part);
                rest = behind;
            }
            sent.push((client.send(command, Some(0)), bytes));
        }
        let replies = client.finish(&mut turn).expect("connected");
        for (tag, bytes) in sent {
            prop_assert_eq!(replies[&tag].status, Ok(()));
            prop_assert_eq!(replies[&tag].value, bytes.len() as u64);
            prop_assert_eq!(replies[&tag].payload_crc, checksum::crc32c(bytes));
        }
        prop_assert!(client.bytes(0, EACH * 12) == expected, "bytes land where they belong only");
        until(node, |node| node.buffers_out() == 0);
    }

    #[test]
    fn any_ranges_are_written_from_any_segments(
        requests in proptest::collection::vec(
            (0usize..400_000, 0usize..300_000, proptest::collection::vec(any::<usize>(), 0..4)),
            1..12,
        ),
        buffers in 1usize..6,
    ) {
        const EACH: usize = 300_100;
        let mut network = Network::new(buffers);
        let mut client = network.client(EACH * 12);
        let node = &mut network.node;
        let mut turn = || { node.step(); };
        let open = OpenMode::Write(0);
        let handle = client.open("s/new", open, &mut turn).expect("connected").value;
        let memory = pattern(EACH * 12);
        client.fill(0, &memory);
        let mut expected = Vec::new();
        for (index, (offset, length, cuts)) in requests.iter().enumerate() {
            let cuts = &cuts[..cuts.len().min(3)];
            let list = scattered(&client, index * EACH, *length, cuts);
            let bytes: Vec<u8> = list
                .iter()
                .flat_map(|s| {
                    let at = usize::try_from(s.address).expect("small");
                    memory[at..at + s.length as usize].to_vec()
                })
                .collect();
            expected.resize(expected.len().max(offset + length), 0);
            expected[*offset..offset + length].copy_from_slice(&bytes);
            let from = Segments::from_slice(&list).expect("at most four");
            let command = Command::Write { handle, range: range(*offset, *length), from };
            client.send(command, Some(checksum::crc32c(&bytes)));
        }
        for reply in client.finish(&mut turn).expect("connected").values() {
            prop_assert_eq!(reply.status, Ok(()));
        }
        let length = expected.len();
        client.call(Command::Commit { handle, length: length as u64 }, &mut turn).expect("there");
        let into = Segments::one(client.segment(0, length));
        let read = Command::Read { handle, range: range(0, length), into };
        let reply = client.call(read, &mut turn).expect("connected");
        prop_assert_eq!(reply.value, length as u64);
        prop_assert!(client.bytes(0, length) == expected, "what was written is read");
        until(node, |node| node.buffers_out() == 0);
    }
}

#[test]
fn a_thousand_requests_are_answered_from_few_buffers() {
    let mut network = Network::new(2);
    let file = pattern(1 << 20);
    network.node.add_file("s/file", file.clone());
    let mut client = network.client(1000 * 4096);
    let node = &mut network.node;
    let mut turn = || {
        node.step();
    };
    let handle = client.open("s/file", READ, &mut turn).expect("connected").value;
    let offset = |index: usize| index * 7919 % ((1 << 20) - 4096);
    for index in 0..1000 {
        let into = Segments::one(client.segment(index * 4096, 4096));
        client.send(Command::Read { handle, range: range(offset(index), 4096), into }, None);
    }
    let replies = client.finish(&mut turn).expect("connected");
    assert!(replies.len() == 1000 && replies.values().all(|reply| reply.value == 4096));
    for index in 0..1000 {
        let expected = &file[offset(index)..offset(index) + 4096];
        assert!(client.bytes(index * 4096, 4096) == expected, "request {index}");
    }
}

#[test]
fn no_more_than_1024_requests_are_queued() {
    let mut network = Network::new(1);
    let mut client = network.client(1);
    for _ in 0..1024 {
        client.send(Command::Ping, None);
    }
    let ping = Request { tag: 9999, payload_crc: None, command: Command::Ping };
    assert_eq!(client.channel.send(&ping).expect_err("full").kind(), Kind::Busy);
    let node = &mut network.node;
    let replies = client.finish(&mut || {
        node.step();
    });
    assert_eq!(replies.expect("connected").len(), 1024);
    client.channel.send(&ping).expect("room again");
    assert_eq!(client.channel.send(&ping).expect_err("in flight").kind(), Kind::Invalid);
}

#[test]
fn many_clients_are_served_at_once() {
    let mut network = Network::new(8);
    let file = pattern(300_000);
    network.node.add_file("s/file", file.clone());
    let mut clients: Vec<_> = (0..64).map(|_| network.client(PIECE_BYTES)).collect();
    let node = &mut network.node;
    assert_eq!(node.transport.sessions(), 64);
    let mut turn = || {
        node.step();
    };
    for (index, client) in clients.iter_mut().enumerate() {
        let handle = client.open("s/file", READ, &mut turn).expect("connected").value;
        let into = Segments::one(client.segment(0, PIECE_BYTES));
        client.send(Command::Read { handle, range: range(index * 1000, PIECE_BYTES), into }, None);
        client.channel.kick().expect("connected");
    }
    for (index, client) in clients.iter_mut().enumerate() {
        client.finish(&mut turn).expect("connected");
        let expected = &file[index * 1000..][..PIECE_BYTES];
        assert!(client.bytes(0, PIECE_BYTES) == expected, "client {index}");
    }
    clients.truncate(10);
    until(node, |node| node.closed.len() == 54);
    assert_eq!(node.transport.sessions(), 10);
    let mut numbers: Vec<_> = node.opened.iter().map(|(session, _)| *session).collect();
    assert!(numbers.iter().all(|session| session.fabric() == Fabric::Tcp));
    numbers.dedup();
    assert_eq!(numbers.len(), 64);
}

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

#[test]
fn a_closed_session_answers_nothing_and_completes_everything() {
    let mut network = Network::new(4);
    let mut client = network.client(64);
    let node = &mut network.node;
    let session = node.opened[0].0;
    node.transport.close(session, Kind::Denied.error("no reason"));
    until(node, |node| node.closed.len() == 1);
    assert_eq!(node.closed[0].1.kind(), Kind::Denied);
    let error = client.call(Command::Ping, &mut || ()).expect_err("closed");
    assert_eq!(error.kind(), Kind::Disconnected);
    let transfer = forebay_rdma::Transfer {
        token: forebay_rdma::Token(5),
        tag: 1,
        segments: Segments::NONE,
        at: 0,
    };
    let buffer = || node.pool.take(1).expect("free");
    let (from, into) = (buffer(), buffer());
    node.transport.post_write(session, transfer, dma::Source::Buffer(from, 0..5));
    node.transport.post_read(session, transfer, dma::Target::Buffer(into, 0..5));
    node.transport.discard(session);
    node.transport.kick();
    assert!(!node.transport.arm(), "there are completions to fetch");
    let mut events = Vec::new();
    node.transport.poll(&mut events);
    let failed = |event: &forebay_rdma::Event| match event {
        forebay_rdma::Event::Written { result, .. } | forebay_rdma::Event::Read { result, .. } => {
            result.as_ref().is_err_and(|error| error.kind() == Kind::Disconnected)
        }
        _ => false,
    };
    assert!(events.len() == 2 && events.iter().all(failed), "{events:?}");
}
