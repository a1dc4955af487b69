use extent::{Kind, NumberMap, Result};

use crate::Memory;
use crate::session::{Completed, Session, Ticket};

/// Copying buffers kept for the next call.
const KEPT_BOUNCES: usize = 8;

/// What is behind a client's lock.
pub(crate) struct State {
    pub(crate) session: Session,
    /// Operations that somebody waits for.
    mailbox: NumberMap<Ticket, Place>,
    /// What has ended of each batch that is under way.
    inboxes: NumberMap<BatchId, Vec<Completed>>,
    next_batch: u64,
    /// Handles to close as soon as the session takes it.
    closing: Vec<u64>,
    bounces: Vec<Memory>,
    scratch: Vec<Completed>,
}

/// A batch of one client.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BatchId(u64);

/// Where an operation's end is to be put.
enum Place {
    /// Here, and it has not ended.
    Empty,
    /// Here.
    Full(Box<Completed>),
    /// Into the inbox of a batch.
    Inbox(BatchId),
}

impl State {
    pub(crate) fn new(session: Session) -> Self {
        Self {
            session,
            mailbox: NumberMap::default(),
            inboxes: NumberMap::default(),
            next_batch: 0,
            closing: Vec::new(),
            bounces: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// A buffer of at least `bytes` to copy through.
    pub(crate) fn take_bounce(&mut self, bytes: usize) -> Result<Memory> {
        match self.bounces.pop() {
            Some(memory) if memory.len() >= bytes => Ok(memory),
            _ => self.session.allocate(bytes),
        }
    }

    /// Keeps such a buffer for the next call.
    pub(crate) fn keep_bounce(&mut self, memory: Memory) {
        if self.bounces.len() < KEPT_BOUNCES && !memory.is_empty() {
            self.bounces.push(memory);
        }
    }

    /// From now on somebody waits for this operation.
    pub(crate) fn expect(&mut self, ticket: Ticket) {
        self.mailbox.insert(ticket, Place::Empty);
    }

    /// How an operation ended, if it has.
    pub(crate) fn take(&mut self, ticket: Ticket) -> Option<Completed> {
        if !matches!(self.mailbox.get(&ticket), Some(Place::Full(_))) {
            return None;
        }
        match self.mailbox.remove(&ticket) {
            Some(Place::Full(completed)) => Some(*completed),
            _ => None,
        }
    }

    /// An inbox for the operations of a batch.
    pub(crate) fn open_inbox(&mut self) -> BatchId {
        let batch = BatchId(self.next_batch);
        self.next_batch += 1;
        self.inboxes.insert(batch, Vec::new());
        batch
    }

    /// From now on this operation's end goes into an inbox.
    pub(crate) fn expect_in(&mut self, ticket: Ticket, batch: BatchId) {
        self.mailbox.insert(ticket, Place::Inbox(batch));
    }

    /// What has come into an inbox since.
    pub(crate) fn empty_inbox(&mut self, batch: BatchId) -> Vec<Completed> {
        self.inboxes.get_mut(&batch).map(std::mem::take).unwrap_or_default()
    }

    /// Closes an inbox: what is still to come for it is dropped.
    pub(crate) fn close_inbox(&mut self, batch: BatchId) {
        self.inboxes.remove(&batch);
    }

    /// Nobody waits for this operation any more: what it brings is dropped when it ends.
    pub(crate) fn abandon(&mut self, ticket: Ticket) {
        self.mailbox.remove(&ticket);
    }

    /// Drives the session, and hands out what has completed.
    pub(crate) fn poll(&mut self) {
        let mut completed = std::mem::take(&mut self.scratch);
        self.session.poll(&mut completed);
        for done in completed.drain(..) {
            match self.mailbox.get_mut(&done.ticket) {
                Some(Place::Inbox(batch)) => {
                    let batch = *batch;
                    self.mailbox.remove(&done.ticket);
                    if let Some(inbox) = self.inboxes.get_mut(&batch) {
                        inbox.push(done);
                    }
                }
                Some(place) => *place = Place::Full(Box::new(done)),
                None => {}
            }
        }
        self.scratch = completed;
        if !self.closing.is_empty() {
            self.close_pending();
        }
    }

    /// The operations of a batch that have not ended.
    pub(crate) fn under_way(&self, batch: BatchId) -> Vec<Ticket> {
        let of = |place: &Place| matches!(place, Place::Inbox(other) if *other == batch);
        self.mailbox.iter().filter(|(_, place)| of(place)).map(|(ticket, _)| *ticket).collect()
    }

    /// Gives a handle back as soon as the session takes that.
    pub(crate) fn close(&mut self, handle: u64) {
        self.closing.push(handle);
        self.close_pending();
    }

    fn close_pending(&mut self) {
        while let Some(handle) = self.closing.pop() {
            match self.session.submit_close(handle) {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Busy => {
                    self.closing.push(handle);
                    break;
                }
                // A session that is over has no handles.
                Err(_) => self.closing.clear(),
            }
        }
        self.session.kick();
    }
}
