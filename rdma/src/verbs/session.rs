//! One client's connection, seen from the node.

use dma::{Source, Target};
use extent::wire::{Reply, Segments};
use extent::{Error, Kind, Result};

use crate::slots::{LOW_BITS, Numbered};
use crate::{Event, SessionId, Token, Transfer};

use super::provider::Provider;
use super::rdma_core::RdmaCore;
use super::send_queue::{Ended, Local, MESSAGE_BYTES, Message, Remote, SendQueue, Work};

/// The most bytes of one work request: few, long ones keep the device's queues short.
const SLICE_BYTES: u32 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Session<P: Provider = RdmaCore> {
    id: SessionId,
    pub(super) tenant: usize,
    pair: P::QueuePair,
    pub(super) send: SendQueue,
    /// Whether it is on the list of those to post for, or of those that wait for room.
    pub(super) is_dirty: bool,
    /// Whether the client said that the connection stands.
    pub(super) is_established: bool,
    /// Ticks since something last completed, or since it asked for a connection.
    pub(super) quiet_ticks: u32,
    /// Ticks since a work request of it ended, while there are some with the device.
    pub(super) stalled_ticks: u32,
    /// Whether the device told that its queue pair takes no more receives.
    pub(super) is_drained: bool,
    /// Why it ends once nothing is left to send.
    pub(super) closing: Option<Error>,
    /// Whether the client takes the immediate data of an RDMA WRITE for a reply.
    short_replies: bool,
    /// The tag of the READ whose first byte and all that follow left in the RDMA WRITE pushed last.
    whole_write: Option<u32>,
    /// The credits that it was told last.
    credits_told: u16,
    /// Whether it is counted among those that go on when a work request ends.
    is_counted: bool,
}

impl<P: Provider> Session<P> {
    pub(super) fn new(
        id: SessionId,
        tenant: usize,
        pair: P::QueuePair,
        depth: u32,
        short_replies: bool,
    ) -> Self {
        let serial = low(id);
        Self {
            id,
            tenant,
            pair,
            send: SendQueue::new(serial, depth),
            is_dirty: false,
            is_established: false,
            quiet_ticks: 0,
            stalled_ticks: 0,
            is_drained: false,
            closing: None,
            short_replies,
            whole_write: None,
            credits_told: 0,
            is_counted: false,
        }
    }

    /// Counts it, or does so no more, by whether something goes on when one of its work requests ends.
    pub(super) fn count_awaited(&mut self, count: &mut usize) {
        let is_awaited = self.send.is_awaited() || self.closing.is_some();
        match (self.is_counted, is_awaited) {
            (false, true) => *count += 1,
            (true, false) => *count -= 1,
            _ => {}
        }
        self.is_counted = is_awaited;
    }

    /// Counts it no more.
    pub(super) fn forget_awaited(&mut self, count: &mut usize) {
        *count -= usize::from(std::mem::take(&mut self.is_counted));
    }

    pub(super) fn pair(&self) -> &P::QueuePair {
        &self.pair
    }

    /// RDMA WRITE of node memory into the client's segments.
    pub(super) fn write(&mut self, transfer: &Transfer, local: Local, from: Source) {
        let token = transfer.token;
        let mut pieces = pieces(&transfer.segments, transfer.at, local);
        let (mut last, mut is_one) = (pieces.next(), true);
        for piece in pieces {
            if let Some((from, to)) = last.replace(piece) {
                self.send.push(Work::Write { from, to, immediate: None, end: None });
            }
            is_one = false;
        }
        let is_whole = is_one && last.is_some() && transfer.at == 0;
        self.whole_write = is_whole.then_some(transfer.tag);
        // Not even an empty transfer is without an end.
        let (piece, to) = last.unwrap_or((Local { length: 0, ..local }, Remote::NOWHERE));
        let end = Some((token, from));
        self.send.push(Work::Write { from: piece, to, immediate: None, end });
    }

    /// RDMA READ of the client's segments into node memory.
    pub(super) fn read(&mut self, transfer: &Transfer, local: Local, into: Target) {
        let token = transfer.token;
        let mut pieces = pieces(&transfer.segments, transfer.at, local);
        let mut last = pieces.next();
        for piece in pieces {
            if let Some((into, from)) = last.replace(piece) {
                self.send.push(Work::Read { into, from, end: None });
            }
        }
        let (piece, from) = last.unwrap_or((Local { length: 0, ..local }, Remote::NOWHERE));
        self.send.push(Work::Read { into: piece, from, end: Some((token, into)) });
    }

    /// The reply, as a message of its own or, if it says no more than that all bytes came, with them.
    pub(super) fn reply(&mut self, reply: &Reply) {
        let says_more = *reply != short(reply) || reply.credits != self.credits_told;
        let is_whole = self.whole_write.take() == Some(reply.tag);
        if self.short_replies && is_whole && !says_more && self.send.attach(reply.tag, reply.value)
        {
            return;
        }
        self.credits_told = reply.credits;
        let mut bytes = [0; MESSAGE_BYTES];
        let length = reply.encode(&mut bytes);
        self.send.push(Work::Send(Message::new(&bytes[..length])));
    }

