//! Many clients of one node, each with one request in flight.

use std::sync::Arc;
use std::time::Duration;

use dataplane::{Progress, PromoteOptions};
use dma::{Region, Window};
use extent::wire::{Command, Open, OpenMode, Reply, Request, Segment, Segments};
use extent::{ByteRange, FileName, Generation};
use nvme_tier::device::sim::{SimDisk, SimOptions};
use nvme_tier::{FormatOptions, format};
use rdma::{
    Channel, Fabric, SessionId, SimVerbs, SimVerbsChannel, SimVerbsConnecting, SimVerbsOptions,
    Transport,
};
use silo::sim::SimSilo;

use crate::lab::{self, EXTENT_BYTES, USUAL, contents, stepped};

/// A transport takes 16,384 sessions.
const SHARDS: u16 = 2;
/// READs of each session.
const READS: u32 = 5;
/// How many replies to READs any session may be ahead of any other. Each has one request in flight, and
/// what waits is taken in the order in which it came, so that two sessions are served in turn. One is ahead
/// by one reply as it stood before the other in the line; by another if both were served in one turn of
/// the node and their clients asked again in the opposite order; by a third while the other's reply is on
/// its way. More takes a second change of order, for which their places would have to drift apart by the
/// whole line: a turn serves eight a step at each shard, and there are many times as many sessions.
const AHEAD: u32 = 3;
/// Bytes of memory that the node may take for a session, with one file open and after its reads. Most of
/// them are the first four places of each of the two queues of work requests.
const SESSION_BYTES: usize = 4096;
/// Of so many sessions one writes.
const WRITER_EVERY: usize = 100;
const BYTES: usize = 512;
const FILE_BYTES: usize = EXTENT_BYTES;
/// How often a test looks before it takes the other side for hung.
const MANY: usize = 20_000;

/// A client with one request in flight.
struct One {
    channel: SimVerbsChannel,
    region: Arc<Region>,
    number: usize,
    handle: u64,
    /// What the last reply said.
    opened: u64,
    done: u32,
    waits: bool,
}

impl One {
    fn segment(&self, length: usize) -> Segments {
        let length = u32::try_from(length).expect("short");
        Segments::one(Segment { address: 0, length, key: self.region.id().0 })
    }

    fn window(&self, length: usize) -> Window {
        Window::new(Arc::clone(&self.region), 0, length).expect("inside")
    }

    fn send(&mut self, command: Command) {
        let request = Request { tag: self.done, payload_crc: None, command };
        self.channel.send(&request).expect("one at a time");
        self.channel.kick().expect("connected");
        self.waits = true;
    }

    /// Where its reads begin.
    fn offset(&self) -> usize {
        self.number * 7 % (FILE_BYTES - BYTES)
    }

    fn hear(&mut self, replies: &mut Vec<Reply>) -> bool {
        replies.clear();
        self.channel.poll(replies).expect("connected");
        let Some(reply) = replies.pop() else { return false };
        assert_eq!((reply.tag, reply.status), (self.done, Ok(())), "{reply:?}");
        self.opened = reply.value;
        self.done += 1;
        self.waits = false;
        true
    }
}

/// The whole network: a node, and what drives it.
struct Crowd {
    node: dataplane::Stepped,
    network: SimVerbs,
    clock: u64,
    /// Steps of the node between two looks of all clients.
    steps: usize,
}

impl Crowd {
    /// The node goes on, and so does what runs beside its shards.
    async fn turn(&mut self) {
        for _ in 0..self.steps {
            self.clock += 1000;
            self.node.step(self.clock);
        }
        tokio::time::sleep(Duration::from_micros(1)).await;
    }

