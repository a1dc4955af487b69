//! A session over RDMA, seen from the client.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use dma::{DmaBuf, HugePages, Region, Window};
use extent::wire::{
    Command, Downstream, LONG_REQUEST_BYTES, MAX_CREDITS, REPLY_BYTES, Refusal, Reply, Request,
    Segment, Segments,
};
use extent::{Error, Kind, NumberMap, Proof, Result};

use crate::bugs::{self, Bug};
use crate::sys::{self, Epoll};
use crate::{Channel, Fabric};

use super::completion::{Wake, WorkCompletion, WorkStatus};
use super::connection::{CmEvent, CmEventKind, CmId, ConnectionParameters, EventChannel};
use super::device_region::of_device;
use super::greeting::{Hello, MAGIC, Welcome};
use super::memory::Rights;
use super::options::VerbsOptions;
use super::provider::{
    Adapter as _, CmId as _, CompletionQueue as _, DeviceRegion as _, EventChannel as _,
    MemoryRegion as _, ProtectionDomain as _, Provider, QueuePair as _,
};
use super::queue_pair::Receives;
use super::rdma_core::RdmaCore;
use super::receive::{RECEIVE, Slots};
use super::send_queue::{MESSAGE_BYTES, Message, SendQueue, Work};

/// Regions registered at once.
const MAX_REGIONS: usize = 4096;
/// RDMA READs of this memory, on the way of writes, that are answered at a time.
const READS_IN: u8 = 16;
/// Polls between two looks at what RDMA CM tells.
const CM_EVERY: u32 = 1024;

/// A session over RDMA, seen from the client. Memory that it allocates is registered once, and the
/// node reads and writes it; dropping the channel ends that before the memory is given back.
#[expect(private_bounds, reason = "what it stands on is nobody's choice but this module's")]
pub struct VerbsChannel<P: Provider = RdmaCore> {
    // In this order: the queue pair goes before what it used.
    pair: P::QueuePair,
    send: SendQueue,
    memory: NumberMap<u32, P::MemoryRegion>,
    devices: NumberMap<u32, P::DeviceRegion>,
    queue: Arc<P::CompletionQueue>,
    domain: Arc<P::ProtectionDomain>,
    events: Arc<P::EventChannel>,
    /// Where there are no descriptors to sleep on, nobody sleeps.
    epoll: Option<Epoll>,
    completions: Vec<WorkCompletion>,
    free_receives: Vec<u32>,
    polls: u32,
    over: Option<Error>,
}

impl<P: Provider> fmt::Debug for VerbsChannel<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerbsChannel").field("over", &self.over).finish_non_exhaustive()
    }
}

impl VerbsChannel {
    /// Connects to a node that asks for no proof: see [`VerbsChannel::connect_with_proof`].
    ///
    /// # Errors
    /// As there.
    pub fn connect(
        address: impl ToSocketAddrs,
        timeout: Duration,
        credits: u16,
        options: VerbsOptions,
    ) -> Result<Self> {
        Self::connect_with_proof(address, timeout, credits, options, None)
    }

    /// Connects to a node, to the first of its addresses that answers as one, with room for so many
    /// requests in flight, and shows it a proof if there is one.
    ///
    /// # Errors
    /// [`Kind::Denied`] if the node wants a proof, or another one; [`Kind::Unsupported`] without RDMA;
    /// [`Kind::Disconnected`] if none answers in time; [`Kind::Corrupt`] if something else listens
    /// there; [`Kind::Invalid`] if the address cannot be resolved; otherwise what the node says.
    pub fn connect_with_proof(
        address: impl ToSocketAddrs,
        timeout: Duration,
        credits: u16,
        options: VerbsOptions,
        proof: Option<&Proof>,
    ) -> Result<Self> {
        let credits = credits.clamp(2, MAX_CREDITS);
        let addresses = address
            .to_socket_addrs()
            .map_err(|e| Kind::Invalid.error("resolving the node's address").caused_by(e))?;
        let mut last = Kind::Invalid.error("the node's name has no address");
        for address in addresses {
            match Self::connect_to(address, timeout, credits, options, proof) {
                Ok(channel) => return Ok(channel),
                Err(error) => last = error.while_doing(format_args!("connecting to {address}")),
            }
            if last.kind() == Kind::Denied {
                // The node has spoken, and the proof may be used up.
                break;
            }
        }
        Err(last)
    }

