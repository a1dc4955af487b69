use std::ops::Range;

use extent::checksum::crc32c;
use extent::wire::{Command, Landing, Reply, Segment, Segments, Served};
use extent::{ByteRange, Error, Kind, Result};

use super::{Completed, Ticket};
use crate::Memory;

/// What a transfer does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    /// Reads from this offset of the file.
    Read { handle: u64, offset: u64 },
    /// Writes from this offset of the file on.
    Write { handle: u64, offset: u64 },
    /// A request that moves no data.
    Plain(Command),
    /// An OPEN, whose memory holds the name.
    Open(Command),
}

/// One operation of the caller's, made of one request or of several.
///
/// What is longer than the longest transfer is cut where the file's offset is a multiple of that,
/// and its parts are answered in any order. What is good of a read is its front up to the first byte that some part lacks.
pub(super) struct Transfer {
    pub(super) ticket: Ticket,
    pub(super) operation: Operation,
    pub(super) memory: Memory,
    within: Range<usize>,
    /// Bytes of parts handed out.
    issued: u64,
    /// Parts handed out and not yet answered.
    outstanding: usize,
    /// Whether a first part was handed out.
    started: bool,
    /// Bytes from the front that no answered part lacks.
    good: u64,
    error: Option<Error>,
    /// What the last reply said, and the worst of all.
    last: Reply,
    served: Served,
    landing: Landing,
    service_us: u32,
}

/// The piece of a transfer that one request moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    /// Counted from the start of the transfer.
    pub(super) at: u64,
    pub(super) length: u64,
}

impl Transfer {
    pub(super) fn new(
        ticket: Ticket,
        operation: Operation,
        memory: Memory,
        within: Range<usize>,
    ) -> Self {
        let good = within.len() as u64;
        Self {
            ticket,
            operation,
            memory,
            within,
            issued: 0,
            outstanding: 0,
            started: false,
            good,
            error: None,
            last: Reply::success(0),
            served: Served::Nothing,
            landing: Landing::Nothing,
            service_us: 0,
        }
    }

    fn length(&self) -> u64 {
        self.within.len() as u64
    }

    /// The next part to send; `None` once there is nothing more that would help.
    pub(super) fn peek(&self, max_transfer_bytes: u64) -> Option<Part> {
        if self.error.is_some() {
            return None;
        }
        let (Operation::Read { offset, .. } | Operation::Write { offset, .. }) = self.operation
        else {
            return (!self.started).then_some(Part { at: 0, length: self.length() });
        };
        if self.issued >= self.good {
            return None;
        }
        let left = self.length() - self.issued;
        let to_boundary = max_transfer_bytes - (offset + self.issued) % max_transfer_bytes;
        let length = if left <= max_transfer_bytes { left } else { to_boundary };
        Some(Part { at: self.issued, length })
    }

    /// The request for a part, and the checksum that goes with it.
    pub(super) fn request(&self, part: Part, verify: bool) -> Result<(Command, Option<u32>)> {
        let segments = self.segments(part);
        Ok(match self.operation {
            Operation::Read { handle, offset } => {
                let range = ByteRange::new(offset + part.at, part.length)?;
                (Command::Read { handle, range, into: segments }, verify.then_some(0))
            }
            Operation::Write { handle, offset } => {
                let range = ByteRange::new(offset + part.at, part.length)?;
                let crc = verify.then(|| crc32c(&self.memory.as_slice()[self.bytes_of(part)]));
                (Command::Write { handle, range, from: segments }, crc)
            }
            Operation::Plain(command) => (command, None),
            Operation::Open(Command::Open(mut open)) => {
                open.name = segments;
                (Command::Open(open), None)
            }
            Operation::Open(_) => unreachable!("only OPEN commands are made into opens"),
        })
    }

    /// Notes that a part was sent.
    pub(super) fn sent(&mut self, part: Part) {
        self.started = true;
        self.issued += part.length;
        self.outstanding += 1;
    }

    /// Whether everything sent was answered.
    pub(super) fn is_quiet(&self) -> bool {
        self.outstanding == 0
    }

    /// Takes in the answer to a part.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it makes no sense, and the session with it.
    pub(super) fn absorb(&mut self, part: Part, reply: Reply, verify: bool) -> Result<()> {
        self.outstanding -= 1;
        self.served = self.served.max(reply.served);
        self.landing = self.landing.max(reply.landing);
        self.service_us = self.service_us.max(reply.service_us);
        if let Some(error) = reply.error() {
            self.fail(error);
            return Ok(());
        }
        let moves = matches!(self.operation, Operation::Read { .. } | Operation::Write { .. });
        if moves {
            if reply.value > part.length {
                return Err(Kind::Corrupt.error(format!(
                    "the node answered a transfer of {} bytes with {}",
                    part.length, reply.value
                )));
            }
            if reply.value < part.length {
                self.good = self.good.min(part.at + reply.value);
            }
        }
        match self.operation {
            Operation::Read { .. } if verify => self.check(part, &reply),
            Operation::Write { .. } if reply.value < part.length => {
                self.fail(Kind::Io.error(format!(
                    "the node took {} of {} bytes to write",
                    reply.value, part.length
                )))
            }
            _ => {}
        }
        self.last = reply;
        Ok(())
    }

