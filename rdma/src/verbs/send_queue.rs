//! What one queue pair has to send: work requests in order, how many are with the device, and
//! which memory belongs to which. Does no I/O, so that it is the same in tests.
//!
//! # What holds
//! 1. Work requests complete in the order in which they were posted (they are all of one reliable
//!    connection), so a completion ends all posted before it, too.
//! 2. Only some ask for a completion ("signalled"): every sixteenth, and, where memory waits for it, every
//!    last one of a call to the device. So whatever is posted ends by a completion that is due, or
//!    leaves room for more.
//! 3. A transfer's memory is kept until its last work request has ended, or the queue pair is
//!    destroyed: not before may anybody else use it.
//! 4. No more than `depth` are with the device.

use std::collections::VecDeque;

use dma::{Source, Target};
use extent::Result;
use extent::wire::{MAX_BODY_BYTES, MAX_CREDITS, REPLY_BYTES};

use crate::Token;
use crate::bugs::{self, Bug};

/// Work requests handed to the device in one call.
pub(super) const BATCH: usize = 32;
/// The most work requests without a signalled one among them.
const SIGNAL_EVERY: u32 = 16;
/// Replies that may wait for a client that posts no receives, and work requests of all kinds.
const MOST_MESSAGES: usize = MAX_CREDITS as usize + 64;
const MOST_WAITING: usize = 1 << 16;
/// The longest message.
pub(super) const MESSAGE_BYTES: usize = REPLY_BYTES + MAX_BODY_BYTES;

/// Memory of this side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Local {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) key: u32,
}

/// Memory of the other side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Remote {
    pub(super) address: u64,
    pub(super) key: u32,
}

/// A message, copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) bytes: [u8; MESSAGE_BYTES],
    pub(super) length: u16,
}

impl Message {
    /// A copy of a message.
    pub(super) fn new(message: &[u8]) -> Self {
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..message.len()].copy_from_slice(message);
        Self { bytes, length: u16::try_from(message.len()).expect("a short message") }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// One work request.
#[derive(Debug)]
pub(super) enum Work {
    /// RDMA WRITE; the last one of a transfer has its memory.
    /// With immediate data, it is a message, too.
    Write { from: Local, to: Remote, immediate: Option<u32>, end: Option<(Token, Source)> },
    /// RDMA READ; likewise.
    Read { into: Local, from: Remote, end: Option<(Token, Target)> },
    /// SEND.
    Send(Message),
}

/// A work request as the device gets it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Posting<'a> {
    pub(super) id: u64,
    pub(super) signalled: bool,
    pub(super) work: &'a Work,
}

/// What takes work requests: a queue pair, or a test.
pub(super) trait Wire {
    /// Hands them over. How many it took, from the first on: all, or fewer and why.
    fn post<'a>(&mut self, postings: impl Postings<'a>) -> (usize, Result<()>);
}

/// At most [`BATCH`] work requests, in order.
pub(super) trait Postings<'a>:
    DoubleEndedIterator<Item = Posting<'a>> + ExactSizeIterator
{
}

impl<'a, I> Postings<'a> for I where I: DoubleEndedIterator<Item = Posting<'a>> + ExactSizeIterator {}

/// A transfer whose memory came back.
#[derive(Debug)]
pub(super) enum Ended {
    Written(Token, Source),
    Read(Token, Target),
}

/// See the module.
#[derive(Debug)]
pub(super) struct SendQueue {
    /// What completions are told apart by, in bits 32 to 62 of their ids.
    serial: u32,
    depth: u32,
    /// First those that are with the device, then those that wait.
    works: VecDeque<Work>,
    /// How many are with the device, and the number of the first.
    posted: u32,
    first_posted: u32,
    /// Messages among those that wait.
    messages: usize,
    unsignalled: u32,
    /// Those that somebody waits for and that have not ended.
    awaited: u32,
    /// The most work requests without a signalled one among them, and whether every call ends with one.
    signal_every: u32,
    is_prompt: bool,
}

impl SendQueue {
    pub(super) fn new(serial: u32, depth: u32) -> Self {
        Self {
            serial,
            depth,
            works: VecDeque::new(),
            posted: 0,
            first_posted: 0,
            messages: 0,
            unsignalled: 0,
            awaited: 0,
            signal_every: SIGNAL_EVERY,
            is_prompt: true,
        }
    }

