use std::collections::VecDeque;

use dma::Target;
use extent::{Error, Kind};

use crate::sys::{Incoming, MAX_SPANS};
use crate::{Event, SessionId, Token, Transfer};

use super::input::Filling;

/// The bytes that follow a session's latest request on its stream, and the memory that they are to
/// go to.
///
/// Positions count from the payload's start: `done` ≤ `asked` ≤ `total`. The bytes up to `asked`
/// belong to posted reads, or to nobody once the rest was discarded.
#[derive(Debug, Default)]
pub(super) struct Payload {
    tag: u32,
    total: u64,
    asked: u64,
    done: u64,
    reads: VecDeque<(Token, Filling)>,
}

impl Payload {
    /// A new request's.
    pub(super) fn begin(&mut self, tag: u32, total: u64) {
        assert!(self.is_over(), "one request's payload at a time");
        *self = Self { tag, total, reads: std::mem::take(&mut self.reads), ..Self::default() };
    }

    /// Whether the next byte of the stream belongs to a request.
    pub(super) fn is_over(&self) -> bool {
        self.done == self.total
    }

    /// Whether somebody said where the next byte goes.
    pub(super) fn wants_bytes(&self) -> bool {
        self.done < self.asked
    }

    /// Queues memory for the next bytes.
    pub(super) fn post(
        &mut self,
        session: SessionId,
        transfer: &Transfer,
        into: Target,
        events: &mut Vec<Event>,
    ) {
        let length = into.length() as u64;
        let fits = self.asked.checked_add(length).is_some_and(|end| end <= self.total);
        if transfer.tag != self.tag || transfer.at != self.asked || !fits {
            let result = Err(Kind::Invalid.error(format!(
                "{length} bytes at {} of request {} were asked for, where the stream holds bytes \
                 {}..{} of request {}",
                transfer.at, transfer.tag, self.asked, self.total, self.tag
            )));
            events.push(Event::Read { session, token: transfer.token, into, result });
        } else if length == 0 {
            events.push(Event::Read { session, token: transfer.token, into, result: Ok(()) });
        } else {
            self.asked += length;
            self.reads.push_back((transfer.token, Filling::new(into)));
        }
    }

    /// Gives up what nobody asked for.
    pub(super) fn discard(&mut self) {
        self.asked = self.total;
    }

    /// Gives up what nobody asked for, if it belongs to the request with this tag. Returns whether
    /// there was something.
    pub(super) fn end(&mut self, tag: u32) -> bool {
        let unasked = self.tag == tag && self.asked < self.total;
        if unasked {
            self.discard();
        }
        unasked
    }

    /// Takes what it wants of the stream's next bytes and returns how many.
    pub(super) fn take(
        &mut self,
        mut bytes: &[u8],
        session: SessionId,
        events: &mut Vec<Event>,
    ) -> usize {
        let offered = bytes.len();
        while let Some((_, filling)) = self.reads.front_mut()
            && !bytes.is_empty()
        {
            let count = filling.copy_in(bytes);
            bytes = &bytes[count..];
            self.advance(count, session, events);
        }
        if self.reads.is_empty() {
            let unwanted = self.asked - self.done;
            let skip = usize::try_from(unwanted).map_or(bytes.len(), |n| n.min(bytes.len()));
            self.done += skip as u64;
            bytes = &bytes[skip..];
        }
        offered - bytes.len()
    }

    /// Lists the memory of the posted reads. The second value tells whether the stream may be read
    /// beyond it.
    pub(super) fn gather<'a>(&'a mut self, list: &mut Incoming<'a>) -> bool {
        let all = self.asked == self.total && self.reads.len() < MAX_SPANS;
        for (_, filling) in self.reads.iter_mut().take(MAX_SPANS - 1) {
            list.push_target(&mut filling.into, filling.filled);
        }
        all
    }

    /// `count` bytes were received into the memory that [`Payload::gather`] listed.
    pub(super) fn received(
        &mut self,
        mut count: usize,
        session: SessionId,
        events: &mut Vec<Event>,
    ) {
        while count > 0 {
            let (_, filling) = self.reads.front_mut().expect("no more than was listed");
            let part = count.min(filling.missing());
            filling.filled += part;
            count -= part;
            self.advance(part, session, events);
        }
    }

    /// Ends every read with an error.
    pub(super) fn abandon(&mut self, session: SessionId, reason: &Error, events: &mut Vec<Event>) {
        for (token, filling) in self.reads.drain(..) {
            let result = Err(Kind::Disconnected.error(reason.to_string()));
            events.push(Event::Read { session, token, into: filling.into, result });
        }
    }

    /// `count` bytes went into the front read.
    fn advance(&mut self, count: usize, session: SessionId, events: &mut Vec<Event>) {
        self.done += count as u64;
        let is_full = |(_, filling): &mut (Token, Filling)| filling.missing() == 0;
        if let Some((token, filling)) = self.reads.pop_front_if(is_full) {
            events.push(Event::Read { session, token, into: filling.into, result: Ok(()) });
        }
    }
}
