use std::time::Duration;

use extent::wire::{self, OpenBody, Reply, Request};
use extent::{Error, Kind, Result};

use super::transfer::{Operation, Transfer};
use super::{InFlight, Link, Session, ends_channel};
use crate::bugs::{self, Bug};
use crate::clock;

/// How long one sleep may take while files are opened again: some of that waits for time alone.
const LONGEST_NAP: Duration = Duration::from_millis(5);

fn memory_lost() -> Error {
    Kind::Disconnected.error(
        "the connection was lost, and the node that had this memory may still write to it: free it, \
         and allocate other memory",
    )
}

impl Session {
    /// Sends what was submitted, as far as the node's credits go.
    pub fn kick(&mut self) {
        if let Err(error) = self.try_kick() {
            self.lose(&error);
        }
    }

    fn try_kick(&mut self) -> Result<()> {
        if self.send_unsent()?
            && let Some(channel) = &mut self.channel
        {
            channel.kick()?;
        }
        Ok(())
    }

    /// The transfer to be sent next: what is the session's own goes first.
    fn next_unsent(&self) -> Option<usize> {
        let others = || self.unsent.front().filter(|_| self.link == Link::Up);
        self.unsent_own.front().or_else(others).copied()
    }

    fn pop_unsent(&mut self) {
        if self.unsent_own.pop_front().is_none() {
            self.unsent.pop_front();
        }
    }

    /// Whether anything was sent.
    fn send_unsent(&mut self) -> Result<bool> {
        let mut sent = false;
        while self.channel.is_some()
            && let Some(index) = self.next_unsent()
        {
            if self.is_closed_already(index) {
                self.pop_unsent();
                let transfer = self.transfers.remove(index).expect("an unsent transfer is kept");
                self.end(transfer, Ok(()));
                continue;
            }
            let handle = self.prepare(index)?;
            let transfer = self.transfers.get_mut(index).expect("an unsent transfer is kept");
            let Some(part) = transfer.peek(self.max_transfer_bytes) else {
                let is_quiet = transfer.is_quiet();
                self.pop_unsent();
                if is_quiet {
                    self.finish(index)?;
                }
                continue;
            };
            let room = matches!(transfer.operation, Operation::Probe);
            let Some(channel) =
                self.channel.as_mut().filter(|_| room || self.requests.len() < self.credits)
            else {
                break;
            };
            let (command, payload_crc) = transfer.request(part, handle, self.options.verify)?;
            let sequence = u32::from(self.next_sequence) << 16;
            let slot = self.requests.insert(|slot| {
                let slot = u32::try_from(slot).expect("slots are as few as credits");
                InFlight { tag: sequence | slot, transfer: index, part }
            });
            let tag = self.requests.get(slot).expect("just put there").tag;
            match channel.send(&Request { tag, payload_crc, command }) {
                Ok(()) => {
                    transfer.sent(part);
                    self.next_sequence = self.next_sequence.wrapping_add(1);
                    sent = true;
                }
                Err(error) => {
                    self.requests.remove(slot);
                    if error.kind() == Kind::Busy {
                        break;
                    }
                    return Err(error);
                }
            }
        }
        Ok(sent)
    }

    /// Whether it is a CLOSE of what went with a connection.
    fn is_closed_already(&self, index: usize) -> bool {
        let transfer = self.transfers.get(index).expect("an unsent transfer is kept");
        matches!(transfer.operation, Operation::Close { handle } if self.files.is_lost(handle))
    }

    /// Finds out what a transfer needs of the present connection: the node's handle, 0 without one,
    /// and memory that this node knows. A transfer that cannot have them fails.
    ///
    /// # Errors
    /// What ended the channel: the transfer waits for the next one.
    fn prepare(&mut self, index: usize) -> Result<u64> {
        let transfer = self.transfers.get(index).expect("an unsent transfer is kept");
        let handle = transfer.operation.file().map_or(Ok(0), |file| self.files.resolve(file));
        let length = transfer.memory.len();
        let is_lost = transfer.is_fresh()
            && length != 0
            && transfer.memory.region().is_some_and(|region| self.home.is_retired(region));
        let unreached = transfer.device.as_ref().map(|device| self.devices.check(&device.memory));
        if let Some(Err(error)) = unreached {
            let transfer = self.transfers.get_mut(index).expect("an unsent transfer is kept");
            transfer.fail(error);
            return Ok(handle.unwrap_or(0));
        }
        if is_lost && transfer.memory.is_fixed() {
            let transfer = self.transfers.get_mut(index).expect("an unsent transfer is kept");
            transfer.fail(memory_lost());
            return Ok(handle.unwrap_or(0));
        }
        // Its old memory may still be written to by the node of before, which this one cannot stop.
        let other = match is_lost.then(|| self.acquire(length)) {
            Some(Err(error)) if ends_channel(&error) && !bugs::is(Bug::LossIsAnAnswer) => {
                return Err(error);
            }
            other => other,
        };
        let transfer = self.transfers.get_mut(index).expect("an unsent transfer is kept");
        match other {
            Some(Ok(memory)) => transfer.move_to(memory),
            // Its memory does not come back, and without it nobody can ask again.
            Some(Err(error)) if error.kind() == Kind::Busy && transfer.is_tainted => {
                let reason = format!("there is no memory to do it again: ask for some: {error}");
                transfer.fail(Kind::NoSpace.error(reason));
            }
            Some(Err(error)) => transfer.fail(error),
            None => {}
        }
        Ok(handle.unwrap_or_else(|error| {
            transfer.fail(error);
            0
        }))
    }

