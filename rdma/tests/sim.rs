//! The simulated fabric: what it promises to those who test on it.

mod common;

use std::collections::HashMap;

use common::{TestClient, TestNode, pattern, range, until};
use dma::{HugePages, Pool, SizeClass, Source, Target};
use extent::wire::{Command, OpenMode, Reply, Request, Segment, Segments};
use extent::{Generation, Kind};
use forebay_rdma::{
    Channel, Event, SimChannel, SimFabric, SimTransport, Token, Transfer, Transport,
};
use proptest::prelude::*;

const READ: OpenMode = OpenMode::Read(Generation(0));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sessions_get_their_own_bytes(
        seed: u64,
        delay in 0u64..20,
        reads in proptest::collection::vec((0usize..4, 0usize..200_000, 0usize..200_000), 1..20),
        severed in proptest::option::of(0usize..4),
    ) {
        let fabric = SimFabric::new(seed).with_delay(delay);
        let mut node = TestNode::new(fabric.transport(), 3);
        let file = pattern(250_000);
        node.add_file("s/file", file.clone());
        let mut clients: Vec<_> =
            (0..4).map(|_| TestClient::new(fabric.connect(0), 20 * 200_000)).collect();
        let mut handles = Vec::new();
        for client in &mut clients {
            let mut turn = || { node.step(); };
            handles.push(client.open("s/file", READ, &mut turn).expect("connected").value);
        }
        for (slot, (index, offset, length)) in reads.iter().enumerate() {
            let into = Segments::one(clients[*index].segment(slot * 200_000, *length));
            let handle = handles[*index];
            clients[*index].send(Command::Read { handle, range: range(*offset, *length), into }, None);
            clients[*index].channel.kick().expect("connected");
        }
        if let Some(index) = severed {
            for _ in 0..seed % 30 {
 node.step();
 }
            fabric.sever(clients[index].channel.session());
        }
        for (index, client) in clients.iter_mut().enumerate() {
            let outcome = client.finish(&mut || { node.step(); });
            if severed == Some(index) {
                let calm = outcome.map_or_else(|e| e.kind() == Kind::Disconnected, |_| true);
                prop_assert!(calm);
                continue;
            }
            outcome.expect("connected");
            for (slot, (of, offset, length)) in reads.iter().enumerate() {
                if *of == index {
                    let end = (offset + length).min(file.len());
                    let bytes = &file[(*offset).min(end)..end];
                    prop_assert!(client.bytes(slot * 200_000, bytes.len()) == bytes);
                }
            }
        }
        drop(clients);
        until(&mut node, |node| node.closed.len() == 4);
        prop_assert_eq!((node.buffers_out(), node.transfers_in_flight()), (0, 0));
        prop_assert!(fabric.sessions().is_empty());
    }
}

struct Bare {
    fabric: SimFabric,
    node: SimTransport,
    pool: Pool,
}

impl Bare {
    fn new(fabric: SimFabric) -> Self {
        let sizes = [SizeClass { bytes: 4096, count: 64 }];
        let pool = Pool::new(&sizes, HugePages::Never).expect("memory");
        Self { node: fabric.transport(), fabric, pool }
    }

    fn poll(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.node.poll(&mut events);
        events
    }

    fn write(&mut self, channel: &SimChannel, token: u64, segment: Segment, bytes: &[u8]) {
        let mut buffer = self.pool.take(bytes.len()).expect("free");
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        let transfer = transfer(token, segment);
        let from = Source::Buffer(buffer, 0..bytes.len());
        self.node.post_write(channel.session(), transfer, from);
    }
}

fn transfer(token: u64, segment: Segment) -> Transfer {
    Transfer { token: Token(token), tag: 1, segments: Segments::one(segment), at: 0 }
}

