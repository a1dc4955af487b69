//! Clients that do what they must not, stepped in one thread, with the protocol written by hand.

use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use dma::{HugePages, Pool, Region, SizeClass, Source, Target};
use extent::wire::{Command, LONG_REQUEST_BYTES, Reply, Request, Segment, Segments};
use extent::{Kind, Result};

use super::control::{Grant, Hello, NOTE_BYTES, Note, ORDER_BYTES, Order};
use super::handshake::{ShmConnection, ShmOptions, handshake};
use super::layout::{CLIENT_WAKE_AT, Layout, NODE_WAKE_AT, REQUEST_WORDS};
use super::ring::{Sender, word};
use super::transport::ShmTransport;
use super::{sys, wake};
use crate::{Event, Fabric, SessionId, Token, Transfer, Transport};

const HELLO: Hello = Hello { versions: (1, 1), slots: (32, 32) };

/// A client made of bare parts.
struct Raw {
    socket: UnixStream,
    doorbell: std::fs::File,
    link: Arc<Region>,
    layout: Layout,
    requests: Sender<REQUEST_WORDS>,
}

impl Raw {
    fn order(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) {
        let sent = sys::send(self.socket.as_fd(), bytes, files, 0).expect("room");
        assert_eq!(sent, bytes.len());
    }

    fn register(&self, key: u32, length: u64, file: &OwnedFd) {
        self.order(&Order::Register { key, length }.encode(), &[file.as_fd()]);
    }

    /// The node's next note; `None` at the end.
    fn note(&mut self) -> Option<Note> {
        let mut bytes = [0; NOTE_BYTES];
        self.socket.read_exact(&mut bytes).ok()?;
        Some(Note::parse(&bytes).expect("a note"))
    }

    fn ping(&mut self, tag: u32) {
        let mut capsule = [0; LONG_REQUEST_BYTES];
        let request = Request { tag, payload_crc: None, command: Command::Ping };
        let length = request.encode(&mut capsule);
        assert_ne!(self.requests.room(1).expect("honest"), 0);
        self.requests.push(&capsule[..length]);
        self.requests.publish();
    }

    fn set(&self, at: usize, value: u32) {
        word(&self.link, at).store(value, Ordering::SeqCst);
    }

    fn get(&self, at: usize) -> u32 {
        word(&self.link, at).load(Ordering::SeqCst)
    }
}

fn greet(options: &ShmOptions, hello: &[u8]) -> (UnixStream, Result<ShmConnection>) {
    let (mut client, server) = UnixStream::pair().expect("sockets");
    client.write_all(hello).expect("room");
    client.shutdown(std::net::Shutdown::Write).expect("open");
    (client, handshake(server, options))
}

fn connect(transport: &mut ShmTransport) -> (Raw, SessionId) {
    let (client, server) = UnixStream::pair().expect("sockets");
    sys::send(client.as_fd(), &HELLO.encode(), &[], 0).expect("room");
    let connection = handshake(server, &ShmOptions::default()).expect("an honest hello");
    let id = transport.adopt(connection).expect("room for a session");
    let mut note = [0; NOTE_BYTES];
    let received = sys::receive(client.as_fd(), &mut note, 2, 0).expect("a welcome");
    let Note::Welcome(Ok(Grant { layout, .. })) = Note::parse(&note).expect("a note") else {
        panic!("no welcome");
    };
    let [Some(memory), Some(doorbell)] = received.files else { panic!("two descriptors") };
    let link = Region::sealed_memfd(memory.as_fd(), layout.bytes()).expect("mapped");
    let requests = Sender::new(Arc::clone(&link), layout.requests());
    let raw = Raw { socket: client, doorbell: doorbell.into(), link, layout, requests };
    let events = step(transport);
    assert!(events.iter().any(|e| matches!(
        e,
        Event::Opened { session, fabric: Fabric::SharedMemory, .. } if *session == id
    )));
    (raw, id)
}

