//! A real node that writes into exported memory of a device by itself, over real verbs: in the lab, whose RDMA devices
//! take none but as `rdma/tests/files_as_dma_bufs.c` has it, preloaded.

#[expect(dead_code, reason = "other tests need all of it")]
mod node;

use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};

use client::device::{
    Device, DeviceFetch, DeviceOptions, DeviceReader, Path, Policy, SoftwareDevice, Verdict,
};
use client::{Client, Endpoint, File, Options, ProofSource};
use node::{Directories, Node};

const RING: usize = 1 << 20;
const SLOT: usize = 64 << 10;
const BYTES: usize = 5 * RING;

/// A node that is reached over RDMA, at one address for all of its lives.
struct World {
    directories: Directories,
    node: Option<Node>,
    address: String,
    /// Where proofs are to be had.
    control: Arc<Mutex<String>>,
}

impl World {
    /// With a file in its tier.
    fn new() -> Self {
        let all = std::env::var("FOREBAY_TEST_RDMA").expect("FOREBAY_TEST_RDMA names addresses");
        let address = format!("{}:0", all.split(',').next().expect("one"));
        let directories = Directories::new();
        fs::write(directories.data().join("model"), contents()).expect("written");
        let mut world = Self { directories, node: None, address, control: Arc::default() };
        world.start();
        let node = world.node.as_ref().expect("started");
        world.address = node.ready["rdma"][0].as_str().expect("an address").to_owned();
        node.ask(&["promote", "data/model"]);
        world
    }

    fn start(&mut self) {
        let mut command = Node::command(&self.directories);
        command.args(["--rdma", &self.address, "--insecure"]);
        let node = Node::spawn(command);
        let control = node.ready["control"].as_str().expect("an address").to_owned();
        *self.control.lock().expect("nobody panicked") = control;
        self.node = Some(node);
    }

    fn client(&self) -> Client {
        let control = Arc::clone(&self.control);
        let proof = ProofSource::new(move || {
            let mut grant = Command::new(env!("CARGO_BIN_EXE_forebay"));
            grant.args([
                "session",
                "grant",
                "--control",
                &control.lock().expect("nobody panicked"),
            ]);
            let said = grant.output().expect("it runs").stdout;
            String::from_utf8(said).expect("text").trim().parse()
        });
        let options = Options { proof: Some(proof), ..Options::default() };
        Client::connect(&Endpoint::Rdma(self.address.clone()), &options).expect("it answers")
    }
}

fn contents() -> Vec<u8> {
    (0..BYTES as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn open(client: &Client) -> File {
    client.open(&"data/model".parse().expect("a name")).expect("there")
}

fn reader(client: &Client, device: &Device) -> DeviceReader {
    let options = DeviceOptions { policy: Policy::Auto, ring_bytes: RING, slot_bytes: SLOT };
    DeviceReader::new(client, device, &options).expect("a reader")
}

#[test]
#[ignore = "needs RDMA devices that take memory of others: ci/lab/tests has such"]
fn a_node_writes_into_a_devices_memory_by_itself() {
    let mut world = World::new();
    let software = SoftwareDevice::exporting(64 << 20, 1);
    let device = Device::software(&software);
    let (client, bytes) = (world.client(), contents());
    let file = open(&client);
    let mut reader = reader(&client, &device);
    let copies = reader.stats().copies;
    let memory = device.allocate(BYTES).expect("device memory");
    for life in 1..=2 {
        let read = reader.read_into(&file, 0, &memory.all(), None).expect("read");
        assert_eq!((read.bytes, read.path), (BYTES as u64, Path::GpuDirect), "{}", reader.ladder());
        assert!(memory.all().to_vec().expect("read back") == bytes);

        let (mut at, mut fetches) = (1, Vec::new());
        let mut expected = bytes.clone();
        for (round, length) in [1, 511, 4096, 4097, SLOT + 1, 999_983].into_iter().enumerate() {
            let from = round * 234_567 + 4095 * round;
            let into = memory.part(at..at + length).expect("inside");
            fetches.push(DeviceFetch::new(&file, from as u64, &into));
            expected[at..at + length].copy_from_slice(&bytes[from..from + length]);
            at += length + 3;
        }
        for end in reader.read_all(fetches, None) {
            assert_eq!(end.expect("read").path, Path::GpuDirect);
        }
        assert!(memory.all().to_vec().expect("read back") == expected);
        assert_eq!(reader.direct_stats().proofs, life, "each connection is looked at once");
        // The next node has the file on its tier, and the client finds it.
        world.node.take().expect("it runs").kill();
        world.start();
    }
    assert_eq!(client.stats().reconnections, 1);
    assert_eq!(reader.stats().copies, copies, "no byte came through the ring");
    drop((reader, file, memory, device));
    assert_eq!(software.left_behind(), (0, 0, 0));
}

/// Into a driver's without a GPU, `gds/tests/fake_cuda.c`.
#[test]
#[ignore = "needs such RDMA devices, and a libcuda: ci/lab/tests has both"]
fn the_tool_measures_what_a_node_writes_by_itself() {
    let world = World::new();
    let node = world.node.as_ref().expect("started");
    let bench = |policy: &str| {
        let load = ["bench", "--gpu", "0", "--gpu-policy", policy, "--file", "data/model"];
        let size = ["--block-size", "256KiB", "--depth", "4", "--seconds", "1"];
        let way = ["--fabric", "rdma", "--data", &world.address];
        node.ask(&[&load[..], &size[..], &way[..]].concat())
    };
    for (policy, way) in [("auto", "gpudirect"), ("staged", "staged")] {
        let report = bench(policy);
        assert_eq!(report["errors"], 0, "{report}");
        assert_eq!(report["ways"], serde_json::json!({ way: report["operations"] }), "{report}");
        assert!(report["device"].as_str().is_some_and(|it| it.contains("driver without a GPU")));
    }
}

#[test]
#[ignore = "needs RDMA devices that take no memory of others: ci/lab/tests has some"]
fn devices_that_take_none_are_no_obstacle() {
    let world = World::new();
    let device = Device::software(&SoftwareDevice::exporting(64 << 20, 1));
    let client = world.client();
    let mut reader = reader(&client, &device);
    let memory = device.allocate(BYTES).expect("device memory");
    let read = reader.read_into(&open(&client), 0, &memory.all(), None).expect("read");
    assert_eq!((read.bytes, read.path), (BYTES as u64, Path::Staged));
    assert!(memory.all().to_vec().expect("read back") == contents());
    let verdict = reader.ladder().verdict(Path::GpuDirect);
    assert!(
        matches!(verdict, Verdict::Cannot(why) if why.contains("registers no dma-buf (EOPNOTSUPP)")),
        "{verdict:?}"
    );
}
