use std::time::Duration;

use extent::wire::{self, Reply, Request};
use extent::{Error, Kind, Result};
use rdma::Fabric;

use super::transfer::{Operation, Transfer};
use super::{Completed, InFlight, Session};

impl Session {
    /// Sends what was submitted, as far as the node's credits go.
    pub fn kick(&mut self) {
        if let Err(error) = self.try_kick() {
            self.tear_down(&error);
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

    /// Whether anything was sent.
    fn send_unsent(&mut self) -> Result<bool> {
        let mut sent = false;
        while let Some(&index) = self.unsent.front() {
            let transfer = self.transfers.get_mut(index).expect("an unsent transfer is kept");
            let Some(part) = transfer.peek(self.max_transfer_bytes) else {
                self.unsent.pop_front();
                if transfer.is_quiet() {
                    self.finish(index);
                }
                continue;
            };
            let Some(channel) =
                self.channel.as_mut().filter(|_| self.requests.len() < self.credits)
            else {
                break;
            };
            let (command, payload_crc) = transfer.request(part, self.options.verify)?;
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

    /// Appends what has completed, and sends what may be sent now. Never blocks.
    pub fn poll(&mut self, completed: &mut Vec<Completed>) {
        if let Err(error) = self.try_poll() {
            self.tear_down(&error);
        }
        completed.append(&mut self.completed);
    }

    fn try_poll(&mut self) -> Result<()> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        let mut replies = std::mem::take(&mut self.replies);
        // Replies that came before the channel failed still count.
        let outcome = channel.poll(&mut replies);
        for reply in replies.drain(..) {
            self.on_reply(reply)?;
        }
        self.replies = replies;
        outcome?;
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
        let more = transfer.peek(self.max_transfer_bytes).is_some();
        let queued = self.unsent.front() == Some(&request.transfer);
        if transfer.is_quiet() && !more && !queued {
            self.finish(request.transfer);
        }
        Ok(())
    }

    fn finish(&mut self, index: usize) {
        let transfer = self.transfers.remove(index).expect("a transfer finishes once");
        self.complete(transfer, true);
    }

    fn complete(&mut self, transfer: Transfer, memory_is_safe: bool) {
        let operation = transfer.operation;
        let (mut completed, memory) = transfer.complete();
        match operation {
            _ if !memory_is_safe => {}
            Operation::Open(_) => self.names.push(memory),
            Operation::Read { .. } | Operation::Write { .. } => completed.memory = Some(memory),
            Operation::Plain(_) => {}
        }
        self.completed.push(completed);
    }

    /// Sleeps until [`Session::poll`] has something to do, or the time is over.
    pub fn wait(&mut self, timeout: Duration) {
        if !self.completed.is_empty() {
            return;
        }
        if let Some(channel) = &mut self.channel
            && let Err(error) = channel.wait(timeout)
        {
            self.tear_down(&error);
        }
    }

    /// Ends the session. Everything outstanding completes with this error.
    pub fn tear_down(&mut self, reason: &Error) {
        let Some(channel) = self.channel.take() else { return };
        // The peer must be cut off before anybody gets memory back that a request named.
        drop(channel);
        tracing::debug!(%reason, fabric = self.fabric.name(), "session over");
        self.requests.drain().for_each(drop);
        self.unsent.clear();
        // A read that a device of the node is doing into memory shared with it cannot be called
        // back from here: such memory is given up instead.
        let shared = self.fabric == Fabric::SharedMemory;
        let transfers: Vec<_> = self.transfers.drain().collect();
        for mut transfer in transfers {
            let safe = !shared || transfer.is_quiet();
            let error = Kind::Disconnected
                .error(format!("the session ended before this was answered: {reason}"));
            transfer.fail(error);
            self.complete(transfer, safe);
        }
        self.over = Some(reason.duplicate());
    }
}
