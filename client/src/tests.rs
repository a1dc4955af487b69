//! What a program sees of a node.

use std::thread;
use std::time::Duration;

use extent::wire::{Landing, Served};
use extent::{FileName, Kind};
use rdma::Fabric;

use crate::fake::Fake;
use crate::{Client, Options, Session};

fn name(text: &str) -> FileName {
    text.parse().expect("a good name")
}

fn connect(fake: &Fake, fabric: Fabric, options: &Options) -> Client {
    let session = Session::connect(fake.channel(fabric), options).expect("a node that answers");
    Client::over(session, options)
}

fn client(fake: &Fake) -> Client {
    connect(fake, Fabric::Simulated, &Options::default())
}

/// Makes the node answer what was sent without a reply of its own, such as a CLOSE.
fn settle(client: &Client) {
    client.ping().expect("there");
    client.ping().expect("there");
}

#[test]
fn files_are_read_into_the_clients_memory() {
    let fake = Fake::new();
    let bytes = fake.add_file("data/a", 30_000);
    let client = client(&fake);
    let file = client.open(&name("data/a")).expect("there");
    assert_eq!((file.len(), file.generation().0, file.is_empty()), (30_000, 1, false));
    assert_eq!(file.stat().expect("open"), *file.opened());

    let mut memory = client.alloc(20_000).expect("memory");
    let read = file.read_at(100, &mut memory, 10..15_000).expect("read");
    assert_eq!((read.bytes, read.served, read.landing), (14_990, Served::Tier, Landing::Direct));
    assert!(!read.copied);
    assert_eq!(&memory.as_slice()[10..15_000], &bytes[100..15_090]);
    let read = file.read_at(25_000, &mut memory, ..).expect("read");
    assert_eq!(read.bytes, 5000);
    assert_eq!(&memory.as_slice()[..5000], &bytes[25_000..]);

    drop(file);
    settle(&client);
    assert!(fake.node().handles.is_empty());
}

#[test]
fn other_memory_costs_a_copy_and_the_read_says_so() {
    let fake = Fake::new();
    fake.node().max_transfer_bytes = 100_000;
    let bytes = fake.add_file("data/a", 7_000_000);
    let client = client(&fake);
    let file = client.open(&name("data/a")).expect("there");
    let mut out = vec![0; 8_000_000];
    let read = file.read_into(5, &mut out).expect("read");
    assert!(read.copied && read.bytes == 6_999_995);
    assert_eq!(&out[..6_999_995], &bytes[5..]);
    assert!(out[6_999_995..].iter().all(|byte| *byte == 0));
    let regions = fake.node().regions.len();
    file.read_into(0, &mut out[..10]).expect("read");
    assert_eq!(fake.node().regions.len(), regions, "buffers are used again");
}

#[test]
fn a_generation_appears_whole_or_not_at_all() {
    let fake = Fake::new();
    let options = Options { verify: true, ..Options::default() };
    let client = connect(&fake, Fabric::Simulated, &options);
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 241) as u8).collect();

    let writer = client.create(&name("data/new"), 0).expect("a new file");
    writer.write_at(0, &bytes[..2_500_000]).expect("written");
    assert_eq!(client.open(&name("data/new")).err().expect("not yet").kind(), Kind::NotFound);
    let mut memory = client.alloc(500_000).expect("memory");
    memory.as_mut_slice().copy_from_slice(&bytes[2_500_000..]);
    writer.write_memory_at(2_500_000, &mut memory, ..).expect("written");
    let file = writer.commit(3_000_000).expect("committed");
    assert_eq!((file.len(), file.generation().0), (3_000_000, 1));
    assert_eq!(fake.node().files["data/new"], bytes);

    let abandoned = client.create(&name("data/other"), 0).expect("a new file");
    abandoned.write_at(0, &bytes[..10]).expect("written");
    drop(abandoned);
    settle(&client);
    assert!(!fake.node().files.contains_key("data/other"));
    assert_eq!(fake.node().handles.len(), 1);
}

#[test]
fn a_call_in_vain_ends_the_session_before_it_gives_memory_back() {
    for (fabric, back) in [(Fabric::SharedMemory, 0), (Fabric::Tcp, 100)] {
        let fake = Fake::new();
        fake.add_file("data/a", 1000);
        let options = Options { timeout: Duration::from_millis(20), ..Options::default() };
        let client = connect(&fake, fabric, &options);
        let file = client.open(&name("data/a")).expect("there");
        let mut memory = client.alloc(100).expect("memory");
        fake.node().replies_per_poll = 0;
        let error = file.read_at(0, &mut memory, ..).expect_err("silence");
        assert_eq!(error.kind(), Kind::Disconnected);
        assert_eq!(memory.len(), back);
        assert_eq!(fake.node().channels, 0, "the channel is gone");
        let error = file.read_at(0, &mut memory, ..).expect_err("over");
        assert!(error.context().contains("connect again"), "{error}");
    }
}

