use std::ops::Range;

use extent::checksum::crc32c;
use extent::wire::{self, Command, Landing, Open, OpenMode, Reply, Segment, Segments, Served};
use extent::{ByteRange, Error, FileId, Generation, Kind, Result};

use super::devices::DeviceTarget;
use super::{Completed, Progress, Ticket};
use crate::Memory;
use crate::bugs::{self, Bug};

/// What a transfer does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    /// Reads from this offset of the file.
    Read { handle: u64, offset: u64 },
    /// Writes from this offset of the file on.
    Write { handle: u64, offset: u64 },
    /// Makes a generation of this length.
    Commit { handle: u64, length: u64 },
    /// Gives a file back.
    Close { handle: u64 },
    /// Asks what is known of a file.
    Stat { handle: u64 },
    /// Asks for an answer.
    Ping,
    /// Opens a file, whose name is in the memory.
    Open(OpenMode),
    /// The session's own: greets the node.
    Hello { credits: u16 },
    /// The session's own: opens a file again, whose name is in the memory.
    Reopen { handle: u64, generation: Generation },
    /// The session's own: gives back a handle of the node's that is not what it should be.
    Discard { node: u64 },
    /// The session's own: asks for a sign of life, also beyond the credits, which costs the node
    /// nothing but an answer.
    Probe,
}

impl Operation {
    /// The session's number of the file that the node must have open for it.
    pub(super) fn file(&self) -> Option<u64> {
        match *self {
            Self::Read { handle, .. }
            | Self::Write { handle, .. }
            | Self::Commit { handle, .. }
            | Self::Close { handle }
            | Self::Stat { handle } => Some(handle),
            Self::Ping
            | Self::Open(_)
            | Self::Hello { .. }
            | Self::Reopen { .. }
            | Self::Discard { .. }
            | Self::Probe => None,
        }
    }

    /// Whether nobody but the session waits for it.
    pub(super) fn is_own(&self) -> bool {
        matches!(
            self,
            Self::Hello { .. } | Self::Reopen { .. } | Self::Discard { .. } | Self::Probe
        )
    }

    /// Whether it moves bytes of a file.
    pub(super) fn moves(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. })
    }

    /// Whether the memory that a node has for it must hold what this side's does.
    fn sends(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }
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
    /// Where a READ goes instead: `memory` is empty then.
    pub(super) device: Option<DeviceTarget>,
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
    /// How often it was sent again.
    pub(super) repeats: u32,
    /// Whether a device of a node that is lost may still write to its memory.
    pub(super) is_tainted: bool,
    /// Whether it is a COMMIT that some node may have carried out.
    pub(super) is_in_doubt: bool,
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
            device: None,
            issued: 0,
            outstanding: 0,
            started: false,
            good,
            error: None,
            last: Reply::success(0),
            served: Served::Nothing,
            landing: Landing::Nothing,
            service_us: 0,
            repeats: 0,
            is_tainted: false,
            is_in_doubt: false,
        }
    }

    /// Forgets that anything of it was ever sent or answered.
    pub(super) fn restart(&mut self) {
        (self.issued, self.outstanding, self.started) = (0, 0, false);
        (self.good, self.error, self.last) = (self.length(), None, Reply::success(0));
        (self.served, self.landing, self.service_us) = (Served::Nothing, Landing::Nothing, 0);
    }

    /// Whether nothing of it was sent yet.
    pub(super) fn is_fresh(&self) -> bool {
        !self.started
    }

    /// Goes on in other memory of the same length. The old one is nobody's any more.
    pub(super) fn move_to(&mut self, mut memory: Memory) {
        let bytes = self.memory.as_slice();
        if self.operation.sends() {
            memory.as_mut_slice().copy_from_slice(bytes);
        } else {
            let (front, back) = (self.within.start, self.within.end);
            memory.as_mut_slice()[..front].copy_from_slice(&bytes[..front]);
            memory.as_mut_slice()[back..].copy_from_slice(&bytes[back..]);
        }
        self.memory = memory;
        self.is_tainted = false;
    }

    /// The memory's bytes that count.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory.as_slice()[self.within.clone()]
    }

    /// Takes the answer to another request for its own.
    pub(super) fn answer_with(&mut self, body: Vec<u8>) {
        self.last.body = body;
    }

    /// What the last reply said, if that was no error.
    pub(super) fn reply_body(&self) -> Option<&[u8]> {
        self.error.is_none().then_some(&self.last.body)
    }

    /// The handle in the last reply: the node's.
    pub(super) fn reply_value(&self) -> u64 {
        self.last.value
    }

    /// The handle that the caller gets to see: the session's.
    pub(super) fn answer_as(&mut self, handle: u64) {
        self.last.value = handle;
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

    /// The request for a part, and the checksum that goes with it. `handle` is the node's.
    pub(super) fn request(
        &self,
        part: Part,
        handle: u64,
        verify: bool,
    ) -> Result<(Command, Option<u32>)> {
        let segments = self.segments(part);
        let open = |mode| Command::Open(Open { file: FileId(0), mode, name: segments });
        Ok(match self.operation {
            Operation::Read { offset, .. } => {
                let range = ByteRange::new(offset + part.at, part.length)?;
                let verify = verify && self.device.is_none();
                (Command::Read { handle, range, into: segments }, verify.then_some(0))
            }
            Operation::Write { offset, .. } => {
                let range = ByteRange::new(offset + part.at, part.length)?;
                let crc = verify.then(|| crc32c(&self.memory.as_slice()[self.bytes_of(part)]));
                (Command::Write { handle, range, from: segments }, crc)
            }
            Operation::Commit { length, .. } => (Command::Commit { handle, length }, None),
            Operation::Close { .. } => (Command::Close { handle }, None),
            Operation::Stat { .. } => (Command::Stat { handle }, None),
            Operation::Ping | Operation::Probe => (Command::Ping, None),
            Operation::Open(mode) => (open(mode), None),
            Operation::Hello { credits } => {
                let versions = (wire::VERSION, wire::VERSION);
                (Command::Hello { versions, credits, features: 0 }, None)
            }
            Operation::Reopen { generation, .. } => (open(OpenMode::Read(generation)), None),
            Operation::Discard { node } => (Command::Close { handle: node }, None),
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

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        Progress { ticket: self.ticket, sent_bytes: self.issued, unanswered: self.outstanding }
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
        if self.operation.moves() {
            if reply.value > part.length && !bugs::is(Bug::MoreThanAskedTaken) {
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
            Operation::Read { .. } if verify && self.device.is_none() => self.check(part, &reply),
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
        let moved = self.operation.moves();
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
        if found != reply.payload_crc && !bugs::is(Bug::PayloadUnchecked) {
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
        let length = u32::try_from(part.length).expect("a part is no longer than a transfer");
        if let Some(device) = self.device.as_ref().filter(|_| length != 0) {
            return Segments::one(device.segment(part.at, length));
        }
        let Some(region) = self.memory.region().filter(|_| part.length != 0) else {
            return Segments::NONE;
        };
        let address = self.memory.offset() + self.bytes_of(part).start;
        Segments::one(Segment { address: address as u64, length, key: region.id().0 })
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