fn transport() -> ShmTransport {
    let base = SessionId::base(Fabric::SharedMemory, 3).0;
    ShmTransport::new(base, ShmOptions::default()).expect("descriptors")
}

/// One poll that looks at everything.
fn step(transport: &mut ShmTransport) -> Vec<Event> {
    let mut events = Vec::new();
    transport.disarm();
    transport.poll(&mut events);
    events
}

/// Steps until nothing happens, and says why the session closed: once, and last.
fn closed(transport: &mut ShmTransport, id: SessionId) -> Kind {
    let mut events = step(transport);
    for _ in 0..3 {
        events.extend(step(transport));
    }
    let kinds: Vec<Kind> = events
        .iter()
        .filter_map(|event| match event {
            Event::Closed { session, reason } if *session == id => Some(reason.kind()),
            _ => None,
        })
        .collect();
    assert_eq!(kinds.len(), 1, "{events:?}");
    assert!(matches!(events.last(), Some(Event::Closed { .. })), "{events:?}");
    kinds[0]
}

fn requests(events: &[Event], id: SessionId) -> usize {
    let of = |e: &&Event| matches!(e, Event::Request { session, .. } if *session == id);
    events.iter().filter(of).count()
}

#[test]
fn an_impossible_tail_closes_the_session_and_no_other() {
    let mut transport = transport();
    for tail in [33, u32::MAX, 1 << 31] {
        let (mut honest, honest_id) = connect(&mut transport);
        let (hostile, id) = connect(&mut transport);
        hostile.set(hostile.layout.requests().tail_at, tail);
        honest.ping(1);
        let mut events = step(&mut transport);
        assert_eq!(requests(&events, honest_id), 1);
        events.retain(|event| matches!(event, Event::Closed { .. }));
        match &events[..] {
            [Event::Closed { session, reason }] => {
                assert_eq!((*session, reason.kind()), (id, Kind::Corrupt));
            }
            other => panic!("{other:?}"),
        }
        drop(honest);
        assert_eq!(closed(&mut transport, honest_id), Kind::Disconnected);
        assert_eq!(transport.sessions(), 0);
    }
}

#[test]
fn an_impossible_reply_head_closes_the_session() {
    let mut transport = transport();
    let (mut raw, id) = connect(&mut transport);
    for tag in 0..32 {
        raw.ping(tag);
    }
    assert_eq!(requests(&step(&mut transport), id), 32);
    (0..32).for_each(|tag| transport.post_reply(id, &Reply::success(tag)));
    transport.kick();
    raw.set(raw.layout.replies().head_at, 33);
    // The client's own index says that it may go on.
    raw.ping(32);
    assert_eq!(closed(&mut transport, id), Kind::Corrupt);
}

#[test]
fn a_client_that_takes_no_replies_is_not_served_and_does_not_keep_the_node_awake() {
    let mut transport = transport();
    let (mut raw, id) = connect(&mut transport);
    (0..32).for_each(|tag| raw.ping(tag));
    assert_eq!(requests(&step(&mut transport), id), 32);
    (0..20).for_each(|tag| raw.ping(tag));
    assert_eq!(requests(&step(&mut transport), id), 0);
    (0..32).for_each(|tag| transport.post_reply(id, &Reply::success(tag)));
    transport.kick();
    assert_eq!(requests(&step(&mut transport), id), 0);
    assert!(transport.arm(), "nothing can be done for this client");
    assert_eq!(raw.get(NODE_WAKE_AT), 2);
    // It takes three, and says so.
    raw.set(raw.layout.replies().head_at, 3);
    raw.set(NODE_WAKE_AT, 0);
    raw.doorbell.write_all(&1u64.to_ne_bytes()).expect("rings");
    assert_eq!(requests(&step(&mut transport), id), 3);
    assert_eq!(requests(&step(&mut transport), id), 0);
}

