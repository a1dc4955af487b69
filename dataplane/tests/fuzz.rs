//! Capsules that are nearly right, sent to a live node over TCP and over verbs on simulated devices,
//! while honest sessions of the same shards read and compare what they get. Afterwards nothing is left.
//!
//! `FOREBAY_FUZZ_CAPSULES=1000000 cargo test --release -p forebay-dataplane --test fuzz -- --nocapture` sends more
//! of them; `FOREBAY_FUZZ_SEED` says which.

#![expect(clippy::print_stdout, reason = "a long run says what it did")]

extern crate forebay_dataplane as dataplane;

#[path = "fuzz/attacker.rs"]
mod attacker;
#[path = "bad_input/lab.rs"]
mod lab;
#[path = "fuzz/mutation.rs"]
mod mutation;
#[path = "sim/wired.rs"]
mod wired;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use client::{Options, Session};
use dataplane::{Handle, Stepped};
use extent::wire::OpenMode;
use extent::{FileName, Generation};
use nvme_tier::device::sim::{SimDisk, SimOptions};
use nvme_tier::{FormatOptions, format};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rdma::{
    Channel, Fabric, Fabrics, Listener, ListenerOptions, SessionId, ShmOptions, SimVerbs,
    SimVerbsOptions, TcpChannel, Transport,
};
use silo::sim::SimSilo;

use attacker::Attacker;
use lab::{Client, EXTENT_BYTES, USUAL, contents, drive, in_virtual_time};
use mutation::Known;
use wired::Wired;

/// Attackers at a time.
const ATTACKERS: usize = 6;
/// Capsules between two reads of an honest session.
const READ_EVERY: u64 = 8;
/// How often a test looks before it takes the other side for hung.
const MANY: usize = 5_000_000;

/// A node, and how to reach it.
struct Target {
    node: Arc<Mutex<Stepped>>,
    handle: Arc<dyn Handle>,
    network: SimVerbs,
    address: SocketAddr,
    _listener: Listener,
}

impl Target {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(SimOptions { capacity_bytes: 16 << 20, ..SimOptions::default() });
        let options = FormatOptions {
            slab_bytes: Some(512 << 10),
            extent_bytes: EXTENT_BYTES as u64,
            ..FormatOptions::default()
        };
        format(&mut disk.queue(), &lab::pool(), &options).expect("formatting");
        let data = SimSilo::new(seed);
        for number in 0..FILES {
            data.put(&format!("file{number}"), contents(number, 3 * EXTENT_BYTES));
        }
        let network = SimVerbs::new(seed, SimVerbsOptions::default());
        let verbs = network.transport(SessionId::base(Fabric::Verbs, 0)).expect("simulated");
        let fabrics = Fabrics::new(1, ShmOptions::default(), None).expect("descriptors");
        let tcp = vec!["127.0.0.1:0".parse().expect("an address")];
        let options = ListenerOptions { tcp, ..ListenerOptions::default() };
        let listener = Listener::start(options, vec![fabrics.inbox()]).expect("a port");
        let transports: Vec<Box<dyn Transport>> = vec![Box::new(verbs), Box::new(fabrics)];
        let mut node = lab::stepped(&disk, &data, USUAL, &[], transports);
        let handle = node.handle();
        drop(node.start_mover());
        let node = Arc::new(Mutex::new(node));
        drop(tokio::spawn(drive(Arc::clone(&node))));
        let address = listener.local_addr().expect("bound");
        Self { node, handle, network, address, _listener: listener }
    }

    async fn over_tcp(&self) -> Client {
        let address = self.address;
        let connecting =
            thread::spawn(move || TcpChannel::connect(address, Duration::from_secs(60)));
        while !connecting.is_finished() {
            tokio::time::sleep(Duration::from_micros(3)).await;
        }
        self.session(connecting.join().expect("no panic").expect("connected"))
    }

    async fn over_verbs(&self) -> Client {
        let mut connecting = self.network.connect(0, 8).expect("there is a shard");
        for _ in 0..MANY {
            if let Some(channel) = connecting.poll().expect("nobody is turned away") {
                return self.session(channel);
            }
            tokio::time::sleep(Duration::from_micros(3)).await;
        }
        panic!("a node that takes nobody");
    }

    fn session(&self, channel: impl Channel + 'static) -> Client {
        let channel = Wired::new(channel, Arc::clone(&self.node));
        Client::new(Session::connect(Box::new(channel), &Options::default()).expect("HELLO"))
    }

    async fn baseline(&self) {
        for _ in 0..MANY {
            let status = self.handle.status().await;
            if status.sessions.iter().all(|(_, count)| *count == 0) {
                break;
            }
            tokio::time::sleep(Duration::from_micros(3)).await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let status = self.handle.status().await;
        assert!(status.sessions.iter().all(|(_, count)| *count == 0), "{:?}", status.sessions);
        assert_eq!(status.buffers.0, 2, "only the two shards' zeroes are out");
        let usage = self.network.usage();
        assert_eq!((usage.queue_pairs, usage.due), (0, usage.receives), "{usage:?}");
        // One that listens, and nobody's connection.
        assert_eq!(usage.ids, 1);
    }
}

