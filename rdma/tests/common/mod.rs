//! A tiny node over any transport, and a client that drives any channel against it.
#![allow(dead_code, reason = "each test binary uses its part of this")]

pub(crate) mod crowd;
pub(crate) mod lab;
pub(crate) mod network;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use dma::{HugePages, Pool, Region, SizeClass, Source, Target};
use extent::wire::{
    Command, HelloBody, Landing, Open, OpenBody, OpenMode, Reply, Request, Segment, Segments,
    Served,
};
use extent::{ByteRange, Error, FileId, FileName, Generation, Kind, Result, checksum};
use forebay_rdma::{Channel, Event, Fabric, SessionId, Token, Transfer, Transport};

/// Bytes of the node's buffers.
pub(crate) const PIECE_BYTES: usize = 64 << 10;
/// A handle whose WRITEs the node answers without a word about their bytes.
pub(crate) const RUDE: u64 = u64::MAX;
/// How often a test looks before it takes the other side for hung.
const MANY: usize = 50_000_000;

/// Answers requests from files in memory.
pub(crate) struct TestNode<T> {
    pub(crate) transport: T,
    pub(crate) pool: Pool,
    files: HashMap<String, (Generation, Vec<u8>)>,
    sessions: HashMap<SessionId, HashMap<u64, Handle>>,
    jobs: VecDeque<Job>,
    writes: HashMap<(SessionId, u32), WriteState>,
    in_flight: HashMap<Token, InFlight>,
    tokens: u64,
    pub(crate) opened: Vec<(SessionId, String)>,
    pub(crate) closed: Vec<(SessionId, Error)>,
    pub(crate) requests: usize,
    /// Transfers that ended well, and that ended with an error.
    pub(crate) completed: (usize, usize),
}

struct Handle {
    name: String,
    draft: Option<Vec<u8>>,
}

/// Work that needs buffers: done in order, and waits while all are out.
struct Job {
    session: SessionId,
    tag: u32,
    segments: Segments,
    at: usize,
    kind: JobKind,
}

enum JobKind {
    Read { bytes: Vec<u8>, reply: Reply },
    Fetch { total: usize },
}

struct WriteState {
    bytes: Vec<u8>,
    left: usize,
    request: Request,
}

struct InFlight {
    session: SessionId,
    tag: u32,
    at: usize,
    is_read: bool,
}

impl<T: Transport> TestNode<T> {
    pub(crate) fn new(transport: T, buffers: usize) -> Self {
        let sizes = [SizeClass { bytes: PIECE_BYTES, count: buffers }];
        Self {
            transport,
            pool: Pool::new(&sizes, HugePages::Never).expect("memory"),
            files: HashMap::new(),
            sessions: HashMap::new(),
            jobs: VecDeque::new(),
            writes: HashMap::new(),
            in_flight: HashMap::new(),
            tokens: 0,
            opened: Vec::new(),
            closed: Vec::new(),
            requests: 0,
            completed: (0, 0),
        }
    }

    pub(crate) fn add_file(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(name.into(), (Generation(1), bytes));
    }

    pub(crate) fn buffers_out(&self) -> usize {
        self.pool.usage().iter().map(|class| class.taken).sum()
    }

