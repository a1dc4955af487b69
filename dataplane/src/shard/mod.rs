//! A shard: one thread's share of the sessions, with its own device queues and fabric endpoint.
//!
//! Nothing here blocks, and nothing here knows a thread: [`Shard::step`] takes in what happened
//! and starts what follows, so a test can step a whole node in any order it likes.
//!
//! What holds at every step:
//! 1. Memory under a device command or a transfer is owned by that command, never by a request.
//! 2. A request is answered exactly once, and only when nothing it started is still running, but for
//!    transfers that the fabric keeps in front of the answer.
//! 3. A byte leaves for a client only after the checksum of its block was verified, on whichever
//!    path it came.
//! 4. What a request may start is bounded by buffers and queue places; a request that finds none
//!    waits in `stalled` and holds nothing that another one needs to go on.

mod commit;
mod descriptor;
mod draft;
mod open;
mod part;
mod read;
mod recall;
mod session;
mod store;
mod thread;
mod write;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma::{Frozen, Pool, Source, Target};
use extent::wire::{Command, Reply, Request as Capsule};
use extent::{Error, Kind, Result};
use nvme_tier::Tier;
use nvme_tier::device::{Command as DeviceCommand, Completion, Device, Token};
use rdma::{Event, Fabric, SessionId, Token as TransferToken, Transport};
use tokio::sync::mpsc;

use crate::bugs::{self, Bug};
use crate::inbox::{Inbox, Message};
use crate::mover::Demand;
use crate::node::NodeOptions;
use crate::slots::{Key, Slots};
use crate::stats::ShardStats;

use commit::CommitRequest;
use descriptor::{DescriptorRead, Descriptors};
use draft::DraftState;
use open::OpenRequest;
use read::{ReadOp, ReadRequest};
use session::{Session, Sessions};
use store::MoverOp;
use write::{WriteOp, WriteRequest};

pub(crate) use thread::run;

/// The most bytes that one device command reads or writes for a client.
const CHUNK_BYTES: u64 = 1 << 20;
/// After so many events what they led to leaves; after so many completions, or so many bytes of them,
/// a step ends. A batch spares system calls, but no client should wait for the end of a long one,
/// nor should the device have nothing to do while the requests that its completions led to wait.
const BATCH: usize = 8;
const BATCH_BYTES: usize = 128 << 10;
/// Bytes of the buffer of zeroes that holes are read from.
const ZERO_BYTES: usize = 128 << 10;

/// What a shard shares with the rest of the node.
pub(crate) struct Surroundings {
    pub(crate) tier: Arc<Tier>,
    /// Asks the mover for what only it can do.
    pub(crate) demands: mpsc::Sender<Demand>,
    /// Silos by name, and whether each can be written.
    pub(crate) silos: HashMap<String, bool>,
    pub(crate) options: NodeOptions,
    pub(crate) draining: std::sync::atomic::AtomicBool,
}

/// See the module.
pub(crate) struct Shard {
    device: Box<dyn Device>,
    transport: Box<dyn Transport>,
    node: Arc<Surroundings>,
    inbox: Arc<Inbox>,
    stats: Arc<ShardStats>,
    pool: Pool,
    zeroes: Frozen,
    sessions: Sessions,
    requests: Slots<Request>,
    drafts: Slots<DraftState>,
    ops: Slots<Op>,
    descriptors: Descriptors,
    /// Requests that wait for a buffer or a queue place, oldest first.
    stalled: VecDeque<Key>,
    /// Commands that the device had no place for.
    deferred: VecDeque<(Token, DeviceCommand)>,
    stopping: bool,
    now_ns: u64,
    events: Vec<Event>,
    /// Just polled, and those that wait for their turn.
    polled: Vec<Completion>,
    completions: VecDeque<Completion>,
}

/// A request on its way to its reply.
enum Request {
    Read(ReadRequest),
    Write(WriteRequest),
    Open(OpenRequest),
    Commit(CommitRequest),
}

