//! A node for tests: holds files in memory, answers in an order that a seed chooses, and fails
//! where it is told to.
#![expect(clippy::cast_possible_truncation, reason = "a test's numbers are small")]

mod channel;
mod connector;
mod devices;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use dma::{Region, Window};
use extent::checksum::crc32c;
use extent::wire::{
    Command, HelloBody, Landing, Open, OpenBody, OpenMode, Reply, Request, Segment, Segments,
    Served,
};
use extent::{ByteRange, FileName, Generation, Kind, Result};
use parking_lot::{Mutex, MutexGuard};
use rdma::{Channel, Fabric};

use crate::Connector;
use channel::FakeChannel;
use connector::FakeConnector;
use devices::FakeDevices;

/// The test's grip on a node.
#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<Node>>);

type Twist = Box<dyn FnMut(&mut Vec<Reply>) + Send>;

pub(crate) struct Node {
    pub(crate) files: HashMap<String, Vec<u8>>,
    /// The number and the identity of each file's newest generation.
    pub(crate) generations: HashMap<String, (u64, u128)>,
    pub(crate) handles: HashMap<u64, Handle>,
    pub(crate) credits: u16,
    pub(crate) max_transfer_bytes: u64,
    /// Sent and not kicked at most.
    pub(crate) ring: usize,
    /// Most replies in one poll; 0 lets the node fall silent.
    pub(crate) replies_per_poll: usize,
    pub(crate) seed: u64,
    /// Answers the n-th READ or WRITE from now on with this.
    pub(crate) fail: Option<(usize, Kind, &'static str)>,
    /// Goes away after so many more replies.
    pub(crate) lose_after: Option<usize>,
    /// Flips a bit of every READ's bytes on their way.
    pub(crate) damage: bool,
    /// Goes away instead of answering a COMMIT, which it has carried out or not.
    pub(crate) lose_commit: Option<bool>,
    /// Goes away whenever a READ begins here.
    pub(crate) poison: Option<u64>,
    /// Answers OPENs with this, or not before this is over.
    pub(crate) refuse_opens: Option<Kind>,
    pub(crate) hold_opens: bool,
    /// READs that begin where this says so are held back.
    pub(crate) hold_reads: Option<Box<dyn FnMut(u64) -> bool + Send>>,
    /// Spoils the replies of each poll.
    pub(crate) twist: Option<Twist>,
    /// The longest region that a session may have, in bytes.
    pub(crate) largest_region: usize,
    /// Rails over which nobody can connect, and those tried so far.
    pub(crate) dead_rails: HashSet<usize>,
    pub(crate) dials: Vec<usize>,
    pub(crate) peak_in_flight: usize,
    pub(crate) requests: usize,
    pub(crate) regions: HashMap<(u64, u32), Arc<Region>>,
    pub(crate) channels: usize,
    /// What it does with memory of devices.
    pub(crate) devices: FakeDevices,
    /// Sessions that the node knows no more.
    lost: HashSet<u64>,
    /// What its devices still write to: memory that was shared with it when it was lost.
    late: Vec<Window>,
    queued: Vec<(u64, Request)>,
    arrived: Vec<(u64, Request)>,
    next: u64,
}

pub(crate) struct Handle {
    session: u64,
    name: String,
    /// What it reads, or has written so far.
    bytes: Arc<Vec<u8>>,
    generation: u64,
    identity: u128,
    writes: bool,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Node {
            files: HashMap::new(),
            generations: HashMap::new(),
            handles: HashMap::new(),
            credits: 8,
            max_transfer_bytes: 4096,
            ring: 64,
            replies_per_poll: 3,
            seed: 1,
            fail: None,
            lose_after: None,
            damage: false,
            lose_commit: None,
            poison: None,
            refuse_opens: None,
            hold_opens: false,
            hold_reads: None,
            twist: None,
            largest_region: usize::MAX,
            dead_rails: HashSet::new(),
            dials: Vec::new(),
            peak_in_flight: 0,
            requests: 0,
            regions: HashMap::new(),
            channels: 0,
            devices: FakeDevices::default(),
            lost: HashSet::new(),
            late: Vec::new(),
            queued: Vec::new(),
            arrived: Vec::new(),
            next: 1,
        })))
    }

    pub(crate) fn node(&self) -> MutexGuard<'_, Node> {
        self.0.lock()
    }

    /// A file whose byte at `i` is a function of `i`.
    pub(crate) fn add_file(&self, name: &str, length: usize) -> Vec<u8> {
        let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8 ^ (i >> 10) as u8).collect();
        self.node().put(name, bytes.clone());
        bytes
    }

    pub(crate) fn channel(&self, fabric: Fabric) -> Box<dyn Channel> {
        let mut node = self.node();
        node.channels += 1;
        node.devices.on_connection();
        let session = node.number();
        Box::new(FakeChannel { node: self.clone(), fabric, session })
    }

    /// Makes channels over so many rails.
    pub(crate) fn connector(&self, fabric: Fabric, rails: usize) -> Box<dyn Connector> {
        Box::new(FakeConnector { node: self.clone(), fabric, rails })
    }

    /// Starts anew: nobody is connected.
    pub(crate) fn restart(&self) {
        self.node().restart();
    }
}

