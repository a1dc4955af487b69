//! The smallest node over real fabrics: every name opens the same file, in memory.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use dma::{HugePages, Pool, SizeClass, Source, Target};
use extent::checksum::crc32c;
use extent::wire::{Command, HelloBody, Landing, OpenBody, Reply, Request, Segments, Served};
use extent::{ByteRange, FileId, Generation, Kind, Result};
use rdma::{
    Event, Fabrics, Listener, ListenerOptions, SessionId, ShmOptions, Token, Transfer, Transport,
};

const MAX_TRANSFER_BYTES: usize = 1 << 20;
const BUFFERS: usize = 8;
const CREDITS: u16 = 32;

/// A running node, ended on drop.
pub(crate) struct Mini {
    pub(crate) address: SocketAddr,
    pub(crate) socket: PathBuf,
    _running: Running,
    _listener: Listener,
    _directory: tempfile::TempDir,
}

impl Mini {
    pub(crate) fn start(file: Vec<u8>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("node.sock");
        let fabrics = Fabrics::new(0, ShmOptions::default(), None).expect("descriptors");
        let options = ListenerOptions {
            tcp: vec!["127.0.0.1:0".parse().expect("an address")],
            unix: Some(socket.clone()),
            ..ListenerOptions::default()
        };
        let listener = Listener::start(options, vec![fabrics.inbox()]).expect("listening");
        let address = listener.local_addr().expect("a port");
        let running = Running::start(fabrics, file);
        Self { address, socket, _running: running, _listener: listener, _directory: directory }
    }
}

/// A node's thread, ended on drop.
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Serves a file over any transport.
    pub(crate) fn start(transport: impl Transport + 'static, file: Vec<u8>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut shard = Shard::new(transport, file);
            while !stopping.load(Ordering::Acquire) {
                if !shard.step() {
                    thread::yield_now();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().expect("joined once").join();
        assert!(ended.is_ok() || thread::panicking(), "the node does not panic");
    }
}

struct Shard<T> {
    fabrics: T,
    file: Vec<u8>,
    pool: Pool,
    /// Reads that wait for a buffer.
    waiting: VecDeque<(SessionId, Request)>,
    /// OPENs and WRITEs whose bytes are being fetched.
    fetching: HashMap<Token, (SessionId, Request)>,
    tokens: u64,
}

impl<T: Transport> Shard<T> {
    fn new(fabrics: T, file: Vec<u8>) -> Self {
        let sizes = [SizeClass { bytes: MAX_TRANSFER_BYTES, count: BUFFERS }];
        let pool = Pool::new(&sizes, HugePages::Never).expect("memory");
        let (waiting, fetching) = (VecDeque::new(), HashMap::new());
        Self { fabrics, file, pool, waiting, fetching, tokens: 0 }
    }

    fn step(&mut self) -> bool {
        let mut events = Vec::new();
        self.fabrics.poll(&mut events);
        let busy = !events.is_empty();
        for event in events {
            match event {
                Event::Request { session, capsule, length } => {
                    let request = Request::parse(&capsule[..length]).expect("a sound request");
                    self.waiting.push_back((session, request));
                }
                Event::Read { session, token, into, result } => {
                    let (_, request) = self.fetching.remove(&token).expect("fetched once");
                    if result.is_ok() {
                        self.on_fetched(session, &request, &into);
                    }
                }
                Event::Closed { session, .. } => self.waiting.retain(|(of, _)| *of != session),
                _ => {}
            }
        }
        while let Some((session, request)) = self.waiting.pop_front() {
            if !self.start(session, &request) {
                self.waiting.push_front((session, request));
                break;
            }
        }
        self.fabrics.kick();
        busy
    }

    /// Whether there was a buffer for it.
    fn start(&mut self, session: SessionId, request: &Request) -> bool {
        let ok = Reply { credits: CREDITS, ..Reply::success(request.tag) };
        let reply = match request.command {
            Command::Hello { .. } => {
                let body = HelloBody {
                    version: 1,
                    credits: CREDITS,
                    features: 0,
                    max_transfer_bytes: MAX_TRANSFER_BYTES as u64,
                    block_bytes: 4096,
                };
                Reply { body: body.encode(), ..ok }
            }
            Command::Open(open) => return self.fetch(session, request, open.name),
            Command::Write { from, .. } => return self.fetch(session, request, from),
            Command::Read { range, into, .. } => {
                let Some(mut buffer) = self.pool.take(1) else { return false };
                let bytes = cut(&self.file, range);
                let length = bytes.len();
                buffer.as_mut_slice()[..length].copy_from_slice(bytes);
                let payload_crc = request.payload_crc.map_or(0, |_| crc32c(bytes));
                if length != 0 {
                    let token = self.token();
                    let transfer = Transfer { token, tag: request.tag, segments: into, at: 0 };
                    self.fabrics.post_write(session, transfer, Source::Buffer(buffer, 0..length));
                }
                let (served, landing) = (Served::Tier, Landing::Copied);
                Reply { value: length as u64, payload_crc, served, landing, ..ok }
            }
            Command::Commit { .. } | Command::Stat { .. } => {
                Reply { body: self.body().encode(), ..ok }
            }
            Command::Close { .. } | Command::Ping => ok,
        };
        self.fabrics.post_reply(session, &reply);
        true
    }

    fn fetch(&mut self, session: SessionId, request: &Request, segments: Segments) -> bool {
        let Some(buffer) = self.pool.take(1) else { return false };
        let length = usize::try_from(segments.total_bytes()).expect("small");
        let token = self.token();
        self.fetching.insert(token, (session, *request));
        let transfer = Transfer { token, tag: request.tag, segments, at: 0 };
        self.fabrics.post_read(session, transfer, Target::Buffer(buffer, 0..length));
        true
    }

    fn on_fetched(&mut self, session: SessionId, request: &Request, into: &Target) {
        let reply = self.fetched(request, into).unwrap_or_else(|e| Reply::failure(request.tag, &e));
        self.fabrics.post_reply(session, &Reply { credits: CREDITS, ..reply });
    }

    fn fetched(&mut self, request: &Request, into: &Target) -> Result<Reply> {
        let Target::Buffer(buffer, bytes) = into else { panic!("as it was posted") };
        let bytes = &buffer.as_slice()[bytes.clone()];
        let ok = Reply::success(request.tag);
        match request.command {
            Command::Write { range, .. } => {
                if request.payload_crc.is_some_and(|crc| crc != crc32c(bytes)) {
                    return Err(Kind::Corrupt.error("the bytes do not match their checksum"));
                }
                let begin = usize::try_from(range.offset()).expect("small");
                let length = self.file.len().max(begin + bytes.len());
                self.file.resize(length, 0);
                self.file[begin..begin + bytes.len()].copy_from_slice(bytes);
                Ok(Reply { value: range.length(), landing: Landing::Copied, ..ok })
            }
            _ if bytes.ends_with(b"/missing") => Err(Kind::NotFound.error("no such file")),
            _ => Ok(Reply { value: 1, body: self.body().encode(), ..ok }),
        }
    }

    fn body(&self) -> OpenBody {
        OpenBody {
            file: FileId(1),
            generation: Generation(1),
            length: self.file.len() as u64,
            extent_bytes: 4 << 20,
            resident_extents: 1,
            total_extents: 1,
            identity: 1,
        }
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }
}

fn cut(bytes: &[u8], range: ByteRange) -> &[u8] {
    let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[clamp(range.offset())..clamp(range.end())]
}