#[test]
fn a_busy_node_is_asked_again_and_other_errors_are_told() {
    let fake = Fake::new();
    let bytes = fake.add_file("data/a", 1000);
    let client = client(&fake);
    let file = client.open(&name("data/a")).expect("there");
    let mut memory = client.alloc(1000).expect("memory");
    fake.node().fail = Some((0, Kind::Busy, "out of buffers"));
    file.read_at(0, &mut memory, ..).expect("the second time");
    assert_eq!(memory.as_slice(), bytes);
    fake.node().fail = Some((0, Kind::Busy, "out of buffers"));
    file.read_into(0, &mut vec![0; 1000]).expect("the second time");

    fake.node().fail = Some((0, Kind::Corrupt, "extent 0 is quarantined"));
    let error = file.read_at(0, &mut memory, ..).expect_err("damaged");
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(error.context(), "reading data/a at 0: extent 0 is quarantined");
    assert_eq!(memory.len(), 1000);
}

#[test]
fn a_batch_longer_than_the_session_comes_back_in_order() {
    let fake = Fake::new();
    let bytes = fake.add_file("data/a", 100_000);
    let options = Options { queue: 5, ..Options::default() };
    let client = connect(&fake, Fabric::Simulated, &options);
    let file = client.open(&name("data/a")).expect("there");
    fake.node().fail = Some((7, Kind::Busy, "out of buffers"));
    let fetches: Vec<_> =
        (0..40u64).map(|i| file.fetch(i * 2000, client.alloc(5000).expect("memory"))).collect();
    let batch = client.read_batch(fetches);
    drop(file);
    for (i, fetched) in batch.wait().into_iter().enumerate() {
        let begin = i * 2000;
        assert_eq!(fetched.result.expect("read").bytes, 5000);
        assert_eq!(fetched.memory.as_slice(), &bytes[begin..begin + 5000]);
    }
    settle(&client);
    assert!(fake.node().handles.is_empty());
}

#[test]
fn an_abandoned_batch_leaves_the_client_usable() {
    let fake = Fake::new();
    fake.add_file("data/a", 100_000);
    let client = client(&fake);
    let file = client.open(&name("data/a")).expect("there");
    let before = fake.node().regions.len();
    let mut long = client.alloc(5 << 20).expect("memory");
    let pieces: Vec<_> = (1..20).rev().map(|i| long.split_off(i * 9000)).collect();
    let fetches: Vec<_> =
        pieces.into_iter().chain([long]).map(|memory| file.fetch(0, memory)).collect();
    let mut batch = client.read_batch(fetches);
    assert!(batch.next().expect("the first").1.result.is_ok());
    drop(batch);
    file.read_into(0, &mut [0; 100]).expect("read");
    while client.lock().session.outstanding() != 0 {
        settle(&client);
    }
    settle(&client);
    assert_eq!(fake.node().regions.len(), before, "what nobody waits for is given back");
}

#[test]
fn a_lost_node_ends_every_read_of_a_batch() {
    let fake = Fake::new();
    fake.add_file("data/a", 100_000);
    let client = connect(&fake, Fabric::SharedMemory, &Options::default());
    let file = client.open(&name("data/a")).expect("there");
    fake.node().lose_after = Some(5);
    let fetches: Vec<_> =
        (0..20).map(|_| file.fetch(0, client.alloc(9000).expect("memory"))).collect();
    let all = client.read_batch(fetches).wait();
    assert_eq!(all.len(), 20);
    let lost = |error: &extent::Error| error.kind() == Kind::Disconnected;
    assert!(all.iter().all(|one| one.result.as_ref().err().is_none_or(lost)));
    assert!(all.iter().any(|one| one.result.is_err() && one.memory.is_empty()));
}

#[test]
fn threads_take_turns_on_one_session() {
    let fake = Fake::new();
    let bytes = fake.add_file("data/a", 50_000);
    let client = client(&fake);
    thread::scope(|scope| {
        for t in 0..4usize {
            let (client, bytes) = (client.clone(), &bytes);
            scope.spawn(move || {
                let file = client.open(&name("data/a")).expect("there");
                let mut memory = client.alloc(3000).expect("memory");
                for i in 0..50 {
                    let offset = (t * 7919 + i * 523) % 45_000;
                    file.read_at(offset as u64, &mut memory, ..).expect("read");
                    assert_eq!(memory.as_slice(), &bytes[offset..offset + 3000]);
                }
            });
        }
    });
}
