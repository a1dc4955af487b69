//! How sessions share what a device has room for: counted in work requests, so that it is the same on every
//! machine.

use std::collections::HashMap;
use std::net::IpAddr;

use dma::{Pool, SizeClass, Source};
use extent::wire::{Command, Request, Segments};

use super::*;
use crate::{
    Channel, Event, Fabrics, Listener, ListenerOptions, SessionId, ShmOptions, Token, Transfer,
    Transport, VerbsChannel, VerbsOptions,
};

/// Work requests that the device has room for, in this test.
const ROOM: u32 = 32;
/// Transfers that the greedy session has asked for at any time.
const GREEDY: usize = 1000;
/// Transfers of the modest one, each after the one before.
const TURNS: usize = 200;
/// Transfers of others that may end between a modest session's asking and its end: what the device had taken
/// by then, and as much again three times, since devices choose between queue pairs as they like.
const MOST: usize = 4 * ROOM as usize;
const BYTES: usize = 4096;

/// A client that lends a node its memory, by a request that is never answered.
fn lender(address: SocketAddr) -> VerbsChannel {
    let mut channel =
        VerbsChannel::connect(address, PATIENCE, 8, VerbsOptions::default()).expect("connected");
    let region = channel.allocate(BYTES).expect("memory");
    let segment = extent::wire::Segment { address: 0, length: 4096, key: region.id().0 };
    let range = extent::ByteRange::new(0, 4096).expect("in bounds");
    let command = Command::Read { handle: 1, range, into: Segments::one(segment) };
    channel.send(&Request { tag: 1, payload_crc: None, command }).expect("room");
    channel.kick().expect("connected");
    channel
}

struct Shard {
    fabrics: Fabrics,
    pool: Pool,
    /// What each session lent, in the order in which they came.
    lent: Vec<(SessionId, Segments)>,
    /// Transfers of each that ended.
    ended: HashMap<SessionId, usize>,
    events: Vec<Event>,
}

impl Shard {
    fn turn(&mut self) {
        self.fabrics.poll(&mut self.events);
        for event in self.events.drain(..) {
            match event {
                Event::Request { session, capsule, length } => {
                    let request = Request::parse(&capsule[..length]).expect("a sound one");
                    let Command::Read { into, .. } = request.command else { panic!("a READ") };
                    self.lent.push((session, into));
                }
                Event::Written { session, result, .. } => {
                    result.expect("the session is sound");
                    *self.ended.entry(session).or_default() += 1;
                }
                Event::Closed { reason, .. } => panic!("{reason}"),
                _ => {}
            }
        }
        self.fabrics.kick();
    }

    fn ended(&self, session: SessionId) -> usize {
        self.ended.get(&session).copied().unwrap_or_default()
    }

    fn write(&mut self, (session, segments): (SessionId, Segments)) {
        let from = Source::Buffer(self.pool.take(1).expect("as many as are asked for"), 0..BYTES);
        let transfer = Transfer { token: Token(0), tag: 1, segments, at: 0 };
        self.fabrics.post_write(session, transfer, from);
    }
}

#[test]
#[ignore = "needs RDMA devices: runs in the lab"]
#[expect(clippy::print_stderr, reason = "the figures that it is for")]
fn a_greedy_session_leaves_a_modest_one_its_share() {
    let ip = std::env::var("FOREBAY_TEST_RDMA").expect("FOREBAY_TEST_RDMA names addresses");
    let ip: IpAddr = ip.split(',').next().expect("one").parse().expect("an address");
    let mut fabrics =
        Fabrics::new(0, ShmOptions::default(), Some(VerbsOptions::default())).expect("RDMA");
    let options =
        ListenerOptions { rdma: vec![SocketAddr::new(ip, 0)], ..ListenerOptions::default() };
    let listener = Listener::start(options, vec![fabrics.inbox()]).expect("a port");
    let address = listener.rdma_addrs()[0];
    let pool = Pool::new(&[SizeClass { bytes: BYTES, count: GREEDY + 1 }], HugePages::Never);
    let pool = pool.expect("memory");
    fabrics.register(pool.region()).expect("memory that may be locked");
    let (lent, ended, events) = (Vec::new(), HashMap::new(), Vec::new());
    let mut shard = Shard { fabrics, pool, lent, ended, events };
    let connecting = thread::spawn(move || [lender(address), lender(address)]);
    for _ in 0..MANY {
        shard.turn();
        if shard.lent.len() == 2 {
            break;
        }
        thread::yield_now();
    }
    let clients = connecting.join().expect("no panic");
    let (greedy, modest) = (shard.lent[0], shard.lent[1]);
    shard.fabrics.verbs_mut().expect("RDMA").leave_room(ROOM);
    let (mut asked, mut most, mut total) = (0, 0, 0);
    for turn in 0..TURNS {
        while asked - shard.ended(greedy.0) < GREEDY {
            shard.write(greedy);
            asked += 1;
        }
        let before = shard.ended(greedy.0);
        shard.write(modest);
        for _ in 0..MANY {
            shard.turn();
            if shard.ended(modest.0) > turn {
                break;
            }
        }
        assert_eq!(shard.ended(modest.0), turn + 1, "it waits for ever");
        let between = shard.ended(greedy.0) - before;
        most = most.max(between);
        total += between;
    }
    eprintln!(
        "with room for {ROOM} and {GREEDY} asked for by the other: {total} of the other's between \
         {TURNS} of its own, at most {most}"
    );
    assert!(most <= MOST, "{most} of the other's ended first");
    assert!(total >= TURNS, "the greedy one was there all the while");
    drop(clients);
}
