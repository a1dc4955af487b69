//! What happens when a connection is lost: what is safe to repeat waits for the next one.

use std::collections::HashSet;

use extent::{Error, Kind, Result};
use rdma::Fabric;

use super::files::{draft_lost, in_doubt};
use super::redial::Step;
use super::transfer::{Operation, Transfer};
use super::{Link, Session, Ticket};
use crate::bugs::{self, Bug};
use crate::clock;

/// What becomes of a request whose connection was lost.
enum Fate {
    /// It is sent again.
    Again,
    /// It is a COMMIT of this file: whether it was carried out is looked up.
    Look(u64),
    /// It is over.
    End(Result<()>),
}

impl Session {
    /// The connection is of no use any more: another one is made, or the session ends.
    pub(super) fn lose(&mut self, reason: &Error) {
        if self.redial.is_none() {
            return self.tear_down(reason);
        }
        if self.channel.is_none() {
            return;
        }
        let transfers = self.cut();
        tracing::info!(%reason, fabric = self.fabric.name(), "connection lost, connecting again");
        self.link = Link::Away;
        self.why = Some(reason.duplicate());
        self.files.lose();
        for transfer in transfers {
            self.decide(transfer);
        }
        let Some(redial) = &mut self.redial else { return };
        let lasted = self.up_since.take().map(|since| clock::now() - since);
        redial.on_failure(reason, lasted.unwrap_or_default());
        if let Step::GiveUp(error) = redial.judge(reason.duplicate()) {
            self.give_up(&error);
        }
    }

    /// Ends the channel, and returns what was under way, oldest first.
    pub(super) fn cut(&mut self) -> Vec<Transfer> {
        // The peer must be cut off before anybody gets memory back that a request named.
        let channel = self.channel.take();
        if bugs::is(Bug::ChannelKept) {
            std::mem::forget(channel);
        } else {
            drop(channel);
        }
        self.requests.drain().for_each(drop);
        self.unsent.clear();
        self.unsent_own.clear();
        self.reopening.clear();
        self.own = 0;
        // A read that a device of the node is doing into memory shared with it cannot be called
        // back from here: such memory is given up instead.
        let shared = self.fabric == Fabric::SharedMemory;
        if shared && !bugs::is(Bug::SharedMemoryReused) {
            self.home.retire(|_| true);
        }
        drop(self.home.take_unused());
        self.devices.sweep(None);
        let mut transfers = Vec::new();
        for mut transfer in self.transfers.drain() {
            transfer.is_tainted |= shared && !transfer.is_quiet();
            match transfer.operation {
                Operation::Hello { .. } | Operation::Discard { .. } | Operation::Probe => {}
                Operation::Reopen { .. } => self.own_names.push(transfer.complete().1),
                _ => transfers.push(transfer),
            }
        }
        transfers.sort_by_key(|transfer| transfer.ticket);
        transfers
    }

    fn decide(&mut self, mut transfer: Transfer) {
        match self.fate(&transfer) {
            Fate::Again => {
                if !transfer.is_quiet() {
                    transfer.repeats += 1;
                    self.stats.repeated += 1;
                }
                transfer.restart();
                let index = self.transfers.insert(|_| transfer);
                self.unsent.push_back(index);
            }
            Fate::Look(handle) => {
                transfer.restart();
                transfer.is_in_doubt = true;
                let index = self.transfers.insert(|_| transfer);
                if !self.files.doubt(handle, index) {
                    // Another COMMIT of the file may be looked up, and says then what became of it.
                    self.files.end_draft(handle, in_doubt());
                    let mut transfer = self.transfers.remove(index).expect("just put there");
                    transfer.fail(in_doubt());
                    self.complete(transfer);
                }
            }
            Fate::End(result) => self.end(transfer, result),
        }
    }