    pub(crate) fn transfers_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// One turn. Returns whether anything happened.
    pub(crate) fn step(&mut self) -> bool {
        let mut events = Vec::new();
        self.transport.poll(&mut events);
        let busy = !events.is_empty();
        for event in events {
            self.on_event(event);
        }
        self.run_jobs();
        self.transport.kick();
        busy
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Opened { session, peer, .. } => {
                assert!(self.sessions.insert(session, HashMap::new()).is_none(), "numbers are new");
                self.opened.push((session, peer));
            }
            Event::Request { session, capsule, length } => {
                self.requests += 1;
                let capsule = &capsule[..length];
                let outcome = Request::parse(capsule).and_then(|r| self.on_request(session, &r));
                if let Err(error) = outcome {
                    self.transport.discard(session);
                    let reply = Reply::failure(Request::tag_of(capsule), &error);
                    self.transport.post_reply(session, &reply);
                }
            }
            Event::Written { session, token, from, result } => {
                let what = self.in_flight.remove(&token).expect("completes once");
                assert!(what.session == session && !what.is_read);
                assert!(self.sessions.contains_key(&session), "nothing completes after Closed");
                self.count(&result);
                drop(from);
            }
            Event::Read { session, token, into, result } => {
                let what = self.in_flight.remove(&token).expect("completes once");
                assert!(what.session == session && what.is_read);
                assert!(self.sessions.contains_key(&session), "nothing completes after Closed");
                self.count(&result);
                if result.is_ok() {
                    self.on_fetched(session, what.tag, what.at, &into);
                }
            }
            Event::Closed { session, reason } => {
                assert!(self.sessions.remove(&session).is_some(), "closed once, after opened");
                self.jobs.retain(|job| job.session != session);
                self.writes.retain(|(of, _), _| *of != session);
                assert!(!self.in_flight.values().any(|what| what.session == session));
                self.closed.push((session, reason));
            }
            Event::Mapped { .. } | Event::Unmapped { .. } => {}
        }
    }

    fn count(&mut self, result: &Result<()>) {
        match result {
            Ok(()) => self.completed.0 += 1,
            Err(_) => self.completed.1 += 1,
        }
    }

    fn on_request(&mut self, session: SessionId, request: &Request) -> Result<()> {
        let handles = self.sessions.get_mut(&session).expect("requests come after Opened");
        let no_handle = || Kind::NotFound.error("no such handle");
        let mut reply = Reply { credits: 64, ..Reply::success(request.tag) };
        match request.command {
            Command::Hello { versions, credits, .. } => {
                assert!(versions.0 <= 1 && credits > 0);
                let body = HelloBody {
                    version: 1,
                    credits: 64,
                    features: 0,
                    max_transfer_bytes: 16 << 20,
                    block_bytes: 4096,
                };
                reply.body = body.encode();
            }
            Command::Read { handle, range, into } => {
                let name = &handles.get(&handle).ok_or_else(no_handle)?.name;
                let bytes = cut(&self.files[name].1, range).to_vec();
                reply.value = bytes.len() as u64;
                reply.served = Served::Tier;
                reply.landing = match session.fabric() {
                    Fabric::Verbs => Landing::Rdma,
                    _ => Landing::Stream,
                };
                reply.payload_crc = request.payload_crc.map_or(0, |_| checksum::crc32c(&bytes));
                let kind = JobKind::Read { bytes, reply };
                self.jobs.push_back(Job { session, tag: request.tag, segments: into, at: 0, kind });
                return Ok(());
            }
            Command::Write { handle: RUDE, .. } => reply.status = Err(Kind::Denied),
            Command::Write { handle, from: segments, .. } => {
                handles.get(&handle).filter(|h| h.draft.is_some()).ok_or_else(no_handle)?;
                return self.fetch(session, request, segments);
            }
            Command::Open(open) => return self.fetch(session, request, open.name),
            Command::Commit { handle, length } => {
                let handle = handles.get_mut(&handle).ok_or_else(no_handle)?;
                let mut bytes = handle.draft.take().ok_or_else(no_handle)?;
                bytes.resize(usize::try_from(length).expect("small"), 0);
                let file = self.files.entry(handle.name.clone()).or_default();
                *file = (Generation(file.0.0 + 1), bytes);
                reply.body = body_of(&handle.name, file);
            }
            Command::Stat { handle } => {
                let handle = handles.get(&handle).ok_or_else(no_handle)?;
                reply.body = body_of(&handle.name, &self.files[&handle.name]);
            }
            Command::Close { handle } => {
                handles.remove(&handle).ok_or_else(no_handle)?;
            }
            Command::Ping => {}
        }
        self.transport.post_reply(session, &reply);
        Ok(())
    }

    fn fetch(&mut self, session: SessionId, request: &Request, segments: Segments) -> Result<()> {
        let total = usize::try_from(segments.total_bytes()).expect("small");
        let state = WriteState { bytes: vec![0; total], left: total, request: *request };
        assert!(self.writes.insert((session, request.tag), state).is_none());
        if total == 0 {
            self.on_fetched_all(session, request.tag);
            return Ok(());
        }
        let kind = JobKind::Fetch { total };
        self.jobs.push_back(Job { session, tag: request.tag, segments, at: 0, kind });
        Ok(())
    }

    fn on_fetched(&mut self, session: SessionId, tag: u32, at: usize, into: &Target) {
        let Target::Buffer(buffer, range) = into else { panic!("as it was posted") };
        let state = self.writes.get_mut(&(session, tag)).expect("a write in flight");
        state.bytes[at..at + range.len()].copy_from_slice(&buffer.as_slice()[range.clone()]);
        state.left -= range.len();
        if state.left == 0 {
            self.on_fetched_all(session, tag);
        }
    }

    fn on_fetched_all(&mut self, session: SessionId, tag: u32) {
        let state = self.writes.remove(&(session, tag)).expect("a write in flight");
        let crc = checksum::crc32c(&state.bytes);
        let reply = if state.request.payload_crc.is_some_and(|expected| expected != crc) {
            Reply::failure(tag, &Kind::Corrupt.error("the bytes do not match their checksum"))
        } else {
            match state.request.command {
                Command::Open(open) => self
                    .open(session, tag, &open, &state.bytes)
                    .unwrap_or_else(|error| Reply::failure(tag, &error)),
                Command::Write { handle, range, .. } => {
                    let handles = self.sessions.get_mut(&session).expect("open");
                    let draft = handles.get_mut(&handle).and_then(|h| h.draft.as_mut());
                    let draft = draft.expect("checked before");
                    let begin = usize::try_from(range.offset()).expect("small");
                    draft.resize(draft.len().max(begin + state.bytes.len()), 0);
                    draft[begin..begin + state.bytes.len()].copy_from_slice(&state.bytes);
                    Reply { value: range.length(), ..Reply::success(tag) }
                }
                _ => panic!("only these carry bytes"),
            }
        };
        self.transport.post_reply(session, &Reply { credits: 64, ..reply });
    }

    fn open(&mut self, session: SessionId, tag: u32, open: &Open, name: &[u8]) -> Result<Reply> {
        let name: FileName = String::from_utf8_lossy(name).parse()?;
        let name = name.to_string();
        let missing = || Kind::NotFound.error(format!("no file {name}"));
        let (draft, body) = match open.mode {
            OpenMode::Read(_) => (None, body_of(&name, self.files.get(&name).ok_or_else(missing)?)),
            OpenMode::Write(_) => (Some(Vec::new()), body_of(&name, &Default::default())),
        };
        self.tokens += 1;
        let handles = self.sessions.get_mut(&session).expect("open");
        handles.insert(self.tokens, Handle { name, draft });
        Ok(Reply { value: self.tokens, body, ..Reply::success(tag) })
    }

    fn run_jobs(&mut self) {
        while let Some(job) = self.jobs.front_mut() {
            let total = match &job.kind {
                JobKind::Read { bytes, .. } => bytes.len(),
                JobKind::Fetch { total } => *total,
            };
            if job.at < total {
                let Some(mut buffer) = self.pool.take(1) else { return };
                let length = PIECE_BYTES.min(total - job.at);
                self.tokens += 1;
                let token = Token(self.tokens);
                let Job { session, tag, segments, at, .. } = *job;
                let transfer = Transfer { token, tag, segments, at: at as u64 };
                let is_read = matches!(job.kind, JobKind::Fetch { .. });
                self.in_flight.insert(token, InFlight { session, tag, at, is_read });
                job.at += length;
                match &job.kind {
                    JobKind::Read { bytes, .. } => {
                        buffer.as_mut_slice()[..length].copy_from_slice(&bytes[at..at + length]);
                        let from = Source::Buffer(buffer, 0..length);
                        self.transport.post_write(session, transfer, from);
                    }
                    JobKind::Fetch { .. } => {
                        let into = Target::Buffer(buffer, 0..length);
                        self.transport.post_read(session, transfer, into);
                    }
                }
                continue;
            }
            if let Some(Job { session, kind: JobKind::Read { reply, .. }, .. }) =
                self.jobs.pop_front()
            {
                self.transport.post_reply(session, &reply);
            }
        }
    }
}