#[test]
fn the_doorbell_is_rung_only_while_the_node_sleeps_and_cannot_block_it() {
    let mut transport = transport();
    let (mut raw, id) = connect(&mut transport);
    assert_eq!(raw.get(NODE_WAKE_AT), 0, "polled after it was opened");
    assert!(transport.arm());
    assert_eq!(raw.get(NODE_WAKE_AT), 1);
    raw.ping(1);
    // A client that rings without taking the word, as often as it can, and blocks whoever would
    // write or read the same open file.
    make_blocking(raw.doorbell.as_fd());
    raw.doorbell.write_all(&(u64::MAX - 1).to_ne_bytes()).expect("an empty counter");
    assert_eq!(requests(&step(&mut transport), id), 1);
    assert_eq!(raw.get(NODE_WAKE_AT), 0, "polled again");
    let mut counter = [0; 8];
    raw.doorbell.read_exact(&mut counter).expect("the node has not read it");
    transport.post_reply(id, &Reply::success(1));
    transport.kick();
    assert!(transport.arm());
    // The edge is what counts, so a second ring wakes as well as the first.
    raw.ping(2);
    raw.doorbell.write_all(&1u64.to_ne_bytes()).expect("rings");
    assert_eq!(requests(&step(&mut transport), id), 1);
}

#[test]
fn requests_that_came_before_arming_keep_the_node_awake() {
    let mut transport = transport();
    let (mut raw, id) = connect(&mut transport);
    raw.ping(1);
    assert!(!transport.arm());
    assert_eq!(raw.get(NODE_WAKE_AT), 0);
    assert_eq!(requests(&step(&mut transport), id), 1);
    // What the transport itself has to report keeps it awake, too.
    transport.close(id, Kind::Fenced.error("enough"));
    assert!(!transport.arm());
    assert_eq!(closed(&mut transport, id), Kind::Fenced);
    assert!(transport.arm());
}

#[test]
fn the_client_is_woken_by_a_note_once_for_each_time_it_sleeps() {
    let mut transport = transport();
    let (mut raw, id) = connect(&mut transport);
    for asleep in [true, false] {
        raw.set(CLIENT_WAKE_AT, u32::from(asleep));
        (0..2).for_each(|tag| raw.ping(tag));
        step(&mut transport);
        (0..2).for_each(|tag| {
            transport.post_reply(id, &Reply::success(tag));
            transport.kick();
        });
        assert_eq!(raw.get(CLIENT_WAKE_AT), 0);
    }
    transport.close(id, Kind::Fenced.error("enough"));
    assert!(matches!(raw.note(), Some(Note::Wake)));
    assert!(matches!(raw.note(), Some(Note::Closed(reason)) if reason.kind() == Kind::Fenced));
    assert!(raw.note().is_none());
    assert_eq!(raw.get(raw.layout.replies().tail_at), 4);
}

#[test]
fn a_client_that_always_wants_to_be_woken_and_never_reads_harms_only_itself() {
    let mut transport = transport();
    let (mut raw, id) = connect(&mut transport);
    for tag in 0..5000 {
        raw.set(CLIENT_WAKE_AT, u32::MAX);
        raw.ping(tag);
        assert_eq!(requests(&step(&mut transport), id), 1);
        transport.post_reply(id, &Reply::success(tag));
        transport.kick();
        raw.set(raw.layout.replies().head_at, tag + 1);
    }
    // Its socket is full by now, so that an order cannot be answered.
    raw.order(&Order::Unregister { key: 0 }.encode(), &[]);
    assert_eq!(closed(&mut transport, id), Kind::Disconnected);
}

#[test]
fn idle_sessions_are_armed_one_by_one() {
    let mut transport = transport();
    let mut clients: Vec<_> = (0..300).map(|_| connect(&mut transport)).collect();
    let mut events = Vec::new();
    for _ in 0..70_000 {
        transport.poll(&mut events);
    }
    assert!(events.is_empty());
    assert!(clients.iter().all(|(raw, _)| raw.get(NODE_WAKE_AT) == 1), "all must ring now");
    let (raw, id) = &mut clients[117];
    raw.ping(1);
    raw.doorbell.write_all(&1u64.to_ne_bytes()).expect("rings");
    for _ in 0..64 {
        transport.poll(&mut events);
    }
    assert_eq!(requests(&events, *id), 1);
    assert_eq!(clients.iter().filter(|(raw, _)| raw.get(NODE_WAKE_AT) == 0).count(), 1);
}