    fn fate(&self, transfer: &Transfer) -> Fate {
        let most = self.redial.as_ref().map_or(0, super::redial::Redial::repeats);
        let writes = matches!(transfer.operation, Operation::Write { .. });
        let file = transfer.operation.file();
        let reader = file.is_none_or(|file| self.files.may_repeat(file, writes));
        let why =
            || file.and_then(|file| self.files.resolve(file).err()).unwrap_or_else(draft_lost);
        match transfer.operation {
            Operation::Commit { handle, .. } => {
                let sent = !transfer.is_fresh() || transfer.is_in_doubt;
                if sent && !bugs::is(Bug::DoubtIsFailure) {
                    Fate::Look(handle)
                } else {
                    Fate::End(Err(why()))
                }
            }
            // It went with its connection.
            Operation::Close { .. } if !reader => Fate::End(Ok(())),
            _ if !reader => Fate::End(Err(why())),
            _ if transfer.repeats >= most
                && !transfer.is_quiet()
                && !bugs::is(Bug::RepeatedForEver) =>
            {
                let reason = self.why.as_ref().map_or_else(String::new, ToString::to_string);
                Fate::End(Err(Kind::Disconnected.error(format!(
                    "{} connections ended before this was answered, and it is not sent again: the \
                     node's log says why: {reason}",
                    most + 1
                ))))
            }
            _ => Fate::Again,
        }
    }

    /// Completes a transfer that no node has.
    pub(super) fn end(&mut self, mut transfer: Transfer, result: Result<()>) {
        transfer.restart();
        match (transfer.operation, result) {
            // Nobody has what was to be given back.
            (Operation::Close { handle }, _) => self.forget(handle),
            (Operation::Commit { handle, .. }, Err(error)) if transfer.is_in_doubt => {
                self.files.end(handle, in_doubt());
                transfer.fail(error);
            }
            (_, Err(error)) => transfer.fail(error),
            (_, Ok(())) => {}
        }
        self.complete(transfer);
    }

    /// A file is closed. If a COMMIT of it is still being looked up, nobody will know how it ended.
    pub(super) fn forget(&mut self, file: u64) {
        if let Some((commit, _)) = self.files.doubted(file)
            && !bugs::is(Bug::CommitForgotten)
            && let Some(mut transfer) = self.transfers.remove(commit)
        {
            transfer.fail(in_doubt());
            self.complete(transfer);
        }
        self.files.remove(file);
    }

    /// Connects again, as far as that goes without blocking.
    pub(super) fn connect_again(&mut self) {
        let Some(redial) = &mut self.redial else { return };
        match redial.step() {
            Step::Wait => {}
            Step::Connected(channel) => {
                let patience = self.options.connect_timeout;
                self.attach(channel, patience);
            }
            Step::GiveUp(error) => self.give_up(&error),
        }
    }

    /// No node answers: nothing is worth waiting for.
    fn give_up(&mut self, error: &Error) {
        let why = self.why.as_ref().map_or_else(String::new, ToString::to_string);
        tracing::warn!(%error, lost = why, "the node does not come back");
        let transfers: Vec<_> = self.transfers.drain().collect();
        self.unsent.clear();
        for transfer in transfers {
            let reason = if transfer.is_in_doubt {
                in_doubt()
            } else {
                Kind::Disconnected.error(format!(
                    "the connection was lost ({why}) and the node cannot be reached: is it up, and \
                     does it listen there? What is asked for later tries again: {error}"
                ))
            };
            self.end(transfer, Err(reason));
        }
        self.files.lose();
    }

    /// Nobody wants to wait for these any more. If the node has one of them, the connection ends,
    /// because it might still be writing into that one's memory; what others wait for is repeated.
    pub fn expire(&mut self, tickets: &[Ticket], reason: &Error) {
        if self.redial.is_none() {
            return self.tear_down(reason);
        }
        let late: HashSet<Ticket> = tickets.iter().copied().collect();
        // Of requests that hang, some may keep this one from being sent.
        let hangs = self.link == Link::Up
            && !self.requests.is_empty()
            && !bugs::is(Bug::HangingCreditsKept);
        let is_late = |one: &&Transfer| late.contains(&one.ticket);
        if self.transfers.iter().filter(is_late).any(|one| hangs || !one.is_quiet()) {
            self.lose(reason);
        }
        let found: Vec<usize> = self
            .transfers
            .numbered()
            .filter(|(_, transfer)| late.contains(&transfer.ticket))
            .map(|(index, _)| index)
            .collect();
        self.unsent.retain(|index| !found.contains(index));
        for index in found {
            // The end of another may have been this one's, too.
            let Some(transfer) = self.transfers.remove(index) else { continue };
            let error = match &self.why {
                _ if transfer.is_in_doubt => in_doubt(),
                Some(why) if self.link != Link::Up => {
                    reason.duplicate().while_doing(format_args!("the connection was lost ({why})"))
                }
                _ => reason.duplicate(),
            };
            self.end(transfer, Err(error));
        }
    }
}
