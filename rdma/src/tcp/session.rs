use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use dma::{Source, Target};
use extent::wire::{
    DataHeader, LONG_REQUEST_BYTES, MAX_BODY_BYTES, REFUSAL_MAGIC, REPLY_BYTES, Refusal, Reply,
    Request, STREAM_MAGIC, StreamHello,
};
use extent::{Error, Kind, Result};

use crate::sys::Incoming;
use crate::{Event, Fabric, Gate, SessionId, Token, Transfer};

use super::input::Input;
use super::output::{Flow, Output};
use super::payload::Payload;

/// Bytes received, and about as many sent, before other sessions get their turn.
const TURN_BYTES: usize = 2 << 20;
/// Bytes waiting to be sent beyond which no further request is taken: a client that does not read
/// can hold no more than this, what its requests in flight yield, and one input buffer.
const MAX_BACKLOG_BYTES: usize = 8 << 20;

/// One client's connection: a state machine between a socket and a shard.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    stream: TcpStream,
    peer: String,
    /// Whom to ask about the client, until it has said who it is and the shard knows of it.
    gate: Option<Arc<dyn Gate>>,
    /// Ticks since it connected, as long as it has not.
    pub(super) silent_ticks: u32,
    input: Input,
    payload: Payload,
    output: Output<Token>,
    /// Whether the socket may hold bytes, and may take some: epoll says when that begins, a short
    /// receive or send says when it ends.
    readable: bool,
    flow: Flow,
    /// Whether the peer sends nothing any more: then a short receive does not mean that nothing
    /// is left, for the end of the stream is.
    ending: bool,
    /// Whether it is on the transport's list of sessions to serve, and to send for.
    pub(super) is_ready: bool,
    pub(super) is_dirty: bool,
}

/// Why taking requests from the buffer stopped.
#[derive(PartialEq, Eq)]
enum Pause {
    /// More bytes, memory for them, or room in the output is needed.
    Starved,
    /// The next request carries bytes, and the shard has yet to see others. It waits for the next
    /// poll, so that a `discard` for one of those cannot hit its bytes.
    Crowded,
}

impl Session {
    pub(super) fn new(id: SessionId, stream: TcpStream, peer: String, gate: Arc<dyn Gate>) -> Self {
        Self {
            id,
            stream,
            peer,
            gate: Some(gate),
            silent_ticks: 0,
            input: Input::new(),
            payload: Payload::default(),
            output: Output::new(),
            readable: true,
            flow: Flow::Open,
            ending: false,
            is_ready: false,
            is_dirty: false,
        }
    }

    /// Whether the client has still to say who it is.
    pub(super) fn is_greeting(&self) -> bool {
        self.gate.is_some()
    }

    /// What epoll saw.
    pub(super) fn on_readiness(&mut self, flags: libc::c_int) {
        let broken = flags & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
        self.ending |= broken || flags & libc::EPOLLRDHUP != 0;
        self.readable |= self.ending || flags & libc::EPOLLIN != 0;
        if broken || flags & libc::EPOLLOUT != 0 {
            self.flow = Flow::Open;
        }
    }

