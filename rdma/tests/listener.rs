//! Listeners and shards as in a node: threads that sleep until somebody comes.

mod common;

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{TestClient, TestNode, pattern, range};
use extent::wire::{Command, OpenMode, Segments};
use extent::{Generation, Kind};
use forebay_rdma::{
    Channel, Fabric, Fabrics, Inbox, Listener, ListenerOptions, ShmChannel, ShmOptions, TcpChannel,
    Transport,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A shard that sleeps for as long as it takes: a lost wake-up would hang the test.
struct Shard {
    inbox: Inbox,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<TestNode<Fabrics>>,
}

impl Shard {
    fn start(number: u16) -> Self {
        let fabrics = Fabrics::new(number, ShmOptions::default(), None).expect("descriptors");
        let inbox = fabrics.inbox();
        let stop = Arc::new(AtomicBool::new(false));
        let mut node = TestNode::new(fabrics, 4);
        node.add_file("s/file", pattern(300_000));
        let stopping = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopping.load(Ordering::Acquire) || node.transport.sessions() > 0 {
                if !node.step() && node.transport.arm() {
                    sleep_on(node.transport.readiness().expect("a descriptor"));
                    node.transport.disarm(true);
                }
            }
            node
        });
        Self { inbox, stop, thread }
    }
}

#[expect(unsafe_code, reason = "the standard library cannot wait for a descriptor")]
fn sleep_on(fd: BorrowedFd<'_>) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, alive until the call returns.
    unsafe { libc::poll(&raw mut poll, 1, -1) };
}

/// Opens the file and reads all of it; the shard runs by itself.
fn use_file(client: &mut TestClient<impl Channel>) {
    let mut turn = || thread::yield_now();
    let open = client.open("s/file", OpenMode::Read(Generation(0)), &mut turn);
    let handle = open.expect("connected").value;
    let into = Segments::one(client.segment(0, 300_000));
    client.send(Command::Read { handle, range: range(0, 300_000), into }, None);
    client.finish(&mut turn).expect("connected");
    assert!(client.bytes(0, 300_000) == pattern(300_000));
}

#[test]
fn clients_of_all_fabrics_are_spread_over_sleeping_shards() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("node.sock");
    let shards: Vec<Shard> = (0..2).map(Shard::start).collect();
    let options = ListenerOptions {
        tcp: vec!["127.0.0.1:0".parse().expect("an address")],
        unix: Some(path.clone()),
        max_sessions: 8,
        ..ListenerOptions::default()
    };
    let inboxes = shards.iter().map(|shard| shard.inbox.clone()).collect();
    let listener = Listener::start(options, inboxes).expect("free");
    let address = listener.local_addr().expect("bound");

    // Somebody who connects and says nothing keeps nobody waiting.
    let silent = UnixStream::connect(&path).expect("listening");
    let mut streams = Vec::new();
    let mut locals = Vec::new();
    for _ in 0..4 {
        let channel = TcpChannel::connect(address, PATIENCE).expect("room");
        streams.push(TestClient::new(channel, 300_000));
        use_file(streams.last_mut().expect("just pushed"));
        let channel = ShmChannel::connect(&path, PATIENCE, 64).expect("room");
        locals.push(TestClient::new(channel, 300_000));
        use_file(locals.last_mut().expect("just pushed"));
    }
    let spread: Vec<usize> = shards.iter().map(|shard| shard.inbox.sessions()).collect();
    assert_eq!(spread, [4, 4]);
    let error = TcpChannel::connect(address, PATIENCE).expect_err("full");
    assert_eq!(error.kind(), Kind::Disconnected, "{error}");
    assert!(ShmChannel::connect(&path, PATIENCE, 64).is_err());
    streams.iter_mut().for_each(use_file);
    locals.iter_mut().for_each(use_file);

    drop(listener);
    assert!(TcpStream::connect(address).is_err() && !path.exists());
    use_file(&mut streams[0]);
    shards.iter().for_each(|shard| shard.stop.store(true, Ordering::Release));
    drop((streams, locals, silent));
    for (shard, number) in shards.into_iter().zip(0u64..) {
        let node = shard.thread.join().expect("no panic");
        assert_eq!((node.buffers_out(), node.transfers_in_flight()), (0, 0));
        assert_eq!((node.opened.len(), node.closed.len()), (4, 4));
        for (session, _) in node.opened {
            assert_eq!(session.0 >> 48 & 0xFFF, number);
            assert!(matches!(session.fabric(), Fabric::Tcp | Fabric::SharedMemory));
        }
    }
}

#[test]
fn addresses_in_use_are_refused_with_a_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let inboxes =
        || vec![Fabrics::new(0, ShmOptions::default(), None).expect("descriptors").inbox()];
    let at = |port: u16, name: &str| ListenerOptions {
        tcp: vec![([127, 0, 0, 1], port).into()],
        unix: Some(directory.path().join(name)),
        ..ListenerOptions::default()
    };
    let first = Listener::start(at(0, "a"), inboxes()).expect("free");
    let port = first.local_addr().expect("bound").port();
    let error = Listener::start(at(port, "b"), inboxes()).expect_err("in use");
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains(&port.to_string()), "{error}");
    let error = Listener::start(at(0, "a"), inboxes()).expect_err("in use");
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert!(directory.path().join("a").exists() && !directory.path().join("b").exists());
    let elsewhere =
        ListenerOptions { tcp: vec![([192, 0, 2, 1], 0).into()], ..ListenerOptions::default() };
    let error = Listener::start(elsewhere, inboxes()).expect_err("not this host");
    assert_eq!(error.kind(), Kind::Invalid);
    assert_eq!(Listener::start(at(0, "c"), vec![]).expect_err("no shard").kind(), Kind::Invalid);
    drop(first);
    Listener::start(at(port, "a"), inboxes()).expect("free again");
}

#[test]
fn an_inbox_that_nobody_empties_refuses_instead_of_growing() {
    let fabrics = Fabrics::new(0, ShmOptions::default(), None).expect("descriptors");
    let options = ListenerOptions {
        tcp: vec![([127, 0, 0, 1], 0).into()],
        max_sessions: 3,
        ..ListenerOptions::default()
    };
    let listener = Listener::start(options, vec![fabrics.inbox()]).expect("free");
    let address = listener.local_addr().expect("bound");
    let waiting: Vec<_> = (0..3).map(|_| TcpStream::connect(address).expect("listening")).collect();
    let mut refused = TcpStream::connect(address).expect("listening");
    assert_eq!(refused.read(&mut [0]).expect("closed in order"), 0);
    assert_eq!(fabrics.inbox().sessions(), 3);
    drop(waiting);
}