    /// Of messages only, whose end nobody waits for: no more completions than it takes to have room.
    pub(super) fn of_messages(serial: u32, depth: u32) -> Self {
        let signal_every = SIGNAL_EVERY.min(depth / 2).max(1);
        Self { signal_every, is_prompt: false, ..Self::new(serial, depth) }
    }

    pub(super) fn push(&mut self, work: Work) {
        self.messages += usize::from(work.is_message());
        self.awaited += u32::from(work.is_awaited());
        if bugs::is(Bug::ReplyOvertakes) && matches!(work, Work::Send(_)) {
            return self.works.insert(self.posted as usize, work);
        }
        self.works.push_back(work);
    }

    /// Makes a message of the RDMA WRITE that was pushed last, if that is one of so many bytes which
    /// waits still. Whether it did.
    pub(super) fn attach(&mut self, message: u32, bytes: u64) -> bool {
        let last = if self.waiting() == 0 { None } else { self.works.back_mut() };
        match last {
            Some(Work::Write { from, immediate: immediate @ None, end: Some(_), .. })
                if u64::from(from.length) == bytes =>
            {
                *immediate = Some(message);
                self.messages += 1;
                true
            }
            _ => false,
        }
    }

    /// Whether something goes on when a work request ends: more is posted then, what was read is used, or
    /// memory goes back that others wait for.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaited != 0 || self.waiting() != 0
    }

    /// Whether more waits than a client that takes its replies could ever ask for.
    pub(super) fn is_overrun(&self) -> bool {
        self.messages > MOST_MESSAGES || self.waiting() > MOST_WAITING
    }

    /// Whether nothing waits, and nothing is with the device.
    pub(super) fn is_idle(&self) -> bool {
        self.works.is_empty()
    }

    /// Whether as much waits as the device would take.
    pub(super) fn is_full(&self) -> bool {
        self.waiting() >= self.depth as usize
    }

    /// Whether something could be posted.
    pub(super) fn wants_to_post(&self) -> bool {
        self.waiting() != 0 && self.posted < self.depth
    }

    /// Gives back memory that is not in use.
    pub(super) fn shrink(&mut self) {
        self.works.shrink_to_fit();
    }

    /// Bytes of memory that it has taken.
    pub(super) fn bytes(&self) -> usize {
        self.works.capacity() * size_of::<Work>()
    }

    /// Work requests with the device.
    pub(super) fn posted(&self) -> u32 {
        self.posted
    }

    /// Work requests that wait.
    fn waiting(&self) -> usize {
        self.works.len() - self.posted as usize
    }

    /// Posts as many as there is room for, at most `most`. Returns how many.
    pub(super) fn post(&mut self, most: u32, wire: &mut impl Wire) -> Result<u32> {
        let mut total = 0;
        loop {
            let room = (self.depth - self.posted).min(most - total) as usize;
            let count = self.waiting().min(room).min(BATCH);
            if count == 0 {
                return Ok(total);
            }
            let begin = self.posted as usize;
            let number = self.first_posted.wrapping_add(self.posted);
            let (serial, every) = (u64::from(self.serial) << 32, self.signal_every);
            let (unsignalled, is_prompt) = (self.unsignalled, self.is_prompt);
            let posting = |(index, work)| {
                let place = u32::try_from(index).expect("within a batch");
                let is_last = is_prompt && index + 1 == count;
                let signalled = is_last || (unsignalled + place + 1).is_multiple_of(every);
                Posting { id: serial | u64::from(number.wrapping_add(place)), signalled, work }
            };
            let works = self.works.range(begin..begin + count);
            let (taken, result) = wire.post(works.enumerate().map(posting));
            let after = unsignalled + u32::try_from(count).expect("a batch");
            self.unsignalled = if is_prompt { 0 } else { after % every };
            let left = self.works.range(begin..begin + taken);
            self.messages -= left.filter(|work| work.is_message()).count();
            self.posted += u32::try_from(taken).expect("a batch");
            total += u32::try_from(taken).expect("a batch");
            result?;
        }
    }

    /// A completion came: it and what was posted before it has ended. Returns how many did.
    pub(super) fn complete(&mut self, id: u64, ended: &mut Vec<Ended>) -> u32 {
        let number = u32::try_from(id & u64::from(u32::MAX)).expect("masked");
        let count = number.wrapping_sub(self.first_posted).wrapping_add(1);
        if count > self.posted {
            // Nothing that is with the device: it completed before, or is no number of ours.
            return 0;
        }
        let count = if bugs::is(Bug::AllEndWithOne) { self.posted } else { count };
        for _ in 0..count {
            let Some(work) = self.works.pop_front() else { break };
            self.awaited -= u32::from(work.is_awaited());
            work.end(ended);
        }
        self.posted -= count;
        self.first_posted = self.first_posted.wrapping_add(count);
        count
    }

    /// The queue pair is destroyed: everything ends, done or not.
    pub(super) fn end_all(&mut self, ended: &mut Vec<Ended>) {
        (self.awaited, self.posted) = (0, 0);
        self.works.drain(..).for_each(|work| work.end(ended));
    }
}