#[test]
fn the_same_seed_replays_and_another_differs() {
    let trace = |seed: u64| {
        let mut bare = Bare::new(SimFabric::new(seed));
        let mut channels: Vec<_> = (0..5).map(|_| bare.fabric.connect(0)).collect();
        let mut trace = Vec::new();
        for round in 0..20 {
            for channel in &mut channels {
                let ping = Request { tag: round, payload_crc: None, command: Command::Ping };
                channel.send(&ping).expect("room");
                channel.kick().expect("connected");
            }
            for event in bare.poll() {
                if let Event::Request { session, capsule, .. } = event {
                    trace.push((session, Request::tag_of(&capsule)));
                }
            }
        }
        trace
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
    let of_one: Vec<_> = trace(7).into_iter().filter(|(s, _)| s.0 & 0xFF == 0).collect();
    assert!(of_one.is_sorted(), "one session's requests stay in order");
}

#[test]
fn replies_come_after_the_sessions_transfers_and_sessions_overtake_each_other() {
    let mut overtaken = false;
    for seed in 0..50 {
        let mut bare = Bare::new(SimFabric::new(seed));
        let mut channels: Vec<_> = (0..3).map(|_| bare.fabric.connect(0)).collect();
        let regions: Vec<_> =
            channels.iter_mut().map(|c| c.allocate(4096).expect("memory")).collect();
        for (token, (channel, region)) in (0..).zip(channels.iter().zip(&regions)) {
            let segment = Segment { address: 100, length: 5, key: region.id().0 };
            bare.write(channel, token, segment, b"bytes");
            bare.node.post_reply(channel.session(), &Reply::success(1));
        }
        bare.node.kick();
        let mut order = Vec::new();
        let mut answered = HashMap::new();
        while answered.len() < 3 {
            for event in bare.poll() {
                if let Event::Written { token, result, .. } = event {
                    result.expect("connected");
                    order.push(token.0);
                }
            }
            for (index, channel) in (0..).zip(&mut channels) {
                let mut replies = Vec::new();
                channel.poll(&mut replies).expect("connected");
                for reply in replies {
                    let mut there = [0; 5];
                    let region = std::sync::Arc::clone(&regions[index]);
                    dma::Window::new(region, 100, 5).expect("inside").copy_out(&mut there);
                    assert_eq!(&there, b"bytes", "the bytes are there before their reply");
                    assert!(answered.insert(index, reply).is_none());
                }
            }
        }
        // A poll of a client may have moved the bytes: the node hears of it at its next.
        for event in bare.poll() {
            if let Event::Written { token, .. } = event {
                order.push(token.0);
            }
        }
        assert_eq!(order.len(), 3);
        overtaken |= !order.is_sorted();
    }
    assert!(overtaken);
}

#[test]
fn nothing_moves_before_its_kick() {
    let mut bare = Bare::new(SimFabric::new(1).with_delay(0));
    let mut channel = bare.fabric.connect(0);
    let region = channel.allocate(4096).expect("memory");
    let ping = Request { tag: 1, payload_crc: None, command: Command::Ping };
    channel.send(&ping).expect("room");
    assert!(matches!(bare.poll()[..], [Event::Opened { .. }]));
    assert!(bare.poll().is_empty());
    channel.kick().expect("connected");
    assert!(matches!(bare.poll()[..], [Event::Request { .. }]));
    bare.write(&channel, 9, Segment { address: 0, length: 1, key: region.id().0 }, b"x");
    assert!(bare.poll().is_empty() && !bare.node.arm());
    bare.node.kick();
    assert!(matches!(bare.poll()[..], [Event::Written { token: Token(9), result: Ok(()), .. }]));
    assert!(bare.node.arm());
}

#[test]
fn memory_that_is_gone_or_was_never_there_is_an_error() {
    let mut bare = Bare::new(SimFabric::new(3).with_delay(4));
    let mut channel = bare.fabric.connect(0);
    let region = channel.allocate(4096).expect("memory");
    let segment = |address, length, key| Segment { address, length, key };
    let key = region.id().0;
    bare.write(&channel, 1, segment(0, 5, key.wrapping_add(999)), b"wrong");
    bare.write(&channel, 2, segment(4092, 5, key), b"wrong");
    bare.write(&channel, 3, segment(0, 4, key), b"wrong");
    bare.node.kick();
    let mut failed = Vec::new();
    while failed.len() < 3 {
        for event in bare.poll() {
            if let Event::Written { token, result, .. } = event {
                assert_eq!(result.expect_err("refused").kind(), Kind::Invalid);
                failed.push(token.0);
            }
        }
    }
    assert_eq!(failed, [1, 2, 3]);
    bare.write(&channel, 4, segment(0, 5, key), b"later");
    let into = Target::Buffer(bare.pool.take(1).expect("free"), 0..5);
    bare.node.post_read(channel.session(), transfer(5, segment(0, 5, key)), into);
    bare.node.kick();
    drop((channel, region));
    let mut ends = Vec::new();
    while !ends.contains(&0) {
        for event in bare.poll() {
            match event {
                Event::Written { token, result, .. } | Event::Read { token, result, .. } => {
                    assert_eq!(result.expect_err("gone").kind(), Kind::Disconnected);
                    ends.push(token.0);
                }
                Event::Closed { .. } => ends.push(0),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(ends, [4, 5, 0], "everything ends, and then the session");
    assert_eq!(bare.pool.usage()[0].taken, 0);
}

#[test]
fn memory_is_mapped_only_where_the_test_says_so() {
    for windows in [false, true] {
        let mut bare = Bare::new(SimFabric::new(5).with_windows(windows));
        let mut channel = bare.fabric.connect(0);
        let region = channel.allocate(8192).expect("memory");
        let session = channel.session();
        let inside = Segment { address: 4096, length: 4096, key: region.id().0 };
        let outside = Segment { address: 4097, ..inside };
        let window = bare.node.map(session, inside).expect("announced");
        assert_eq!(window.is_some(), windows);
        if let Some(window) = window {
            window.copy_in(b"direct");
            let mut there = [0; 6];
            dma::Window::new(region.clone(), 4096, 6).expect("inside").copy_out(&mut there);
            assert_eq!(&there, b"direct");
            assert_eq!(bare.node.map(session, outside).expect_err("outside").kind(), Kind::Invalid);
        }
        channel.release(&region);
        let told: Vec<_> = bare.poll();
        let mapped = told.iter().filter(|event| matches!(event, Event::Mapped { .. })).count();
        let unmapped = told.iter().filter(|event| matches!(event, Event::Unmapped { .. })).count();
        assert_eq!((mapped, unmapped), if windows { (1, 1) } else { (0, 0) });
        assert_eq!(bare.node.map(session, inside).is_err(), windows);
    }
}
