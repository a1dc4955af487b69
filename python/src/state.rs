//! What is behind an engine's lock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Completed, Progress, Session, Ticket};
use extent::{Error, Kind, Result};

use crate::asking::Call;
use crate::chunk::{Chunk, Next};
use crate::clock;
use crate::pool::Pool;
use crate::rooms::Rooms;
use crate::staged::Staged;
use crate::transfer::Transfer;

/// How long requests rest that the node was too busy for.
const BUSY_PAUSE: Duration = Duration::from_micros(500);
/// How often it is looked for transfers that take too long.
const PATIENCE_STEP: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct State {
    pub(crate) session: Session,
    timeout: Duration,
    flights: HashMap<Ticket, Flight>,
    /// Transfers of the host's memory that have more to ask for.
    hungry: VecDeque<Arc<Transfer>>,
    /// What the node was too busy for, and when it is sent again.
    resting: Vec<(Arc<Transfer>, Chunk)>,
    rested_at: Instant,
    looked_at: Instant,
    pub(crate) rooms: Rooms,
    scratch: Vec<Completed>,
    /// Handles that came when nobody waited for them any more.
    unwanted: Vec<u64>,
}

/// Who wants to know how an operation ended.
enum Flight {
    Call { call: Arc<Call>, opens: bool },
    Chunk(Arc<Transfer>, Chunk, Standing),
}

/// How far a request was when it was looked at last, and since when.
struct Standing {
    progress: Option<Progress>,
    since: Instant,
}

impl Standing {
    /// Whether nothing has moved for so long of what the node was asked.
    fn is_late(&mut self, progress: Progress, now: Instant, timeout: Duration) -> bool {
        // What waits in the session to be sent waits for others, which are looked at themselves.
        if progress.unanswered == 0 || self.progress != Some(progress) {
            *self = Self { progress: Some(progress), since: now };
        }
        now >= self.since + timeout
    }
}

/// What a transfer got.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fed {
    /// All that it wants now.
    Enough,
    /// Less than that.
    Some,
    Nothing,
}

impl State {
    /// # Errors
    /// As [`Pool::new`].
    pub(crate) fn new(mut session: Session, timeout: Duration) -> Result<Self> {
        Ok(Self {
            rooms: Rooms { pool: Pool::new(&mut session)?, staged: BTreeMap::new() },
            session,
            timeout,
            flights: HashMap::new(),
            hungry: VecDeque::new(),
            resting: Vec::new(),
            rested_at: clock::now(),
            looked_at: clock::now(),
            scratch: Vec::new(),
            unwanted: Vec::new(),
        })
    }

    /// Whether anything is under way.
    pub(crate) fn is_busy(&self) -> bool {
        let is_staging = |staged: &Staged| staged.under_way() != 0 || !staged.hungry.is_empty();
        self.session.outstanding() != 0
            || !self.hungry.is_empty()
            || !self.resting.is_empty()
            || self.rooms.staged.values().any(is_staging)
    }

    /// Whether a GPU does what is waited for, of whose progress no session tells.
    pub(crate) fn is_copying(&self) -> bool {
        self.rooms.staged.values().any(|staged| staged.under_way() != 0 || staged.is_awaiting)
    }

    /// From now on somebody waits for this operation.
    pub(crate) fn expect(&mut self, ticket: Ticket, opens: bool) -> Arc<Call> {
        let call = Arc::<Call>::default();
        self.flights.insert(ticket, Flight::Call { call: Arc::clone(&call), opens });
        call
    }

    /// Begins a transfer. What goes wrong with that, the transfer tells.
    pub(crate) fn begin(&mut self, transfer: &Arc<Transfer>) {
        match transfer.begin(&mut self.rooms) {
            Ok(()) => self.start(transfer),
            Err(error) => transfer.fail(&error, &mut self.rooms),
        }
    }

