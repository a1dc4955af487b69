//! Clients that come, work and go over simulated devices while things go wrong.

use std::sync::LazyLock;

use crate::common::{TestClient, TestNode, pattern, range};
use extent::wire::{Command, OpenMode, Segments};
use extent::{Generation, Kind, Result};
use forebay_rdma::{
    Channel, Fabric, SessionId, SimVerbs, SimVerbsChannel, SimVerbsOptions, SimVerbsTransport,
    SimVerbsUsage, Transport,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub(crate) const CREDITS: u16 = 16;
/// How often a test looks before it takes the other side for hung.
const MANY: usize = 2_000_000;
/// Work requests and receives that may end because their queue pair is broken: who posts on to one makes
/// more of them.
const MOST_FLUSHED: u64 = 1500;
const FILE_BYTES: usize = 200_000;
/// Between what two requests of a client use of its memory.
const APART: usize = FILE_BYTES + 64;
const READ: OpenMode = OpenMode::Read(Generation(0));

static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(FILE_BYTES));

pub(crate) type Node = TestNode<SimVerbsTransport>;
pub(crate) type Client = TestClient<SimVerbsChannel>;

/// A node on a network.
pub(crate) fn node(network: &SimVerbs) -> Node {
    let base = SessionId::base(Fabric::Verbs, 0);
    let mut node = TestNode::new(network.transport(base).expect("simulated"), 3);
    node.add_file("s/file", FILE.clone());
    node
}

/// A step, and now and then what a shard does that would sleep.
pub(crate) fn turn(node: &mut Node) {
    if !node.step() && node.transport.arm() {
        node.transport.disarm(true);
    }
}

pub(crate) fn connect(network: &SimVerbs, node: &mut Node) -> Result<Client> {
    let mut connecting = network.connect(0, CREDITS)?;
    for _ in 0..MANY {
        if let Some(channel) = connecting.poll()? {
            return Ok(TestClient::new(channel, 8 * APART));
        }
        turn(node);
    }
    panic!("a node that neither takes a client nor turns it away");
}

/// Waits until the node has let go of all sessions.
pub(crate) fn settle(network: &SimVerbs, node: &mut Node) {
    for _ in 0..MANY {
        if network.usage().queue_pairs == 0 && node.opened.len() == node.closed.len() {
            return;
        }
        turn(node);
    }
    panic!("sessions that never end: {:?}", network.usage());
}

/// Reads and writes at random, and compares.
fn work(client: &mut Client, handle: u64, rng: &mut SmallRng, node: &mut Node) -> Result<()> {
    let mut reads = Vec::new();
    for slot in 1..rng.random_range(2..6) {
        let offset = rng.random_range(0..FILE_BYTES);
        let length = rng.random_range(0..FILE_BYTES - offset);
        let cuts = [rng.random_range(0..FILE_BYTES), rng.random_range(0..FILE_BYTES)];
        let segments = client.scattered(slot * APART, length, &cuts);
        let into = Segments::from_slice(&segments).expect("three");
        let range = range(offset, length);
        let tag = client.send(Command::Read { handle, range, into }, Some(0));
        reads.push((tag, offset, length, segments));
    }
    let replies = client.finish(&mut || {
        turn(node);
    })?;
    for (tag, offset, length, segments) in reads {
        assert_eq!((replies[&tag].status, replies[&tag].value), (Ok(()), length as u64));
        let mut at = offset;
        for segment in segments {
            let address = usize::try_from(segment.address).expect("inside");
            let length = segment.length as usize;
            assert!(client.bytes(address, length) == FILE[at..at + length], "other bytes");
            at += length;
        }
    }
    Ok(())
}

/// Writes a file of its own and reads it back.
fn write(client: &mut Client, number: usize, rng: &mut SmallRng, node: &mut Node) -> Result<()> {
    let name = format!("s/{number}");
    let length = rng.random_range(1..FILE_BYTES);
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes[..]);
    let handle = open(client, &name, OpenMode::Write(0), node)?;
    client.fill(APART, &bytes);
    let from = Segments::one(client.segment(APART, length));
    call(client, Command::Write { handle, range: range(0, length), from }, node)?;
    call(client, Command::Commit { handle, length: length as u64 }, node)?;
    client.fill(APART, &vec![0; length]);
    let handle = open(client, &name, READ, node)?;
    let into = Segments::one(client.segment(2 * APART, length));
    call(client, Command::Read { handle, range: range(0, length), into }, node)?;
    assert!(client.bytes(2 * APART, length) == bytes, "other bytes than were written");
    Ok(())
}

