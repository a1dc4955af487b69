//! A whole node that writes what it fetches from a silo, and what it has on its tier, into memory of a device:
//! over simulated RDMA devices, of which a client's maps that memory.

extern crate forebay_dataplane as dataplane;

#[path = "bad_input/lab.rs"]
mod lab;
#[path = "sim/wired.rs"]
mod wired;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::device::{Device, DeviceMemory, SoftwareDevice};
use client::{Completed, Options, Session, Ticket};
use dataplane::{Progress, PromoteOptions, Stepped};
use dma::{DmaBuf, page_bytes};
use extent::wire::{OpenMode, Served};
use extent::{FileName, Generation};
use nvme_tier::device::sim::{SimDisk, SimOptions};
use nvme_tier::{FormatOptions, format};
use rdma::{Fabric, SessionId, SimVerbs, SimVerbsOptions, Transport};
use silo::sim::SimSilo;

use lab::{CREDITS, EXTENT_BYTES, USUAL, contents, drive, in_virtual_time, stepped};
use wired::Wired;

const FILE_BYTES: usize = 3 * EXTENT_BYTES + 9001;
/// How often a test looks before it takes the other side for hung.
const MANY: usize = 1_000_000;

/// A node with a file in its silo, and a client with memory of a device.
struct World {
    node: Arc<Mutex<Stepped>>,
    file: Vec<u8>,
    session: Session,
    memory: DeviceMemory,
    exported: Arc<DmaBuf>,
    handle: u64,
}

impl World {
    async fn new(seed: u64) -> Self {
        let file = contents(seed, FILE_BYTES);
        let (node, network) = node(seed, &file);
        let node = Arc::new(Mutex::new(node));
        tokio::spawn(drive(Arc::clone(&node)));
        let mut connecting = network.connect(0, CREDITS).expect("a shard");
        let mut channel = None;
        for _ in 0..MANY {
            channel = connecting.poll().expect("welcome");
            if channel.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_micros(3)).await;
        }
        let wired = Wired::new(channel.expect("connected"), Arc::clone(&node));
        let mut session = Session::connect(Box::new(wired), &Options::default()).expect("greeted");
        let device = Device::software(&SoftwareDevice::exporting(64 << 20, seed));
        let memory = device.allocate(100 * page_bytes()).expect("device memory");
        let allocation = memory.all().allocation().expect("there");
        let exported = device.export(&allocation).expect("exported");
        session.register_device(&exported).expect("registered");
        let name: FileName = "data/file".parse().expect("a name");
        let ticket = session.submit_open(&name, OpenMode::Read(Generation(0))).expect("room");
        let (handle, _) = finish(&mut session, ticket).await.opened().expect("there");
        Self { node, file, session, memory, exported, handle }
    }

    /// Has the node write a part of the file, and looks at all of the device's memory.
    async fn check(&mut self, offset: usize, at: usize, length: usize) -> Served {
        let mut expected = self.memory.all().to_vec().expect("read back");
        let into = self.memory.part(at..at + length).expect("inside");
        let (session, from) = (&mut self.session, offset as u64);
        let begun = session.submit_read_to_device(self.handle, from, &self.exported, &into);
        let done = finish(session, begun.expect("room")).await;
        done.result.expect("read");
        let there = length.min(FILE_BYTES - offset);
        assert_eq!(done.bytes, there as u64);
        expected[at..at + there].copy_from_slice(&self.file[offset..offset + there]);
        let found = self.memory.all().to_vec().expect("read back");
        assert!(found == expected, "{offset} {at} {length}");
        done.served
    }
}

fn node(seed: u64, file: &[u8]) -> (Stepped, SimVerbs) {
    let disk = SimDisk::new(SimOptions { capacity_bytes: 8 << 20, ..SimOptions::default() });
    let options = FormatOptions {
        slab_bytes: Some(512 << 10),
        extent_bytes: EXTENT_BYTES as u64,
        ..FormatOptions::default()
    };
    format(&mut disk.queue(), &lab::pool(), &options).expect("formatting");
    let data = SimSilo::new(1);
    data.put("file", file.to_vec());
    let network = SimVerbs::new(seed, SimVerbsOptions::default());
    let transport = network.transport(SessionId::base(Fabric::Verbs, 0)).expect("simulated");
    let transport: Box<dyn Transport> = Box::new(transport);
    let mut node = stepped(&disk, &data, USUAL, &[], vec![transport]);
    drop(node.start_mover());
    (node, network)
}

async fn finish(session: &mut Session, ticket: Ticket) -> Completed {
    let mut done = Vec::new();
    for _ in 0..MANY {
        session.kick();
        session.poll(&mut done);
        if let Some(completed) = done.pop() {
            assert_eq!(completed.ticket, ticket);
            return completed;
        }
        tokio::time::sleep(Duration::from_micros(3)).await;
    }
    panic!("an answer never came");
}

#[test]
fn what_a_node_fetches_and_what_it_has_arrives_in_a_devices_memory() {
    in_virtual_time(async {
        for seed in 0..4 {
            let mut world = World::new(seed).await;
            let mut served = Vec::new();
            let odd = [
                (0, 0, FILE_BYTES),
                (1, 4095, 4097),
                (EXTENT_BYTES - 3, 17, EXTENT_BYTES + 5),
                (FILE_BYTES - 100, 1001, 5000),
                (8192, 12_288, 16_384),
            ];
            for (offset, at, length) in odd {
                served.push(world.check(offset, at, length).await);
            }
            assert!(served[0] != Served::Tier, "it was in the silo only: {served:?}");
            let name: FileName = "data/file".parse().expect("a name");
            let handle = world.node.lock().expect("nobody panics under the lock").handle();
            let promoted = handle.promote(&name, PromoteOptions::default(), &Progress::new()).await;
            promoted.expect("promoted");
            for (offset, at, length) in odd {
                assert_eq!(world.check(offset, at, length).await, Served::Tier);
            }
            drop(world);
            tokio::time::sleep(Duration::from_secs(60)).await;
            let status = handle.status().await;
            assert_eq!(status.buffers.0, 1, "only the shard's zeroes are out");
        }
    });
}
