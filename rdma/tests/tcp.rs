//! The two ends of the TCP fabric against each other, over loopback.

mod common;

use common::crowd::{many_clients, many_reads};
use common::network::{Network, READ};
use common::{PIECE_BYTES, pattern, range, until};
use extent::wire::{Command, OpenMode, Request, Segments};
use extent::{Kind, checksum};
use forebay_rdma::{Channel, Fabric, Transport};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

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
            let list = client.scattered(index * EACH, *length, cuts);
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
            let list = client.scattered(index * EACH, *length, cuts);
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
    let client = network.client(1000 * 4096);
    many_reads(&mut network.node, client, (1000, 1000));
}

#[test]
fn transfers_larger_than_the_sockets_arrive_whole() {
    const LARGE: usize = 16 << 20;
    let mut network = Network::new(64);
    let mut client = network.client(2 * LARGE);
    let node = &mut network.node;
    // Turns of each side that the other does not answer at once fill the sockets.
    let mut turn = || {
        for _ in 0..3 {
            node.step();
        }
    };
    let draft = client.open("s/large", OpenMode::Write(0), &mut turn);
    let handle = draft.expect("connected").value;
    let bytes = pattern(LARGE);
    client.fill(0, &bytes);
    let from = Segments::one(client.segment(0, LARGE));
    let write = Command::Write { handle, range: range(0, LARGE), from };
    assert_eq!(client.call(write, &mut turn).expect("connected").value, LARGE as u64);
    let length = LARGE as u64;
    client.call(Command::Commit { handle, length }, &mut turn).expect("connected");
    // The lengths straddle what is sent in one turn.
    for length in [LARGE, 3 << 20, (2 << 20) + (5 << 16), 2 << 20] {
        client.fill(LARGE, &vec![0; length]);
        let into = Segments::one(client.segment(LARGE, length));
        let read = Command::Read { handle, range: range(0, length), into };
        assert_eq!(client.call(read, &mut turn).expect("connected").value, length as u64);
        assert!(client.bytes(LARGE, length) == bytes[..length], "{length} bytes");
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
    let clients = (0..64).map(|_| network.client(PIECE_BYTES)).collect();
    many_clients(&mut network.node, clients, Fabric::Tcp);
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
    // Its successor has its place, and is not taken for it.
    let mut successor = network.client(64);
    let node = &mut network.node;
    node.transport.close(session, Kind::Denied.error("twice"));
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
    let mut turn = || {
        node.step();
    };
    assert!(successor.call(Command::Ping, &mut turn).expect("connected").status.is_ok());
}
