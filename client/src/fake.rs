//! A node for tests: holds files in memory, answers in an order that a seed chooses, and fails
//! where it is told to.
#![expect(clippy::cast_possible_truncation, reason = "a test's numbers are small")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dma::{HugePages, Region, Window};
use extent::checksum::crc32c;
use extent::wire::{
    Command, HelloBody, Landing, Open, OpenBody, OpenMode, Reply, Request, Segment, Segments,
    Served,
};
use extent::{ByteRange, FileName, Generation, Kind, Result};
use parking_lot::{Mutex, MutexGuard};
use rdma::{Channel, Fabric};

/// The test's grip on a node.
#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<Node>>);

pub(crate) struct Node {
    pub(crate) files: HashMap<String, Vec<u8>>,
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
    pub(crate) peak_in_flight: usize,
    pub(crate) requests: usize,
    pub(crate) regions: HashMap<u32, Arc<Region>>,
    pub(crate) channels: usize,
    queued: Vec<Request>,
    arrived: Vec<Request>,
    next_handle: u64,
}

pub(crate) struct Handle {
    name: String,
    draft: Option<Vec<u8>>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Node {
            files: HashMap::new(),
            handles: HashMap::new(),
            credits: 8,
            max_transfer_bytes: 4096,
            ring: 64,
            replies_per_poll: 3,
            seed: 1,
            fail: None,
            lose_after: None,
            damage: false,
            peak_in_flight: 0,
            requests: 0,
            regions: HashMap::new(),
            channels: 0,
            queued: Vec::new(),
            arrived: Vec::new(),
            next_handle: 1,
        })))
    }

    pub(crate) fn node(&self) -> MutexGuard<'_, Node> {
        self.0.lock()
    }

    /// A file whose byte at `i` is a function of `i`.
    pub(crate) fn add_file(&self, name: &str, length: usize) -> Vec<u8> {
        let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8 ^ (i >> 10) as u8).collect();
        self.node().files.insert(name.to_owned(), bytes.clone());
        bytes
    }

    pub(crate) fn channel(&self, fabric: Fabric) -> Box<dyn Channel> {
        self.node().channels += 1;
        Box::new(FakeChannel { node: self.clone(), fabric })
    }
}

struct FakeChannel {
    node: Fake,
    fabric: Fabric,
}

impl Drop for FakeChannel {
    fn drop(&mut self) {
        let mut node = self.node.node();
        node.channels -= 1;
        node.arrived.clear();
        node.queued.clear();
    }
}

impl Channel for FakeChannel {
    fn fabric(&self) -> Fabric {
        self.fabric
    }

    fn allocate(&mut self, length: usize) -> Result<Arc<Region>> {
        let region = Region::anonymous(length, HugePages::Never)?;
        self.node.node().regions.insert(region.id().0, Arc::clone(&region));
        Ok(region)
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        if self.fabric == Fabric::SharedMemory {
            return Err(Kind::Unsupported.error("memory of another session"));
        }
        self.node.node().regions.insert(region.id().0, Arc::clone(region));
        Ok(())
    }

    fn release(&mut self, region: &Arc<Region>) {
        self.node.node().regions.remove(&region.id().0).expect("released once");
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let mut node = self.node.node();
        node.check_there()?;
        if node.queued.len() >= node.ring {
            return Err(Kind::Busy.error("the ring is full"));
        }
        let in_use = |other: &Request| other.tag == request.tag;
        assert!(!node.queued.iter().chain(&node.arrived).any(in_use), "a tag is used once");
        node.queued.push(*request);
        node.requests += 1;
        node.peak_in_flight = node.peak_in_flight.max(node.queued.len() + node.arrived.len());
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        let mut node = self.node.node();
        node.check_there()?;
        let queued = std::mem::take(&mut node.queued);
        node.arrived.extend(queued);
        Ok(())
    }

    fn poll(&mut self, replies: &mut Vec<Reply>) -> Result<()> {
        let mut node = self.node.node();
        for _ in 0..node.replies_per_poll.min(node.arrived.len()) {
            node.check_there()?;
            let turn = node.random() as usize % node.arrived.len();
            let request = node.arrived.swap_remove(turn);
            let mut reply = node.answer(&request);
            reply.credits = node.credits;
            replies.push(reply);
            if let Some(left) = &mut node.lose_after {
                *left = left.saturating_sub(1);
            }
        }
        node.check_there()
    }

