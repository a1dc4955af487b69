//! Shared memory end to end: a small node in one thread, clients in others.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dma::{Buffer, HugePages, Pool, Region, SizeClass, Source, Target, Window};
use extent::checksum::crc32c;
use extent::wire::{Command, Reply, Request, Segment, Segments};
use extent::{ByteRange, Kind};
use forebay_rdma::shm::{ShmChannel, ShmConnection, ShmOptions, ShmTransport, handshake};
use forebay_rdma::{Channel, Event, Fabric, SessionId, Token, Transfer, Transport};

/// For ever, as far as tests are concerned: only a lost wake-up waits for so long, and then
/// [`bounded`] gives up.
const LONG: Duration = Duration::from_secs(3600);

/// What a node thread did, for the tests to check.
#[derive(Default, Debug)]
struct Tally {
    opened: Vec<SessionId>,
    closed: Vec<(SessionId, Kind)>,
    mapped: usize,
    unmapped: usize,
    slept: usize,
    buffers_out: usize,
}

/// A node that answers PING at once, READ with bytes that tell their offset in the file, and WRITE
/// with the checksum of what it got. An even handle reads straight into the client's memory.
struct TinyNode {
    transport: ShmTransport,
    pool: Pool,
    arriving: Receiver<ShmConnection>,
    waker: UnixStream,
    /// Reads and writes under way: tag and bytes, by token.
    under_way: Vec<(u32, usize)>,
    spins: u32,
    tally: Tally,
}

impl TinyNode {
    fn run(mut self) -> Tally {
        let (mut events, mut empty, mut stopping) = (Vec::new(), 0, false);
        while !stopping || self.transport.sessions() != 0 {
            self.transport.poll(&mut events);
            empty = if events.is_empty() { empty + 1 } else { 0 };
            events.drain(..).for_each(|event| self.on_event(event));
            self.transport.kick();
            if empty > self.spins && self.transport.arm() {
                self.tally.slept += 1;
                stopping |= self.sleep();
                self.transport.disarm(true);
                empty = 0;
            }
        }
        self.tally.buffers_out = self.pool.usage().iter().map(|class| class.taken).sum();
        self.tally
    }

    /// Sleeps for as long as nothing happens. Whether the test wants the node to stop.
    fn sleep(&mut self) -> bool {
        let readiness = self.transport.readiness().expect("shared memory has one").as_raw_fd();
        let wanted = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut files = [wanted(readiness), wanted(self.waker.as_raw_fd())];
        // SAFETY: two pollfds that live until the call returns.
        unsafe { libc::poll(files.as_mut_ptr(), 2, -1) };
        if files[1].revents == 0 {
            return false;
        }
        let woken = std::io::Read::read(&mut self.waker, &mut [0; 64]).expect("a socket");
        for connection in self.arriving.try_iter() {
            self.transport.adopt(connection).expect("room");
        }
        woken == 0
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Opened { session, fabric: Fabric::SharedMemory, .. } => {
                self.tally.opened.push(session);
            }
            Event::Request { session, capsule, length } => {
                let request = Request::parse(&capsule[..length]).expect("an honest client");
                self.on_request(session, &request);
            }
            Event::Written { session, token, result, .. } => {
                result.expect("inside");
                let (tag, bytes) = self.under_way[usize::try_from(token.0).expect("small")];
                let reply = Reply { value: bytes as u64, ..Reply::success(tag) };
                self.transport.post_reply(session, &reply);
            }
            Event::Read { session, token, into, result } => {
                result.expect("inside");
                let (tag, bytes) = self.under_way[usize::try_from(token.0).expect("small")];
                let buffer = into.into_buffer().expect("a buffer");
                let payload_crc = crc32c(&buffer.as_slice()[..bytes]);
                let reply = Reply { value: bytes as u64, payload_crc, ..Reply::success(tag) };
                self.transport.post_reply(session, &reply);
            }
            Event::Mapped { region, .. } => {
                assert!(region.is_shared());
                self.tally.mapped += 1;
            }
            Event::Unmapped { .. } => self.tally.unmapped += 1,
            Event::Closed { session, reason } => self.tally.closed.push((session, reason.kind())),
            other => panic!("{other:?}"),
        }
    }

    fn on_request(&mut self, session: SessionId, request: &Request) {
        let tag = request.tag;
        match request.command {
            Command::Ping => self.transport.post_reply(session, &Reply::success(tag)),
            Command::Read { handle, range, into } if handle.is_multiple_of(2) => {
                let mut at = range.offset();
                for segment in into.as_slice() {
                    let window = self.transport.map(session, *segment).expect("inside");
                    let bytes: Vec<u8> =
                        (at..).take(segment.length as usize).map(byte_at).collect();
                    window.expect("shared").copy_in(&bytes);
                    at += bytes.len() as u64;
                }
                let reply = Reply { value: range.length(), ..Reply::success(tag) };
                self.transport.post_reply(session, &reply);
            }
            Command::Read { range, into, .. } => {
                let bytes = usize::try_from(range.length()).expect("small");
                let mut buffer = self.take(bytes);
                for (place, at) in buffer.as_mut_slice()[..bytes].iter_mut().zip(range.offset()..) {
                    *place = byte_at(at);
                }
                let transfer = self.transfer(tag, bytes, into);
                self.transport.post_write(session, transfer, Source::Buffer(buffer, 0..bytes));
            }
            Command::Write { range, from, .. } => {
                let bytes = usize::try_from(range.length()).expect("small");
                let buffer = self.take(bytes);
                let transfer = self.transfer(tag, bytes, from);
                self.transport.post_read(session, transfer, Target::Buffer(buffer, 0..bytes));
            }
            other => panic!("{other:?}"),
        }
    }

    fn take(&self, bytes: usize) -> Buffer {
        self.pool.take(bytes).expect("transfers end before the next poll")
    }

    fn transfer(&mut self, tag: u32, bytes: usize, segments: Segments) -> Transfer {
        self.under_way.push((tag, bytes));
        let token = Token(self.under_way.len() as u64 - 1);
        Transfer { token, tag, segments, at: 0 }
    }
}