    async fn connect(&mut self, sessions: usize) -> Vec<One> {
        let mut asking: Vec<(usize, SimVerbsConnecting)> = (0..sessions)
            .map(|number| {
                let shard = u16::try_from(number % usize::from(SHARDS)).expect("few");
                (number, self.network.connect(shard, 2).expect("there is a shard"))
            })
            .collect();
        let mut clients = Vec::new();
        for _ in 0..MANY {
            asking.retain_mut(|(number, asking)| {
                let Some(mut channel) = asking.poll().expect("nobody is turned away") else {
                    return true;
                };
                let region = channel.allocate(4096).expect("memory");
                let number = *number;
                let (handle, opened, done, waits) = (0, 0, 0, false);
                clients.push(One { channel, region, number, handle, opened, done, waits });
                false
            });
            if asking.is_empty() {
                return clients;
            }
            self.turn().await;
        }
        panic!("{} clients were never connected", asking.len());
    }

    /// Each of them asks for the same thing, and gets it.
    async fn all(&mut self, clients: &mut [One], command: impl Fn(&One) -> Command) {
        for client in clients.iter_mut() {
            client.send(command(client));
        }
        let mut replies = Vec::new();
        for _ in 0..MANY {
            let mut left = 0;
            for client in clients.iter_mut().filter(|client| client.waits) {
                left += usize::from(!client.hear(&mut replies));
            }
            if left == 0 {
                return;
            }
            self.turn().await;
        }
        panic!("requests that are never answered");
    }

    /// Each of them reads, again as soon as it has a reply. Returns how far one was ahead of another.
    async fn read(&mut self, clients: &mut [One], file: &[u8]) -> u32 {
        let begun = clients[0].done;
        let (mut replies, mut ahead) = (Vec::new(), 0);
        let mut bytes = [0; BYTES];
        for _ in 0..MANY {
            let (mut least, mut most) = (READS, 0);
            for client in clients.iter_mut() {
                if client.waits && client.hear(&mut replies) {
                    client.window(BYTES).copy_out(&mut bytes);
                    let at = client.offset();
                    assert!(bytes == file[at..at + BYTES], "other bytes");
                }
                let reads = client.done - begun;
                (least, most) = (least.min(reads), most.max(reads));
                if !client.waits && reads < READS {
                    client.window(BYTES).copy_in(&[0; BYTES]);
                    let (handle, into) = (client.handle, client.segment(BYTES));
                    let range = ByteRange::new(client.offset() as u64, BYTES as u64);
                    client.send(Command::Read { handle, range: range.expect("inside"), into });
                }
            }
            ahead = ahead.max(most - least);
            if least == READS {
                return ahead;
            }
            self.turn().await;
        }
        panic!("reads that are never answered");
    }
}

/// Has so many sessions read, some write, and all leave, with a node that takes so many steps between two
/// looks of all clients. Returns by how many replies one was ahead of another at most, and bytes of the
/// node's memory for a session.
pub(crate) async fn serve(sessions: usize, steps: usize) -> (u32, usize) {
    let file = contents(7, FILE_BYTES);
    let (mut node, network) = node(&file);
    let handle = node.handle();
    drop(node.start_mover());
    let mut crowd = Crowd { node, network, clock: 0, steps };
    let name: FileName = "data/file".parse().expect("a name");
    let id = name.id();
    let promote = {
        let handle = Arc::clone(&handle);
        tokio::spawn(async move {
            handle.promote(&name, PromoteOptions::default(), &Progress::new()).await
        })
    };
    while !promote.is_finished() {
        crowd.turn().await;
    }
    promote.await.expect("no panic").expect("promoted");

    let mut clients = crowd.connect(sessions).await;
    assert_eq!(crowd.network.connections(), sessions);
    let usage = crowd.network.usage();
    assert_eq!(usage.queue_pairs, 2 * sessions, "{usage:?}");
    let hello = Command::Hello { versions: (1, 1), credits: 2, features: 0 };
    crowd.all(&mut clients, |_| hello).await;
    let mode = OpenMode::Read(Generation(0));
    let open = Command::Open(Open { file: id, mode, name: Segments::NONE });
    crowd.all(&mut clients, |_| open).await;
    clients.iter_mut().for_each(|client| client.handle = client.opened);
    let ahead = crowd.read(&mut clients, &file).await;
    assert!(ahead <= AHEAD, "a session is {ahead} reads ahead of another");
    let bytes = crowd.node.session_bytes().expect("simulated verbs count them") / sessions;
    assert!((1..=SESSION_BYTES).contains(&bytes), "{bytes} bytes of memory for a session");

    write(&mut crowd, &mut clients).await;
    drop(clients);
    baseline(&mut crowd, &*handle).await;
    (ahead, bytes)
}