impl Node {
    /// Makes the newest generation of a file.
    pub(crate) fn put(&mut self, name: &str, bytes: Vec<u8>) {
        let identity = u128::from(self.number());
        let generation = self.generations.get(name).map_or(0, |(number, _)| *number) + 1;
        self.generations.insert(name.to_owned(), (generation, identity));
        self.files.insert(name.to_owned(), bytes);
    }

    /// What devices of sessions that are over still do: they write nonsense to what was to be read.
    pub(crate) fn write_late(&mut self) {
        let mut windows = std::mem::take(&mut self.late);
        for session in self.lost.clone() {
            windows.extend(self.read_windows(session));
        }
        for window in windows {
            window.copy_in(&vec![0xEE; window.length()]);
        }
    }

    /// The memory that READs of a session name, as far as it is registered.
    fn read_windows(&self, session: u64) -> impl Iterator<Item = Window> {
        let of = self.arrived.iter().filter(move |(of, _)| *of == session);
        of.flat_map(move |(_, request)| match &request.command {
            Command::Read { into, .. } => into.as_slice().to_vec(),
            _ => Vec::new(),
        })
        .map(move |segment| self.window(session, segment))
    }

    fn restart(&mut self) {
        self.lose_after = None;
        for session in self.regions.keys().map(|(session, _)| *session).collect::<HashSet<_>>() {
            self.forget(session);
        }
    }