fn byte_at(offset: u64) -> u8 {
    (offset % 251).to_le_bytes()[0]
}

/// One test runs at a time: one of them counts the descriptors of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node in its thread, and the way to it.
struct Harness {
    node: JoinHandle<Tally>,
    arriving: SyncSender<ShmConnection>,
    waker: UnixStream,
    alone: MutexGuard<'static, ()>,
}

impl Harness {
    fn start(spins: u32) -> Self {
        let alone = alone();
        let (arriving, receiver) = sync_channel(64);
        let (waker, woken) = UnixStream::pair().expect("sockets");
        let node = thread::spawn(move || {
            let base = SessionId::base(Fabric::SharedMemory, 0).0;
            let sizes = [SizeClass { bytes: 1 << 20, count: 40 }];
            let node = TinyNode {
                transport: ShmTransport::new(base, ShmOptions::default()).expect("descriptors"),
                pool: Pool::new(&sizes, HugePages::Never).expect("memory"),
                arriving: receiver,
                waker: woken,
                under_way: Vec::new(),
                spins,
                tally: Tally::default(),
            };
            node.run()
        });
        Self { node, arriving, waker, alone }
    }

    fn connect(&self, slots: u32) -> ShmChannel {
        let (client, server) = UnixStream::pair().expect("sockets");
        let client = thread::spawn(move || ShmChannel::over_stream(client, LONG, slots));
        let connection = handshake(server, &ShmOptions::default()).expect("an honest client");
        assert!(connection.peer().contains(&std::process::id().to_string()));
        self.arriving.send(connection).expect("a node");
        std::io::Write::write_all(&mut &self.waker, &[1]).expect("a node");
        client.join().expect("no panic").expect("a node")
    }

    /// Has the node stop once all clients are gone.
    fn stop(self) -> Tally {
        self.stop_alone().0
    }

    /// The same, and the caller is still alone.
    fn stop_alone(self) -> (Tally, MutexGuard<'static, ()>) {
        drop((self.waker, self.arriving));
        (self.node.join().expect("no panic"), self.alone)
    }
}

/// Runs a test that would otherwise hang where it should fail.
fn bounded(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = sync_channel(1);
    let test = thread::spawn(move || {
        test();
        done.send(()).expect("awaited");
    });
    match ended.recv_timeout(Duration::from_secs(120)) {
        Err(RecvTimeoutError::Timeout) => panic!("a wake-up was lost"),
        _ => test.join().expect("the test passes"),
    }
}

fn request(tag: u32, command: Command) -> Request {
    Request { tag, payload_crc: None, command }
}

/// Waits for `count` replies; sorted by tag.
fn replies(channel: &mut ShmChannel, count: usize) -> Vec<Reply> {
    let mut replies = Vec::new();
    while replies.len() < count {
        channel.wait(LONG).expect("alive");
        channel.poll(&mut replies).expect("alive");
    }
    replies.sort_by_key(|reply| reply.tag);
    assert_eq!(replies.len(), count);
    assert!(replies.iter().all(|reply| reply.status.is_ok()));
    replies
}

fn segment(region: &Arc<Region>, address: u64, length: u32) -> Segment {
    Segment { address, length, key: region.id().0 }
}

