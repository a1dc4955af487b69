//! The client over the fabrics that it uses in earnest.

mod direct;
mod mini;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use extent::Kind;
use forebay_client::load::{self, Load, Stop};
use forebay_client::{Client, Endpoint, Options};
use mini::Mini;
use rdma::Fabric;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from((i + (i >> 12)) % 251).expect("small")).collect()
}

fn endpoints(mini: &Mini) -> [Endpoint; 2] {
    [Endpoint::Unix(mini.socket.clone()), Endpoint::Tcp(mini.address.to_string())]
}

#[test]
fn reads_and_writes_arrive_over_shared_memory_and_tcp() {
    let file = bytes(5_000_000);
    for (index, fabric) in [Fabric::SharedMemory, Fabric::Tcp].into_iter().enumerate() {
        let mini = Mini::start(file.clone());
        let options = Options { verify: true, ..Options::default() };
        let client = Client::connect(&endpoints(&mini)[index], &options).expect("it listens");
        assert_eq!(client.fabric(), fabric);
        let open = client.open(&"data/a".parse().expect("a name")).expect("there");
        assert_eq!(open.len(), 5_000_000);

        let mut memory = client.alloc(3_500_000).expect("memory");
        let read = open.read_at(123_457, &mut memory, 11..).expect("read");
        assert_eq!(read.bytes, 3_499_989);
        assert!(memory.as_slice()[11..] == file[123_457..123_457 + 3_499_989]);
        let mut out = vec![0; 2_000_000];
        assert_eq!(open.read_into(4_000_000, &mut out).expect("read").bytes, 1_000_000);
        assert!(out[..1_000_000] == file[4_000_000..]);

        let fetches: Vec<_> = (0..100u64)
            .map(|i| open.fetch(i * 40_000, client.alloc(30_000).expect("memory")))
            .collect();
        for (i, fetched) in client.read_batch(fetches).wait().into_iter().enumerate() {
            assert_eq!(fetched.result.expect("read").bytes, 30_000);
            assert!(fetched.memory.as_slice() == &file[i * 40_000..i * 40_000 + 30_000]);
        }

        let writer = client.create(&"data/a".parse().expect("a name"), 0).expect("begun");
        writer.write_at(1_000_000, &vec![9; 3_000_000]).expect("written");
        let written = writer.commit(5_000_000).expect("committed");
        let mut out = vec![0; 3_000_002];
        written.read_into(999_999, &mut out).expect("read");
        assert!(out[1..3_000_001].iter().all(|byte| *byte == 9));
        assert_eq!((out[0], out[3_000_001]), (file[999_999], file[4_000_000]));

        let error = client.open(&"data/missing".parse().expect("a name")).err().expect("absent");
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.context(), "opening data/missing: no such file");
    }
}

#[test]
fn a_load_runs_at_full_depth_over_both() {
    let mini = Mini::start(bytes(3_000_000));
    for endpoint in endpoints(&mini) {
        let load = Load {
            files: vec!["data/a".parse().expect("a name")],
            block_bytes: 4096,
            depth: 16,
            threads: 2,
            stop: Stop::Operations(4000),
            options: Options { verify: true, ..Options::default() },
            ..Load::default()
        };
        let report = load::run(&endpoint, &load).expect("it ran");
        assert_eq!((report.operations, report.errors), (4000, 0), "{:?}", report.first_error);
    }
}

#[test]
fn threads_share_a_client_and_survive_the_nodes_end() {
    let file = bytes(1_000_000);
    for index in 0..2 {
        let mini = Mini::start(file.clone());
        let options = Options { reconnect: None, ..Options::default() };
        let client = Client::connect(&endpoints(&mini)[index], &options).expect("there");
        let mut mini = Some(mini);
        let (served, all_served) = mpsc::sync_channel(3);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3usize)
                .map(|t| {
                    let (client, file, served) = (client.clone(), &file, served.clone());
                    scope.spawn(move || {
                        let open = client.open(&"data/a".parse().expect("a name")).expect("there");
                        let mut memory = client.alloc(10_000).expect("memory");
                        for i in 0usize.. {
                            let offset = (t * 7919 + i * 523) % 900_000;
                            match open.read_at(offset as u64, &mut memory, ..) {
                                Ok(_) => assert!(
                                    memory.as_slice() == &file[offset..offset + 10_000],
                                    "read {i} of thread {t}"
                                ),
                                Err(error) => return (i, error.kind()),
                            }
                            if i == 0 {
                                served.send(()).expect("awaited");
                            }
                        }
                        unreachable!("the node ends");
                    })
                })
                .collect();
            client.ping().expect("alive");
            readers.iter().for_each(|_| all_served.recv().expect("every thread is served once"));
            drop(mini.take());
            for reader in readers {
                let (_, kind) = reader.join().expect("no wrong bytes");
                assert_eq!(kind, Kind::Disconnected);
            }
        });
    }
}

#[test]
fn the_first_rail_that_works_is_taken() {
    let mini = Mini::start(bytes(10_000));
    let rails = format!("tcp://127.0.0.1:1,{}", mini.address);
    let client = Client::connect(&rails.parse().expect("rails"), &Options::default());
    let client = client.expect("one of them answers");
    client.ping().expect("there");
    let stats = client.stats();
    assert_eq!(stats.rail, Some(format!("tcp://{}", mini.address)));
    assert_eq!((stats.reconnections, stats.repeated_requests), (0, 0));

    let dead: Endpoint = "tcp://127.0.0.1:1,127.0.0.1:2".parse().expect("rails");
    let error = Client::connect(&dead, &Options::default()).err().expect("nobody there");
    assert_eq!(error.kind(), Kind::Disconnected);
    for part in ["no rail works", "127.0.0.1:1", "127.0.0.1:2", "is a node listening"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn nobody_at_home_is_told_plainly() {
    let options = Options { connect_timeout: Duration::from_secs(2), ..Options::default() };
    let auto: Endpoint = "auto:/no/such/place,127.0.0.1:1".parse().expect("an endpoint");
    let error = Client::connect(&auto, &options).err().expect("nobody");
    assert_eq!(error.kind(), Kind::Disconnected);
    assert!(error.to_string().contains("/no/such/place"), "{error}");
    let mini = Mini::start(Vec::new());
    let auto = format!("auto:/no/such/place,{}", mini.address).parse().expect("an endpoint");
    let client = Client::connect(&auto, &options).expect("over TCP");
    assert_eq!(client.fabric(), Fabric::Tcp);
}