/// Something that a device, a fabric or the mover is doing for us.
enum Op {
    Read(ReadOp),
    Descriptor(DescriptorRead),
    Write(WriteOp),
    /// The name of an OPEN is on its way.
    Name(Key),
    Mover(MoverOp),
}

/// Whom to answer, and since when they wait.
#[derive(Clone, Copy)]
struct Caller {
    session: SessionId,
    tag: u32,
    since_ns: u64,
}

impl Shard {
    pub(crate) fn new(
        mut device: Box<dyn Device>,
        mut transport: Box<dyn Transport>,
        node: Arc<Surroundings>,
        inbox: Arc<Inbox>,
        stats: Arc<ShardStats>,
        pool: Pool,
    ) -> Result<Self> {
        let mut zeroes = pool.take(ZERO_BYTES).ok_or_else(|| {
            Kind::Invalid.error("a shard needs at least one buffer of 128 KiB for zeroes")
        })?;
        zeroes.as_mut_slice().fill(0);
        device.register(pool.region())?;
        transport.register(pool.region())?;
        Ok(Self {
            device,
            transport,
            node,
            inbox,
            stats,
            pool,
            zeroes: Arc::new(zeroes),
            sessions: Sessions::default(),
            requests: Slots::with_capacity(1024),
            drafts: Slots::with_capacity(16),
            ops: Slots::with_capacity(1024),
            descriptors: Descriptors::new(),
            stalled: VecDeque::with_capacity(1024),
            deferred: VecDeque::new(),
            stopping: false,
            now_ns: 0,
            events: Vec::with_capacity(256),
            polled: Vec::with_capacity(256),
            completions: VecDeque::with_capacity(256),
        })
    }

    /// Takes in everything that happened and starts what follows. Returns whether there was
    /// anything. `now_ns` is any clock that never goes back.
    pub(crate) fn step(&mut self, now_ns: u64) -> bool {
        self.now_ns = self.now_ns.max(now_ns);
        let mut busy = false;
        let mut events = std::mem::take(&mut self.events);
        self.transport.poll(&mut events);
        for (event, count) in events.drain(..).zip(1..) {
            busy = true;
            self.on_event(event);
            if count % BATCH == 0 {
                self.kick();
            }
        }
        self.events = events;
        // A device that answers at once does so in this step.
        self.kick_device();

        // What is not polled yet keeps its place in the device's queue, and so bounds what waits.
        if self.completions.len() < BATCH {
            self.device.poll(&mut self.polled);
            if !self.polled.is_empty() {
                self.completions.extend(self.polled.drain(..));
            }
        }
        let (mut count, mut bytes) = (0, 0);
        while count < BATCH && bytes < BATCH_BYTES {
            let Some(completion) = self.completions.pop_front() else { break };
            busy = true;
            (count, bytes) = (count + 1, bytes + completion.command.length());
            self.on_completion(completion);
        }

        while let Some(message) = self.inbox.receive() {
            busy = true;
            self.on_message(message);
        }
        self.resume();
        self.kick();
        busy
    }

    fn kick(&mut self) {
        self.kick_device();
        self.transport.kick();
    }

    fn kick_device(&mut self) {
        if let Err(error) = self.device.kick() {
            tracing::error!(%error, "a device queue is broken");
        }
    }

    /// See [`crate::Stepped::session_bytes`].
    pub(crate) fn session_bytes(&self) -> Option<usize> {
        let of_fabric = self.transport.session_bytes()?;
        Some(of_fabric + self.sessions.values().map(Session::bytes).sum::<usize>())
    }

