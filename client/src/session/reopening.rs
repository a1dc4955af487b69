//! After a connection was made: what was open before is opened again, before anything else.

use std::time::Duration;

use extent::wire::OpenBody;
use extent::{Error, Kind, Result};

use super::files::in_doubt;
use super::redial::Redial;
use super::transfer::{Operation, Transfer};
use super::{Link, Session};
use crate::bugs::{self, Bug};
use crate::{Memory, clock};

/// How long until a file is opened again that could not be opened yet.
const PAUSE: Duration = Duration::from_millis(5);

impl Session {
    /// Once the node has answered the greeting.
    pub(super) fn begin_to_reopen(&mut self) {
        self.reopening = self.files.to_reopen().collect();
        self.link = Link::Reopening { until: clock::after(self.reopening_patience()) };
        self.resume_at = None;
    }

    /// Opens files again; once all are, requests flow.
    pub(super) fn go_on_reopening(&mut self) -> Result<()> {
        let now = clock::now();
        let until = match self.link {
            Link::Greeting { until } if now >= until => return Err(self.no_greeting()),
            Link::Reopening { until } => until,
            Link::Greeting { .. } | Link::Up | Link::Away => return Ok(()),
        };
        while self.resume_at.is_none_or(|at| now >= at)
            && let Some(&file) = self.reopening.front()
            && self.reopen(file)
        {}
        let late = now >= until && !bugs::is(Bug::OneSiloHoldsAll);
        if late {
            self.go_without_the_rest();
        }
        if late || (self.reopening.is_empty() && self.own == 0) {
            self.link = Link::Up;
            self.up_since = Some(now);
            if let Some((_, rail)) = self.redial.as_ref().map(Redial::rail)
                && self.stats.connections > 1
            {
                let (repeated, why) = (self.unsent.len(), self.why.as_ref());
                tracing::info!(
                    rail,
                    repeated,
                    lost = why.map(ToString::to_string),
                    "connected again"
                );
            }
        }
        Ok(())
    }

    fn no_greeting(&self) -> Error {
        let patience =
            if self.redial.is_some() { self.options.connect_timeout } else { self.options.timeout };
        Kind::Disconnected
            .error(format!("the node did not answer the greeting within {patience:?}"))
    }

    /// Everything waits for the files that are opened again, so that they get half of the time that
    /// a call has: one slow silo must not cost the others' calls.
    fn reopening_patience(&self) -> Duration {
        self.options.timeout / 2
    }

    /// Ends the files that are still not open again. What the node says of them later counts for
    /// nothing.
    fn go_without_the_rest(&mut self) {
        self.reopening.clear();
        let missing: Vec<u64> = self.files.to_reopen().collect();
        for file in missing {
            let name = self.files.name(file);
            let error = Kind::Disconnected.error(format!(
                "the connection was lost, and the node did not open {name} again within {:?}: is \
                 its silo well? Open it again",
                self.reopening_patience()
            ));
            tracing::warn!(%error, "a file is given up");
            match self.files.doubted(file) {
                Some(doubted) => self.looked(file, 0, doubted, None),
                None => self.files.end(file, error),
            }
        }
    }

    /// Whether there was room to ask for the first one.
    fn reopen(&mut self, file: u64) -> bool {
        let Some(mut memory) = self.own_names.pop() else { return false };
        self.reopening.pop_front();
        let Some(reopen) = self.files.reopen(file) else {
            self.own_names.push(memory);
            return true;
        };
        let (length, generation) = (reopen.name.len(), reopen.generation);
        memory.as_mut_slice()[..length].copy_from_slice(reopen.name);
        self.enqueue_own(Operation::Reopen { handle: file, generation }, memory, length);
        true
    }

    /// The node answered for a file: its handle and what it says, or an error.
    pub(super) fn reopened(&mut self, file: u64, node: u64, answer: Result<Vec<u8>>) -> Result<()> {
        if !self.files.is_to_reopen(file) {
            // It came too late: the file was given up, and may be closed already.
            if answer.is_ok() {
                self.discard(node);
            }
            return Ok(());
        }
        if let Err(error) = &answer
            && !is_final(error)
        {
            tracing::debug!(%error, file = self.files.name(file), "not open again yet");
            self.reopening.push_back(file);
            self.resume_at = Some(clock::now() + PAUSE);
            return Ok(());
        }
        let name = self.files.name(file);
        let opened = match answer {
            Ok(body) => Ok((OpenBody::parse(&body)?, body)),
            Err(error) => Err(error),
        };
        if let Some((commit, identity)) = self.files.doubted(file) {
            self.looked(file, node, (commit, identity), opened.ok());
            return Ok(());
        }
        let stale = |what: String| {
            Kind::Stale.error(format!(
                "the connection was lost, and what was open of {name} is not there any more: {what}: \
                 open it again"
            ))
        };
        match opened {
            Ok((body, _)) if self.files.reopened(file, node, &body) => {}
            Ok((body, _)) => {
                let what = format!("the node has other bytes of generation {}", body.generation);
                self.files.end(file, stale(what));
                self.discard(node);
            }
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Stale) => {
                self.files.end(file, stale(error.to_string()));
            }
            Err(error) => {
                let doing = format_args!("opening {name} again after the connection was lost");
                self.files.end(file, error.while_doing(doing));
            }
        }
        Ok(())
    }

    /// The newest generation of a file is known whose COMMIT is in doubt.
    fn looked(
        &mut self,
        file: u64,
        node: u64,
        (commit, identity): (usize, u128),
        newest: Option<(OpenBody, Vec<u8>)>,
    ) {
        let transfer = self.transfers.remove(commit);
        match newest {
            Some((body, bytes)) if body.identity == identity || bugs::is(Bug::NewestIsOurs) => {
                self.files.committed(file, Some(node), &body);
                if let Some(mut transfer) = transfer {
                    transfer.answer_with(bytes);
                    self.settle(transfer);
                }
            }
            other => {
                if other.is_some() {
                    self.discard(node);
                }
                self.files.end(file, in_doubt());
                if let Some(transfer) = transfer {
                    self.end(transfer, Err(in_doubt()));
                }
            }
        }
    }

    fn discard(&mut self, node: u64) {
        self.enqueue_own(Operation::Discard { node }, Memory::default(), 0);
    }

    /// Takes in how a transfer of the session's own ended.
    pub(super) fn settle_own(&mut self, transfer: Transfer) -> Result<()> {
        self.own -= 1;
        let operation = transfer.operation;
        let (completed, memory) = transfer.complete();
        match operation {
            Operation::Hello { .. } => self.greeted(&completed),
            Operation::Reopen { handle, .. } => {
                self.own_names.push(memory);
                self.reopened(handle, completed.handle, completed.result.map(|()| completed.body))
            }
            _ => Ok(()),
        }
    }
}

/// Whether an answer to opening a file again tells what is to be known of it. Others may be different
/// the next time.
fn is_final(error: &Error) -> bool {
    let says_so = matches!(
        error.kind(),
        Kind::NotFound | Kind::Stale | Kind::Denied | Kind::Invalid | Kind::Unsupported
    );
    says_so || bugs::is(Bug::LossIsAnAnswer)
}
