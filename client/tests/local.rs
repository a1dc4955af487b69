//! Files of the GPU server's own, read by a cuFile without a GPU.

extern crate gds as forebay_gds;

#[path = "../../gds/tests/fakes/mod.rs"]
mod fakes;
mod mini;

use extent::Kind;
use fakes::Fakes;
use forebay_client::device::{DeviceOptions, DeviceReader, Path, Policy, Transfer, Verdict};
use forebay_client::{Client, Endpoint, Options};
use mini::Mini;

const SLOT: usize = 64 << 10;

#[test]
fn a_local_file_is_read_by_cufile_or_through_the_ring() {
    let mini = Mini::start(vec![1; 10_000]);
    check(&Endpoint::Unix(mini.socket.clone()));
    check(&Endpoint::Tcp(mini.address.to_string()));
}

fn check(endpoint: &Endpoint) {
    let client = Client::connect(endpoint, &Options::default()).expect("it listens");
    let fakes = Fakes::new();
    let (device, cufile) = (fakes.device(), fakes.cufile().expect("a cuFile"));
    let options = DeviceOptions { policy: Policy::Auto, ring_bytes: 3 * SLOT, slot_bytes: SLOT };
    let mut reader = DeviceReader::new(&client, &device, &options).expect("a reader");
    let bytes: Vec<u8> = (0..900_001_u32).map(|i| i.to_le_bytes()[1]).collect();
    std::fs::write(fakes.path("file"), &bytes).expect("written");
    let memory = device.allocate(bytes.len()).expect("device memory");
    let read = |reader: &mut DeviceReader, policy| {
        let file = cufile.file(fakes.path("file")).expect("there");
        let read = reader.read_local(&file, 0, &memory.all(), policy)?;
        assert_eq!(read.bytes, bytes.len() as u64);
        assert!(memory.all().to_vec().expect("read back") == bytes);
        Ok::<_, extent::Error>((read.path, read.transfer))
    };
    let direct = (Path::CuFile, Some(Transfer::Direct));
    for policy in [Policy::Auto, Policy::Exactly(Path::CuFile), Policy::AtLeast(Path::Host)] {
        assert_eq!(read(&mut reader, policy).expect("read"), direct);
        assert_eq!(*reader.ladder().verdict(Path::CuFile), Verdict::Works);
    }
    let staged = (Path::Staged, None);
    assert_eq!(read(&mut reader, Policy::AtLeast(Path::Staged)).expect("read"), staged);

    // A file system that cuFile does not know.
    fakes.turn("register_answer", 5008);
    assert_eq!(read(&mut reader, Policy::Auto).expect("read"), staged);
    let said = reader.ladder().to_string();
    assert!(said.contains("cufile: cuFileHandleRegister: 5008"), "{said}");
    let error = read(&mut reader, Policy::Exactly(Path::CuFile)).expect_err("strict");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("cufile: cuFileHandleRegister: 5008"), "{error}");

    // What fails is no refusal.
    fakes.turn("register_answer", 0);
    for (name, value) in [("fail_answer", -1), ("fail_errno", 5), ("fail_after", 0)] {
        fakes.turn(name, value);
    }
    assert_eq!(read(&mut reader, Policy::Auto).expect_err("fails").kind(), Kind::Io);
    fakes.turn("fail_after", -1);
    fakes.lose(true);
    let error = read(&mut reader, Policy::Auto).expect_err("lost");
    assert_eq!(error.kind(), Kind::Disconnected, "{error}");
    fakes.lose(false);
    let left = fakes.left();
    assert_eq!((left.files, left.buffers, left.drivers, left.violations), (0, 0, 1, 0), "{left:?}");
    assert!(left.calls > 0 && left.longest > 0 && fakes.device_bytes() > 0);
}
