//! Files read into a device's memory by the node itself: over simulated RDMA devices, into a software device.

use dma::page_bytes;
use extent::Kind;
use forebay_client::device::{
    Device, DeviceOptions, DeviceReader, Path, Policy, SoftwareDevice, Verdict,
};
use forebay_client::{Client, Connector, Dial, Options, Session};
use rdma::{Fabric, SimVerbs, SimVerbsChannel, SimVerbsOptions};

use crate::bytes;
use crate::mini::{Mini, network};

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

#[test]
fn a_node_writes_into_a_devices_memory() {
    let file = bytes(3_000_001);
    let verbs = network();
    let _node = Mini::over(&verbs, file.clone());
    let redial = Redial(verbs.clone());
    let options = Options::default();
    let session = Session::connect(Box::new(redial.channel()), &options).expect("it answers");
    let client = Client::over(session.reconnecting(Box::new(redial), 0), &options);
    assert_eq!(client.fabric(), Fabric::Verbs);
    let open = client.open(&"data/a".parse().expect("a name")).expect("there");
    let device = Device::software(&SoftwareDevice::exporting(64 << 20, 3));
    let strict = DeviceOptions {
        policy: Policy::Exactly(Path::GpuDirect),
        ring_bytes: 1 << 20,
        slot_bytes: 256 << 10,
    };
    let mut reader = DeviceReader::new(&client, &device, &strict).expect("it takes dma-buf");
    let memory = device.allocate(1000 * page_bytes()).expect("device memory");
    let mut check = |offset: usize, at: usize, length: usize| {
        let into = memory.part(at..at + length).expect("inside");
        let read = reader.read_into(&open, offset as u64, &into, None).expect("read");
        let there = length.min(file.len() - offset);
        assert_eq!((read.bytes, read.path), (there as u64, Path::GpuDirect));
        let found = into.part(..there).expect("inside").to_vec().expect("read back");
        assert!(found == file[offset..offset + there], "{offset} {at} {length}");
    };
    for (offset, at, length) in [(0, 0, 3_000_001), (12_345, 777, 1_000_003), (2_999_990, 5, 4096)]
    {
        check(offset, at, length);
    }
    // All connections break; memory is registered again with the next.
    verbs.remove_device();
    check(99, 1001, 2_000_000);
    assert!(client.stats().reconnections > 0);
    assert_eq!(reader.direct_stats().registrations, 1, "once by the reader");

    verbs.set_options(SimVerbsOptions { takes_dma_buf: false, ..SimVerbsOptions::default() });
    let error = DeviceReader::new(&client, &device, &strict).err().expect("refused");
    assert_eq!(error.kind(), Kind::Unsupported);
    let easy = DeviceOptions { policy: Policy::Auto, ..strict };
    let staged = DeviceReader::new(&client, &device, &easy).expect("staged");
    assert_eq!(staged.path(), Path::Staged);
    let Verdict::Cannot(why) = staged.ladder().verdict(Path::GpuDirect) else {
        panic!("{}", staged.ladder());
    };
    assert!(why.contains("registers no dma-buf (EOPNOTSUPP)"), "{why}");
}