/// Files that honest sessions read, of a silo that takes no writes.
const FILES: u64 = 4;

/// An honest session, which reads a file.
struct Honest {
    client: Client,
    handle: u64,
    file: Vec<u8>,
}

impl Honest {
    async fn new(mut client: Client, number: u64) -> Self {
        let name: FileName = format!("data/file{number}").parse().expect("a name");
        let handle = client.open(&name, OpenMode::Read(Generation(0))).await.expect("it is there");
        Self { client, handle, file: contents(number, 3 * EXTENT_BYTES) }
    }

    async fn read(&mut self, rng: &mut SmallRng) {
        let offset = rng.random_range(0..self.file.len());
        let length = rng.random_range(1..=(self.file.len() - offset).min(100_000));
        let read = self.client.read(self.handle, offset as u64, length).await;
        let (found, _) = read.expect("others' capsules are no concern of an honest session");
        assert!(found == self.file[offset..offset + length], "other bytes");
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn a_node_takes_any_capsule_and_serves_the_honest() {
    let seed = number("FOREBAY_FUZZ_SEED", 1);
    let capsules = number("FOREBAY_FUZZ_CAPSULES", 4000);
    in_virtual_time(async move {
        let mut rng = SmallRng::seed_from_u64(seed);
        let target = Target::new(seed);
        let mut honest = vec![
            Honest::new(target.over_verbs().await, 0).await,
            Honest::new(target.over_tcp().await, 1).await,
        ];
        let known = |honest: &[Honest], others: &[Attacker]| Known {
            handles: honest.iter().map(|honest| honest.handle).collect(),
            names: (2..FILES)
                .map(|n| format!("data/file{n}"))
                .chain(["data/new".into()])
                .map(|name: String| name.parse::<FileName>().expect("a name").id())
                .collect(),
            // Those over verbs have some.
            others: others.iter().map(|other| other.known.own).filter(|own| own.key != 0).collect(),
            ..Known::nothing()
        };
        let mut attackers: Vec<Attacker> = Vec::new();
        let (mut sent, mut replies, mut made) = (0, 0, 0);
        while sent < capsules {
            while attackers.len() < ATTACKERS {
                made += 1;
                let known = known(&honest, &attackers);
                attackers.push(if made % 2 == 0 {
                    Attacker::on_stream(target.address, known, &mut rng)
                } else {
                    Attacker::on_verbs(&target.network, known)
                });
            }
            for attacker in &mut attackers {
                if rng.random() && attacker.attack(&mut rng) {
                    sent += 1;
                    if sent % READ_EVERY == 0 {
                        let which = rng.random_range(0..honest.len());
                        honest[which].read(&mut rng).await;
                    }
                }
                attacker.listen(&mut rng);
            }
            tokio::time::sleep(Duration::from_micros(3)).await;
            replies += attackers.iter().filter(|a| a.is_over()).map(|a| a.replies).sum::<u64>();
            attackers.retain(|attacker| !attacker.is_over());
        }
        println!("{sent} capsules of {made} attackers, {replies} replies to those that are gone");
        assert!(replies > sent / 8, "a node that hardly answers: {replies} of {sent}");
        drop(attackers);
        for honest in &mut honest {
            honest.read(&mut rng).await;
            honest.client.close(honest.handle).await;
        }
        drop(honest);
        target.baseline().await;
    });
}