    fn connect_to(
        address: SocketAddr,
        timeout: Duration,
        credits: u16,
        options: VerbsOptions,
        proof: Option<&Proof>,
    ) -> Result<Self> {
        let events = EventChannel::new()?;
        let id = CmId::new(&events)?;
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        options.apply::<RdmaCore>(&id);
        id.resolve_address(options.source, address, timeout_ms)?;
        await_event(&events, CmEventKind::AddressResolved, timeout)?;
        id.resolve_route(timeout_ms)?;
        await_event(&events, CmEventKind::RouteResolved, timeout)?;
        let channel = Self::ask(id, events, credits, proof)?;
        let answer = await_event(&channel.events, CmEventKind::Established, timeout)?;
        Welcome::parse(&answer.private_data)?;
        Ok(channel)
    }
}

#[expect(private_bounds, reason = "as of the type")]
impl<P: Provider> VerbsChannel<P> {
    /// Asks the node that an id found a way to. [`CmEventKind::Established`] follows, with its answer.
    pub(super) fn ask(
        id: P::CmId,
        events: Arc<P::EventChannel>,
        credits: u16,
        proof: Option<&Proof>,
    ) -> Result<Self> {
        let adapter = id.adapter()?;
        let limits = adapter.limits()?;
        let replies = u32::from(credits) + 1;
        // A power of two, so that a place of the queue keeps its number whatever was sent before.
        let depth = 1 << replies.min(limits.queue_depth).max(1).ilog2();
        let domain = P::ProtectionDomain::new(&adapter)?;
        let queue = P::CompletionQueue::new(&adapter, 2 * replies)?;
        let bytes = u32::try_from(MESSAGE_BYTES).expect("short");
        let slots = Receives::Own(Slots::new(&domain, bytes, replies)?);
        let pair = P::QueuePair::new(id, &domain, &queue, slots, depth)?;
        pair.post_receives(&(0..replies).collect::<Vec<_>>())?;
        let parameters = ConnectionParameters {
            private_data: &Hello::new(replies, proof.cloned()).encode(),
            reads_in: READS_IN.min(limits.reads_in),
            reads_out: 0,
            // A node gives up a client that posts no receives.
            peer_patience: 6,
        };
        let epoll = watch::<P>(&queue, &events)?;
        pair.id().connect(parameters)?;
        Ok(Self {
            pair,
            send: SendQueue::of_messages(0, depth),
            memory: NumberMap::default(),
            devices: NumberMap::default(),
            queue,
            domain,
            events,
            epoll,
            completions: Vec::with_capacity(2 * replies as usize),
            free_receives: Vec::with_capacity(replies as usize),
            polls: 0,
            over: None,
        })
    }

    /// Whether the node has answered, if it is a node.
    pub(super) fn is_welcome(&self) -> Result<bool> {
        let Some(event) = self.events.next()? else { return Ok(false) };
        let answer = judge(event, CmEventKind::Established)?;
        Welcome::parse(&answer.private_data).map(|_| true)
    }

    fn check_regions(&self) -> Result<()> {
        if self.memory.len() + self.devices.len() >= MAX_REGIONS {
            return Err(Kind::Busy.error(format!("{MAX_REGIONS} regions are registered already")));
        }
        Ok(())
    }

    fn check_open(&self) -> Result<()> {
        match &self.over {
            Some(reason) => Err(Kind::Disconnected.error(reason.to_string())),
            None => Ok(()),
        }
    }

    pub(super) fn check_room(&self) -> Result<()> {
        if self.send.is_full() {
            return Err(Kind::Busy.error("the send queue is full: poll first"));
        }
        Ok(())
    }

    /// Queues a message.
    pub(super) fn push(&mut self, message: &[u8]) {
        self.send.push(Work::Send(Message::new(message)));
    }

