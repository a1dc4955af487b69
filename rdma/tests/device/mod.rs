//! A node over simulated RDMA devices, and a client with memory of a device: what stands for that is a file.

use std::sync::Arc;

use crate::common::{PIECE_BYTES, TestClient, TestNode, pattern, range, until};
use dma::{DmaBuf, Region, Window, page_bytes};
use extent::Kind;
use extent::wire::{Command, OpenMode, Segment, Segments};
use extent::{Generation, Result};
use forebay_rdma::{
    Channel as _, Fabric, SessionId, SimVerbs, SimVerbsChannel, SimVerbsOptions, SimVerbsTransport,
};

/// What must hold, each as a function that panics if it does not.
pub(crate) const SCENES: &[(&str, fn())] = &[
    ("what_was_taken_back_is_not_written", what_was_taken_back_is_not_written),
    (
        "bytes_arrive_in_a_devices_memory_and_nowhere_else",
        bytes_arrive_in_a_devices_memory_and_nowhere_else,
    ),
    ("a_client_that_has_gone_is_not_written_to", a_client_that_has_gone_is_not_written_to),
    ("what_is_outside_is_refused", what_is_outside_is_refused),
    ("a_node_may_write_there_and_not_read", a_node_may_write_there_and_not_read),
    ("devices_and_memory_that_cannot_do_it_say_so", devices_and_memory_that_cannot_do_it_say_so),
];

type Node = TestNode<SimVerbsTransport>;
type Client = TestClient<SimVerbsChannel>;

/// Where the device has it: no address of this process.
const ADDRESS: u64 = 0xFB00_0000_0000_0000;
const PAGES: usize = 64;
/// Of the file that the node has.
const FILE_BYTES: usize = 200_000;

/// A device's memory, of which all but the first page and the last is exported.
struct Memory {
    region: Arc<Region>,
    exported: Arc<DmaBuf>,
}

impl Memory {
    fn new() -> Self {
        let page = page_bytes();
        let (region, file) = Region::shareable(PAGES * page).expect("memory");
        let exported = DmaBuf::new(file, page as u64, ADDRESS, (PAGES - 2) * page);
        let memory = Self { region, exported };
        memory.window().copy_in(&vec![0xA5; PAGES * page]);
        memory
    }

    fn window(&self) -> Window {
        Window::new(Arc::clone(&self.region), 0, self.region.length()).expect("inside")
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.region.length()];
        self.window().copy_out(&mut bytes);
        bytes
    }

    fn segment(&self, at: usize, length: usize) -> Segment {
        let length = u32::try_from(length).expect("small");
        Segment { address: at as u64, length, key: self.exported.id().0 }
    }
}

struct World {
    network: SimVerbs,
    node: Node,
    client: Client,
    handle: u64,
    memory: Memory,
}

fn world(seed: u64) -> World {
    let network = SimVerbs::new(seed, SimVerbsOptions::default());
    let transport = network.transport(SessionId::base(Fabric::Verbs, 0)).expect("simulated");
    let mut node = TestNode::new(transport, 3);
    node.add_file("s/file", pattern(FILE_BYTES));
    let mut connecting = network.connect(0, 16).expect("a shard");
    let mut channel = None;
    until(&mut node, |_| {
        channel = connecting.poll().expect("room");
        channel.is_some()
    });
    let mut client = TestClient::new(channel.expect("just seen"), 1 << 20);
    let read = OpenMode::Read(Generation(0));
    let handle = open(&mut client, "s/file", read, &mut node);
    let memory = Memory::new();
    client.channel.register_device(&memory.exported).expect("registered");
    World { network, node, client, handle, memory }
}

fn step(node: &mut Node) {
    node.step();
}

fn open(client: &mut Client, name: &str, mode: OpenMode, node: &mut Node) -> u64 {
    let reply = client.open(name, mode, &mut || step(node)).expect("connected");
    assert_eq!(reply.status, Ok(()), "{name}");
    reply.value
}

fn call(client: &mut Client, command: Command, node: &mut Node) -> Result<u64> {
    let reply = client.call(command, &mut || step(node))?;
    assert_eq!(reply.status, Ok(()), "{command:?}");
    Ok(reply.value)
}

/// Waits until the node has let go of its only session.
fn settle(network: &SimVerbs, node: &mut Node) {
    until(node, |node| network.usage().queue_pairs == 0 && !node.closed.is_empty());
}

impl World {
    fn read(&mut self, offset: usize, into: Segment) -> Result<u64> {
        let length = into.length as usize;
        let (range, into) = (range(offset, length), Segments::one(into));
        call(&mut self.client, Command::Read { handle: self.handle, range, into }, &mut self.node)
    }
}