    /// Whether it was told to stop and nothing runs any more.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopping && self.ops.len() == 0 && self.device.in_flight() == 0
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Opened { session, fabric, peer } => {
                tracing::debug!(?session, fabric = fabric.name(), peer, "session opened");
                self.count_session(fabric, true);
                self.sessions.insert(session, Session::new(fabric));
            }
            Event::Request { session, capsule, length } => {
                self.on_capsule(session, &capsule[..length]);
            }
            Event::Written { session: _, token, from, result } => {
                self.on_written(Key::unpack(token.0), from, result);
            }
            Event::Read { session: _, token, into, result } => {
                self.on_pulled(Key::unpack(token.0), into, result);
            }
            Event::Mapped { session: _, region } => {
                if let Err(error) = self.device.register(&region) {
                    tracing::debug!(%error, "client memory is used without registration");
                }
            }
            Event::Unmapped { region } => self.device.unregister(region),
            Event::Closed { session, reason } => {
                tracing::debug!(?session, %reason, "session closed");
                if let Some(gone) = self.sessions.remove(&session) {
                    self.count_session(gone.fabric, false);
                    self.abandon(gone);
                }
            }
        }
    }

    fn on_capsule(&mut self, session: SessionId, bytes: &[u8]) {
        let caller = Caller { session, tag: Capsule::tag_of(bytes), since_ns: self.now_ns };
        let Some(state) = self.sessions.get_mut(&session) else { return };
        let capsule = match Capsule::parse(bytes) {
            Ok(capsule) => capsule,
            // A damaged capsule leaves no telling where the next one begins.
            Err(error) if error.kind() == Kind::Corrupt => {
                return self.transport.close(session, error);
            }
            Err(error) => {
                self.transport.discard(session);
                return self.refuse(caller, &error);
            }
        };
        if let Err(error) = state.admit(&capsule) {
            self.transport.discard(session);
            return self.refuse(caller, &error);
        }
        let result = match capsule.command {
            Command::Hello { versions, credits, .. } => self.hello(caller, versions, credits),
            Command::Open(open) => self.open(caller, open),
            Command::Read { handle, range, into } => {
                self.read(caller, handle, range, into, capsule.payload_crc.is_some())
            }
            Command::Write { handle, range, from } => {
                self.write(caller, handle, range, from, capsule.payload_crc)
            }
            Command::Commit { handle, length } => self.commit(caller, handle, length),
            Command::Close { handle } => self.close(caller, handle),
            Command::Stat { handle } => self.stat(caller, handle),
            Command::Ping => {
                self.answer(caller, Reply::success(caller.tag));
                Ok(())
            }
        };
        if let Err(error) = result {
            self.transport.discard(session);
            self.answer_failure(caller, &error);
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        let key = Key::unpack(completion.token.0);
        match self.ops.remove(key) {
            Some(Op::Read(op)) => self.on_chunk_read(op, completion),
            Some(Op::Descriptor(read)) => self.on_descriptor_read(read, completion),
            Some(Op::Write(op)) => self.on_draft_io(op, completion),
            Some(Op::Mover(op)) => self.on_mover_io(op, completion),
            Some(Op::Name(_)) | None => unreachable!("a device completed what it was not given"),
        }
    }

    fn on_written(&mut self, key: Key, from: Source, result: Result<()>) {
        drop(from);
        match self.ops.remove(key) {
            Some(Op::Read(op)) => self.on_pushed(&op, result),
            _ => unreachable!("a fabric completed a write that was not posted"),
        }
    }

    fn on_pulled(&mut self, key: Key, into: Target, result: Result<()>) {
        match self.ops.remove(key) {
            Some(Op::Write(op)) => self.on_chunk_pulled(&op, into, result),
            Some(Op::Name(request)) => self.on_name(request, &into, result),
            _ => unreachable!("a fabric completed a read that was not posted"),
        }
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Arrived { op, result, joined } => self.on_arrived(op, result, joined),
            Message::Opened { request, result } => self.on_opened(request, result),
            Message::Reserved { draft, index, result } => self.on_reserved(draft, index, result),
            Message::Committed { request, result } => self.on_committed(request, result),
            Message::Store { reservation, fetched, done } => {
                self.store(reservation, &fetched, done);
            }
            Message::Load { extent, blocks, buffer, done } => {
                self.load(extent, blocks, buffer, done);
            }
            Message::LoadDescriptor { extent, buffer, done } => {
                self.load_descriptor(extent, buffer, done);
            }
            Message::Mend { extent, blocks, buffer, done } => {
                self.mend(extent, blocks, buffer, done);
            }
            Message::Stop => {
                self.stopping = true;
                let all: Vec<SessionId> = self.sessions.keys().copied().collect();
                for session in all {
                    self.transport.close(session, Kind::Disconnected.error("the node stops"));
                }
            }
        }
    }

    /// Gives a command to the device now or, if its queue is full, as soon as there is a place.
    fn submit(&mut self, op: Op, command: DeviceCommand) -> Key {
        let key = self.ops.insert(op);
        let token = Token(key.pack());
        if !self.deferred.is_empty() {
            self.deferred.push_back((token, command));
        } else if let Err(command) = self.device.submit(token, command) {
            self.deferred.push_back((token, command));
        }
        key
    }

    /// Whether a request should wait rather than add to what the device cannot take yet.
    fn is_device_full(&self) -> bool {
        !self.deferred.is_empty()
    }

    fn resume(&mut self) {
        while let Some((token, command)) = self.deferred.pop_front() {
            if let Err(command) = self.device.submit(token, command) {
                self.deferred.push_front((token, command));
                return;
            }
        }
        // Those that go on waiting, before all others.
        let mut still = Vec::new();
        for _ in 0..self.stalled.len() {
            if self.is_device_full() {
                break;
            }
            let Some(key) = self.next_stalled() else { break };
            match self.requests.get_mut(key) {
                Some(Request::Read(_)) => self.pump_read(key),
                Some(Request::Write(_)) => self.pump_write(key),
                Some(Request::Open(_)) => self.pump_open(key),
                Some(Request::Commit(_)) => self.pump_commit(key),
                None => {}
            }
            // It stalled again: the others behind it would find no more than it did, unless what
            // it waits for is its own.
            if self.stalled.pop_back_if(|last| *last == key).is_some() {
                still.push(key);
                if self.pool.is_exhausted() {
                    break;
                }
            }
        }
        still.into_iter().rev().for_each(|key| self.stalled.push_front(key));
    }

    fn next_stalled(&mut self) -> Option<Key> {
        if bugs::is(Bug::NewestFirst) {
            return self.stalled.pop_back();
        }
        self.stalled.pop_front()
    }

    /// Whom an operation's token belongs to, for the fabric.
    fn transfer_token(&mut self, op: Op) -> TransferToken {
        TransferToken(self.ops.insert(op).pack())
    }

    /// Answers a request that holds a credit.
    fn answer(&mut self, caller: Caller, mut reply: Reply) {
        if reply.status.is_err() {
            self.stats.errors.add(1);
        }
        let Some(session) = self.sessions.get_mut(&caller.session) else { return };
        session.finish();
        reply.credits = session.credits();
        reply.service_us =
            u32::try_from((self.now_ns - caller.since_ns) / 1000).unwrap_or(u32::MAX);
        self.transport.post_reply(caller.session, &reply);
    }

    fn answer_failure(&mut self, caller: Caller, error: &Error) {
        tracing::debug!(tag = caller.tag, %error, "request failed");
        self.answer(caller, Reply::failure(caller.tag, error));
    }

    /// Answers a request that was never admitted, and so holds no credit.
    fn refuse(&mut self, caller: Caller, error: &Error) {
        self.stats.errors.add(1);
        let credits = self.sessions.get(&caller.session).map_or(0, Session::credits);
        let reply = Reply { credits, ..Reply::failure(caller.tag, error) };
        self.transport.post_reply(caller.session, &reply);
    }

    fn count_session(&self, fabric: Fabric, opened: bool) {
        let gauge = &self.stats.sessions[match fabric {
            Fabric::SharedMemory => 0,
            Fabric::Tcp => 1,
            Fabric::Verbs => 2,
            Fabric::Simulated => 3,
        }];
        if opened {
            gauge.fetch_add(1, Ordering::Relaxed);
        } else {
            gauge.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
