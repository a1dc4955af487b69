//! What a queue does with completions.
#![allow(unsafe_code)]

use std::mem;

use super::{PolledQueue, at_offset};
use crate::device::nvme::CompletionEntry;
use crate::device::polled::operation::{Part, verify};
use crate::device::{Command, Completion};

/// How often an NVMe command is sent again that failed for a reason that may pass.
const MOST_TRIES: u8 = 4;

impl PolledQueue {
    #[inline]
    pub(super) fn on_completion(
        &mut self,
        entry: &CompletionEntry,
        completions: &mut Vec<Completion>,
    ) {
        let Some(part) =
            self.parts.get_mut(usize::from(entry.cid)).filter(|part| part.is_in_flight())
        else {
            self.on_nonsense(entry);
            return;
        };
        let number = part.operation;
        let status = entry.status();
        if status.is_success() && self.namespace.protection.is_none() {
            *part = Part::FREE;
        } else if !self.settle(*entry) {
            return;
        }
        self.free_parts.push(entry.cid);
        let operation = &mut self.operations[usize::from(number)];
        operation.outstanding -= 1;
        if operation.outstanding == 0 && (operation.is_issued() || operation.failure.is_some()) {
            self.finish(number, completions);
        }
    }

    /// Deals with a part that failed or has to be checked. Whether it has ended.
    #[cold]
    fn settle(&mut self, entry: CompletionEntry) -> bool {
        let part = &mut self.parts[usize::from(entry.cid)];
        let status = entry.status();
        let is_flush =
            matches!(self.operations[usize::from(part.operation)].command, Some(Command::Flush(_)));
        // A flush that failed is none, and one that succeeds later does not vouch for it.
        if status.is_worth_a_retry() && part.tries < MOST_TRIES && !is_flush {
            part.tries += 1;
            part.is_parked = true;
            part.born = self.core.ticks().wrapping_add(self.core.retry_ticks(status));
            tracing::debug!(%status, "sending an NVMe command again");
            self.parked.push(entry.cid);
            return false;
        }
        let part = mem::replace(part, Part::FREE);
        let operation = &mut self.operations[usize::from(part.operation)];
        let name = self.core.host.name();
        let result = match (&operation.command, self.namespace.protection) {
            _ if !status.is_success() => Err(status.error(operation.describe(&name))),
            (Some(Command::Read { at, into }), Some(protection)) => {
                let lba = (at.offset + u64::from(part.offset)) >> self.namespace.block_shift;
                let data = (at_offset(into.address(), part.offset), part.length as usize);
                let (tuples, _) = self.memory.tuples(entry.cid);
                // SAFETY: the part lies inside the command's memory, its tuples in one page, and it
                // has completed.
                unsafe { verify(protection, lba, data, tuples) }
                    .map_err(|error| error.while_doing(operation.describe(&name)))
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            operation.failure.get_or_insert(error);
        }
        true
    }

    /// A completion of nothing: memory may have been written that was given back already, and
    /// nothing that this controller says can be believed until it is reset.
    #[cold]
    fn on_nonsense(&mut self, entry: &CompletionEntry) {
        tracing::error!(
            name = self.core.host.name(),
            cid = entry.cid,
            queue = self.id,
            "an NVMe controller completed a command that is not in flight"
        );
        self.core.want_reset(self.life);
    }

    /// Hands an operation back.
    #[inline]
    pub(super) fn finish(&mut self, number: u16, completions: &mut Vec<Completion>) {
        let operation = &mut self.operations[usize::from(number)];
        if !operation.is_issued() {
            self.waiting.retain(|waiting| *waiting != number);
        }
        self.places.let_go(&mut operation.hold);
        let command = operation.command.take().expect("in flight");
        let result = match operation.failure.take() {
            None => Ok(()),
            Some(error) => Err(error),
        };
        operation.restarts = 0;
        completions.push(Completion { token: operation.token, command, result });
        self.free_operations.push(number);
    }

    #[cold]
    pub(super) fn finish_ended(&mut self, completions: &mut Vec<Completion>) {
        while let Some(number) = self.ended.pop() {
            self.finish(number, completions);
        }
    }

    #[cold]
    pub(super) fn issue_waiting(&mut self) {
        while let Some(number) = self.waiting.front().copied() {
            // One of which a part has failed issues no more, and ends with its other parts.
            let has_failed = self.operations[usize::from(number)].failure.is_some();
            if !has_failed && !self.issue(number) {
                break;
            }
            self.waiting.pop_front();
        }
        self.kick();
    }
}