fn bytes_of(region: &Arc<Region>, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Window::new(Arc::clone(region), address, length).expect("inside").copy_out(&mut bytes);
    bytes
}

#[test]
fn data_goes_both_ways_into_and_out_of_several_segments() {
    bounded(|| {
        let harness = Harness::start(100);
        let mut channel = harness.connect(64);
        let (first, second) =
            (channel.allocate(100_000).expect("memory"), channel.allocate(1).expect("memory"));
        assert_eq!((first.length(), second.length()), (102_400, 4096));
        let list =
            [segment(&first, 1, 50_000), segment(&second, 7, 4000), segment(&first, 60_000, 9)];
        let segments = Segments::from_slice(&list).expect("few");
        for (tag, handle) in [(0, 1), (1, 2)] {
            let range = ByteRange::new(u64::from(tag) * 10_007 + 3, 54_009).expect("small");
            let read = Command::Read { handle, range, into: segments };
            channel.send(&request(tag, read)).expect("room");
            assert_eq!(replies(&mut channel, 1)[0].value, 54_009);
            let got = [
                bytes_of(&first, 1, 50_000),
                bytes_of(&second, 7, 4000),
                bytes_of(&first, 60_000, 9),
            ]
            .concat();
            let expected: Vec<u8> = (range.offset()..).take(54_009).map(byte_at).collect();
            assert!(got == expected, "other bytes than were read");
            assert_eq!(bytes_of(&first, 50_001, 9999), [0; 9999], "beyond the segment");
            let write = Command::Write { handle, range, from: segments };
            channel.send(&request(tag, write)).expect("room");
            assert_eq!(replies(&mut channel, 1)[0].payload_crc, crc32c(&expected));
        }
        channel.release(&second);
        drop(channel);
        let tally = harness.stop();
        assert_eq!((tally.mapped, tally.unmapped, tally.buffers_out), (2, 2, 0));
        assert_eq!(tally.closed, [(tally.opened[0], Kind::Disconnected)]);
    });
}

#[test]
fn sides_that_sleep_after_every_message_wake_each_other() {
    bounded(|| {
        let harness = Harness::start(0);
        let mut channel = harness.connect(32);
        for tag in 0..20_000 {
            channel.send(&request(tag, Command::Ping)).expect("room");
            channel.kick().expect("alive");
            assert_eq!(replies(&mut channel, 1)[0].tag, tag);
        }
        drop(channel);
        let tally = harness.stop();
        assert!(tally.slept > 1000, "the node hardly slept: {tally:?}");
        assert_eq!(tally.closed.len(), 1);
    });
}

