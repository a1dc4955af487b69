//! Clients with proofs, without, and with those of others, against a node that wants one.

mod common;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use common::network::{PATIENCE, READ, capsule};
use common::{TestClient, TestNode, pattern, until};
use extent::wire::{
    Command, PROOF_MAGIC, REFUSAL_MAGIC, REPLY_BYTES, Refusal, STREAM_MAGIC, StreamHello,
};
use extent::{Kind, Proof, Result, TenantName};
use forebay_rdma::{
    Fabric, Fabrics, Gate, Listener, ListenerOptions, SessionId, ShmOptions, TcpChannel,
    TcpTransport, Transport,
};

/// Lets in whoever shows a proof that is left, once for each time that it is listed.
#[derive(Debug, Default)]
struct Guard {
    left: Mutex<HashMap<[u8; 16], u32>>,
    asked: Mutex<u32>,
}

impl Guard {
    fn with(proof: &Proof, connections: u32) -> Arc<Self> {
        let guard = Self::default();
        guard.left.lock().expect("sound").insert(*proof.expose(), connections);
        Arc::new(guard)
    }

    fn asked(&self) -> u32 {
        *self.asked.lock().expect("sound")
    }
}

impl Gate for Guard {
    fn admit(&self, proof: Option<&Proof>) -> Result<TenantName> {
        *self.asked.lock().expect("sound") += 1;
        let proof = proof.ok_or_else(|| Kind::Denied.error("show a proof: ask for one"))?;
        let mut left = self.left.lock().expect("sound");
        let left = left.get_mut(proof.expose()).filter(|left| **left > 0);
        *left.ok_or_else(|| Kind::Denied.error("that proof is no good"))? -= 1;
        "t".parse()
    }
}

fn proof(seed: u8) -> Proof {
    Proof::from_bytes([seed; 16]).expect("not zero")
}

struct Guarded {
    listener: TcpListener,
    node: TestNode<TcpTransport>,
    guard: Arc<Guard>,
}

impl Guarded {
    fn new(guard: Arc<Guard>) -> Self {
        let transport = TcpTransport::new(SessionId::base(Fabric::Tcp, 0)).expect("an epoll");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut node = TestNode::new(transport, 4);
        node.add_file("s/file", pattern(1000));
        Self { listener, node, guard }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }

    fn accept(&mut self) {
        let (stream, peer) = self.listener.accept().expect("a client");
        let gate = Arc::clone(&self.guard) as Arc<dyn Gate>;
        self.node.transport.adopt_through(gate, stream, peer.to_string()).expect("room");
    }

    fn connect(&mut self, proof: Option<Proof>) -> Result<TestClient<TcpChannel>> {
        let address = self.address();
        let connecting = thread::spawn(move || {
            TcpChannel::connect_with_proof(address, PATIENCE, proof.as_ref())
        });
        self.accept();
        until(&mut self.node, |_| connecting.is_finished());
        connecting.join().expect("no panic").map(|channel| TestClient::new(channel, 4096))
    }

    fn refusal(&mut self, proof: Option<Proof>) -> String {
        let error = self.connect(proof).map(drop).expect_err("let in");
        assert_eq!(error.kind(), Kind::Denied, "{error}");
        error.to_string()
    }

    /// What the node says to these bytes until it hangs up.
    fn answer(&mut self, said: &[u8]) -> Vec<u8> {
        let mut stream = self.begin(said);
        self.rest_of(&mut stream)
    }

    fn begin(&mut self, said: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address()).expect("listening");
        stream.write_all(said).expect("room");
        self.accept();
        stream.set_nonblocking(true).expect("a socket");
        stream
    }

    fn rest_of(&mut self, stream: &mut TcpStream) -> Vec<u8> {
        let (mut heard, mut buffer, mut over) = (Vec::new(), [0; 4096], false);
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

#[test]
fn nobody_comes_in_without_a_proof_or_with_one_that_is_used_up() {
    let mut node = Guarded::new(Guard::with(&proof(7), 2));
    assert!(node.refusal(None).contains("ask for one"));
    assert!(node.refusal(Some(proof(8))).contains("no good"));
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = node.connect(Some(proof(7))).expect("a good proof");
        let serving = &mut node.node;
        client.open("s/file", READ, &mut || _ = serving.step()).expect("a session like any other");
        clients.push(client);
    }
    assert!(node.refusal(Some(proof(7))).contains("no good"), "used twice already");
    assert_eq!((node.node.opened.len(), node.node.closed.len()), (2, 0), "the shard saw two");
    assert_eq!((node.node.transport.sessions(), node.guard.asked()), (2, 5));
}