pub(crate) fn call(client: &mut Client, command: Command, node: &mut Node) -> Result<u64> {
    let reply = client.call(command, &mut || {
        turn(node);
    })?;
    assert_eq!(reply.status, Ok(()), "{command:?}");
    Ok(reply.value)
}

pub(crate) fn open(
    client: &mut Client,
    name: &str,
    mode: OpenMode,
    node: &mut Node,
) -> Result<u64> {
    let reply = client.open(name, mode, &mut || {
        turn(node);
    })?;
    assert_eq!(reply.status, Ok(()), "{name}");
    Ok(reply.value)
}

/// Clients come and go while things go wrong; returns the network, and how many things came to a good end.
pub(crate) fn play(seed: u64, options: SimVerbsOptions) -> (SimVerbs, u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let network = SimVerbs::new(seed, options);
    let mut node = node(&network);
    let mut worked = 0;
    let mut clients: Vec<(Client, u64)> = Vec::new();
    for round in 0..60 {
        if clients.len() < 4
            && let Ok(mut client) = connect(&network, &mut node)
            && let Ok(handle) = open(&mut client, "s/file", READ, &mut node)
        {
            clients.push((client, handle));
        }
        if clients.is_empty() {
            continue;
        }
        match rng.random_range(0..100) {
            0 => network.remove_device(),
            1 => network.tell_nonsense(),
            _ => {}
        }
        let index = rng.random_range(0..clients.len());
        let (client, handle) = &mut clients[index];
        let outcome = match rng.random_range(0..10) {
            0..5 => work(client, *handle, &mut rng, &mut node),
            5..7 => write(client, round, &mut rng, &mut node),
            7 => {
                network.cut(rng.random_range(0..4));
                work(client, *handle, &mut rng, &mut node)
            }
            // It leaves in the middle of something.
            _ => {
                let into = Segments::one(client.segment(APART, FILE_BYTES));
                let handle = *handle;
                client.send(Command::Read { handle, range: range(0, FILE_BYTES), into }, None);
                for _ in 0..rng.random_range(0..8) {
                    client.send(Command::Ping, None);
                }
                let _ = client.channel.kick();
                for _ in 0..rng.random_range(0..40) {
                    turn(&mut node);
                }
                Err(Kind::Disconnected.error("it left"))
            }
        };
        match outcome {
            Ok(()) => worked += 1,
            Err(error) => {
                let legal = [Kind::Disconnected, Kind::Io];
                assert!(legal.contains(&error.kind()), "seed {seed}: {error}");
                clients.swap_remove(index);
            }
        }
    }
    let flushed = network.statuses().get(&5).copied().unwrap_or_default();
    assert!(flushed < MOST_FLUSHED, "seed {seed}: {flushed} work requests were flushed");
    drop(clients);
    network.set_options(SimVerbsOptions { keeps_completions: options.keeps_completions, ..calm() });
    settle(&network, &mut node);
    assert_eq!((node.buffers_out(), node.transfers_in_flight()), (0, 0), "seed {seed}");
    // Everything that was posted is there again: as much as a first client finds.
    let before = (network.usage(), node.transport.room());
    let tenants = before.0.completion_queues;
    let fresh = SimVerbs::new(seed, options);
    let per_tenant = first_usage(&fresh);
    let expected =
        (per_tenant.0.receives * tenants, per_tenant.1 * u32::try_from(tenants).expect("few"));
    assert_eq!((before.0.receives, before.1), expected, "seed {seed}: receives, and room");
    assert_eq!(before.0.due, before.0.receives, "seed {seed}: what may come of receives");
    drop(node);
    assert_eq!(network.usage(), SimVerbsUsage::default(), "seed {seed}");
    (network, worked)
}

pub(crate) fn calm() -> SimVerbsOptions {
    SimVerbsOptions::default()
}

/// What there is of one device after its first client has come, and gone.
fn first_usage(network: &SimVerbs) -> (SimVerbsUsage, u32) {
    let rough = SimVerbsOptions::rough(true);
    network.set_options(SimVerbsOptions {
        completions: rough.completions,
        shared_receives: rough.shared_receives,
        ..calm()
    });
    let mut node = node(network);
    drop(connect(network, &mut node).expect("nothing goes wrong"));
    settle(network, &mut node);
    (network.usage(), node.transport.room())
}