#[test]
fn garbage_in_the_control_socket_closes_the_session() {
    let mut transport = transport();
    let mut garbage = vec![vec![0xFF; ORDER_BYTES], vec![0; ORDER_BYTES], vec![7; 5 * ORDER_BYTES]];
    let mut reserved = Order::Unregister { key: 1 }.encode().to_vec();
    reserved[20] = 1;
    garbage.push(reserved);
    for bytes in garbage {
        let (raw, id) = connect(&mut transport);
        raw.order(&bytes, &[]);
        assert_eq!(closed(&mut transport, id), Kind::Corrupt);
    }
    // An order in pieces is slow, but none the worse.
    let (mut raw, id) = connect(&mut transport);
    for byte in (Order::Unregister { key: 9 }).encode() {
        raw.order(&[byte], &[]);
        assert!(step(&mut transport).is_empty());
    }
    match raw.note() {
        Some(Note::Unregistered(9, Err(error))) => assert_eq!(error.kind(), Kind::NotFound),
        other => panic!("{other:?}"),
    }
    drop(raw);
    assert_eq!(closed(&mut transport, id), Kind::Disconnected);
}

#[test]
fn memory_that_is_not_sealed_or_not_there_is_refused_with_a_sentence() {
    let mut transport = transport();
    let (mut raw, _) = connect(&mut transport);
    let refused = |raw: &mut Raw, transport: &mut ShmTransport| {
        assert!(step(transport).is_empty());
        match raw.note() {
            Some(Note::Registered(5, Err(error))) => error.kind(),
            other => panic!("{other:?}"),
        }
    };
    let unsealed = sys::test_memory(4096, 0).expect("memory");
    raw.register(5, 4096, &unsealed);
    assert_eq!(refused(&mut raw, &mut transport), Kind::Denied);
    let (mut reader, writer) = pipe().expect("a pipe");
    raw.register(5, 4096, &writer.into());
    assert_eq!(refused(&mut raw, &mut transport), Kind::Denied);
    assert_closed(&mut reader);
    raw.order(&Order::Register { key: 5, length: 4096 }.encode(), &[]);
    assert_eq!(refused(&mut raw, &mut transport), Kind::NoSpace);
    let short = sys::memory_file(4096).expect("memory");
    raw.register(5, 8192, &short);
    assert_eq!(refused(&mut raw, &mut transport), Kind::Invalid);
    raw.register(5, 4096, &short);
    assert!(matches!(&step(&mut transport)[..], [Event::Mapped { .. }]));
    assert!(matches!(raw.note(), Some(Note::Registered(5, Ok(())))));
}

#[test]
fn descriptors_too_many_or_out_of_place_close_the_session_and_are_closed() {
    let mut transport = transport();
    let order = Order::Register { key: 5, length: 4096 }.encode();
    // Two at once; one with each half of an order; one with an order that takes none.
    for case in 0..3 {
        let (raw, id) = connect(&mut transport);
        let (mut reader, writer) = pipe().expect("a pipe");
        match case {
            0 => raw.order(&order, &[writer.as_fd(), writer.as_fd()]),
            1 => {
                raw.order(&order[..16], &[writer.as_fd()]);
                raw.order(&order[16..], &[writer.as_fd()]);
            }
            _ => raw.order(&Order::Unregister { key: 5 }.encode(), &[writer.as_fd()]),
        }
        drop(writer);
        assert_eq!(closed(&mut transport, id), Kind::Corrupt);
        assert_closed(&mut reader);
    }
    // One left over in a session that ends.
    let (raw, id) = connect(&mut transport);
    let (mut reader, writer) = pipe().expect("a pipe");
    raw.order(&order[..7], &[writer.as_fd()]);
    assert!(step(&mut transport).is_empty());
    drop((raw, writer));
    assert_eq!(closed(&mut transport, id), Kind::Disconnected);
    assert_closed(&mut reader);
}

