use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

use dma::Source;

use crate::sys::Outgoing;

/// What is to be sent on a stream, in order: small messages, which are copied, and transfer
/// memory, which is not. `T` is whatever its owner knows a transfer by.
///
/// It is not bounded by itself: its owner takes no further requests while it is long.
#[derive(Debug)]
pub(super) struct Output<T> {
    /// Small messages one behind the other, the first `small_sent` bytes gone already.
    small: Vec<u8>,
    small_sent: usize,
    queue: VecDeque<Item<T>>,
    bytes: usize,
}

#[derive(Debug)]
enum Item<T> {
    /// So many of the next small bytes.
    Small(usize),
    Bulk {
        from: Source,
        sent: usize,
        mark: T,
    },
}

/// Whether a socket takes more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    /// It might.
    Open,
    /// It is full; epoll tells when it has room again.
    Full,
}

impl<T> Output<T> {
    pub(super) fn new() -> Self {
        Self { small: Vec::new(), small_sent: 0, queue: VecDeque::new(), bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, message: &[u8]) {
        if self.small_sent > self.small.len() / 2 {
            self.small.drain(..self.small_sent);
            self.small_sent = 0;
        }
        self.small.extend_from_slice(message);
        self.bytes += message.len();
        match self.queue.back_mut() {
            Some(Item::Small(length)) => *length += message.len(),
            _ => self.queue.push_back(Item::Small(message.len())),
        }
    }

    /// Memory of at least one byte.
    pub(super) fn push_bulk(&mut self, from: Source, mark: T) {
        self.bytes += from.length();
        self.queue.push_back(Item::Bulk { from, sent: 0, mark });
    }

    /// Sends until the socket is full, everything is sent, or about `budget` bytes are; `done`
    /// gets each transfer's memory back once the socket took its last byte.
    pub(super) fn flush(
        &mut self,
        socket: BorrowedFd<'_>,
        mut budget: usize,
        mut done: impl FnMut(T, Source),
    ) -> io::Result<Flow> {
        while !self.queue.is_empty() && budget > 0 {
            let list = self.gather();
            let wanted = list.bytes();
            let sent = match list.send(socket) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flow::Full),
                Err(error) => return Err(error),
            };
            self.sent(sent, &mut done);
            if sent < wanted {
                return Ok(Flow::Full);
            }
            budget = budget.saturating_sub(sent);
        }
        Ok(Flow::Open)
    }

    /// Gives all memory back, unsent.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = (T, Source)> + '_ {
        self.small.clear();
        (self.small_sent, self.bytes) = (0, 0);
        self.queue.drain(..).filter_map(|item| match item {
            Item::Small(_) => None,
            Item::Bulk { from, mark, .. } => Some((mark, from)),
        })
    }

    fn gather(&self) -> Outgoing<'_> {
        let mut list = Outgoing::new();
        let mut small = &self.small[self.small_sent..];
        for item in &self.queue {
            if list.is_full() {
                break;
            }
            match item {
                Item::Small(length) => {
                    let (message, rest) = small.split_at(*length);
                    list.push(message);
                    small = rest;
                }
                Item::Bulk { from, sent, .. } => list.push_source(from, *sent),
            }
        }
        list
    }

    fn sent(&mut self, mut count: usize, done: &mut impl FnMut(T, Source)) {
        self.bytes -= count;
        while count > 0 {
            match self.queue.front_mut().expect("no more is sent than was queued") {
                Item::Small(length) => {
                    let part = count.min(*length);
                    *length -= part;
                    self.small_sent += part;
                    count -= part;
                    if *length > 0 {
                        return;
                    }
                    self.queue.pop_front();
                }
                Item::Bulk { from, sent, .. } => {
                    let part = count.min(from.length() - *sent);
                    *sent += part;
                    count -= part;
                    if *sent < from.length() {
                        return;
                    }
                    if let Some(Item::Bulk { from, mark, .. }) = self.queue.pop_front() {
                        done(mark, from);
                    }
                }
            }
        }
        if self.small_sent == self.small.len() {
            self.small.clear();
            self.small_sent = 0;
        }
    }
}