/// A node of two shards, and its network.
fn node(file: &[u8]) -> (dataplane::Stepped, SimVerbs) {
    let disk = SimDisk::new(SimOptions { capacity_bytes: 64 << 20, ..SimOptions::default() });
    let options = FormatOptions {
        slab_bytes: Some(512 << 10),
        extent_bytes: EXTENT_BYTES as u64,
        ..FormatOptions::default()
    };
    format(&mut disk.queue(), &lab::pool(), &options).expect("formatting");
    let data = SimSilo::new(1);
    data.put("file", file.to_vec());
    let network = SimVerbs::new(1, SimVerbsOptions::default());
    let transports = (0..SHARDS).map(|shard| {
        let base = SessionId::base(Fabric::Verbs, shard);
        let transport: Box<dyn Transport> = Box::new(network.transport(base).expect("ours"));
        transport
    });
    let node = stepped(&disk, &data, USUAL, &[], transports.collect());
    (node, network)
}

/// Some of them write files of their own.
async fn write(crowd: &mut Crowd, clients: &mut [One]) {
    clients.sort_by_key(|client| client.number % WRITER_EVERY);
    let count = clients.len() / WRITER_EVERY;
    let (some, _) = clients.split_at_mut(count);
    let name_of = |client: &One| format!("data/written{}", client.number);
    for client in &mut *some {
        client.window(64).copy_in(name_of(client).as_bytes());
    }
    let open = |client: &One| {
        let name = client.segment(name_of(client).len());
        let file = extent::FileId(0);
        Command::Open(Open { file, mode: OpenMode::Write(BYTES as u64), name })
    };
    crowd.all(some, open).await;
    let whole = ByteRange::new(0, BYTES as u64).expect("in bounds");
    let write = |client: &One| {
        let (handle, from) = (client.handle, client.segment(BYTES));
        Command::Write { handle, range: whole, from }
    };
    for client in &mut *some {
        client.window(BYTES).copy_in(&contents(client.number as u64, BYTES));
    }
    some.iter_mut().for_each(|client| client.handle = client.opened);
    crowd.all(some, write).await;
    let commit = |client: &One| Command::Commit { handle: client.handle, length: BYTES as u64 };
    crowd.all(some, commit).await;
    for client in &mut *some {
        client.window(BYTES).copy_in(&[0; BYTES]);
    }
    let read = |client: &One| {
        let (handle, into) = (client.handle, client.segment(BYTES));
        Command::Read { handle, range: whole, into }
    };
    crowd.all(some, read).await;
    for client in &mut *some {
        let mut bytes = [0; BYTES];
        client.window(BYTES).copy_out(&mut bytes);
        assert!(bytes[..] == contents(client.number as u64, BYTES), "other bytes than written");
    }
}

/// When all have left, what there was at first is there again.
async fn baseline(crowd: &mut Crowd, handle: &dyn dataplane::Handle) {
    for _ in 0..MANY {
        if crowd.network.usage().queue_pairs == 0 {
            break;
        }
        crowd.turn().await;
    }
    let usage = crowd.network.usage();
    assert_eq!((usage.queue_pairs, usage.ids), (0, usize::from(SHARDS)), "{usage:?}");
    let receives = SimVerbsOptions::default().shared_receives as usize * usize::from(SHARDS);
    assert_eq!((usage.due, usage.receives), (receives, receives), "{usage:?}");
    crowd.turn().await;
    assert_eq!(crowd.node.session_bytes(), Some(0));
    let status = handle.status().await;
    assert!(status.sessions.iter().all(|(_, count)| *count == 0), "{:?}", status.sessions);
    assert_eq!(status.buffers.0, u64::from(SHARDS), "only the shards' zeroes are out");
}