#[test]
fn transfers_outside_the_clients_memory_fail_and_give_the_buffer_back() {
    let mut transport = transport();
    let (raw, id) = connect(&mut transport);
    raw.register(5, 4096, &sys::memory_file(4096).expect("memory"));
    step(&mut transport);
    let pool = Pool::new(&[SizeClass { bytes: 4096, count: 1 }], HugePages::Never).expect("memory");
    let segment = |address, length, key| Segment { address, length, key };
    for bad in
        [segment(1, 4096, 5), segment(u64::MAX, 4096, 5), segment(0, 4096, 6), segment(0, 1, 5)]
    {
        let transfer = Transfer { token: Token(1), tag: 1, segments: Segments::one(bad), at: 0 };
        let buffer = pool.take(1).expect("it came back");
        transport.post_write(id, transfer, Source::Buffer(buffer, 0..4096));
        match step(&mut transport).pop() {
            Some(Event::Written { token: Token(1), result: Err(error), .. }) => {
                assert_eq!(error.kind(), Kind::Invalid);
            }
            other => panic!("{other:?}"),
        }
        let buffer = pool.take(1).expect("it came back");
        transport.post_read(id, transfer, Target::Buffer(buffer, 0..4096));
        match step(&mut transport).pop() {
            Some(Event::Read { token: Token(1), result: Err(error), .. }) => {
                assert_eq!(error.kind(), Kind::Invalid);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(transport.map(id, segment(4096, 1, 5)).expect_err("outside").kind(), Kind::Invalid);
    assert!(transport.map(id, segment(4095, 1, 5)).expect("inside").is_some());
}

#[test]
fn a_client_that_leaves_in_the_middle_is_closed_once_and_its_memory_outlives_it() {
    let mut transport = transport();
    let (mut raw, id) = connect(&mut transport);
    raw.register(5, 8192, &sys::memory_file(8192).expect("memory"));
    raw.ping(1);
    let events = step(&mut transport);
    assert_eq!(requests(&events, id), 1);
    let segment = Segment { address: 0, length: 4096, key: 5 };
    let window = transport.map(id, segment).expect("inside").expect("mapped");
    let pool = Pool::new(&[SizeClass { bytes: 4096, count: 1 }], HugePages::Never).expect("memory");
    let transfer = Transfer { token: Token(1), tag: 1, segments: Segments::one(segment), at: 0 };
    let buffer = pool.take(1).expect("free");
    transport.post_write(id, transfer, Source::Buffer(buffer, 0..4096));
    drop(raw);
    // What was under way is reported before the end, and the region's end with it.
    let events: Vec<Event> = (0..3).flat_map(|_| step(&mut transport)).collect();
    match &events[..] {
        [
            Event::Written { result: Ok(()), .. },
            Event::Unmapped { .. },
            Event::Closed { session, reason },
        ] => assert_eq!((*session, reason.kind()), (id, Kind::Disconnected)),
        other => panic!("{other:?}"),
    }
    drop(events);
    // A device may still write to it.
    window.copy_in(&[3; 4096]);
    // Calls for it now complete, or do nothing.
    transport.post_write(id, transfer, Source::Buffer(pool.take(1).expect("back"), 0..4096));
    transport.post_read(id, transfer, Target::Window(window));
    transport.post_reply(id, &Reply::success(1));
    transport.discard(id);
    transport.close(id, Kind::Fenced.error("again"));
    transport.kick();
    let events = step(&mut transport);
    assert!(matches!(
        &events[..],
        [Event::Written { result: Err(a), .. }, Event::Read { result: Err(b), .. }]
            if a.kind() == Kind::Disconnected && b.kind() == Kind::Disconnected
    ));
    assert_eq!(transport.map(id, segment).expect_err("gone").kind(), Kind::Disconnected);
    // Its place is taken by another, under another number.
    let (_raw, next) = connect(&mut transport);
    assert_ne!(next, id);
}

#[test]
fn strangers_are_sent_away_with_a_reason() {
    let options = ShmOptions::default();
    let cases: [(&[u8], Kind); 5] = [
        (b"", Kind::Disconnected),
        (b"GET /", Kind::Invalid),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", Kind::Invalid),
        (&Hello { versions: (7, 9), ..HELLO }.encode(), Kind::Unsupported),
        (&HELLO.encode()[..31], Kind::Invalid),
    ];
    for (hello, kind) in cases {
        let (mut client, result) = greet(&options, hello);
        assert_eq!(result.expect_err("a stranger").kind(), kind);
        let mut note = [0; NOTE_BYTES];
        client.read_exact(&mut note).expect("a note");
        match Note::parse(&note).expect("sound") {
            Note::Welcome(Err(told)) => assert_eq!(told.kind(), kind),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn sessions_are_bounded_and_the_one_too_many_is_told() {
    let options = ShmOptions { max_sessions: 1, ..ShmOptions::default() };
    let base = SessionId::base(Fabric::SharedMemory, 0).0;
    let mut transport = ShmTransport::new(base, options).expect("descriptors");
    let (_first, _) = connect(&mut transport);
    let (mut second, connection) = greet(&ShmOptions::default(), &HELLO.encode());
    let error = transport.adopt(connection.expect("a hello")).expect_err("one too many");
    assert_eq!(error.kind(), Kind::Busy);
    let mut notes = [0; 2 * NOTE_BYTES];
    second.read_exact(&mut notes).expect("a welcome and a farewell");
    let told = Note::parse(notes.last_chunk().expect("long enough")).expect("sound");
    assert!(matches!(told, Note::Closed(reason) if reason.kind() == Kind::Busy));
    assert_eq!(transport.sessions(), 1);
}

#[test]
fn requests_are_copied_before_they_are_looked_at() {
    // A client rewrites its slots while the node reads them. Whatever the node takes must be as
    // long as its own flags say: the length is that of the copy.
    let mut transport = transport();
    let (mut raw, id) = connect(&mut transport);
    let link = Arc::clone(&raw.link);
    let slots_at = raw.layout.requests().slots_at;
    let writer = thread::spawn(move || {
        let window =
            dma::Window::new(Arc::clone(&link), slots_at as u64, 32 * 128).expect("inside");
        for round in 0..200_000u32 {
            let slot = (round % 32) as usize * 128;
            window.part(slot + 1..slot + 2).copy_in(&[u8::from(round % 2 == 0)]);
        }
    });
    for tag in 0..5000 {
        raw.ping(tag);
        for event in step(&mut transport) {
            if let Event::Request { capsule, length, .. } = event {
                assert_eq!(length, Request::capsule_bytes([capsule[0], capsule[1]]));
                // A flipped flag fails the checksum, and that is all.
                let _ = Request::parse(&capsule[..length]);
            }
        }
        transport.post_reply(id, &Reply::success(tag));
        transport.kick();
        raw.set(raw.layout.replies().head_at, tag + 1);
    }
    writer.join().expect("no panic");
    wake::published();
    assert_eq!(raw.get(raw.layout.replies().tail_at), 5000);
}

fn assert_closed(reader: &mut PipeReader) {
    let hung_up = sys::wait_readable(reader.as_fd(), Duration::from_secs(20)).expect("polls");
    assert!(hung_up, "the node still has the other end open");
    assert_eq!(reader.read(&mut [0; 1]).expect("the end"), 0);
}

fn make_blocking(file: BorrowedFd<'_>) {
    socket2::SockRef::from(&file).set_nonblocking(false).expect("a flag");
}