#[test]
fn many_clients_keep_their_rings_full() {
    bounded(|| {
        let harness = Harness::start(50);
        let clients: Vec<_> = (0..6)
            .map(|number| {
                let mut channel = harness.connect(32 << (number % 3));
                thread::spawn(move || {
                    let (mut sent, mut got, mut found) = (0, 0u32, Vec::new());
                    while got < 5000 {
                        while sent < 5000 {
                            match channel.send(&request(sent, Command::Ping)) {
                                Ok(()) => sent += 1,
                                Err(error) if error.kind() == Kind::Busy => break,
                                Err(error) => panic!("{error:?}"),
                            }
                        }
                        channel.kick().expect("alive");
                        channel.poll(&mut found).expect("alive");
                        if found.is_empty() {
                            channel.wait(LONG).expect("alive");
                        }
                        for reply in found.drain(..) {
                            assert_eq!(reply.tag, got, "this node answers in order");
                            got += 1;
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().expect("no panic"));
        let tally = harness.stop();
        assert_eq!(tally.opened.len(), 6);
        let mut closed: Vec<SessionId> = tally.closed.iter().map(|(session, _)| *session).collect();
        closed.sort();
        assert_eq!(closed, tally.opened);
    });
}

#[test]
fn a_client_hears_of_the_nodes_end_while_it_polls_and_while_it_sleeps() {
    bounded(|| {
        let _alone = alone();
        for sleeps in [false, true] {
            let (client, server) = UnixStream::pair().expect("sockets");
            let node = thread::spawn(move || {
                let options = ShmOptions::default();
                let mut transport = ShmTransport::new(0, options.clone()).expect("descriptors");
                transport.adopt(handshake(server, &options).expect("a hello")).expect("room");
                let mut events = Vec::new();
                // One reply, and then it dies without a word.
                loop {
                    transport.poll(&mut events);
                    for event in events.drain(..) {
                        if let Event::Request { session, .. } = event {
                            transport.post_reply(session, &Reply::success(7));
                            transport.kick();
                            return;
                        }
                    }
                }
            });
            let mut channel = ShmChannel::over_stream(client, LONG, 32).expect("a node");
            channel.send(&request(7, Command::Ping)).expect("room");
            channel.send(&request(8, Command::Ping)).expect("room");
            channel.kick().expect("alive");
            node.join().expect("no panic");
            let mut found = Vec::new();
            let end = (0..1000).find_map(|_| {
                let waited = if sleeps { channel.wait(LONG) } else { Ok(()) };
                waited.and_then(|()| channel.poll(&mut found)).err()
            });
            assert_eq!(end.expect("within a few polls").kind(), Kind::Disconnected);
            assert_eq!(found.iter().map(|reply| reply.tag).collect::<Vec<_>>(), [7]);
            let after = [
                channel.send(&request(9, Command::Ping)),
                channel.kick(),
                channel.wait(LONG),
                channel.allocate(1).map(drop),
            ];
            assert!(after.into_iter().all(|r| r.expect_err("over").kind() == Kind::Disconnected));
        }
    });
}

#[test]
fn regions_come_and_go_without_leaving_anything_behind() {
    let harness = Harness::start(10);
    let mut channel = harness.connect(32);
    let open_files = || std::fs::read_dir("/proc/self/fd").expect("Linux").count();
    let mappings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux");
        maps.lines().filter(|line| line.contains("memfd:forebay")).count()
    };
    let cycle = |channel: &mut ShmChannel| {
        let region = channel.allocate(8192).expect("memory");
        channel.release(&region);
    };
    // The node has let go of a region once it answers what was asked after the release.
    let settle = |channel: &mut ShmChannel| {
        channel.send(&request(0, Command::Ping)).expect("room");
        replies(channel, 1);
    };
    cycle(&mut channel);
    settle(&mut channel);
    let before = (open_files(), mappings());
    (0..3000).for_each(|_| cycle(&mut channel));
    settle(&mut channel);
    assert_eq!((open_files(), mappings()), before);
    // Sessions, too: each with two regions that it does not release.
    for _ in 0..200 {
        let mut another = harness.connect(32);
        another.allocate(1).expect("memory");
        another.allocate(1).expect("memory");
    }
    let regions: Vec<_> = (0..64).map(|_| channel.allocate(1).expect("within bounds")).collect();
    assert_eq!(channel.allocate(1).expect_err("one too many").kind(), Kind::Busy);
    channel.release(&regions[3]);
    channel.allocate(1).expect("room again");
    drop((channel, regions));
    let (tally, _alone) = harness.stop_alone();
    assert_eq!((tally.opened.len(), tally.closed.len()), (201, 201));
    assert_eq!((tally.mapped, tally.unmapped), (3466, 3466));
    // A socket and the doorbell on either side, the node's epoll, the two ends of its waker.
    assert_eq!(open_files(), before.0 - 7);
    assert_eq!(mappings(), 0);
}

#[test]
fn a_path_connects_and_a_missing_one_says_so() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("forebay.sock");
    let error = ShmChannel::connect(&path, LONG, 32).expect_err("nobody there");
    assert_eq!(error.kind(), Kind::Disconnected);
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let node = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        assert_eq!(stream.as_fd().as_raw_fd(), stream.as_raw_fd());
        handshake(stream, &ShmOptions::default()).expect("a hello");
    });
    let channel = ShmChannel::connect(&path, LONG, 32).expect("connected");
    assert_eq!(channel.fabric(), Fabric::SharedMemory);
    node.join().expect("no panic");
}

/// For a performance engineer: `cargo test --release -p forebay-rdma --test shm -- --ignored --nocapture`.
#[test]
#[ignore = "measures, and asserts nothing about time"]
#[expect(clippy::print_stdout, reason = "a measurement is for reading")]
fn round_trips_and_throughput() {
    const TRIPS: u32 = 1_000_000;
    let harness = Harness::start(1_000_000);
    let mut channel = harness.connect(256);
    let mut found = Vec::with_capacity(256);
    for depth in [1, 16, 128] {
        #[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
        let start = std::time::Instant::now();
        let (mut sent, mut got) = (0, 0);
        while got < TRIPS {
            while sent < TRIPS && sent - got < depth {
                channel.send(&request(sent, Command::Ping)).expect("room");
                sent += 1;
            }
            channel.kick().expect("alive");
            channel.poll(&mut found).expect("alive");
            got += u32::try_from(found.len()).expect("few");
            found.clear();
        }
        let took = start.elapsed();
        let rate = f64::from(TRIPS) / took.as_secs_f64();
        println!("depth {depth}: {:?} a request, {:.2} M/s", took / TRIPS, rate / 1e6);
    }
    drop(channel);
    assert_eq!(harness.stop().closed.len(), 1);
}
