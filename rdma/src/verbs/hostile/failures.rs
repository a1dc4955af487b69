//! Connections that go wrong in ways that only a client without manners can bring about, or a device: one
//! thing at a time, beside an honest client that reads all the while. Afterwards everything is as before.

#[path = "../../../tests/common/mod.rs"]
mod common;

use std::sync::mpsc;

use common::lab::{Bystander, FILE, FILE_BYTES, Node, Resources};
use common::network::READ;
use common::{TestClient, TestNode, pattern, range};
use extent::Kind;
use extent::wire::{Command, LONG_REQUEST_BYTES, Request, Segments};

use super::super::events::{EventKind, Subject, Watch};
use super::*;
use crate::{Channel, Fabrics, Transport as _, VerbsChannel, VerbsOptions, VerbsTransport};

/// A request of a client that has no manners but good sense.
fn ping(tag: u32) -> Work {
    let mut bytes = [0; LONG_REQUEST_BYTES];
    let request = Request { tag, payload_crc: None, command: Command::Ping };
    let length = request.encode(&mut bytes);
    Work::Send(Message::new(&bytes[..length]))
}

/// Transfers that take a while.
fn begin_read(client: &mut TestClient<VerbsChannel>) {
    let mut turn = thread::yield_now;
    let handle = client.open(FILE, READ, &mut turn).expect("connected").value;
    let into = Segments::one(client.segment(0, FILE_BYTES));
    client.send(Command::Read { handle, range: range(0, FILE_BYTES), into }, None);
    client.channel.kick().expect("connected");
}

fn read_all(client: &mut TestClient<VerbsChannel>) {
    begin_read(client);
    client.finish(&mut thread::yield_now).expect("connected");
    assert!(client.bytes(0, FILE_BYTES) == pattern(FILE_BYTES));
}

/// What was under way may have arrived, reply and all: then it is right.
fn all_or_over(client: &mut TestClient<VerbsChannel>) {
    match client.finish(&mut thread::yield_now) {
        Ok(_) => assert!(client.bytes(0, FILE_BYTES) == pattern(FILE_BYTES)),
        Err(over) => assert_eq!(over.kind(), Kind::Disconnected, "{over}"),
    }
}

fn verbs(node: &mut TestNode<Fabrics>) -> &mut VerbsTransport {
    node.transport.verbs_mut().expect("RDMA")
}

