//! Files read into a device's memory by the node itself: over simulated RDMA devices, into a software device.

use std::time::Duration;

use dma::page_bytes;
use extent::Kind;
use forebay_client::device::{
    Device, DeviceMemory, DeviceOptions, DeviceReader, Path, Policy, SoftwareDevice, Verdict,
};
use forebay_client::{Client, Connector, Dial, File, Options, Reconnect, Session};
use rdma::{Fabric, SessionId, SimVerbs, SimVerbsChannel, SimVerbsOptions};

use crate::bytes;
use crate::mini::Running;

const FILE_BYTES: usize = 3_000_001;

struct Redial(SimVerbs);

impl Redial {
    fn channel(&self) -> SimVerbsChannel {
        let mut connecting = self.0.connect(0, 32).expect("a node");
        loop {
            match connecting.poll() {
                Ok(Some(channel)) => return channel,
                Ok(None) => {}
                // The device was just pulled out.
                Err(_) => connecting = self.0.connect(0, 32).expect("a node"),
            }
        }
    }
}

impl Connector for Redial {
    fn name(&self, _: usize) -> String {
        "simulated RDMA".to_owned()
    }

    fn dial(&mut self, _: usize) -> Dial {
        Dial::Done(Ok(Box::new(self.channel())))
    }
}

/// A node with a file, and a client of it with a device.
struct World {
    verbs: SimVerbs,
    client: Client,
    open: File,
    file: Vec<u8>,
    device: Device,
    memory: DeviceMemory,
    _node: Running,
}

impl World {
    fn new(seed: u64) -> Self {
        let file = bytes(FILE_BYTES);
        let verbs = SimVerbs::new(seed, SimVerbsOptions::default());
        let transport = verbs.transport(SessionId::base(Fabric::Verbs, 0)).expect("simulated");
        let node = Running::start(transport, file.clone());
        let redial = Redial(verbs.clone());
        let options = Options {
            reconnect: Some(Reconnect {
                first_pause: Duration::ZERO,
                longest_pause: Duration::ZERO,
                ..Reconnect::default()
            }),
            ..Options::default()
        };
        let session = Session::connect(Box::new(redial.channel()), &options).expect("it answers");
        let client = Client::over(session.reconnecting(Box::new(redial), 0), &options);
        assert_eq!(client.fabric(), Fabric::Verbs);
        let open = client.open(&"data/a".parse().expect("a name")).expect("there");
        let device = Device::software(&SoftwareDevice::exporting(64 << 20, seed));
        let memory = device.allocate(1000 * page_bytes()).expect("device memory");
        Self { verbs, client, open, file, device, memory, _node: node }
    }

    fn reader(&self, policy: Policy) -> extent::Result<DeviceReader> {
        let options = DeviceOptions { policy, ring_bytes: 1 << 20, slot_bytes: 256 << 10 };
        DeviceReader::new(&self.client, &self.device, &options)
    }

    /// Reads, looks at every byte, and says which way they took.
    fn check(&self, reader: &mut DeviceReader, offset: usize, at: usize, length: usize) -> Path {
        let into = self.memory.part(at..at + length).expect("inside");
        let read = reader.read_into(&self.open, offset as u64, &into, None).expect("read");
        let there = length.min(self.file.len() - offset);
        assert_eq!(read.bytes, there as u64);
        let found = into.part(..there).expect("inside").to_vec().expect("read back");
        assert!(found == self.file[offset..offset + there], "{offset} {at} {length}");
        read.path
    }
}

#[test]
fn a_node_writes_into_a_devices_memory() {
    let world = World::new(5);
    let strict = Policy::Exactly(Path::GpuDirect);
    let mut reader = world.reader(strict).expect("it takes dma-buf");
    for (offset, at, length) in
        [(0, 0, FILE_BYTES), (12_345, 777, 1_000_003), (FILE_BYTES - 11, 5, 4096)]
    {
        assert_eq!(world.check(&mut reader, offset, at, length), Path::GpuDirect);
    }
    // All connections break; memory is registered again with the next.
    world.verbs.remove_device();
    assert_eq!(world.check(&mut reader, 99, 1001, 2_000_000), Path::GpuDirect);
    assert!(world.client.stats().reconnections > 0);
    assert_eq!(reader.direct_stats().registrations, 1, "once by the reader");

    let refusing = SimVerbsOptions { takes_dma_buf: false, ..SimVerbsOptions::default() };
    world.verbs.set_options(refusing);
    assert_eq!(world.reader(strict).err().expect("refused").kind(), Kind::Unsupported);
    let staged = world.reader(Policy::Auto).expect("staged");
    assert_eq!(staged.path(), Path::Staged);
    let Verdict::Cannot(why) = staged.ladder().verdict(Path::GpuDirect) else {
        panic!("{}", staged.ladder());
    };
    assert!(why.contains("registers no dma-buf (EOPNOTSUPP)"), "{why}");
}

/// The device's memory, and what it is registered with, is kept by nobody who does not need it.
#[test]
fn registrations_are_given_back() {
    let world = World::new(6);
    let strict = Policy::Exactly(Path::GpuDirect);
    let regions = || {
        // What is not used any more is let go of when somebody polls.
        world.client.ping().expect("it answers");
        world.verbs.usage().regions
    };
    let before = regions();
    for _ in 0..3 {
        drop(world.reader(strict).expect("it takes dma-buf"));
        assert_eq!(regions(), before);
    }
    let mut reader = world.reader(strict).expect("it takes dma-buf");
    let with_reader = regions();
    for turn in 0..70 {
        let memory = world.device.allocate(4 * page_bytes()).expect("device memory");
        let read = reader.read_into(&world.open, turn, &memory.all(), None).expect("read");
        assert_eq!(read.path, Path::GpuDirect);
        // Of those that are freed, the last one may still be known.
        assert!(regions() <= with_reader + 1, "{turn}");
    }
    let kept: Vec<_> =
        (0..70).map(|_| world.device.allocate(4 * page_bytes()).expect("device memory")).collect();
    for memory in &kept {
        reader.read_into(&world.open, 7, &memory.all(), None).expect("read");
    }
    assert!(regions() <= with_reader + 64);
    drop(reader);
    assert_eq!(regions(), before);
}

#[test]
fn bytes_are_right_over_devices_that_fail() {
    let (mut reconnections, mut direct) = (0, 0);
    for seed in 0..4 {
        let world = World::new(seed);
        let mut reader = world.reader(Policy::Auto).expect("a reader");
        world.verbs.set_options(SimVerbsOptions {
            lost: 0.004,
            failed: 0.004,
            ..SimVerbsOptions::default()
        });
        for turn in 0..12 {
            let (offset, at) = (turn * 1009, turn * 31);
            world.check(&mut reader, offset, at, 2_000_000);
        }
        reconnections += world.client.stats().reconnections;
        direct += reader.direct_stats().bytes;
        world.verbs.set_options(SimVerbsOptions::default());
    }
    assert!(reconnections > 4 && direct > 40_000_000, "{reconnections} {direct}");
}
