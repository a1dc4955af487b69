use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use extent::{Kind, NumberMap, Result};

use crate::client::{Awaited, BUSY_PAUSES};
use crate::file::Handle;
use crate::session::{Completed, Ticket};
use crate::state::{BatchId, State};
use crate::{Client, Memory, Read, clock};

/// A read to be started with others.
pub struct Fetch {
    handle: Arc<Handle>,
    offset: u64,
    memory: Memory,
}

impl Fetch {
    pub(crate) fn new(handle: Arc<Handle>, offset: u64, memory: Memory) -> Self {
        Self { handle, offset, memory }
    }
}

/// How a read of a batch ended.
#[derive(Debug)]
pub struct Fetched {
    /// What it did, or what went wrong.
    pub result: Result<Read>,
    /// The memory; empty if the session was lost while the node might still write into it.
    pub memory: Memory,
}

/// Reads under way together. An iterator of how each ended, in the order in which they do, with
/// their places in the batch. Dropping it lets go of those that have not ended, and their memory.
pub struct Batch {
    client: Client,
    id: BatchId,
    /// When a read that the node is too busy for is no longer sent again.
    patience_ends: Instant,
    unsent: VecDeque<(usize, Fetch)>,
    /// The handles stay open while they are read.
    sent: NumberMap<Ticket, Sent>,
    ended: VecDeque<(usize, Fetched)>,
    count: usize,
}

struct Sent {
    place: usize,
    handle: Arc<Handle>,
    offset: u64,
}

impl Batch {
    pub(crate) fn start(client: &Client, fetches: impl IntoIterator<Item = Fetch>) -> Self {
        let unsent: VecDeque<_> = fetches.into_iter().enumerate().collect();
        let mut state = client.lock();
        let mut batch = Self {
            client: client.clone(),
            id: state.open_inbox(),
            patience_ends: clock::after(client.options().timeout),
            count: unsent.len(),
            sent: NumberMap::with_capacity_and_hasher(unsent.len(), Default::default()),
            unsent,
            ended: VecDeque::new(),
        };
        let unused = batch.submit(&mut state);
        drop(state);
        drop(unused);
        batch
    }

    /// Waits for all, and returns them in the order in which they were given.
    #[must_use]
    pub fn wait(mut self) -> Vec<Fetched> {
        let mut all: Vec<Option<Fetched>> = (0..self.count).map(|_| None).collect();
        for (place, fetched) in &mut self {
            all[place] = Some(fetched);
        }
        all.into_iter().map(|fetched| fetched.expect("every read ends once")).collect()
    }

    /// Hands as many reads to the session as it takes. Returns the handles that are no longer
    /// read: dropping the last one takes the lock that the caller holds.
    fn submit(&mut self, state: &mut State) -> Vec<Arc<Handle>> {
        let mut unused = Vec::new();
        while let Some((place, fetch)) = self.unsent.pop_front() {
            let Fetch { handle, offset, memory } = fetch;
            let within = 0..memory.len();
            match state.session.submit_read(handle.number, offset, memory, within) {
                Ok(ticket) => {
                    state.expect_in(ticket, self.id);
                    self.sent.insert(ticket, Sent { place, handle, offset });
                }
                Err(refused) if refused.error.kind() == Kind::Busy => {
                    let fetch = Fetch { handle, offset, memory: refused.memory };
                    self.unsent.push_front((place, fetch));
                    break;
                }
                Err(refused) => {
                    let fetched = Fetched { result: Err(refused.error), memory: refused.memory };
                    self.ended.push_back((place, fetched));
                    unused.push(handle);
                }
            }
        }
        state.session.kick();
        unused
    }

    /// Nothing of what is left was taken for too long.
    fn refuse_unsent(&mut self) -> Vec<Arc<Handle>> {
        let refuse = |(place, fetch): (usize, Fetch)| {
            let error = Kind::Busy.error("the session took no request for too long: try again");
            self.ended.push_back((place, Fetched { result: Err(error), memory: fetch.memory }));
            fetch.handle
        };
        self.unsent.drain(..).map(refuse).collect()
    }

    fn take_in(&mut self, mut completed: Completed) {
        let memory = completed.memory.take().unwrap_or_default();
        let read = Read::of(&completed);
        let Sent { place, handle, offset } =
            self.sent.remove(&completed.ticket).expect("only what was sent comes back");
        let busy = completed.result.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
        if busy && clock::now() < self.patience_ends {
            self.unsent.push_back((place, Fetch { handle, offset, memory }));
            return;
        }
        let result = completed.result.map(|()| read);
        self.ended.push_back((place, Fetched { result, memory }));
    }
}

impl Iterator for Batch {
    type Item = (usize, Fetched);

    fn next(&mut self) -> Option<Self::Item> {
        let client = self.client.clone();
        while self.ended.is_empty() && !(self.sent.is_empty() && self.unsent.is_empty()) {
            if self.sent.is_empty() {
                thread::sleep(BUSY_PAUSES.0);
            }
            let deadline = clock::after(client.options().timeout);
            let (completed, unused) = client.advance(deadline, Awaited::All(self.id), |state| {
                let completed = state.empty_inbox(self.id);
                let mut unused = self.submit(state);
                if self.sent.is_empty() && clock::now() >= deadline {
                    unused.extend(self.refuse_unsent());
                }
                let news = !completed.is_empty() || !self.ended.is_empty();
                news.then_some((completed, unused))
            });
            drop(unused);
            completed.into_iter().for_each(|completed| self.take_in(completed));
        }
        self.ended.pop_front()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.client.lock().close_inbox(self.id);
    }
}