    fn wait(&mut self, _timeout: Duration) -> Result<()> {
        self.node.node().check_there()
    }
}

impl Node {
    fn check_there(&self) -> Result<()> {
        if self.lose_after == Some(0) {
            return Err(Kind::Disconnected.error("the cable fell out"));
        }
        Ok(())
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed >> 33
    }

    fn answer(&mut self, request: &Request) -> Reply {
        let tag = request.tag;
        self.try_answer(request).unwrap_or_else(|error| Reply::failure(tag, &error))
    }

    fn try_answer(&mut self, request: &Request) -> Result<Reply> {
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
            Command::Open(open) => self.open(&open, ok),
            Command::Read { handle, range, into } => {
                self.maybe_fail()?;
                self.read(handle, range, &into, ok)
            }
            Command::Write { handle, range, from } => {
                self.maybe_fail()?;
                self.write(handle, range, &from, request.payload_crc, ok)
            }
            Command::Commit { handle, length } => {
                let open = self.handles.get_mut(&handle).expect("an open handle");
                let mut bytes = open.draft.take().expect("opened to write");
                bytes.resize(length as usize, 0);
                let name = open.name.clone();
                self.files.insert(name, bytes);
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

    fn open(&mut self, open: &Open, reply: Reply) -> Result<Reply> {
        let name = String::from_utf8(self.gather(&open.name)).expect("a name in UTF-8");
        let name = name.parse::<FileName>()?.to_string();
        let draft = matches!(open.mode, OpenMode::Write(_)).then(Vec::new);
        if draft.is_none() && !self.files.contains_key(&name) {
            return Err(Kind::NotFound.error(format!("no file {name}: register it first")));
        }
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, Handle { name, draft });
        self.stat(handle, &Reply { value: handle, ..reply })
    }

    fn stat(&self, handle: u64, reply: &Reply) -> Result<Reply> {
        let open = &self.handles[&handle];
        let length = self.files.get(&open.name).map_or(0, Vec::len) as u64;
        let body = OpenBody {
            file: open.name.parse::<FileName>()?.id(),
            generation: Generation(u64::from(open.draft.is_none())),
            length,
            extent_bytes: 1 << 20,
            resident_extents: 1,
            total_extents: 1,
            identity: 0,
        };
        Ok(Reply { body: body.encode(), ..reply.clone() })
    }

    fn read(&mut self, handle: u64, range: ByteRange, into: &Segments, ok: Reply) -> Result<Reply> {
        assert!(range.length() <= self.max_transfer_bytes, "the client splits");
        let file = &self.files[&self.handles[&handle].name];
        let end = range.end().min(file.len() as u64);
        let mut bytes = file[range.offset().min(end) as usize..end as usize].to_vec();
        let crc = crc32c(&bytes);
        if self.damage {
            bytes[0] ^= 1;
        }
        let mut at = 0;
        for segment in into.slice(0, bytes.len() as u64) {
            let length = segment.length as usize;
            self.window(segment).copy_in(&bytes[at..at + length]);
            at += length;
        }
        let (served, landing) = (Served::Tier, Landing::Direct);
        Ok(Reply { value: bytes.len() as u64, payload_crc: crc, served, landing, ..ok })
    }

    fn write(
        &mut self,
        handle: u64,
        range: ByteRange,
        from: &Segments,
        crc: Option<u32>,
        ok: Reply,
    ) -> Result<Reply> {
        assert!(range.length() <= self.max_transfer_bytes, "the client splits");
        let bytes = self.gather(from);
        assert!(crc.is_none_or(|crc| crc == crc32c(&bytes)), "the client's checksum holds");
        let draft = self.handles.get_mut(&handle).expect("open").draft.as_mut().expect("to write");
        let end = range.end() as usize;
        draft.resize(draft.len().max(end), 0);
        draft[range.offset() as usize..end].copy_from_slice(&bytes);
        Ok(Reply { value: range.length(), landing: Landing::Copied, ..ok })
    }

    fn gather(&self, segments: &Segments) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in segments.as_slice() {
            let begin = bytes.len();
            bytes.resize(begin + segment.length as usize, 0);
            self.window(*segment).copy_out(&mut bytes[begin..]);
        }
        bytes
    }

    fn window(&self, segment: Segment) -> Window {
        let region = self.regions.get(&segment.key).expect("a registered region");
        Window::new(Arc::clone(region), segment.address, segment.length as usize).expect("inside")
    }
}