fn what_was_taken_back_is_not_written() {
    for seed in 0..8 {
        let mut world = world(seed);
        let before = world.memory.bytes();
        let into = Segments::one(world.memory.segment(100, 3 * PIECE_BYTES));
        let range = range(0, 3 * PIECE_BYTES);
        world.client.send(Command::Read { handle: world.handle, range, into }, None);
        world.client.channel.kick().expect("connected");
        world.client.channel.release_device(&world.memory.exported);
        let node = &mut world.node;
        let ended = world.client.finish(&mut || step(node));
        assert!(ended.is_err(), "its key opens nothing any more");
        assert!(world.memory.bytes() == before);
    }
}

fn bytes_arrive_in_a_devices_memory_and_nowhere_else() {
    let file = pattern(FILE_BYTES);
    for seed in 0..4 {
        let mut world = world(seed);
        let mut expected = world.memory.bytes();
        let exported = world.memory.exported.length();
        for (offset, at, length) in
            [(0, 0, 1), (17, 4095, 4097), (1000, 13, 2 * PIECE_BYTES + 5), (5, exported - 9, 9)]
        {
            let into = world.memory.segment(at, length);
            assert_eq!(world.read(offset, into).expect("connected"), length as u64);
            let front = page_bytes() + at;
            expected[front..front + length].copy_from_slice(&file[offset..offset + length]);
            assert!(world.memory.bytes() == expected, "seed {seed}: {offset} {at} {length}");
        }
        let World { network, mut node, client, memory, .. } = world;
        let others = network.usage().regions;
        drop(client);
        settle(&network, &mut node);
        assert!(network.usage().regions < others);
        assert_eq!(Arc::strong_count(&memory.exported), 1, "nobody keeps it");
    }
}

fn a_client_that_has_gone_is_not_written_to() {
    for seed in 0..8 {
        let World { network, mut node, mut client, handle, memory } = world(seed);
        let into = Segments::one(memory.segment(0, 3 * PIECE_BYTES));
        client.send(Command::Read { handle, range: range(0, 3 * PIECE_BYTES), into }, None);
        client.channel.kick().expect("connected");
        for _ in 0..seed * 10 {
            node.step();
        }
        drop(client);
        let before = memory.bytes();
        settle(&network, &mut node);
        assert!(memory.bytes() == before, "seed {seed}");
    }
}

fn what_is_outside_is_refused() {
    let mut world = world(1);
    let length = world.memory.exported.length();
    for (address, bytes) in [(length as u64, 1), (length as u64 - 1, 2), (u64::MAX, 1)] {
        let bad = Segment { address, ..world.memory.segment(0, bytes) };
        let error = world.client.channel.on_the_wire(bad).expect_err("outside");
        assert_eq!(error.kind(), Kind::Invalid);
    }
    let there = world.client.channel.on_the_wire(world.memory.segment(5, 7)).expect("inside");
    assert_eq!((there.address, there.length), (ADDRESS + 5, 7));
    world.client.channel.release_device(&world.memory.exported);
    let error = world.client.channel.on_the_wire(world.memory.segment(5, 7)).expect_err("unknown");
    assert_eq!(error.kind(), Kind::Invalid);
}

fn a_node_may_write_there_and_not_read() {
    let mut world = world(1);
    let write = OpenMode::Write(0);
    let handle = open(&mut world.client, "s/new", write, &mut world.node);
    let from = Segments::one(world.memory.segment(0, 4096));
    let command = Command::Write { handle, range: range(0, 4096), from };
    let error = call(&mut world.client, command, &mut world.node).expect_err("no such right");
    assert_eq!(error.kind(), Kind::Disconnected, "{error}");
}

fn devices_and_memory_that_cannot_do_it_say_so() {
    let mut world = world(1);
    let refusing = SimVerbsOptions { takes_dma_buf: false, ..SimVerbsOptions::default() };
    world.network.set_options(refusing);
    let other = Memory::new();
    let error = world.client.channel.register_device(&other.exported).expect_err("not here");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("EOPNOTSUPP"), "{error}");
    world.network.set_options(SimVerbsOptions::default());
    world.client.channel.register_device(&other.exported).expect("here");
    // No exporter's: what anybody could make shorter.
    let file = tempfile::tempfile().expect("a file");
    file.set_len(1 << 20).expect("longer");
    let odd = DmaBuf::new(file.into(), 0, ADDRESS, 1 << 20);
    let error = world.client.channel.register_device(&odd).expect_err("no memory");
    assert_eq!(error.kind(), Kind::Denied);
}