#[test]
fn what_is_no_greeting_is_not_asked_about() {
    let mut node = Guarded::new(Guard::with(&proof(7), 9));
    let mut torn = PROOF_MAGIC.to_vec();
    torn.extend([7; 16]);
    torn.extend(b"FOREBAY2");
    let twice = [&PROOF_MAGIC[..], &[7; 16], &PROOF_MAGIC, &[7; 16], &STREAM_MAGIC].concat();
    for said in [&torn[..], &twice, b"FOREBAYQ", &[0; 64]] {
        assert_eq!(node.answer(said), b"", "not a byte to strangers");
    }
    assert_eq!((node.guard.asked(), node.node.transport.sessions()), (0, 0));
    // Half of a proof, and then the end.
    let stream = node.begin(&[&PROOF_MAGIC[..], &[7; 9]].concat());
    node.node.step();
    drop(stream);
    until(&mut node.node, |node| node.transport.sessions() == 0);
    assert_eq!(node.guard.asked(), 0);
    // Zeroes in a proof's place are none, here as over RDMA.
    let refused = node.answer(&[&PROOF_MAGIC[..], &[0; 16], &STREAM_MAGIC].concat());
    let error = Refusal::parse(&REFUSAL_MAGIC, &refused).expect("a refusal");
    assert!(error.kind() == Kind::Denied && error.to_string().contains("ask for one"), "{error}");
    assert!(node.node.opened.is_empty() && node.node.closed.is_empty());
}

#[test]
fn a_proof_may_come_byte_by_byte_and_requests_right_behind_it() {
    let mut node = Guarded::new(Guard::with(&proof(7), 9));
    let hello = Command::Hello { versions: (1, 1), credits: 8, features: 0 };
    let said = [StreamHello::encode(Some(&proof(7))), capsule(1, hello)].concat();
    let mut stream = node.begin(&said[..1]);
    for byte in &said[1..] {
        (&stream).write_all(&[*byte]).expect("room");
        node.node.step();
    }
    let mut heard = vec![0; STREAM_MAGIC.len() + REPLY_BYTES];
    let mut filled = 0;
    until(&mut node.node, |_| {
        filled += stream.read(&mut heard[filled..]).unwrap_or(0);
        filled == heard.len()
    });
    assert_eq!(heard[..8], STREAM_MAGIC);
    assert_eq!(node.node.opened.len(), 1);
}

#[test]
fn a_listener_asks_its_gate() {
    let fabrics = Fabrics::new(0, ShmOptions::default(), None).expect("descriptors");
    let guard = Guard::with(&proof(7), 1);
    let options = ListenerOptions {
        tcp: vec![([127, 0, 0, 1], 0).into()],
        gate: Arc::clone(&guard) as Arc<dyn Gate>,
        ..ListenerOptions::default()
    };
    let listener = Listener::start(options, vec![fabrics.inbox()]).expect("free");
    let address = listener.local_addr().expect("bound");
    let mut node = TestNode::new(fabrics, 4);
    let mut connect = |proof: Option<Proof>| {
        let connecting = thread::spawn(move || {
            TcpChannel::connect_with_proof(address, PATIENCE, proof.as_ref()).map(drop)
        });
        until(&mut node, |_| connecting.is_finished());
        connecting.join().expect("no panic").map_err(|error| error.kind())
    };
    assert_eq!(connect(None), Err(Kind::Denied));
    assert_eq!(connect(Some(proof(7))), Ok(()));
    assert_eq!(connect(Some(proof(7))), Err(Kind::Denied));
    assert_eq!(guard.asked(), 3);
}
