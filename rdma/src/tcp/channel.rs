use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use dma::{HugePages, Region, Source, Target, Window};
use extent::wire::{
    Command, DataHeader, Downstream, LONG_REQUEST_BYTES, MAX_CREDITS, MAX_SEGMENTS, REPLY_BYTES,
    Reply, Request, Segment, Segments,
};
use extent::{Error, Kind, NumberMap, Proof, Result};

use crate::sys::{self, Incoming};
use crate::{Channel, Fabric};

use super::greet;
use super::input::{Filling, Input};
use super::output::Output;

/// Regions registered at once.
const MAX_REGIONS: usize = 4096;
/// Bytes received by one call of `poll`, and about as many sent, so that it returns at all.
const TURN_BYTES: usize = 4 << 20;
/// Bytes after which it returns with the replies it has: whoever waits for them has more to ask.
const REPLY_TURN_BYTES: usize = 128 << 10;

/// A session over TCP, seen from the client.
#[derive(Debug)]
pub struct TcpChannel {
    stream: TcpStream,
    regions: HashMap<u32, Arc<Region>>,
    waiting: NumberMap<u32, Waiting>,
    input: Input,
    output: Output<()>,
    /// The rest of a DATA frame that is arriving, a piece for each segment it touches.
    arriving: Vec<Filling>,
    /// Whether the last poll stopped before the socket was empty.
    has_more: bool,
    over: Option<Error>,
}

/// A request without a reply yet, and the memory that it holds until then.
#[derive(Debug)]
struct Waiting {
    memory: [Option<Window>; MAX_SEGMENTS],
    is_read: bool,
    /// Bytes asked for, and bytes that came.
    total: u64,
    received: u64,
}

impl TcpChannel {
    /// Connects to a node that asks for no proof: see [`TcpChannel::connect_with_proof`].
    ///
    /// # Errors
    /// As there.
    pub fn connect(address: impl ToSocketAddrs, timeout: Duration) -> Result<Self> {
        Self::connect_with_proof(address, timeout, None)
    }

    /// Connects to a node, to the first of its addresses that answers as one, and shows it a proof if
    /// there is one.
    ///
    /// # Errors
    /// [`Kind::Denied`] if the node wants a proof, or another one; [`Kind::Disconnected`] if none answers in time, or the node is full; [`Kind::Corrupt`] if
    /// something else listens there; [`Kind::Invalid`] if the address cannot be resolved.
    pub fn connect_with_proof(
        address: impl ToSocketAddrs,
        timeout: Duration,
        proof: Option<&Proof>,
    ) -> Result<Self> {
        let addresses = address
            .to_socket_addrs()
            .map_err(|e| Kind::Invalid.error("resolving the node's address").caused_by(e))?;
        let mut last = Kind::Invalid.error("the node's name has no address");
        for address in addresses {
            match greet::greet(address, timeout, proof) {
                Ok(stream) => return Ok(Self::new(stream)),
                // The node has spoken, and the proof may be used up.
                Err(error) if error.kind() == Kind::Denied => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            regions: HashMap::new(),
            waiting: NumberMap::default(),
            input: Input::new(),
            output: Output::new(),
            arriving: Vec::with_capacity(MAX_SEGMENTS),
            has_more: false,
            over: None,
        }
    }

    fn check_open(&self) -> Result<()> {
        match &self.over {
            Some(reason) => Err(Kind::Disconnected.error(reason.to_string())),
            None => Ok(()),
        }
    }

    fn check_room(&self) -> Result<()> {
        if self.regions.len() == MAX_REGIONS {
            return Err(Kind::Busy.error(format!(
                "{MAX_REGIONS} regions are registered: release some, or allocate larger ones"
            )));
        }
        Ok(())
    }

    fn window(&self, segment: Segment) -> Result<Window> {
        let region = self.regions.get(&segment.key).ok_or_else(|| {
            Kind::Invalid.error(format!("no region {} was allocated here", segment.key))
        })?;
        Window::new(Arc::clone(region), segment.address, segment.length as usize)
    }

    fn flush(&mut self) -> Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let sent = self.output.flush(self.stream.as_fd(), TURN_BYTES, |(), _| {});
        sent.map(drop).map_err(|error| lost("sending", error))
    }