impl Work {
    /// Whether it takes one of the other side's receives.
    fn is_message(&self) -> bool {
        matches!(self, Self::Send(_) | Self::Write { immediate: Some(_), .. })
    }

    /// Whether somebody waits for its end: shared buffers are few, and other threads need them.
    fn is_awaited(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { end: Some((_, Source::Frozen(..))), .. })
    }

    fn end(self, ended: &mut Vec<Ended>) {
        match self {
            Self::Write { end: Some((token, from)), .. } => ended.push(Ended::Written(token, from)),
            Self::Read { end: Some((token, into)), .. } => ended.push(Ended::Read(token, into)),
            Self::Write { end: None, .. } | Self::Read { end: None, .. } | Self::Send(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use dma::{Buffer, HugePages, Pool, SizeClass};
    use extent::Kind;
    use proptest::prelude::*;

    use super::*;

    /// Remembers what was posted.
    #[derive(Default)]
    struct Tape(Vec<(u64, bool)>);

    impl Wire for Tape {
        fn post<'a>(&mut self, postings: impl Postings<'a>) -> (usize, Result<()>) {
            let count = postings.len();
            self.0.extend(postings.map(|posting| (posting.id, posting.signalled)));
            (count, Ok(()))
        }
    }

    /// Takes so many of a list, and fails at the next.
    struct Cut(usize);

    impl Wire for Cut {
        fn post<'a>(&mut self, _: impl Postings<'a>) -> (usize, Result<()>) {
            (self.0, Err(Kind::Disconnected.error("cut")))
        }
    }

    fn write(token: u64, buffer: Buffer) -> Work {
        let end = Some((Token(token), Source::Buffer(buffer, 0..1)));
        let from = Local { address: 0, length: 1, key: 0 };
        Work::Write { from, to: Remote { address: 0, key: 0 }, immediate: None, end }
    }

    fn tokens(ended: &[Ended]) -> Vec<u64> {
        let token = |ended: &Ended| match ended {
            Ended::Written(token, _) | Ended::Read(token, _) => token.0,
        };
        ended.iter().map(token).collect()
    }

    proptest! {
        #[test]
        fn everything_ends_once_in_order_and_only_after_its_completion(
            steps in proptest::collection::vec((0u8..3, 1u32..40), 1..60),
            start: u32,
        ) {
            let pool = Pool::new(&[SizeClass { bytes: 4096, count: 4096 }], HugePages::Never)
                .expect("memory");
            let mut queue = SendQueue::new(7, 24);
            queue.first_posted = start;
            let (mut tape, mut ended) = (Tape::default(), Vec::new());
            let (mut pushed, mut acknowledged, mut taken) = (0u64, 0u64, 0usize);
            for (step, count) in steps {
                match step {
                    0 => for _ in 0..count {
                        let Some(buffer) = pool.take(1) else { break };
                        queue.push(write(pushed, buffer));
                        pushed += 1;
                    },
                    1 => {
                        queue.post(count, &mut tape).expect("posts");
                        prop_assert!(queue.posted() <= 24);
                    }
                    _ => {
                        // The device works on in order, and tells of what is signalled.
                        let due = tape.0[taken..].iter().position(|(_, signalled)| *signalled);
                        if let Some(at) = due {
                            prop_assert!(at < SIGNAL_EVERY as usize);
                            taken += at + 1;
                            acknowledged += at as u64 + 1;
                            let id = tape.0[taken - 1].0;
                            prop_assert_eq!(queue.complete(id, &mut ended) as usize, at + 1);
                            prop_assert_eq!(queue.complete(id, &mut ended), 0, "told twice");
                        }
                    }
                }
                prop_assert_eq!(tokens(&ended), (0..acknowledged).collect::<Vec<_>>());
            }
            prop_assert!(tape.0.last().is_none_or(|(_, signalled)| *signalled));
            queue.end_all(&mut ended);
            prop_assert_eq!(tokens(&ended), (0..pushed).collect::<Vec<_>>());
            drop(ended);
            prop_assert!(pool.usage().iter().all(|class| class.taken == 0));
        }
    }

    #[test]
    fn who_takes_no_replies_overruns_its_queue() {
        let mut queue = SendQueue::new(1, 8);
        let reply = || Work::Send(Message::new(&[0; 32]));
        (0..MOST_MESSAGES + 8).for_each(|_| queue.push(reply()));
        assert!(queue.is_overrun());
        queue.post(8, &mut Tape::default()).expect("posts");
        assert!(!queue.is_overrun(), "as many as there may be");
        queue.push(reply());
        assert!(queue.is_overrun());
    }

    #[test]
    fn only_the_last_write_becomes_a_message_and_only_whole() {
        let sizes = [SizeClass { bytes: 4096, count: 4 }];
        let pool = Pool::new(&sizes, HugePages::Never).expect("memory");
        let mut queue = SendQueue::new(1, 8);
        assert!(!queue.attach(7, 1), "there is none");
        queue.push(write(5, pool.take(1).expect("free")));
        assert!(!queue.attach(7, 2), "it is not all of the bytes");
        assert!(queue.attach(7, 1) && queue.messages == 1);
        assert!(!queue.attach(8, 1), "it has a message already");
        queue.post(8, &mut Tape::default()).expect("posts");
        assert_eq!(queue.messages, 0);
        assert!(!queue.attach(9, 1), "it has left");
        queue.push(write(6, pool.take(1).expect("free")));
        queue.push(Work::Send(Message::new(&[0; 32])));
        assert!(!queue.attach(9, 1), "something else came behind it");
    }

    #[test]
    fn messages_alone_ask_for_few_completions_and_always_for_enough() {
        for depth in [1, 2, 4, 64, 256] {
            let mut queue = SendQueue::of_messages(0, depth);
            let (mut tape, mut taken, mut ended) = (Tape::default(), 0, Vec::new());
            for _ in 0..500 {
                queue.push(Work::Send(Message::new(&[0; 32])));
                queue.post(u32::MAX, &mut tape).expect("posts");
                if !queue.is_awaited() {
                    continue;
                }
                let due = tape.0[taken..].iter().position(|(_, signalled)| *signalled);
                let at = due.expect("a full queue has a completion due");
                taken += at + 1;
                assert_ne!(queue.complete(tape.0[taken - 1].0, &mut ended), 0);
                queue.post(u32::MAX, &mut tape).expect("posts");
                assert!(!queue.is_awaited());
            }
            let signalled = tape.0.iter().filter(|(_, signalled)| *signalled).count();
            let most = 500 / (SIGNAL_EVERY.min(depth / 2).max(1) as usize);
            assert!(signalled <= most, "{signalled} at depth {depth}");
        }
    }

    #[test]
    fn what_could_not_be_posted_is_still_ours() {
        let pool = Pool::new(&[SizeClass { bytes: 4096, count: 1 }], HugePages::Never);
        let pool = pool.expect("memory");
        let mut queue = SendQueue::new(1, 8);
        queue.push(write(5, pool.take(1).expect("free")));
        queue.post(8, &mut Cut(1)).expect_err("cut");
        let mut ended = Vec::new();
        queue.end_all(&mut ended);
        assert_eq!(tokens(&ended), [5]);
    }

    #[test]
    fn of_a_list_that_fails_halfway_the_first_are_the_devices_and_the_others_wait() {
        let pool = Pool::new(&[SizeClass { bytes: 4096, count: 3 }], HugePages::Never);
        let pool = pool.expect("memory");
        let mut queue = SendQueue::new(1, 8);
        (5..8).for_each(|token| queue.push(write(token, pool.take(1).expect("free"))));
        assert!(queue.attach(7, 1), "the last write carries a message");
        queue.post(8, &mut Cut(1)).expect_err("cut");
        assert_eq!((queue.posted(), queue.waiting(), queue.messages), (1, 2, 1));
        let (mut tape, mut ended) = (Tape::default(), Vec::new());
        queue.post(8, &mut tape).expect("posts the others");
        assert_eq!((queue.posted(), queue.waiting(), queue.messages), (3, 0, 0));
        assert_eq!(queue.complete(tape.0[0].0, &mut ended), 2);
        assert_eq!(tokens(&ended), [5, 6]);
        queue.end_all(&mut ended);
        assert_eq!(tokens(&ended), [5, 6, 7]);
    }
}