    /// Asks for as much of a transfer as may be; the rest follows by [`State::poll`].
    fn start(&mut self, transfer: &Arc<Transfer>) {
        // In turn, lest one of many requests starves those before it.
        let others_wait = !self.hungry(transfer.ordinal()).is_empty();
        if (others_wait || self.feed(transfer) != Fed::Enough) && transfer.queue() {
            self.hungry(transfer.ordinal()).push_back(Arc::clone(transfer));
        }
    }

    /// Those that wait for the same memory, in their order: a GPU that is slow keeps nobody else waiting.
    fn hungry(&mut self, ordinal: Option<usize>) -> &mut VecDeque<Arc<Transfer>> {
        match ordinal {
            Some(ordinal) => &mut self.rooms.of(ordinal).hungry,
            None => &mut self.hungry,
        }
    }

    /// The node has not answered in time: all of the session ends, as it never connects again.
    pub(crate) fn give_up(&mut self) {
        let reason = format!("no answer within {:?}; connect again", self.timeout);
        self.session.tear_down(&Kind::Disconnected.error(reason));
    }

    /// Drives the session, and hands out what has completed.
    pub(crate) fn poll(&mut self) {
        let mut completed = std::mem::take(&mut self.scratch);
        self.session.poll(&mut completed);
        for done in completed.drain(..) {
            self.take_in(done);
        }
        self.rooms.staged.values_mut().for_each(Staged::poll);
        self.end_if_late();
        self.scratch = completed;
        if !self.resting.is_empty() && clock::now() >= self.rested_at {
            for (transfer, chunk) in std::mem::take(&mut self.resting) {
                self.send(&transfer, chunk);
            }
            self.session.kick();
        }
        let mut fed = self.feed_hungry(None);
        for ordinal in self.rooms.staged.keys().copied().collect::<Vec<_>>() {
            fed |= self.feed_hungry(Some(ordinal));
        }
        if fed {
            self.session.kick();
        }
    }

    /// Whether something may have been asked for.
    fn feed_hungry(&mut self, ordinal: Option<usize>) -> bool {
        let mut fed = false;
        if let Some(ordinal) = ordinal {
            // Whoever still waits for a stream says so again.
            self.rooms.of(ordinal).is_awaiting = false;
        }
        while let Some(transfer) = self.hungry(ordinal).pop_front() {
            match self.feed(&transfer) {
                Fed::Enough => {
                    fed = true;
                    transfer.unqueue();
                }
                // The others have their turn.
                Fed::Some => {
                    fed = true;
                    self.hungry(ordinal).push_back(transfer);
                    break;
                }
                Fed::Nothing => {
                    let Some(error) = self.hopeless(ordinal) else {
                        self.hungry(ordinal).push_front(transfer);
                        break;
                    };
                    transfer.unqueue();
                    transfer.fail(&error, &mut self.rooms);
                }
            }
        }
        fed
    }

    /// Why there will never be memory for those that wait; `None` as long as there may be.
    fn hopeless(&mut self, ordinal: Option<usize>) -> Option<Error> {
        if ordinal.is_some_and(|ordinal| self.rooms.of(ordinal).is_gone()) {
            let sentence = "nothing is left of the ring into this GPU: connect again";
            return Some(Kind::Disconnected.error(sentence));
        }
        // A session that is over brings no memory back that was lost with it.
        let is_quiet = self.session.outstanding() == 0;
        self.session.failure().filter(|_| is_quiet).map(Error::duplicate)
    }