    fn exchange(&mut self, replies: &mut Vec<Reply>) -> Result<()> {
        self.flush()?;
        let mut received = 0;
        loop {
            let (count, is_drained) = self.receive()?;
            received += count;
            self.take_messages(replies)?;
            let turn = if replies.is_empty() { TURN_BYTES } else { REPLY_TURN_BYTES };
            self.has_more = !is_drained;
            if is_drained || received >= turn {
                return Ok(());
            }
        }
    }

    /// One receive: straight into the memory that a DATA frame is for, and behind it into the
    /// buffer. Returns the bytes and whether the socket is empty now.
    fn receive(&mut self) -> Result<(usize, bool)> {
        let mut list = Incoming::new();
        for filling in &mut self.arriving {
            list.push_target(&mut filling.into, filling.filled);
        }
        let direct = list.bytes();
        list.push(self.input.space());
        let room = list.bytes();
        let count = match list.receive(self.stream.as_fd()) {
            Ok(0) => {
                return Err(Kind::Disconnected
                    .error("the node closed the connection: its log says why; connect again"));
            }
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok((0, true)),
            Err(error) => return Err(lost("receiving", error)),
        };
        let mut landed = count.min(direct);
        self.input.filled(count - landed);
        for filling in &mut self.arriving {
            let part = landed.min(filling.missing());
            filling.filled += part;
            landed -= part;
        }
        self.arriving.retain(|filling| filling.missing() > 0);
        Ok((count, count < room))
    }

    fn take_messages(&mut self, replies: &mut Vec<Reply>) -> Result<()> {
        loop {
            for filling in &mut self.arriving {
                let count = filling.copy_in(self.input.buffered());
                self.input.consume(count);
            }
            self.arriving.retain(|filling| filling.missing() > 0);
            let Some(header) = self.input.buffered().first_chunk::<REPLY_BYTES>() else {
                return Ok(());
            };
            if !self.arriving.is_empty() {
                return Ok(());
            }
            match Downstream::parse(header)? {
                Downstream::Data(header) => {
                    self.input.consume(REPLY_BYTES);
                    self.begin_data(header)?;
                }
                Downstream::Reply(reply, body_bytes) => {
                    let end = REPLY_BYTES + body_bytes;
                    let Some(body) = self.input.buffered().get(REPLY_BYTES..end) else {
                        return Ok(());
                    };
                    let reply = Downstream::attach(reply, body)?;
                    self.input.consume(end);
                    self.settle(&reply)?;
                    replies.push(reply);
                }
            }
        }
    }

    fn begin_data(&mut self, header: DataHeader) -> Result<()> {
        let DataHeader { tag, at, length } = header;
        let waiting =
            self.waiting.get_mut(&tag).filter(|waiting| waiting.is_read).ok_or_else(|| {
                nonsense(format_args!("bytes for request {tag}, which is no READ"))
            })?;
        let end = at.checked_add(length.into()).filter(|end| *end <= waiting.total);
        let received = waiting.received + u64::from(length);
        let Some(end) = end.filter(|_| received <= waiting.total) else {
            return Err(nonsense(format_args!(
                "{length} bytes at {at} of a READ of {} bytes, {} of them there",
                waiting.total, waiting.received
            )));
        };
        waiting.received = received;
        let mut begin = 0;
        for window in waiting.memory.iter().flatten() {
            let next = begin + window.length() as u64;
            let (from, to) = (at.max(begin), end.min(next));
            if from < to {
                let part = offset_in(from, begin)..offset_in(to, begin);
                self.arriving.push(Filling::new(Target::Window(window.part(part))));
            }
            begin = next;
        }
        Ok(())
    }

    /// A reply came: its request's memory is the caller's again.
    fn settle(&mut self, reply: &Reply) -> Result<()> {
        let waiting = self.waiting.remove(&reply.tag).ok_or_else(|| {
            nonsense(format_args!("a reply to request {}, not in flight", reply.tag))
        })?;
        if waiting.is_read && reply.status.is_ok() && reply.value != waiting.received {
            return Err(nonsense(format_args!(
                "{} bytes of a READ, where the reply says {}",
                waiting.received, reply.value
            )));
        }
        Ok(())
    }
}

