//! `docs/protocol.md` against the code: its examples, and a client that was written from it.

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{TestNode, pattern};
use extent::wire::{Command, Downstream, HelloBody, REPLY_BYTES, Request, STREAM_MAGIC};
use forebay_rdma::{Fabric, SessionId, TcpTransport};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace")
}

/// The bytes of every block that is marked `hex`, in order.
fn examples() -> Vec<Vec<u8>> {
    let page = fs::read_to_string(repository().join("docs/protocol.md")).expect("the page");
    let blocks = page.split("```hex\n").skip(1).map(|block| block.split("```").next());
    blocks
        .map(|block| {
            let byte = |text: &str| u8::from_str_radix(text, 16).expect("two digits");
            block.expect("split gives one").split_whitespace().map(byte).collect()
        })
        .collect()
}

#[test]
fn the_examples_of_the_page_are_what_the_code_says() {
    let examples = examples();
    let [hello, welcome, read, refusal] = &examples[..] else {
        panic!("{} examples", examples.len());
    };
    let (magic, hello) = hello.split_at(STREAM_MAGIC.len());
    assert_eq!(magic, STREAM_MAGIC);
    let request = Request::parse(hello).expect("a capsule");
    let expected = Command::Hello { versions: (1, 1), credits: 16, features: 0 };
    assert_eq!((request.tag, request.command), (1, expected));

    let (magic, welcome) = welcome.split_at(STREAM_MAGIC.len());
    assert_eq!(magic, STREAM_MAGIC);
    let reply = downstream(welcome);
    assert_eq!((reply.tag, reply.status, reply.credits), (1, Ok(()), 16));
    let body = HelloBody::parse(&reply.body).expect("a body");
    assert_eq!((body.version, body.credits, body.block_bytes), (1, 16, 4096));
    assert_eq!((body.features, body.max_transfer_bytes), (0, 16 << 20));

    let request = Request::parse(read).expect("a capsule");
    let Command::Read { handle, range, into } = request.command else { panic!("{request:?}") };
    assert_eq!((request.tag, request.payload_crc, handle), (2, Some(0), 1));
    assert_eq!((range.offset(), range.length()), (4096, 10_000));
    let lengths: Vec<u32> = into.as_slice().iter().map(|segment| segment.length).collect();
    assert_eq!(lengths, [4000, 6000]);

    let reply = downstream(refusal);
    let error = reply.error().expect("an error");
    assert_eq!((reply.tag, error.kind()), (2, extent::Kind::NotFound));
    assert_eq!(error.context(), "handle 1 is not open in this session");
}

fn downstream(bytes: &[u8]) -> extent::wire::Reply {
    let header = bytes.first_chunk::<REPLY_BYTES>().expect("a header");
    match Downstream::parse(header).expect("a reply") {
        Downstream::Reply(reply, body) => {
            assert_eq!(bytes.len(), REPLY_BYTES + body);
            Downstream::attach(reply, &bytes[REPLY_BYTES..]).expect("a body")
        }
        Downstream::Data(_) => panic!("a reply"),
    }
}

#[test]
fn a_client_written_from_the_page_is_understood() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port().to_string();
    listener.set_nonblocking(true).expect("a socket");
    let over = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&over);
    let node = thread::spawn(move || {
        let base = SessionId::base(Fabric::Tcp, 0);
        let mut node = TestNode::new(TcpTransport::new(base).expect("an epoll"), 4);
        node.add_file("silo/some/key", pattern(100_000));
        while !stopping.load(Ordering::Acquire) {
            if let Ok((stream, peer)) = listener.accept() {
                node.transport.adopt(stream, peer.to_string()).expect("room");
            }
            if !node.step() {
                thread::yield_now();
            }
        }
        node
    });
    let script = repository().join("client/tests/protocol_client.py");
    let run = |arguments: &[&str]| {
        let mut python = Process::new("python3");
        python.arg(&script).args(["127.0.0.1", &port]).args(arguments);
        python.output().expect("python3 is installed")
    };
    let read = run(&["read", "silo/some/key", "77", "5000"]);
    let trip = run(&["roundtrip", "silo/new", "1200001"]);
    let small = run(&["roundtrip", "silo/new", "1"]);
    let none = run(&["read", "silo/none", "0", "1"]);
    over.store(true, Ordering::Release);
    let node = node.join().expect("no panic");
    assert!(read.status.success() && read.stdout == pattern(100_000)[77..5077], "{read:?}");
    assert!(trip.status.success() && small.status.success(), "{trip:?} {small:?}");
    assert!(!none.status.success());
    assert!(String::from_utf8_lossy(&none.stderr).contains("not_found"), "{none:?}");
    assert_eq!((node.buffers_out(), node.completed.1), (0, 0));
}