    /// A write of nothing, which the client's device acknowledges: whether it is still there.
    pub(super) fn probe(&mut self) {
        let from = Local { address: 0, length: 0, key: 0 };
        let to = Remote::NOWHERE;
        self.send.push(Work::Write { from, to, immediate: None, end: None });
    }

    /// Posts what waits, as far as there is room. Returns how much was, also beside an error.
    pub(super) fn post(&mut self, room: u32) -> (u32, Result<()>) {
        let before = self.send.posted();
        let result = self.send.post(room, &mut self.pair);
        (self.send.posted() - before, result.map(drop))
    }

    /// Ends it: first the queue pair, so that the device lets go of all memory, then the transfers.
    /// Returns how many work requests were with the device.
    pub(super) fn end(self, reason: Error, events: &mut Vec<Event>) -> u32 {
        let Self { id, pair, mut send, .. } = self;
        drop(pair);
        let posted = send.posted();
        let mut ended = Vec::new();
        send.end_all(&mut ended);
        for ended in ended {
            let lost = Err(Kind::Disconnected.error(reason.to_string()));
            events.push(event(id, ended, lost));
        }
        events.push(Event::Closed { session: id, reason });
        posted
    }
}

/// What a client takes the immediate data of an RDMA WRITE for, as far as it is known here: credits are as
/// before, and the time in the node is not told.
fn short(reply: &Reply) -> Reply {
    let &Reply { tag, value, credits, service_us, .. } = reply;
    Reply { credits, service_us, ..Reply::of_write(tag, value) }
}

/// What ids of work requests tell sessions apart by.
fn low(id: SessionId) -> u32 {
    u32::try_from(id.0 & u64::from(LOW_BITS)).expect("masked")
}

impl<P: Provider> Numbered for Session<P> {
    fn id(&self) -> SessionId {
        self.id
    }
}

impl Remote {
    /// What no byte is moved to or from.
    const NOWHERE: Self = Self { address: 0, key: 0 };
}

/// How the end of a transfer is reported.
pub(super) fn event(session: SessionId, ended: Ended, result: Result<()>) -> Event {
    match ended {
        Ended::Written(token, from) => Event::Written { session, token, from, result },
        Ended::Read(token, into) => Event::Read { session, token, into, result },
    }
}

/// The report of a transfer to or from a session that is gone.
pub(super) fn gone(session: SessionId, token: Token, memory: Memory, reason: Error) -> Event {
    match memory {
        Memory::From(from) => Event::Written { session, token, from, result: Err(reason) },
        Memory::Into(into) => Event::Read { session, token, into, result: Err(reason) },
    }
}

/// Node memory of a transfer.
pub(super) enum Memory {
    From(Source),
    Into(Target),
}

/// The parts of a transfer, each of one segment and not too long.
fn pieces(segments: &Segments, at: u64, local: Local) -> impl Iterator<Item = (Local, Remote)> {
    let mut done = 0;
    segments.slice(at, local.length.into()).flat_map(move |segment| {
        let begin = done;
        done += u64::from(segment.length);
        (0..segment.length.div_ceil(SLICE_BYTES)).map(move |number| {
            let within = number * SLICE_BYTES;
            let length = (segment.length - within).min(SLICE_BYTES);
            let address = local.address + begin + u64::from(within);
            let remote = segment.address.wrapping_add(within.into());
            (Local { address, length, ..local }, Remote { address: remote, key: segment.key })
        })
    })
}

#[cfg(test)]
mod tests {
    use extent::wire::Segment;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_cover_a_transfer_in_order(
            lengths in proptest::collection::vec(1u32..3_000_000, 1..5), cut: (u16, u16),
        ) {
            let mut next = 1u64 << 40;
            let list: Vec<Segment> = lengths.iter().zip(1..).map(|(length, key)| {
                next += 1 << 30;
                Segment { address: next, length: *length, key }
            }).collect();
            let segments = Segments::from_slice(&list).expect("four at most");
            let total = segments.total_bytes();
            let at = total * u64::from(cut.0) / 65_536;
            let length = (total - at) * u64::from(cut.1) / 65_535;
            let length = u32::try_from(length).expect("twelve million at most");
            let local = Local { address: 7, length, key: 9 };
            let pieces: Vec<_> = pieces(&segments, at, local).collect();
            // Where each byte should go, by walking through the segments.
            let place = |mut byte: u64| {
                for segment in &list {
                    if byte < u64::from(segment.length) {
                        return (segment.key, segment.address + byte);
                    }
                    byte -= u64::from(segment.length);
                }
                unreachable!("inside")
            };
            let mut done = 0;
            for (local, remote) in &pieces {
                prop_assert!(local.length > 0 && local.length <= SLICE_BYTES);
                prop_assert_eq!(local.address, 7 + done);
                prop_assert_eq!((remote.key, remote.address), place(at + done));
                let last = at + done + u64::from(local.length) - 1;
                let end = remote.address + u64::from(local.length) - 1;
                prop_assert_eq!((remote.key, end), place(last));
                done += u64::from(local.length);
            }
            prop_assert_eq!(done, u64::from(length));
        }
    }
}