/// States that a queue pair is forced into.
const ERROR: u32 = 6;
const SENDS_DRAINED: u32 = 4;
/// More buffers than one client that stands still can hold.
const BUFFERS: usize = FILE_BYTES / common::PIECE_BYTES + 32;

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_client_that_never_finishes_the_handshake_is_given_up() {
    let node = Node::new(BUFFERS);
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    // librdmacm sends the last word when its caller hears that the node answered: this one never asks.
    let silent = Prepared::new(node.address);
    silent.ask(1, 6, &Hello::new(4, None).encode());
    node.until("its session", |node| node.opened.len() == 2);
    bystander.goes_on();
    node.closes(1);
    let reason = node.last_reason();
    assert!(reason.contains("did not take it"), "{reason}");
    bystander.goes_on();
    drop(silent);
    before.come_back();
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_client_that_posts_no_receives_is_given_up() {
    let node = Node::new(BUFFERS);
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    let mut intruder = Intruder::new(node.address);
    assert_eq!(intruder.try_out(ping(1)), WorkStatus::SUCCESS);
    node.closes(1);
    let reason = node.last_reason();
    assert!(reason.contains("posts no receives"), "{reason}");
    bystander.goes_on();
    drop(intruder);
    before.come_back();
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_client_that_takes_its_replies_slowly_gets_them_all() {
    let node = Node::new(BUFFERS);
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    let mut intruder = Intruder::new(node.address);
    for tag in 1..=3 {
        assert_eq!(intruder.try_out(ping(tag)), WorkStatus::SUCCESS);
        let asked = usize::try_from(tag).expect("small");
        // The reply finds no receive, and is tried again.
        bystander.goes_on();
        intruder.pair.post_receives(&[0]).expect("room");
        let got = intruder.next_completion();
        assert!(got.status == WorkStatus::SUCCESS && got.id & super::super::receive::RECEIVE != 0);
        assert!(node.ask(|node| node.requests) >= asked);
    }
    assert_eq!(node.ask(|node| node.closed.len()), 0);
    drop(intruder);
    node.closes(1);
    before.come_back();
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn greetings_of_strangers_and_of_other_versions_are_turned_down() {
    let node = Node::new(BUFFERS);
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    let other = Hello { versions: (2, 9), ..Hello::new(4, None) };
    let greedy = Hello { replies: 0, ..Hello::new(4, None) };
    let cases: [(&[u8], Kind); 5] = [
        (&[], Kind::Corrupt),
        (&[0xA5; 56], Kind::Corrupt),
        (&Hello::new(4, None).encode()[..7], Kind::Corrupt),
        (&other.encode(), Kind::Unsupported),
        (&greedy.encode(), Kind::Invalid),
    ];
    for (greeting, kind) in cases {
        let refused = Intruder::greet(node.address, 1, 6, greeting).map(drop).expect_err("refused");
        assert_eq!(refused.kind(), kind, "{refused}");
        bystander.goes_on();
    }
    assert_eq!(node.ask(|node| node.opened.len()), 1, "none of them had a session");
    before.come_back();
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_clients_queue_pair_that_fails_in_any_state_is_noticed() {
    let node = Node::new(BUFFERS);
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    // Before it is connected: the client's side finds out when the node answers, and the node is told.
    let unconnected = Prepared::new(node.address);
    unconnected.pair.force(ERROR).expect("any state may end");
    unconnected.ask(1, 6, &Hello::new(4, None).encode());
    unconnected.conclude().map(drop).expect_err("no connection comes of it");
    node.closes(1);
    bystander.goes_on();
    // Afterwards, without a word: found out by whatever the node sends next, here a reply.
    for (count, on_the_way) in [&[ERROR][..], &[SENDS_DRAINED, ERROR]].into_iter().enumerate() {
        let mut intruder = Intruder::new(node.address);
        intruder.pair.post_receives(&[0, 1, 2, 3]).expect("room");
        assert_eq!(intruder.try_out(ping(1)), WorkStatus::SUCCESS);
        on_the_way.iter().for_each(|state| intruder.pair.force(*state).expect("a step"));
        let session = node.ask(|node| node.opened.last().map(|(session, _)| *session));
        let session = session.expect("it connected");
        node.ask(move |node| node.transport.post_reply(session, &extent::wire::Reply::success(7)));
        node.closes(2 + count);
        bystander.goes_on();
        drop(intruder);
    }
    before.come_back();
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_nodes_queue_pair_that_fails_in_the_middle_ends_its_session_alone() {
    let node = Node::new(BUFFERS);
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    const WAYS: [&[u32]; 2] = [&[ERROR], &[SENDS_DRAINED, ERROR]];
    for (count, on_the_way) in WAYS.into_iter().enumerate() {
        let mut client = node.client(FILE_BYTES, VerbsOptions::default());
        begin_read(&mut client);
        node.until("transfers", move |node| {
            let session = node.opened.last().expect("it connected").0;
            let middle = node.transfers_in_flight() > 2;
            if middle {
                verbs(node).force(session, on_the_way);
            }
            middle
        });
        node.closes(count + 1);
        all_or_over(&mut client);
        bystander.goes_on();
        drop(client);
        before.come_back();
    }
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_full_completion_queue_is_waited_for() {
    let node = Node::new(BUFFERS);
    let mut clients: Vec<_> =
        (0..3).map(|_| node.client(FILE_BYTES, VerbsOptions::default())).collect();
    // As if the device had room for so few.
    let room = node.ask(|node| verbs(node).leave_room(5));
    thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| (0..2).for_each(|_| read_all(client)));
        }
    });
    node.until("all room", |node| verbs(node).leave_room(5) == 5);
    assert!(room > 1000, "there was more: {room}");
    assert_eq!(node.ask(|node| node.closed.len()), 0);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn requests_that_find_no_receive_wait_for_one() {
    let node = Node::new(BUFFERS);
    // Together more than a node has places for, while it looks away.
    const CLIENTS: usize = 6;
    const EACH: usize = 900;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| VerbsChannel::connect(node.address, PATIENCE, 1024, VerbsOptions::default()))
        .collect();
    let mut clients: Vec<_> =
        clients.into_iter().map(|client| TestClient::new(client.expect("room"), 4096)).collect();
    let (go_on, wait) = mpsc::sync_channel::<()>(1);
    let low = || {
        let reports = crate::verbs::device_reports();
        let events = reports.iter().flat_map(|report| &report.events);
        events.filter(|(event, _)| *event == "srq_limit_reached").map(|(_, n)| n).sum::<u64>()
    };
    let before = low();
    thread::scope(|scope| {
        scope.spawn(|| node.ask(move |_| wait.recv().expect("told")));
        for client in &mut clients {
            for _ in 0..EACH {
                client.send(Command::Ping, None);
            }
            client.channel.kick().expect("connected");
        }
        go_on.send(()).expect("it waits");
        for client in &mut clients {
            let replies = client.finish(&mut thread::yield_now).expect("connected");
            assert_eq!(replies.len(), EACH);
        }
    });
    assert_eq!(node.ask(|node| (node.closed.len(), node.requests)), (0, CLIENTS * EACH));
    node.until("the device's word", move |_| low() > before);
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_completion_queue_that_overflows_is_told_of() {
    let node = Node::new(BUFFERS);
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    let mut intruder = Intruder::new(node.address);
    let watch = Watch::new(intruder.adapter).expect("descriptors");
    let (go_on, wait) = mpsc::sync_channel::<()>(1);
    let mut news = Vec::new();
    thread::scope(|scope| {
        // A node that answered would end the session before.
        scope.spawn(|| node.ask(move |_| wait.recv().expect("told")));
        for _ in 0..MANY {
            // Nobody takes these completions.
            intruder.send = SendQueue::new(1, 16);
            intruder.send.push(ping(1));
            if intruder.send.post(1, &mut intruder.pair).is_err() {
                thread::yield_now();
            }
            watch.take(&mut news);
            if news.iter().any(|event| event.kind == EventKind::CompletionQueueError) {
                break;
            }
        }
        go_on.send(()).expect("it waits");
    });
    let own = Subject::CompletionQueue(intruder.queue.as_ptr().addr());
    assert!(news.iter().any(|event| event.subject == own), "{news:?}");
    bystander.goes_on();
    drop((watch, intruder));
    node.closes(1);
    before.come_back();
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn what_a_device_says_of_a_part_ends_what_used_it() {
    let node = Node::new(BUFFERS);
    let start = Resources::now();
    let kinds = [EventKind::CompletionQueueError, EventKind::ReceivesError, EventKind::DeviceFatal];
    for kind in kinds {
        let mut client = node.client(FILE_BYTES, VerbsOptions::default());
        let during = Resources::now();
        begin_read(&mut client);
        node.until("transfers", move |node| {
            let middle = node.transfers_in_flight() > 2;
            if middle {
                verbs(node).pretend(kind, None);
            }
            middle
        });
        node.closes(1);
        all_or_over(&mut client);
        drop(client);
        // Whoever comes next finds a sound one in the place of what was lost.
        let mut client = node.client(FILE_BYTES, VerbsOptions::default());
        during.come_back();
        read_all(&mut client);
        drop(client);
        node.closes(2);
        node.ask(|node| node.closed.clear());
    }
    // A queue pair's own failures end its session alone.
    let bystander = Bystander::new(&node);
    for kind in [
        EventKind::QueuePairFatal,
        EventKind::QueuePairRequestError,
        EventKind::QueuePairAccessError,
    ] {
        node.ask(|node| node.closed.clear());
        let client = node.client(4096, VerbsOptions::default());
        let session = node.ask(|node| node.opened.last().expect("it connected").0);
        node.ask(move |node| verbs(node).pretend(kind, Some(session)));
        node.closes(1);
        assert_eq!(node.last_reason(), kind.meaning());
        drop(client);
        bystander.goes_on();
    }
    drop((bystander, node));
    let after = Resources::now();
    assert!(start.total("qp") >= after.total("qp"), "{start:?} {after:?}");
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
fn a_device_that_tells_of_the_last_receive_is_waited_for() {
    let node = Node::new(BUFFERS);
    let bystander = Bystander::new(&node);
    let before = Resources::now();
    // A device that tells, as this one does not, is taken at its word from its first one on.
    node.ask(|node| {
        let session = node.opened.last().expect("the bystander").0;
        verbs(node).pretend(EventKind::LastReceive, Some(session));
    });
    let mut client = node.client(FILE_BYTES, VerbsOptions::default());
    begin_read(&mut client);
    node.until("transfers", |node| node.transfers_in_flight() > 2);
    drop(client);
    node.until("the end of its connection", |node| verbs(node).dying() == 1);
    let waiting = node.ask(|node| {
        for _ in 0..500 {
            // Polls alone do not end the wait, and ticks shall not, however slow this machine is.
            verbs(node).forget_ticks();
            node.step();
        }
        (verbs(node).dying(), node.closed.len())
    });
    assert_eq!(waiting, (1, 0), "no word yet");
    bystander.goes_on();
    node.ask(|node| verbs(node).pretend_last_receives());
    node.closes(1);
    // Without a word it is given up all the same, some ticks later.
    drop(node.client(4096, VerbsOptions::default()));
    node.until("the end of its connection", |node| verbs(node).dying() == 1);
    node.closes(2);
    before.come_back();
}