fn cut(bytes: &[u8], range: ByteRange) -> &[u8] {
    let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[clamp(range.offset())..clamp(range.end())]
}

fn body_of(name: &str, (generation, bytes): &(Generation, Vec<u8>)) -> Vec<u8> {
    let body = OpenBody {
        file: name.parse::<FileName>().map_or(FileId(0), |name| name.id()),
        generation: *generation,
        length: bytes.len() as u64,
        extent_bytes: 4 << 20,
        resident_extents: 1,
        total_extents: 1,
        identity: 0,
    };
    body.encode()
}

/// A client over any channel. `turn` lets the node make progress.
pub(crate) struct TestClient<C> {
    pub(crate) channel: C,
    pub(crate) region: Arc<Region>,
    tags: u32,
    pending: HashSet<u32>,
    replies: Vec<Reply>,
}

impl<C: Channel> TestClient<C> {
    pub(crate) fn new(mut channel: C, bytes: usize) -> Self {
        let region = channel.allocate(bytes).expect("memory");
        Self { channel, region, tags: 0, pending: HashSet::new(), replies: Vec::new() }
    }

    /// A part of the client's memory.
    pub(crate) fn segment(&self, at: usize, length: usize) -> Segment {
        let length = u32::try_from(length).expect("small");
        Segment { address: at as u64, length, key: self.region.id().0 }
    }