    /// A request of which the node answers nothing for the timeout ends the session, because the node might still be
    /// writing into its memory. A GPU that copies nothing ends what waits for it.
    fn end_if_late(&mut self) {
        let now = clock::now();
        if now < self.looked_at + PATIENCE_STEP {
            return;
        }
        // Whoever has not looked for so long was stopped, and the node perhaps with it.
        let was_stopped = now >= self.looked_at + 4 * PATIENCE_STEP;
        self.looked_at = now;
        if was_stopped {
            return;
        }
        let (flights, timeout) = (&mut self.flights, self.timeout);
        let is_late = |progress: Progress| match flights.get_mut(&progress.ticket) {
            Some(Flight::Chunk(_, _, standing)) => standing.is_late(progress, now, timeout),
            Some(Flight::Call { .. }) | None => false,
        };
        // Each of them is looked at.
        if self.session.progress().map(is_late).fold(false, |any, late| any | late) {
            self.give_up();
        }
        let stalled = |staged: &Staged| staged.stalled(self.timeout);
        let stalled: Vec<_> = self.rooms.staged.values().filter_map(stalled).collect();
        for (error, transfers) in stalled {
            transfers.iter().for_each(|transfer| transfer.fail(&error, &mut self.rooms));
        }
    }

    /// Gives handles back as far as the session takes that.
    pub(crate) fn close_handles(&mut self, handles: &mut Vec<u64>) {
        handles.append(&mut self.unwanted);
        if handles.is_empty() {
            return;
        }
        while let Some(handle) = handles.pop() {
            match self.session.submit_close(handle) {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Busy => {
                    handles.push(handle);
                    break;
                }
                // A session that is over has no handles.
                Err(_) => handles.clear(),
            }
        }
        self.session.kick();
    }

    fn take_in(&mut self, mut done: Completed) {
        match self.flights.remove(&done.ticket) {
            None => {}
            Some(Flight::Call { call, opens }) => {
                if let Err(unwanted) = call.end(done)
                    && opens
                    && unwanted.result.is_ok()
                {
                    self.unwanted.push(unwanted.handle);
                }
            }
            Some(Flight::Chunk(transfer, mut chunk, _)) => {
                chunk.memory = done.memory.take().unwrap_or_default();
                let busy = done.result.as_ref().is_err_and(|error| error.kind() == Kind::Busy);
                if busy && self.is_patient(&mut chunk) && transfer.is_wanted() {
                    if self.resting.is_empty() {
                        self.rested_at = clock::now() + BUSY_PAUSE;
                    }
                    self.resting.push((transfer, chunk));
                    return;
                }
                transfer.take_in(chunk, Ok(done), &mut self.rooms);
                if !transfer.is_settled() {
                    self.start(&transfer);
                }
            }
        }
    }

    /// Whether the node may go on being too busy for a request.
    fn is_patient(&self, chunk: &mut Chunk) -> bool {
        let now = clock::now();
        now < *chunk.busy_since.get_or_insert(now) + self.timeout
    }

    /// Asks for what a transfer wants now, as far as there is memory for it.
    fn feed(&mut self, transfer: &Arc<Transfer>) -> Fed {
        let mut fed = Fed::Nothing;
        loop {
            match transfer.next(&mut self.rooms) {
                Next::Chunk(chunk) => {
                    fed = Fed::Some;
                    if !self.send(transfer, chunk) {
                        return Fed::Enough;
                    }
                }
                Next::Nothing => return Fed::Enough,
                Next::NoMemory => return fed,
            }
        }
    }

    /// Whether it was sent, or will be.
    fn send(&mut self, transfer: &Arc<Transfer>, chunk: Chunk) -> bool {
        match transfer.submit(&mut self.session, chunk) {
            Ok((ticket, chunk)) => {
                let standing = Standing { progress: None, since: clock::now() };
                let flight = Flight::Chunk(Arc::clone(transfer), chunk, standing);
                self.flights.insert(ticket, flight);
                true
            }
            Err((error, chunk)) if error.kind() == Kind::Busy => {
                self.rested_at = clock::now() + BUSY_PAUSE;
                self.resting.push((Arc::clone(transfer), chunk));
                true
            }
            Err((error, chunk)) => {
                transfer.take_in(chunk, Err::<Completed, Error>(error), &mut self.rooms);
                false
            }
        }
    }
}