    /// A segment as the node sees it.
    pub(super) fn remote(&self, segment: Segment) -> Result<Segment> {
        if let Some(region) = self.devices.get(&segment.key) {
            return of_device(region.place(), region.remote_key(), segment);
        }
        let memory = self.memory.get(&segment.key).ok_or_else(|| {
            Kind::Invalid.error(format!("no region {} was allocated here", segment.key))
        })?;
        let length = segment.length as usize;
        let _inside = Window::new(Arc::clone(memory.region()), segment.address, length)?;
        let offset = usize::try_from(segment.address).expect("inside");
        let address = memory.address(offset, length);
        Ok(Segment { address, length: segment.length, key: memory.remote_key()? })
    }

    fn remote_all(&self, segments: &Segments) -> Result<Segments> {
        let mut list = [Segment::default(); extent::wire::MAX_SEGMENTS];
        let segments = segments.as_slice();
        for (segment, place) in segments.iter().zip(&mut list) {
            *place = self.remote(*segment)?;
        }
        Segments::from_slice(&list[..segments.len()])
    }

    fn exchange(&mut self, replies: &mut Vec<Reply>) -> Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        let polled = loop {
            match self.queue.poll(&mut completions) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let mut result = polled;
        for completion in completions.drain(..) {
            if result.is_ok() {
                result = self.on_completion(completion, replies);
            }
        }
        self.completions = completions;
        result?;
        if !self.free_receives.is_empty() {
            self.pair.post_receives(&self.free_receives)?;
            self.free_receives.clear();
        }
        // Afterwards: what came before the end still counts.
        self.polls += 1;
        if self.polls >= CM_EVERY && replies.is_empty() {
            self.polls = 0;
            self.hear()?;
        }
        Ok(())
    }

    fn on_completion(
        &mut self,
        completion: WorkCompletion,
        replies: &mut Vec<Reply>,
    ) -> Result<()> {
        if completion.status != WorkStatus::SUCCESS {
            return Err(completion.status.error());
        }
        if completion.id & RECEIVE == 0 {
            self.send.complete(completion.id, &mut Vec::new());
            return Ok(());
        }
        let slot = u32::try_from(completion.id & u64::from(u32::MAX)).expect("masked");
        if let Some(tag) = completion.immediate {
            self.free_receives.push(slot);
            replies.push(Reply::of_write(tag, completion.bytes.into()));
            return Ok(());
        }
        let Receives::Own(slots) = self.pair.receives() else { return Ok(()) };
        let length = completion.bytes as usize;
        if !(REPLY_BYTES..=MESSAGE_BYTES).contains(&length) {
            return Err(Kind::Corrupt.error(format!("the node sent a reply of {length} bytes")));
        }
        let mut bytes = [0; MESSAGE_BYTES];
        slots.copy_out(slot, &mut bytes[..length]);
        self.free_receives.push(slot);
        let (header, body) = bytes[..length].split_at(REPLY_BYTES);
        let header = header.try_into().expect("32 bytes");
        match Downstream::parse(header)? {
            Downstream::Reply(reply, body_bytes) if body_bytes == body.len() => {
                replies.push(Downstream::attach(reply, body)?);
                Ok(())
            }
            _ => Err(Kind::Corrupt.error("the node sent something else than a reply")),
        }
    }

    /// What RDMA CM tells of the connection.
    fn hear(&mut self) -> Result<()> {
        while let Some(event) = self.events.next()? {
            match event.kind {
                CmEventKind::Established | CmEventKind::TimewaitExit => {}
                CmEventKind::Disconnected => {
                    return Err(Kind::Disconnected
                        .error("the node closed the connection: its log says why; connect again"));
                }
                _ => {
                    let error = format!("RDMA CM says {} ({})", event.name(), event.status);
                    return Err(Kind::Disconnected.error(error));
                }
            }
        }
        Ok(())
    }

    fn finish<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.over.get_or_insert_with(|| error.duplicate());
        }
        result
    }
}

impl<P: Provider> Channel for VerbsChannel<P> {
    fn fabric(&self) -> Fabric {
        Fabric::Verbs
    }

    fn allocate(&mut self, length: usize) -> Result<Arc<Region>> {
        let region = Region::anonymous(length, HugePages::Try)?;
        self.register(&region)?;
        Ok(region)
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        self.check_open()?;
        self.check_regions()?;
        let memory = P::MemoryRegion::new(&self.domain, region, Rights::Remote)?;
        self.memory.insert(region.id().0, memory);
        Ok(())
    }