    /// Cuts `0..length` at the given places into up to four segments, placed with gaps from `base`.
    pub(crate) fn scattered(&self, base: usize, length: usize, cuts: &[usize]) -> Vec<Segment> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (length + 1)).collect();
        cuts.extend([0, length]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).enumerate();
        pieces.map(|(i, ends)| self.segment(base + ends[0] + 7 * i, ends[1] - ends[0])).collect()
    }

    pub(crate) fn fill(&self, at: usize, bytes: &[u8]) {
        let window = dma::Window::new(Arc::clone(&self.region), at as u64, bytes.len());
        window.expect("inside").copy_in(bytes);
    }

    pub(crate) fn bytes(&self, at: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let window = dma::Window::new(Arc::clone(&self.region), at as u64, length);
        window.expect("inside").copy_out(&mut bytes);
        bytes
    }

    pub(crate) fn send(&mut self, command: Command, payload_crc: Option<u32>) -> u32 {
        self.tags += 1;
        let request = Request { tag: self.tags, payload_crc, command };
        self.channel.send(&request).expect("room");
        assert!(self.pending.insert(self.tags));
        self.tags
    }

    /// Sends what is queued and waits for all replies, which come back by tag.
    pub(crate) fn finish(&mut self, turn: &mut dyn FnMut()) -> Result<HashMap<u32, Reply>> {
        self.channel.kick()?;
        let mut done = HashMap::new();
        for _ in 0..MANY {
            if self.pending.is_empty() {
                return Ok(done);
            }
            turn();
            self.channel.poll(&mut self.replies)?;
            for reply in self.replies.drain(..) {
                assert!(self.pending.remove(&reply.tag), "one reply to each request");
                done.insert(reply.tag, reply);
            }
        }
        panic!("no reply to {:?}", self.pending);
    }

    pub(crate) fn call(&mut self, command: Command, turn: &mut dyn FnMut()) -> Result<Reply> {
        let tag = self.send(command, None);
        Ok(self.finish(turn)?.remove(&tag).expect("all are answered"))
    }

    /// Opens by name; the name is put to the front of the region.
    pub(crate) fn open(
        &mut self,
        name: &str,
        mode: OpenMode,
        turn: &mut dyn FnMut(),
    ) -> Result<Reply> {
        self.fill(0, name.as_bytes());
        let name = Segments::one(self.segment(0, name.len()));
        self.call(Command::Open(Open { file: FileId(0), mode, name }), turn)
    }
}

/// Lets a node turn until something holds.
pub(crate) fn until<T: Transport>(
    node: &mut TestNode<T>,
    mut holds: impl FnMut(&TestNode<T>) -> bool,
) {
    for _ in 0..MANY {
        if holds(node) {
            return;
        }
        node.step();
    }
    panic!("it never came");
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mix = |at: usize| (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[7];
    (0..length).map(mix).collect()
}

pub(crate) fn range(offset: usize, length: usize) -> ByteRange {
    ByteRange::new(offset as u64, length as u64).expect("in bounds")
}
