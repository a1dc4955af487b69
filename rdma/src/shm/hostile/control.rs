//! Clients that misuse the control socket, or go away.

use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dma::{HugePages, Pool, SizeClass, Source, Target};
use extent::wire::{Reply, Segment, Segments};
use extent::{Kind, Result};

use super::super::control::{Hello, NOTE_BYTES, Note, ORDER_BYTES, Order};
use super::super::handshake::{ShmConnection, ShmOptions, handshake};
use super::super::sys;
use super::super::transport::ShmTransport;
use super::{HELLO, Raw, closed, connect, requests, step, transport};
use crate::{Event, Fabric, SessionId, Token, Transfer, Transport};

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

fn greet(options: &ShmOptions, hello: &[u8]) -> (UnixStream, Result<ShmConnection>) {
    let (mut client, server) = UnixStream::pair().expect("sockets");
    client.write_all(hello).expect("room");
    client.shutdown(std::net::Shutdown::Write).expect("open");
    (client, handshake(server, options))
}

fn assert_closed(reader: &mut PipeReader) {
    let hung_up = sys::wait_readable(reader.as_fd(), Duration::from_secs(20)).expect("polls");
    assert!(hung_up, "the node still has the other end open");
    assert_eq!(reader.read(&mut [0; 1]).expect("the end"), 0);
}
