//! Clients that send what they like, over a stream and over verbs.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use extent::wire::{
    Command, Downstream, LONG_REQUEST_BYTES, REPLY_BYTES, Request, STREAM_MAGIC, Segment,
};
use rand::Rng;
use rand::rngs::SmallRng;
use rdma::{Channel, SimVerbs, SimVerbsChannel, SimVerbsConnecting};

use super::mutation::{Known, capsule};

/// Bytes of an attacker's memory.
pub(crate) const MEMORY_BYTES: u32 = 150_000;
/// Bytes that follow a capsule on a stream, at most: who announces more leaves in the middle.
const MOST_INLINE: u64 = 400_000;

/// How one reaches the node.
pub(crate) enum Wire {
    Stream { stream: TcpStream, heard: Vec<u8>, greeted: bool, unsent: Vec<u8> },
    Asking(Box<SimVerbsConnecting>),
    Verbs(Box<SimVerbsChannel>),
    Over,
}

pub(crate) struct Attacker {
    wire: Wire,
    pub(crate) known: Known,
    /// Replies that it got.
    pub(crate) replies: u64,
}

impl Attacker {
    /// One over TCP.
    pub(crate) fn on_stream(address: SocketAddr, known: Known, rng: &mut SmallRng) -> Self {
        let mut stream = TcpStream::connect(address).expect("listening");
        let magic = if rng.random_ratio(1, 20) { *b"GET / HT" } else { STREAM_MAGIC };
        stream.write_all(&magic).expect("room");
        stream.set_nonblocking(true).expect("a socket");
        let (heard, unsent) = (Vec::new(), Vec::new());
        let wire = Wire::Stream { stream, heard, greeted: false, unsent };
        Self { wire, known, replies: 0 }.hello(rng)
    }

    /// One over verbs.
    pub(crate) fn on_verbs(network: &SimVerbs, known: Known) -> Self {
        let asking = network.connect(0, 8).expect("there is a shard");
        Self { wire: Wire::Asking(Box::new(asking)), known, replies: 0 }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.wire, Wire::Over)
    }

    /// Most say HELLO first, as they should.
    fn hello(mut self, rng: &mut SmallRng) -> Self {
        if !rng.random_ratio(1, 8) {
            let command = Command::Hello { versions: (1, 1), credits: 8, features: 0 };
            let mut bytes = [0; LONG_REQUEST_BYTES];
            let length = Request { tag: 99, payload_crc: None, command }.encode(&mut bytes);
            assert!(self.say(&bytes[..length], &[]), "there is room for a first request");
        }
        self
    }

    /// Sends a capsule, perhaps with what should follow it, if it can.
    pub(crate) fn attack(&mut self, rng: &mut SmallRng) -> bool {
        if !matches!(self.wire, Wire::Stream { .. } | Wire::Verbs(_)) {
            return false;
        }
        let bytes = capsule(&self.known, rng);
        let announced = Request::stream_bytes(&bytes).unwrap_or(0);
        let inline = announced.min(MOST_INLINE);
        let mut behind = vec![0; usize::try_from(inline).expect("few")];
        rng.fill(&mut behind[..]);
        let is_sent = self.say(&bytes, &behind);
        // In the middle of something, or for no reason.
        if announced > inline && matches!(self.wire, Wire::Stream { .. }) || rng.random_ratio(1, 64)
        {
            self.wire = Wire::Over;
        }
        is_sent
    }

    /// Whether it was sent, or will be.
    fn say(&mut self, bytes: &[u8], behind: &[u8]) -> bool {
        let (is_sent, broken) = match &mut self.wire {
            Wire::Stream { unsent, .. } => {
                unsent.extend_from_slice(bytes);
                unsent.extend_from_slice(behind);
                (true, false)
            }
            Wire::Verbs(channel) => (channel.send_bytes(bytes).is_ok(), channel.kick().is_err()),
            Wire::Asking(_) | Wire::Over => (false, false),
        };
        if broken {
            self.wire = Wire::Over;
        }
        is_sent
    }

    /// Sends what is left, and hears what the node says.
    pub(crate) fn listen(&mut self, rng: &mut SmallRng) {
        match std::mem::replace(&mut self.wire, Wire::Over) {
            Wire::Stream { mut stream, mut heard, mut greeted, mut unsent } => {
                let alive = exchange(&mut stream, &mut heard, &mut unsent);
                if !greeted && heard.len() >= STREAM_MAGIC.len() {
                    assert_eq!(heard[..STREAM_MAGIC.len()], STREAM_MAGIC);
                    heard.drain(..STREAM_MAGIC.len());
                    greeted = true;
                }
                if greeted {
                    self.understand(&mut heard);
                }
                if alive {
                    self.wire = Wire::Stream { stream, heard, greeted, unsent };
                }
            }
            Wire::Asking(mut asking) => match asking.poll() {
                Ok(Some(channel)) => self.settle_in(channel, rng),
                Ok(None) => self.wire = Wire::Asking(asking),
                Err(_) => {}
            },
            Wire::Verbs(mut channel) => {
                let mut replies = Vec::new();
                let polled = channel.poll(&mut replies);
                self.replies += replies.len() as u64;
                self.known.handles.extend(replies.iter().map(|reply| reply.value));
                if polled.is_ok() {
                    self.wire = Wire::Verbs(channel);
                }
            }
            Wire::Over => {}
        }
        let excess = self.known.handles.len().saturating_sub(32);
        self.known.handles.drain(..excess);
    }

    fn settle_in(&mut self, mut channel: SimVerbsChannel, rng: &mut SmallRng) {
        let region = channel.allocate(MEMORY_BYTES as usize).expect("memory");
        let key = region.id().0;
        let whole = Segment { address: 0, length: MEMORY_BYTES, key };
        self.known.own = channel.on_the_wire(whole).expect("its own");
        self.wire = Wire::Verbs(Box::new(channel));
        let this =
            std::mem::replace(self, Self { wire: Wire::Over, known: Known::nothing(), replies: 0 });
        *self = this.hello(rng);
    }

    /// Takes whole frames out of what a stream brought: the node's must be right.
    fn understand(&mut self, heard: &mut Vec<u8>) {
        let mut at = 0;
        while let Some(header) = heard.get(at..at + REPLY_BYTES) {
            let header = header.try_into().expect("so many");
            let (reply, behind) =
                match Downstream::parse(header).expect("what a node says is right") {
                    Downstream::Reply(reply, body) => (Some(reply), body),
                    Downstream::Data(data) => (None, data.length as usize),
                };
            if heard.len() < at + REPLY_BYTES + behind {
                break;
            }
            if let Some(reply) = reply {
                self.replies += 1;
                self.known.handles.push(reply.value);
            }
            at += REPLY_BYTES + behind;
        }
        heard.drain(..at);
    }
}

/// Moves bytes both ways. Whether the stream is still open.
fn exchange(stream: &mut TcpStream, heard: &mut Vec<u8>, unsent: &mut Vec<u8>) -> bool {
    if !unsent.is_empty() {
        match stream.write(unsent) {
            Ok(count) => drop(unsent.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    let mut buffer = [0; 1 << 16];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => heard.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
    }
}