    /// Appends what has completed, and sends what may be sent now. Does not wait for the node, but after a
    /// connection over shared memory was lost it may make new memory (see [`Session::allocate`]).
    pub fn poll(&mut self, completed: &mut Vec<super::Completed>) {
        if self.channel.is_none() {
            self.connect_again();
        }
        if let Err(error) = self.try_poll() {
            self.lose(&error);
        }
        completed.append(&mut self.completed);
    }

    fn try_poll(&mut self) -> Result<()> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let mut replies = std::mem::take(&mut self.replies);
        // For all at once: how many come together is chance, and nothing grows by chance.
        replies.reserve(self.requests.len());
        // Replies that came before the channel failed still count.
        let outcome = channel.poll(&mut replies);
        let heard = !replies.is_empty();
        for reply in replies.drain(..) {
            self.on_reply(reply)?;
        }
        self.listen(heard);
        self.replies = replies;
        outcome?;
        if self.link != Link::Up {
            self.go_on_reopening()?;
        }
        self.try_kick()?;
        self.release_unused();
        Ok(())
    }

    fn on_reply(&mut self, reply: Reply) -> Result<()> {
        let slot = usize::try_from(reply.tag & 0xFFFF).expect("16 bits");
        let tag = reply.tag;
        if self.requests.get(slot).is_none_or(|request| request.tag != tag) {
            return Err(Kind::Corrupt
                .error(format!("the node answered request {tag:#x}, which is not in flight")));
        }
        let request = self.requests.remove(slot).expect("just seen");
        // Zero means that the node says nothing about credits: none at all would be a deadlock.
        if reply.credits != 0 {
            self.credits = usize::from(reply.credits.min(wire::MAX_CREDITS));
        }
        let transfer = self.transfers.get_mut(request.transfer).expect("kept until answered");
        transfer.absorb(request.part, reply, self.options.verify)?;
        if let Some(redial) = self.redial.as_mut().filter(|_| !transfer.operation.is_own()) {
            redial.on_answer();
        }
        let more = transfer.peek(self.max_transfer_bytes).is_some();
        let first = Some(&request.transfer);
        let queued = self.unsent.front() == first || self.unsent_own.front() == first;
        if transfer.is_quiet() && !more && !queued {
            self.finish(request.transfer)?;
        }
        Ok(())
    }

    fn finish(&mut self, index: usize) -> Result<()> {
        let transfer = self.transfers.remove(index).expect("a transfer finishes once");
        if transfer.operation.is_own() {
            return self.settle_own(transfer);
        }
        self.settle(transfer);
        Ok(())
    }

    /// Takes in how a transfer of somebody's ended, and completes it.
    pub(super) fn settle(&mut self, mut transfer: Transfer) {
        let operation = transfer.operation;
        let opened = matches!(operation, Operation::Open(_) | Operation::Commit { .. })
            .then(|| transfer.reply_body().map(OpenBody::parse))
            .flatten();
        let handle = match (operation, opened) {
            (_, Some(Err(error))) => {
                transfer.fail(error);
                0
            }
            (Operation::Open(mode), Some(Ok(body))) => {
                let name = transfer.bytes().into();
                self.files.insert(name, mode, transfer.reply_value(), &body)
            }
            (Operation::Commit { handle, .. }, Some(Ok(body))) => {
                self.files.committed(handle, None, &body);
                handle
            }
            (Operation::Close { handle }, _) => {
                self.forget(handle);
                0
            }
            (Operation::Stat { handle }, _) => handle,
            _ => 0,
        };
        transfer.answer_as(handle);
        self.complete(transfer);
    }

    pub(super) fn complete(&mut self, transfer: Transfer) {
        let (operation, is_tainted) = (transfer.operation, transfer.is_tainted);
        let (mut completed, memory) = transfer.complete();
        match operation {
            // No node ever writes to a name.
            Operation::Open(_) => self.names.push(memory),
            Operation::Read { .. } | Operation::Write { .. } if !is_tainted => {
                completed.memory = Some(memory);
            }
            _ => {}
        }
        self.completed.push(completed);
    }

    /// Sleeps until [`Session::poll`] has something to do, or the time is over.
    pub fn wait(&mut self, timeout: Duration) {
        if !self.completed.is_empty() {
            return;
        }
        let timeout = match self.link {
            Link::Reopening { .. } => timeout.min(LONGEST_NAP),
            Link::Greeting { until } => timeout.min(until.saturating_duration_since(clock::now())),
            Link::Up => timeout.min(self.longest_sleep()),
            Link::Away => timeout,
        };
        match (&mut self.channel, &mut self.redial) {
            (Some(channel), _) => {
                if let Err(error) = channel.wait(timeout) {
                    self.lose(&error);
                }
            }
            (None, Some(redial)) => redial.wait(timeout),
            (None, None) => {}
        }
    }

    /// Ends the session for good. Everything outstanding completes with this error.
    pub fn tear_down(&mut self, reason: &Error) {
        if self.over.is_some() {
            return;
        }
        let transfers = self.cut();
        tracing::debug!(%reason, fabric = self.fabric.name(), "session over");
        (self.link, self.redial) = (Link::Away, None);
        for mut transfer in transfers {
            transfer.fail(
                Kind::Disconnected
                    .error(format!("the session ended before this was answered: {reason}")),
            );
            self.complete(transfer);
        }
        self.over = Some(reason.duplicate());
    }
}