    /// Ends a session, as far as the node is concerned.
    fn forget(&mut self, session: u64) {
        self.lost.insert(session);
        self.handles.retain(|_, handle| handle.session != session);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn check_there(&self, session: u64) -> Result<()> {
        if self.lose_after == Some(0) || self.lost.contains(&session) {
            return Err(Kind::Disconnected.error("the cable fell out"));
        }
        Ok(())
    }

    fn take_request(&mut self, session: u64) -> Option<Request> {
        let (hold_opens, mut hold_reads) = (self.hold_opens, self.hold_reads.take());
        let own = |(index, (of, request)): (usize, &(u64, Request))| {
            let held = match request.command {
                Command::Open(_) => hold_opens,
                Command::Read { range, .. } => {
                    hold_reads.as_mut().is_some_and(|hold| hold(range.offset()))
                }
                _ => false,
            };
            (*of == session && !held).then_some(index)
        };
        let indexes: Vec<usize> = self.arrived.iter().enumerate().filter_map(own).collect();
        self.hold_reads = hold_reads;
        let turn = self.random() as usize % indexes.len().max(1);
        Some(self.arrived.swap_remove(*indexes.get(turn)?).1)
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed >> 33
    }

    /// # Errors
    /// [`Kind::Disconnected`] if the node goes away instead.
    fn answer(&mut self, session: u64, request: &Request) -> Result<Reply> {
        let tag = request.tag;
        let carried_out = match request.command {
            Command::Commit { .. } => self.lose_commit.take(),
            Command::Read { range, .. } if self.poison == Some(range.offset()) => Some(false),
            _ => None,
        };
        let answered = carried_out
            .is_none_or(|carried_out| carried_out)
            .then(|| self.try_answer(session, request))
            .map(|answer| answer.unwrap_or_else(|error| Reply::failure(tag, &error)));
        if carried_out.is_some() {
            self.arrived.push((session, *request));
            self.forget(session);
            return Err(Kind::Disconnected.error("the cable fell out"));
        }
        Ok(answered.expect("answered if not lost"))
    }

    fn try_answer(&mut self, session: u64, request: &Request) -> Result<Reply> {
        let ok = Reply::success(request.tag);
        match request.command {
            Command::Hello { .. } => {
                let hello = HelloBody {
                    version: 1,
                    credits: self.credits,
                    features: 0,
                    max_transfer_bytes: self.max_transfer_bytes,
                    block_bytes: 4096,
                };
                Ok(Reply { body: hello.encode(), ..ok })
            }
            Command::Open(open) => self.open(session, &open, ok),
            Command::Read { handle, range, into } => {
                self.maybe_fail()?;
                self.read(session, handle, range, &into, ok)
            }
            Command::Write { handle, range, from } => {
                self.maybe_fail()?;
                let bytes = self.gather(session, &from);
                let crc = request.payload_crc;
                assert!(crc.is_none_or(|crc| crc == crc32c(&bytes)), "the checksum holds");
                self.write(handle, range, &bytes, ok)
            }
            Command::Commit { handle, length } => {
                let open = self.handles.get_mut(&handle).expect("an open handle");
                assert!(std::mem::take(&mut open.writes), "opened to write");
                let bytes = Arc::make_mut(&mut open.bytes);
                bytes.resize(length as usize, 0);
                let (bytes, name, identity) = (bytes.clone(), open.name.clone(), open.identity);
                let generation = self.generations.get(&name).map_or(0, |(number, _)| *number) + 1;
                open.generation = generation;
                self.files.insert(name.clone(), bytes);
                self.generations.insert(name, (generation, identity));
                self.stat(handle, &ok)
            }
            Command::Close { handle } => {
                self.handles.remove(&handle).expect("closed once");
                Ok(ok)
            }
            Command::Stat { handle } => self.stat(handle, &ok),
            Command::Ping => Ok(ok),
        }
    }

    fn maybe_fail(&mut self) -> Result<()> {
        match &mut self.fail {
            Some((0, kind, sentence)) => {
                let error = kind.error(*sentence);
                self.fail = None;
                Err(error)
            }
            Some((left, ..)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn open(&mut self, session: u64, open: &Open, reply: Reply) -> Result<Reply> {
        if let Some(kind) = self.refuse_opens {
            return Err(kind.error("not now"));
        }
        let name = String::from_utf8(self.gather(session, &open.name)).expect("a name in UTF-8");
        let name = name.parse::<FileName>()?.to_string();
        let newest = self.generations.get(&name).copied();
        let (writes, bytes, (generation, identity)) = match open.mode {
            OpenMode::Write(_) => (true, Vec::new(), (0, u128::from(self.number()))),
            OpenMode::Read(Generation(wanted)) => {
                let newest = newest.ok_or_else(|| {
                    Kind::NotFound.error(format!("no file {name}: register it first"))
                })?;
                if wanted != 0 && wanted != newest.0 {
                    return Err(Kind::Stale.error(format!("generation {wanted} is not here")));
                }
                (false, self.files[&name].clone(), newest)
            }
        };
        let bytes = Arc::new(bytes);
        let number = self.number();
        self.handles.insert(number, Handle { session, name, bytes, generation, identity, writes });
        self.stat(number, &Reply { value: number, ..reply })
    }

    fn stat(&self, handle: u64, reply: &Reply) -> Result<Reply> {
        let open = &self.handles[&handle];
        let body = OpenBody {
            file: open.name.parse::<FileName>()?.id(),
            generation: Generation(open.generation),
            length: open.bytes.len() as u64,
            extent_bytes: 1 << 20,
            resident_extents: 1,
            total_extents: 1,
            identity: open.identity,
        };
        Ok(Reply { body: body.encode(), ..reply.clone() })
    }

    fn read(
        &mut self,
        session: u64,
        handle: u64,
        range: ByteRange,
        into: &Segments,
        ok: Reply,
    ) -> Result<Reply> {
        assert!(range.length() <= self.max_transfer_bytes, "the client splits");
        let handle = self.handles.get(&handle).filter(|open| open.session == session);
        let file = Arc::clone(&handle.expect("a handle of this session").bytes);
        let end = range.end().min(file.len() as u64);
        let mut bytes = file[range.offset().min(end) as usize..end as usize].to_vec();
        let crc = crc32c(&bytes);
        if self.damage {
            bytes[0] ^= 1;
        }
        let mut at = 0;
        for segment in into.slice(0, bytes.len() as u64) {
            let length = segment.length as usize;
            if !self.devices.loses(segment.key) {
                self.window(session, segment).copy_in(&bytes[at..at + length]);
            }
            at += length;
        }
        let (served, landing) = (Served::Tier, Landing::Direct);
        Ok(Reply { value: bytes.len() as u64, payload_crc: crc, served, landing, ..ok })
    }

    fn write(&mut self, handle: u64, range: ByteRange, bytes: &[u8], ok: Reply) -> Result<Reply> {
        assert!(range.length() <= self.max_transfer_bytes, "the client splits");
        let open = self.handles.get_mut(&handle).filter(|open| open.writes).expect("to write");
        let draft = Arc::make_mut(&mut open.bytes);
        let end = range.end() as usize;
        draft.resize(draft.len().max(end), 0);
        draft[range.offset() as usize..end].copy_from_slice(bytes);
        Ok(Reply { value: range.length(), landing: Landing::Copied, ..ok })
    }

    fn gather(&self, session: u64, segments: &Segments) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in segments.as_slice() {
            let begin = bytes.len();
            bytes.resize(begin + segment.length as usize, 0);
            self.window(session, *segment).copy_out(&mut bytes[begin..]);
        }
        bytes
    }

    fn window(&self, session: u64, segment: Segment) -> Window {
        let region = self.regions.get(&(session, segment.key)).expect("a registered region");
        Window::new(Arc::clone(region), segment.address, segment.length as usize).expect("inside")
    }
}