    fn release(&mut self, region: &Arc<Region>) {
        self.memory.remove(&region.id().0);
    }

    fn register_device(&mut self, memory: &Arc<DmaBuf>) -> Result<()> {
        self.check_open()?;
        self.check_regions()?;
        let region = P::DeviceRegion::new(&self.domain, memory)?;
        self.devices.insert(memory.id().0, region);
        Ok(())
    }

    fn release_device(&mut self, memory: &Arc<DmaBuf>) {
        if !bugs::is(Bug::DeviceKept) {
            self.devices.remove(&memory.id().0);
        }
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        self.check_open()?;
        let mut request = *request;
        match &mut request.command {
            Command::Read { into: segments, .. } | Command::Write { from: segments, .. } => {
                *segments = self.remote_all(segments)?;
            }
            Command::Open(open) => open.name = self.remote_all(&open.name)?,
            _ => {}
        }
        self.check_room()?;
        let mut capsule = [0; LONG_REQUEST_BYTES];
        let length = request.encode(&mut capsule);
        self.push(&capsule[..length]);
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        self.check_open()?;
        let posted = self.send.post(u32::MAX, &mut self.pair);
        self.finish(posted).map(drop)
    }

    fn poll(&mut self, replies: &mut Vec<Reply>) -> Result<()> {
        self.check_open()?;
        let exchanged = self.exchange(replies);
        self.finish(exchanged)?;
        self.kick()
    }

    fn wait(&mut self, timeout: Duration) -> Result<()> {
        self.check_open()?;
        // What came before it was armed wakes nobody: look once more, at what is taken in by the
        // next poll.
        self.queue.arm(Wake::Everything)?;
        let polled = self.queue.poll(&mut self.completions);
        self.finish(polled)?;
        if !self.completions.is_empty() {
            return Ok(());
        }
        if let Some(epoll) = &self.epoll {
            sys::wait_for(epoll.as_fd(), libc::POLLIN, timeout)
                .map_err(|e| Error::io("waiting for the node", e))?;
        }
        self.queue.clear();
        // The next poll listens.
        self.polls = CM_EVERY;
        Ok(())
    }
}

impl<P: Provider> Drop for VerbsChannel<P> {
    fn drop(&mut self) {
        self.pair.id().disconnect();
    }
}

/// What to sleep on for completions and events, where there is something.
fn watch<P: Provider>(
    queue: &P::CompletionQueue,
    events: &P::EventChannel,
) -> Result<Option<Epoll>> {
    let (Some(queue), Some(events)) = (queue.readiness(), events.readiness()) else {
        return Ok(None);
    };
    let epoll = Epoll::new().and_then(|epoll| {
        epoll.add(queue, libc::EPOLLIN, 0)?;
        epoll.add(events, libc::EPOLLIN, 1)?;
        Ok(epoll)
    });
    epoll.map(Some).map_err(|e| Error::io("watching an RDMA connection", e))
}

/// Waits for one event; every other is a failure.
pub(super) fn await_event(
    channel: &Arc<EventChannel>,
    wanted: CmEventKind,
    timeout: Duration,
) -> Result<CmEvent> {
    let late = || {
        Kind::Disconnected.error(match wanted {
            CmEventKind::AddressResolved => {
                "nobody answers for that address: does a machine have it that this one can reach?"
            }
            _ => "no answer in time: is a node listening there, for RDMA?",
        })
    };
    let event = match channel.next()? {
        Some(event) => event,
        None => {
            sys::wait_for(channel.as_fd(), libc::POLLIN, timeout)
                .map_err(|e| Error::io("waiting for RDMA CM", e))?;
            channel.next()?.ok_or_else(late)?
        }
    };
    judge(event, wanted)
}

/// What another event says than the one that is waited for.
fn judge<C>(event: CmEvent<C>, wanted: CmEventKind) -> Result<CmEvent<C>> {
    if event.kind == wanted {
        return Ok(event);
    }
    if event.kind == CmEventKind::Rejected
        && let Some(reason) = Refusal::parse(&MAGIC, &event.private_data)
    {
        return Err(reason);
    }
    Err(Kind::Disconnected.error(format!(
        "RDMA CM says {} ({}): {}",
        event.name(),
        event.status,
        event.kind.advice()
    )))
}