    /// Sends and receives its turn's worth. Returns whether more can be done right away.
    ///
    /// # Errors
    /// Why the session is over.
    pub(super) fn serve(&mut self, events: &mut Vec<Event>) -> Result<bool> {
        self.flush(events)?;
        let mut left = TURN_BYTES;
        let mut taken = 0;
        loop {
            if self.take_requests(&mut taken, events)? == Pause::Crowded {
                return Ok(true);
            }
            if !self.wants_input() || !self.readable {
                return Ok(self.can_send());
            }
            if left == 0 {
                return Ok(true);
            }
            left = left.saturating_sub(self.receive(events)?);
        }
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// Why the session is over.
    pub(super) fn flush(&mut self, events: &mut Vec<Event>) -> Result<()> {
        if !self.can_send() {
            return Ok(());
        }
        let session = self.id;
        let done = |token, from| {
            events.push(Event::Written { session, token, from, result: Ok(()) });
        };
        self.flow = self
            .output
            .flush(self.stream.as_fd(), TURN_BYTES, done)
            .map_err(|error| lost("sending", error))?;
        Ok(())
    }

    /// Whether there is something to do without waiting for the client.
    pub(super) fn has_work(&self) -> bool {
        let can_take = if self.payload.is_over() {
            self.is_open_for_requests() && self.has_capsule()
        } else {
            self.payload.wants_bytes() && !self.input.buffered().is_empty()
        };
        can_take || self.can_send() || (self.readable && self.wants_input())
    }

    pub(super) fn post_write(
        &mut self,
        transfer: &Transfer,
        from: Source,
        events: &mut Vec<Event>,
    ) {
        let Ok(length) = u32::try_from(from.length()) else {
            let result = Err(Kind::Invalid.error("more than 4 GiB in one transfer: split it"));
            let (session, token) = (self.id, transfer.token);
            events.push(Event::Written { session, token, from, result });
            return;
        };
        if length == 0 {
            let (session, token) = (self.id, transfer.token);
            events.push(Event::Written { session, token, from, result: Ok(()) });
            return;
        }
        let mut header = [0; REPLY_BYTES];
        DataHeader { tag: transfer.tag, at: transfer.at, length }.encode(&mut header);
        self.output.push(&header);
        self.output.push_bulk(from, transfer.token);
    }

    pub(super) fn post_read(&mut self, transfer: &Transfer, into: Target, events: &mut Vec<Event>) {
        self.payload.post(self.id, transfer, into, events);
    }

    pub(super) fn discard(&mut self) {
        self.payload.discard();
    }

    /// Queues a reply. Returns whether that gave up bytes which the stream is at: a request that
    /// is answered needs no more, whatever became of it.
    pub(super) fn post_reply(&mut self, reply: &Reply) -> bool {
        let mut message = [0; REPLY_BYTES + MAX_BODY_BYTES];
        let length = reply.encode(&mut message);
        self.output.push(&message[..length]);
        self.payload.end(reply.tag)
    }

    /// Gives all memory back and, if the shard knows the session, says that it is over.
    pub(super) fn end(mut self, reason: Error, events: &mut Vec<Event>) {
        let session = self.id;
        for (token, from) in self.output.abandon() {
            let result = Err(Kind::Disconnected.error(reason.to_string()));
            events.push(Event::Written { session, token, from, result });
        }
        self.payload.abandon(session, &reason, events);
        if !self.is_greeting() {
            tracing::debug!(peer = self.peer, %reason, "session over");
            events.push(Event::Closed { session, reason });
        } else {
            tracing::info!(peer = self.peer, %reason, "connection refused");
        }
    }

    fn can_send(&self) -> bool {
        self.flow == Flow::Open && !self.output.is_empty()
    }

    fn is_open_for_requests(&self) -> bool {
        self.output.bytes() <= MAX_BACKLOG_BYTES
    }

    fn wants_input(&self) -> bool {
        if self.payload.is_over() {
            self.is_open_for_requests()
        } else {
            self.payload.wants_bytes()
        }
    }

    fn has_capsule(&self) -> bool {
        match self.input.buffered() {
            [first, second, ..] => {
                self.input.buffered().len() >= Request::capsule_bytes([*first, *second])
            }
            _ => false,
        }
    }

    fn take_requests(&mut self, taken: &mut usize, events: &mut Vec<Event>) -> Result<Pause> {
        if self.is_greeting() && !self.take_greeting(events)? {
            return Ok(Pause::Starved);
        }
        loop {
            let count = self.payload.take(self.input.buffered(), self.id, events);
            self.input.consume(count);
            if !self.payload.is_over() || !self.is_open_for_requests() || !self.has_capsule() {
                return Ok(Pause::Starved);
            }
            if !self.take_request(*taken == 0, events)? {
                return Ok(Pause::Crowded);
            }
            *taken += 1;
        }
    }

    /// Takes one capsule from the buffer, if it may carry bytes or carries none. Returns whether.
    fn take_request(&mut self, may_carry: bool, events: &mut Vec<Event>) -> Result<bool> {
        let buffered = self.input.buffered();
        let length = Request::capsule_bytes([buffered[0], buffered[1]]);
        let mut capsule = [0; LONG_REQUEST_BYTES];
        capsule[..length].copy_from_slice(&buffered[..length]);
        let used = &capsule[..length];
        let payload_bytes = Request::stream_bytes(used)?;
        if payload_bytes != 0 && !may_carry {
            return Ok(false);
        }
        self.input.consume(length);
        self.payload.begin(Request::tag_of(used), payload_bytes);
        if Request::parse(used).is_err() {
            // The shard will say so to the client, and has no use for the bytes.
            self.payload.discard();
        }
        events.push(Event::Request { session: self.id, capsule, length });
        Ok(true)
    }

    /// Takes the client's first words, if they are all there, and asks whether it may come in.
    fn take_greeting(&mut self, events: &mut Vec<Event>) -> Result<bool> {
        let Some((proof, length)) = StreamHello::parse(self.input.buffered())? else {
            return Ok(false);
        };
        self.input.consume(length);
        let Some(gate) = self.gate.as_ref() else { return Ok(true) };
        match gate.admit(proof.as_ref()) {
            Ok(tenant) => {
                tracing::debug!(peer = self.peer, %tenant, "session opened");
                self.gate = None;
            }
            Err(reason) => {
                // It fits into the socket's empty buffer, or the client does not learn why.
                self.output.push(&Refusal::encode(&REFUSAL_MAGIC, &reason));
                self.flush(events)?;
                return Err(reason);
            }
        }
        let (session, peer) = (self.id, self.peer.clone());
        events.push(Event::Opened { session, fabric: Fabric::Tcp, peer });
        self.output.push(&STREAM_MAGIC);
        self.flush(events)?;
        Ok(true)
    }

    /// One receive: straight into the memory of posted reads and, where the stream may be read
    /// further, into the buffer.
    fn receive(&mut self, events: &mut Vec<Event>) -> Result<usize> {
        let mut list = Incoming::new();
        let beyond = self.payload.gather(&mut list);
        let direct = list.bytes();
        if beyond {
            list.push(self.input.space());
        }
        let room = list.bytes();
        let count = match list.receive(self.stream.as_fd()) {
            Ok(0) if self.payload.is_over() && self.input.buffered().is_empty() => {
                return Err(Kind::Disconnected.error("the client closed the connection"));
            }
            Ok(0) => {
                return Err(Kind::Disconnected
                    .error("the client closed the connection in the middle of a request"));
            }
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(lost("receiving", error)),
        };
        if count < room && !(self.ending && count > 0) {
            self.readable = false;
        }
        self.payload.received(count.min(direct), self.id, events);
        self.input.filled(count.saturating_sub(direct));
        Ok(count)
    }
}

fn lost(doing: &str, error: io::Error) -> Error {
    Kind::Disconnected
        .error(format!("{doing} over TCP failed, the client is gone"))
        .caused_by(error)
}