    /// Ends the transfer, whatever is still out.
    pub(super) fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// What the caller gets to know.
    pub(super) fn complete(self) -> (Completed, Memory) {
        let moved = matches!(self.operation, Operation::Read { .. } | Operation::Write { .. });
        let completed = Completed {
            ticket: self.ticket,
            bytes: if moved && self.error.is_none() { self.good } else { 0 },
            result: self.error.map_or(Ok(()), Err),
            served: self.served,
            landing: self.landing,
            service_us: self.service_us,
            handle: if moved { 0 } else { self.last.value },
            body: self.last.body,
            memory: None,
        };
        (completed, self.memory)
    }

    fn check(&mut self, part: Part, reply: &Reply) {
        let begin = self.bytes_of(part).start;
        let length = usize::try_from(reply.value).expect("no more than the part, which is memory");
        let found = crc32c(&self.memory.as_slice()[begin..begin + length]);
        if found != reply.payload_crc {
            self.fail(Kind::Corrupt.error(format!(
                "{length} bytes at {} of the transfer arrived with checksum {found:08x}, and the \
                 node sent {:08x}: read them again",
                part.at, reply.payload_crc
            )));
        }
    }

    fn bytes_of(&self, part: Part) -> Range<usize> {
        let at = usize::try_from(part.at).expect("a part is inside the memory");
        let length = usize::try_from(part.length).expect("a part is inside the memory");
        self.within.start + at..self.within.start + at + length
    }

    fn segments(&self, part: Part) -> Segments {
        let Some(region) = self.memory.region().filter(|_| part.length != 0) else {
            return Segments::NONE;
        };
        let address = self.memory.offset() + self.bytes_of(part).start;
        Segments::one(Segment {
            address: address as u64,
            length: u32::try_from(part.length).expect("a part is no longer than a transfer"),
            key: region.id().0,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dma::{HugePages, Region};
    use proptest::prelude::*;

    use super::*;
    use crate::arena::Home;

    fn read(offset: u64, length: usize) -> Transfer {
        let region = Region::anonymous(length, HugePages::Never).expect("memory");
        let memory = Arc::new(Home::default()).adopt(region, length);
        Transfer::new(Ticket(1), Operation::Read { handle: 1, offset }, memory, 0..length)
    }

    fn answer(value: u64) -> Reply {
        Reply { value, ..Reply::success(0) }
    }

    fn cut(transfer: &mut Transfer, max: u64) -> Vec<Part> {
        std::iter::from_fn(|| {
            let part = transfer.peek(max)?;
            transfer.sent(part);
            Some(part)
        })
        .collect()
    }

    proptest! {
        #[test]
        fn parts_tile_and_join_in_any_order(
            offset in 0u64..1 << 40, length in 1usize..100_000, max in 1u64..20_000, seed: u64,
            file_end in 0u64..120_000,
        ) {
            let mut transfer = read(offset, length);
            let mut parts = cut(&mut transfer, max);
            let mut at = 0;
            for part in &parts {
                prop_assert_eq!(part.at, at);
                prop_assert!(part.length != 0 && part.length <= max);
                prop_assert!(at == 0 || (offset + at).is_multiple_of(max));
                at += part.length;
            }
            prop_assert_eq!(at, length as u64);
            let turn = usize::try_from(seed % parts.len() as u64).expect("small");
            parts.rotate_left(turn);
            for part in parts {
                prop_assert!(!transfer.is_quiet());
                let there = file_end.saturating_sub(part.at).min(part.length);
                transfer.absorb(part, answer(there), false).expect("sense");
            }
            prop_assert!(transfer.is_quiet() && transfer.peek(max).is_none());
            let (completed, _) = transfer.complete();
            prop_assert_eq!(completed.bytes, file_end.min(length as u64));
            prop_assert!(completed.result.is_ok());
        }
    }

    #[test]
    fn the_worst_path_and_the_first_error_win() {
        let mut transfer = read(0, 3000);
        let parts = cut(&mut transfer, 1000);
        let tier = Reply { served: Served::Tier, landing: Landing::Copied, ..answer(1000) };
        let recall = Reply { served: Served::Recall, landing: Landing::Direct, ..answer(1000) };
        let lost = Reply::failure(0, &Kind::Stale.error("the source changed"));
        for (part, reply) in parts.into_iter().zip([recall, lost, tier]) {
            transfer.absorb(part, reply, false).expect("sense");
        }
        let (completed, _) = transfer.complete();
        assert_eq!(completed.result.expect_err("stale").context(), "the source changed");
        assert_eq!((completed.served, completed.landing), (Served::Recall, Landing::Copied));
        assert_eq!(completed.bytes, 0);
    }

    #[test]
    fn nothing_more_is_sent_past_the_end_or_an_error() {
        let mut transfer = read(0, 3000);
        let first = transfer.peek(1000).expect("a part");
        transfer.sent(first);
        transfer.absorb(first, answer(10), false).expect("sense");
        assert!(transfer.peek(1000).is_none() && transfer.is_quiet());
        assert_eq!(transfer.complete().0.bytes, 10);
    }

    #[test]
    fn too_many_bytes_are_nonsense() {
        let mut transfer = read(0, 10);
        let part = transfer.peek(1000).expect("a part");
        transfer.sent(part);
        let error = transfer.absorb(part, answer(11), false).expect_err("nonsense");
        assert_eq!(error.kind(), Kind::Corrupt);
    }

    #[test]
    fn a_wrong_checksum_is_seen() {
        let mut transfer = read(0, 10);
        let part = transfer.peek(1000).expect("a part");
        transfer.sent(part);
        let reply = Reply { payload_crc: crc32c(&[0; 10]) ^ 1, ..answer(10) };
        transfer.absorb(part, reply, true).expect("sense");
        assert_eq!(transfer.complete().0.result.expect_err("damaged").kind(), Kind::Corrupt);
    }
}