impl Channel for TcpChannel {
    fn fabric(&self) -> Fabric {
        Fabric::Tcp
    }

    fn allocate(&mut self, length: usize) -> Result<Arc<Region>> {
        self.check_room()?;
        let region = Region::anonymous(length, HugePages::Merged)?;
        self.regions.insert(region.id().0, Arc::clone(&region));
        Ok(region)
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        self.check_room()?;
        self.regions.insert(region.id().0, Arc::clone(region));
        Ok(())
    }

    fn release(&mut self, region: &Arc<Region>) {
        self.regions.remove(&region.id().0);
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        self.check_open()?;
        if self.waiting.len() >= usize::from(MAX_CREDITS) {
            return Err(Kind::Busy.error("no session takes more requests at once: poll first"));
        }
        if self.waiting.contains_key(&request.tag) {
            return Err(Kind::Invalid.error(format!("tag {} is in flight already", request.tag)));
        }
        let (segments, is_read) = match &request.command {
            Command::Read { into, .. } => (*into, true),
            Command::Write { from, .. } => (*from, false),
            Command::Open(open) => (open.name, false),
            _ => (Segments::NONE, false),
        };
        let mut memory = [const { None }; MAX_SEGMENTS];
        for (place, segment) in memory.iter_mut().zip(segments.as_slice()) {
            *place = Some(self.window(*segment)?);
        }
        let mut capsule = [0; LONG_REQUEST_BYTES];
        let length = on_stream(request).encode(&mut capsule);
        self.output.push(&capsule[..length]);
        if !is_read {
            for window in memory.iter().flatten().filter(|window| window.length() > 0) {
                self.output.push_bulk(Source::Window(window.clone()), ());
            }
        }
        let total = segments.total_bytes();
        // Twice the room: marks that removed requests leave in the map are then cleared in place.
        self.waiting.reserve(self.waiting.len() + 1);
        self.waiting.insert(request.tag, Waiting { memory, is_read, total, received: 0 });
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        self.check_open()?;
        self.flush().inspect_err(|error| self.over = Some(error.duplicate()))
    }

    fn poll(&mut self, replies: &mut Vec<Reply>) -> Result<()> {
        if let Some(reason) = &self.over {
            return Err(reason.duplicate());
        }
        let before = replies.len();
        match self.exchange(replies) {
            Ok(()) => Ok(()),
            Err(reason) => {
                self.over = Some(reason.duplicate());
                // Replies that came before the end still count; the next call tells of the end.
                if replies.len() == before { Err(reason) } else { Ok(()) }
            }
        }
    }

    fn wait(&mut self, timeout: Duration) -> Result<()> {
        if let Some(reason) = &self.over {
            return Err(reason.duplicate());
        }
        if self.has_more {
            return Ok(());
        }
        let output = if self.output.is_empty() { 0 } else { libc::POLLOUT };
        sys::wait_for(self.stream.as_fd(), libc::POLLIN | output, timeout)
            .map_err(|e| Error::io("waiting for the node", e))
    }
}

/// The request as it stands on a stream, where segments are lengths only.
fn on_stream(request: &Request) -> Request {
    let bare = |segments: &Segments| {
        let mut list = [Segment::default(); MAX_SEGMENTS];
        for (place, segment) in list.iter_mut().zip(segments.as_slice()) {
            place.length = segment.length;
        }
        Segments::from_slice(&list[..segments.as_slice().len()]).expect("as many as before")
    };
    let mut request = *request;
    match &mut request.command {
        Command::Read { into: segments, .. } | Command::Write { from: segments, .. } => {
            *segments = bare(segments);
        }
        Command::Open(open) => open.name = bare(&open.name),
        _ => {}
    }
    request
}

fn offset_in(position: u64, begin: u64) -> usize {
    usize::try_from(position - begin).expect("inside a window")
}

fn nonsense(what: fmt::Arguments<'_>) -> Error {
    Kind::Corrupt.error(format!("the node sent {what}: versions may differ; connect again"))
}

fn lost(doing: &str, error: io::Error) -> Error {
    Kind::Disconnected.error(format!("{doing} over TCP failed, the node is gone")).caused_by(error)
}
