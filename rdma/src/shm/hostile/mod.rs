//! Clients that do what they must not, stepped in one thread, with the protocol written by hand.

mod control;
mod rings;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma::Region;
use extent::Kind;
use extent::wire::{Command, LONG_REQUEST_BYTES, Request};

use super::control::{Grant, Hello, NOTE_BYTES, Note, Order};
use super::handshake::{ShmOptions, handshake};
use super::layout::{Layout, REQUEST_WORDS};
use super::message;
use super::ring::{Sender, word};
use super::transport::ShmTransport;
use crate::{Event, Fabric, SessionId, Transport};

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
        let sent = message::send(self.socket.as_fd(), bytes, files, 0).expect("room");
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

fn connect(transport: &mut ShmTransport) -> (Raw, SessionId) {
    let (client, server) = UnixStream::pair().expect("sockets");
    message::send(client.as_fd(), &HELLO.encode(), &[], 0).expect("room");
    let connection = handshake(server, &ShmOptions::default()).expect("an honest hello");
    let id = transport.adopt(connection).expect("room for a session");
    let mut note = [0; NOTE_BYTES];
    let received = message::receive(client.as_fd(), &mut note, 2, 0).expect("a welcome");
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
    transport.disarm(true);
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
