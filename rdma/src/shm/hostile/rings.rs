//! Clients that misuse the link.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use extent::Kind;
use extent::wire::{Reply, Request};

use super::super::control::{Note, Order};
use super::super::layout::{CLIENT_WAKE_AT, NODE_WAKE_AT};
use super::super::ring::word;
use super::super::sys;
use super::{closed, connect, requests, step, transport};
use crate::{Event, Transport};

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
fn a_client_that_sleeps_is_woken_by_a_reply_and_by_the_end() {
    let mut transport = transport();
    let (mut raw, id) = connect(&mut transport);
    let link = Arc::clone(&raw.link);
    let sleep = move || {
        let word = word(&link, CLIENT_WAKE_AT);
        // A signal may end a sleep early; a lost wake-up makes it last for ever.
        while word.load(Ordering::SeqCst) != 0 {
            sys::sleep_on(word, Duration::from_secs(3600));
        }
    };
    for _ in 0..2 {
        (0..2).for_each(|tag| raw.ping(tag));
        step(&mut transport);
        raw.set(CLIENT_WAKE_AT, 1);
        let sleeper = thread::spawn(sleep.clone());
        (0..2).for_each(|tag| {
            transport.post_reply(id, &Reply::success(tag));
            transport.kick();
        });
        assert_eq!(raw.get(CLIENT_WAKE_AT), 0);
        sleeper.join().expect("woken");
    }
    raw.set(CLIENT_WAKE_AT, 1);
    let sleeper = thread::spawn(sleep);
    transport.close(id, Kind::Fenced.error("enough"));
    sleeper.join().expect("woken");
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
    // Once its socket is full of answers, the next one ends the session.
    let mut events = Vec::new();
    while transport.sessions() > 0 {
        raw.order(&Order::Unregister { key: 0 }.encode(), &[]);
        events = step(&mut transport);
    }
    let is_its_end = |event: &Event| {
        matches!(event, Event::Closed { session, reason }
            if *session == id && reason.kind() == Kind::Disconnected)
    };
    assert!(events.iter().any(is_its_end), "{events:?}");
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
    assert_eq!(raw.get(raw.layout.replies().tail_at), 5000);
}

fn make_blocking(file: BorrowedFd<'_>) {
    socket2::SockRef::from(&file).set_nonblocking(false).expect("a flag");
}
