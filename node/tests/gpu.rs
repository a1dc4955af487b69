//! A real node, and reads from it into the memory of devices: of a software device in any case, and of this
//! machine's first GPU if there is one; without, those are skipped by name. `ci/gpu` runs it.

#![expect(clippy::print_stdout, reason = "figures are for people")]

#[path = "../../gds/tests/figures/mod.rs"]
mod figures;
#[path = "../../gds/tests/harness/mod.rs"]
mod harness;
#[expect(dead_code, reason = "other tests need all of it")]
mod node;

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

use client::device::{
    CudaDriver, Device, DeviceFetch, DeviceOptions, DeviceReader, Path, Policy, SoftwareDevice,
};
use client::{Client, Endpoint, File, Options};
use extent::Kind;
use node::{Directories, Node};

const RING: usize = 1 << 20;
const SLOT: usize = 64 << 10;
/// Twenty times the ring, and an odd end.
const BYTES: usize = 20 * RING + 12_345;

fn main() -> ExitCode {
    let software = || Device::software(&SoftwareDevice::new(256 << 20, 1));
    let tests: Vec<harness::Test<'_>> = vec![
        ("odd_ranges_arrive_in_software", Box::new(|| odd_ranges(&software()))),
        ("a_node_is_killed_under_a_read", Box::new(killed_under_a_read)),
    ];
    let without = harness::run(&tests, None);

    let state = CudaDriver::look();
    let device = match state.first() {
        Ok(info) => Device::cuda(info.ordinal).map_err(|error| error.to_string()),
        Err(why) => Err(why.to_owned()),
    };
    let device = device.as_ref();
    let on_gpu = |check: fn(&Device)| Box::new(move || check(device.expect("not skipped")));
    let tests: Vec<harness::Test<'_>> = vec![
        ("odd_ranges_arrive_in_a_gpu", on_gpu(odd_ranges)),
        ("end_to_end", on_gpu(end_to_end)),
    ];
    let with = harness::run(&tests, device.err().map(String::as_str));
    if without == ExitCode::SUCCESS { with } else { without }
}

fn contents() -> Vec<u8> {
    (0..BYTES as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// A node that has a file in its tier.
fn started() -> (Directories, Node) {
    let directories = Directories::new();
    fs::write(directories.data().join("model"), contents()).expect("written");
    let node = Node::start(&directories);
    node.ask(&["promote", "data/model"]);
    (directories, node)
}

fn client(node: &Node, over: &str, options: &Options) -> Client {
    let endpoint = match over {
        "tcp" => Endpoint::Tcp(node.listen().to_owned()),
        _ => Endpoint::Unix(node.socket().into()),
    };
    Client::connect(&endpoint, options).expect("the node answers")
}

fn open(client: &Client) -> File {
    client.open(&"data/model".parse().expect("a name")).expect("there")
}

fn reader(client: &Client, device: &Device) -> DeviceReader {
    let policy = Policy::AtLeast(Path::Staged);
    let options = DeviceOptions { policy, ring_bytes: RING, slot_bytes: SLOT };
    DeviceReader::new(client, device, &options).expect("a reader")
}

fn odd_ranges(device: &Device) {
    let (_directories, node) = started();
    let bytes = contents();
    let mut paths: BTreeMap<(&str, Path), u32> = BTreeMap::new();
    for (over, verify) in [("shm", false), ("tcp", true)] {
        let client = client(&node, over, &Options { verify, ..Options::default() });
        let file = open(&client);
        let mut reader = reader(&client, device);
        let memory = device.allocate(BYTES + 100).expect("device memory");
        let read = reader.read_into(&file, 0, &memory.all(), None).expect("read");
        assert_eq!(read.bytes, BYTES as u64, "until the file's end");
        assert!(memory.part(..BYTES).expect("inside").to_vec().expect("read back") == bytes);

        let mut at = 1;
        let mut fetches = Vec::new();
        let mut expected = memory.all().to_vec().expect("read back");
        for (round, length) in
            [1, 511, 4096, 4097, SLOT, SLOT + 1, 3 * SLOT - 7, 999_983].into_iter().enumerate()
        {
            let from = round * 1_234_567 + 4095 * round;
            let into = memory.part(at..at + length).expect("inside");
            fetches.push(DeviceFetch::new(&file, from as u64, &into));
            expected[at..at + length].copy_from_slice(&bytes[from..from + length]);
            at += length + 3;
        }
        for end in reader.read_all(fetches, None) {
            *paths.entry((over, end.expect("read").path)).or_default() += 1;
        }
        assert!(memory.all().to_vec().expect("read back") == expected, "{over}");
        let stats = reader.stats();
        assert!(stats.peak_pinned_bytes <= RING && stats.unpinned_copies == 0, "{stats:?}");

        // A stream waits where the caller does not.
        let stream = device.stream().expect("a stream");
        let memory = device.allocate(777_777).expect("device memory");
        reader.read_into(&file, 31, &memory.all(), Some(&stream)).expect("handed over");
        stream.finish(std::time::Duration::from_secs(60)).expect("copied");
        assert!(memory.all().to_vec().expect("read back") == bytes[31..31 + 777_777]);
        reader.settle().expect("all is well");
    }
    println!("paths: {paths:?}");
}

/// The node is killed while the ring is full and the device does not go on.
fn killed_under_a_read() {
    for comes_back in [false, true] {
        let (directories, node) = started();
        let software = SoftwareDevice::new(256 << 20, 1);
        let device = Device::software(&software);
        let mut options = Options::default();
        if !comes_back {
            options.reconnect = None;
        }
        let client = client(&node, "shm", &options);
        let file = open(&client);
        let mut reader = reader(&client, &device);
        let memory = device.allocate(BYTES).expect("device memory");
        let before = software.steps().len();
        software.stall_after(0);
        std::thread::scope(|scope| {
            let read = scope.spawn(|| reader.read_into(&file, 0, &memory.all(), None));
            node::eventually("the ring is full", || software.steps().len() == before + RING / SLOT);
            node.kill();
            let _node = comes_back.then(|| Node::start(&directories));
            software.resume();
            let outcome = read.join().expect("no panic");
            if comes_back {
                assert_eq!(outcome.expect("read").bytes, BYTES as u64);
                assert!(memory.all().to_vec().expect("read back") == contents());
            } else {
                assert_eq!(outcome.expect_err("it is gone").kind(), Kind::Disconnected);
            }
        });
        let stats = reader.stats();
        assert!(software.pinned_bytes().1 <= RING && stats.unpinned_copies == 0, "{stats:?}");
        assert_eq!(software.overtaken_copies(), 0);
    }
}

/// The same bytes into a GPU and into the memory of the host, by turns.
fn end_to_end(device: &Device) {
    let (_directories, node) = started();
    for over in ["shm", "tcp"] {
        let client = client(&node, over, &Options::default());
        let file = open(&client);
        let options = DeviceOptions { policy: Policy::AtLeast(Path::Staged), ..Default::default() };
        let mut reader = DeviceReader::new(&client, device, &options).expect("a reader");
        let memory = device.allocate(BYTES).expect("device memory");
        let mut host = client.alloc(BYTES).expect("memory");
        let compared = figures::compare(
            || reader.read_into(&file, 0, &memory.all(), None).expect("read"),
            || file.read_at(0, &mut host, ..).expect("read"),
        );
        println!(
            "end-to-end over {over}: {BYTES} bytes, time into a GPU ({}) over that into the host: \
             {compared}",
            reader.path()
        );
    }
}
