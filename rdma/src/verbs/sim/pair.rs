//! Queue pairs of simulated devices: what becomes of work requests.

use std::collections::VecDeque;

use rand::Rng;

use extent::{Kind, Result};

use super::super::completion::{WorkCompletion, WorkStatus};
use super::super::memory::Rights;
use super::super::send_queue::{Local, Remote};
use super::queue::{Entry, PairRef, Receive};
use super::world::{Due, World};

/// How much longer than usual it takes until a device gives up what is not acknowledged.
const PATIENCE: u64 = 64;
/// Looks until a message is sent again for which there was no receive.
const RECEIVER_PAUSE: u64 = 1024;
/// The retry count that means "as often as it takes".
const FOR_EVER: u8 = 7;
/// Of receives that are shared, a device may use any of so many first ones.
const RECEIVES_AHEAD: usize = 4;
/// The highest number of a work completion's status that rdma-core knows.
pub(super) const LAST_STATUS: u32 = 23;

const LOCAL_LENGTH: WorkStatus = WorkStatus(1);
const LOCAL_PROTECTION: WorkStatus = WorkStatus(4);
const FLUSHED: WorkStatus = WorkStatus(5);
const REMOTE_INVALID: WorkStatus = WorkStatus(9);
const REMOTE_ACCESS: WorkStatus = WorkStatus(10);
const RETRIES_EXCEEDED: WorkStatus = WorkStatus(12);
const RECEIVER_NOT_READY: WorkStatus = WorkStatus(13);

/// How far a queue pair has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// It can receive, but not send.
    Made,
    /// It can do both.
    Ready,
    /// It was told to end: until the rest is flushed, the device may still work on it.
    Ending,
    /// Whatever is posted is flushed.
    Broken,
}

/// Where its messages come in.
#[derive(Debug)]
pub(super) enum Inbound {
    Shared(u32),
    Own(VecDeque<Receive>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) life: u64,
    pub(super) queue: u32,
    pub(super) domain: u32,
    pub(super) inbound: Inbound,
    pub(super) depth: u32,
    pub(super) state: State,
    pub(super) peer: Option<PairRef>,
    /// How often it sends again what the other side has no receive for.
    pub(super) patience: u8,
    /// Whether the other side may use memory of this one.
    pub(super) is_open: bool,
    /// Whether the network between it and its peer is cut.
    pub(super) is_cut: bool,
    sends: VecDeque<Sending>,
    /// Of those, how many were worked on.
    executed: usize,
    /// Whether the device is at work on it.
    is_running: bool,
    /// Whether its next message waits for a receive that others share.
    pub(super) waits: bool,
    tries: u8,
    /// When the last that was worked on is acknowledged.
    acknowledged_at: u64,
    /// Places of the send queue that are in use.
    unreclaimed: u32,
    /// Work requests that ended without a completion since the last one.
    silent: u32,
    /// Completions of receives that are being written, and when the last is there.
    arriving: VecDeque<Entry>,
    arrived_at: u64,
}

/// A work request.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) id: u64,
    pub(super) signalled: bool,
    pub(super) work: SimWork,
    /// How it ended on the way.
    status: WorkStatus,
    /// What it has read, and not yet written.
    landing: Option<Vec<u8>>,
}

/// What a work request does.
#[derive(Clone, Debug)]
pub(super) enum SimWork {
    Write { from: Local, to: Remote, immediate: Option<u32> },
    Read { into: Local, from: Remote },
    Send(Box<[u8]>),
}

/// What takes a receive.
#[derive(Clone, Copy)]
enum Arrival<'a> {
    Message(&'a [u8]),
    /// What came with so many bytes written elsewhere.
    Immediate(u32, u32),
}

/// What became of a work request on the network.
enum Outcome {
    Done,
    Landing(Vec<u8>),
    /// There is no receive, be it that of such a queue that is shared.
    NoReceive(Option<u32>),
    Failed(WorkStatus),
}

impl Sending {
    pub(super) fn new(id: u64, signalled: bool, work: SimWork) -> Self {
        Self { id, signalled, work, status: WorkStatus::SUCCESS, landing: None }
    }
}

impl Pair {
    pub(super) fn new(life: u64, queue: u32, domain: u32, inbound: Inbound, depth: u32) -> Self {
        Self {
            life,
            queue,
            domain,
            inbound,
            depth,
            state: State::Made,
            peer: None,
            patience: 0,
            is_open: true,
            is_cut: false,
            sends: VecDeque::new(),
            executed: 0,
            is_running: false,
            waits: false,
            tries: 0,
            acknowledged_at: 0,
            unreclaimed: 0,
            silent: 0,
            arriving: VecDeque::new(),
            arrived_at: 0,
        }
    }
}

impl World {
    pub(super) fn pair(&mut self, which: PairRef) -> Option<&mut Pair> {
        self.pairs.get_mut(&which.number).filter(|pair| pair.life == which.life)
    }

    pub(super) fn post_sends(&mut self, which: PairRef, sends: Vec<Sending>) -> Result<()> {
        if self.chance(self.options.refused) {
            return Err(Kind::Io.error("the simulated device refuses work requests"));
        }
        let soon = self.soon();
        let pair = self.pair(which).expect("whoever posts keeps it");
        if pair.state == State::Made {
            return Err(Kind::Invalid.error("a queue pair that cannot send yet"));
        }
        let count = sends.len();
        pair.unreclaimed += u32::try_from(count).expect("few at a time");
        assert!(pair.unreclaimed <= pair.depth, "more is posted than a send queue has places for");
        pair.sends.extend(sends);
        let (queue, was_running) = (pair.queue, std::mem::replace(&mut pair.is_running, true));
        let is_broken = pair.state == State::Broken;
        self.queues.get_mut(&queue).expect("its pairs keep it").expect(count);
        if is_broken {
            self.schedule(soon, Due::Flush(which));
        } else if !was_running {
            self.schedule(soon, Due::Execute(which));
        }
        Ok(())
    }

    /// Adds places for messages to a queue pair of its own, of at most `most`.
    pub(super) fn post_own(&mut self, which: PairRef, receives: &[Receive], most: u32) {
        let soon = self.soon();
        let pair = self.pair(which).expect("whoever posts keeps it");
        let Inbound::Own(posted) = &mut pair.inbound else { return };
        posted.extend(receives);
        assert!(posted.len() <= most as usize, "more receives than a queue has room for");
        let (queue, is_broken) = (pair.queue, pair.state == State::Broken);
        self.queues.get_mut(&queue).expect("its pairs keep it").expect(receives.len());
        if is_broken {
            self.schedule(soon, Due::Flush(which));
        }
    }

    /// The device works on the next work request: only now is a message, or the memory that is
    /// written from, read.
    pub(super) fn execute(&mut self, which: PairRef) {
        let Some(pair) = self.pair(which) else { return };
        let next = pair.sends.get(pair.executed);
        let Some(work) =
            next.map(|sending| sending.work.clone()).filter(|_| pair.state != State::Broken)
        else {
            pair.is_running = false;
            return;
        };
        let outcome = self.mishap(which, &work).unwrap_or_else(|| self.perform(which, &work));
        let (soon, then, early) = (self.soon(), self.soon(), self.rng.random::<bool>());
        let clock = self.clock;
        let pair = self.pair(which).expect("nothing destroys it here");
        let mut acknowledged = soon;
        let mut status = WorkStatus::SUCCESS;
        let mut landing = None;
        match outcome {
            Outcome::Done => {}
            Outcome::Landing(bytes) => landing = Some(bytes),
            Outcome::NoReceive(Some(shared)) if pair.patience == FOR_EVER => {
                pair.waits = true;
                let shared = self.shared.get_mut(&shared).expect("its pairs keep it");
                return shared.waiting.push_back(which);
            }
            Outcome::NoReceive(_) if pair.patience == FOR_EVER || pair.tries < pair.patience => {
                pair.tries += u8::from(pair.patience != FOR_EVER);
                return self.schedule(clock + RECEIVER_PAUSE, Due::Execute(which));
            }
            Outcome::NoReceive(_) => status = RECEIVER_NOT_READY,
            Outcome::Failed(failed) => {
                status = failed;
                acknowledged += if failed == RETRIES_EXCEEDED { PATIENCE } else { 0 };
            }
        }
        pair.tries = 0;
        let sending = &mut pair.sends[pair.executed];
        (sending.status, sending.landing) = (status, landing);
        pair.executed += 1;
        pair.acknowledged_at = pair.acknowledged_at.max(acknowledged);
        let at = pair.acknowledged_at;
        self.schedule(at, Due::Acknowledge(which));
        if status == WorkStatus::SUCCESS {
            if early {
                self.land(which);
            }
            self.schedule(then, Due::Execute(which));
        }
    }

    /// What an RDMA READ has read is written.
    fn land(&mut self, which: PairRef) {
        let Some(pair) = self.pair(which) else { return };
        let (domain, count) = (pair.domain, pair.executed);
        let mut landings = Vec::new();
        for sending in pair.sends.iter_mut().take(count) {
            if let (SimWork::Read { into, .. }, Some(bytes)) =
                (&sending.work, sending.landing.take())
            {
                landings.push((*into, bytes));
            }
        }
        for (into, bytes) in landings {
            let window = self.window(domain, into, Rights::Local);
            window.expect("memory is kept until a transfer into it has ended").copy_in(&bytes);
        }
    }

    /// Whether something goes wrong with a work request that is none of its own making.
    fn mishap(&mut self, which: PairRef, work: &SimWork) -> Option<Outcome> {
        if self.chance(self.options.lost) {
            // It may have arrived, and the acknowledgement be what is lost.
            if self.rng.random() {
                self.perform(which, work);
            }
            return Some(Outcome::Failed(RETRIES_EXCEEDED));
        }
        if self.chance(self.options.failed) {
            let status = WorkStatus(self.rng.random_range(1..=LAST_STATUS));
            return Some(Outcome::Failed(status));
        }
        None
    }

    fn perform(&mut self, which: PairRef, work: &SimWork) -> Outcome {
        let Some(pair) = self.pair(which) else { return Outcome::Failed(RETRIES_EXCEEDED) };
        let (domain, peer, is_cut) = (pair.domain, pair.peer, pair.is_cut);
        let there = peer.filter(|_| !is_cut).and_then(|peer| {
            let other = self.pair(peer)?;
            let listens = matches!(other.state, State::Ready | State::Ending);
            listens.then_some((peer, other.domain, other.is_open))
        });
        let Some((peer, remote_domain, is_open)) = there else {
            return Outcome::Failed(RETRIES_EXCEEDED);
        };
        let (local, remote) = match work {
            SimWork::Send(message) => return self.deliver(peer, Arrival::Message(message)),
            SimWork::Write { from, to, .. } => (*from, *to),
            SimWork::Read { into, from } => (*into, *from),
        };
        if local.length == 0 {
            return Outcome::Done;
        }
        let Some(mine) = self.window(domain, local, Rights::Local) else {
            return Outcome::Failed(LOCAL_PROTECTION);
        };
        let place = Local { address: remote.address, length: local.length, key: remote.key };
        let rights = match work {
            SimWork::Write { .. } => Rights::RemoteWrite,
            _ => Rights::Remote,
        };
        let theirs = self.window(remote_domain, place, rights).filter(|_| is_open);
        let Some(theirs) = theirs else {
            self.end_pair(peer);
            return Outcome::Failed(REMOTE_ACCESS);
        };
        let mut bytes = vec![0; local.length as usize];
        if matches!(work, SimWork::Write { .. }) {
            mine.copy_out(&mut bytes);
            theirs.copy_in(&bytes);
            return match work {
                SimWork::Write { immediate: Some(immediate), .. } => {
                    self.deliver(peer, Arrival::Immediate(*immediate, local.length))
                }
                _ => Outcome::Done,
            };
        }
        theirs.copy_out(&mut bytes);
        Outcome::Landing(bytes)
    }

    /// A message comes in.
    fn deliver(&mut self, to: PairRef, arrival: Arrival<'_>) -> Outcome {
        let pick = self.rng.random_range(0..RECEIVES_AHEAD);
        let fails = self.chance(self.options.failed);
        let status = WorkStatus(self.rng.random_range(1..=LAST_STATUS));
        let late = self.clock + self.rng.random_range(0..=4 * self.options.delay);
        let pair = self.pairs.get_mut(&to.number).expect("it was there just now");
        let (receive, domain, shared) = match &mut pair.inbound {
            Inbound::Own(posted) => (posted.pop_front(), pair.domain, None),
            Inbound::Shared(number) => {
                let shared = self.shared.get_mut(number).expect("its pairs keep it");
                let pick = pick.min(shared.posted.len().saturating_sub(1));
                (shared.posted.remove(pick), shared.domain, Some(*number))
            }
        };
        let Some(receive) = receive else { return Outcome::NoReceive(shared) };
        let (message, immediate, bytes) = match arrival {
            Arrival::Message(message) => {
                (message, None, u32::try_from(message.len()).expect("a short message"))
            }
            Arrival::Immediate(immediate, written) => (&[][..], Some(immediate), written),
        };
        let fits = message.len() <= receive.place.length as usize;
        let window = self.window(domain, receive.place, Rights::Local);
        let status = match window.filter(|_| fits && !fails) {
            Some(window) => {
                window.copy_in(message);
                WorkStatus::SUCCESS
            }
            None if fails => status,
            None => LOCAL_LENGTH,
        };
        let queue_pair = to.number;
        let completion = WorkCompletion { id: receive.id, status, bytes, queue_pair, immediate };
        let pair = self.pair(to).expect("it was there just now");
        pair.arriving.push_back(Entry { completion, pair: to, reclaims: 0, is_due: true });
        pair.arrived_at = pair.arrived_at.max(late);
        let at = pair.arrived_at;
        self.schedule(at, Due::Received(to));
        if status == WorkStatus::SUCCESS {
            return Outcome::Done;
        }
        self.end_pair(to);
        Outcome::Failed(REMOTE_INVALID)
    }

    pub(super) fn received(&mut self, which: PairRef) {
        let Some(pair) = self.pair(which) else { return };
        if let Some(entry) = pair.arriving.pop_front() {
            let queue = pair.queue;
            self.complete(queue, entry);
        }
    }

    fn complete(&mut self, queue: u32, entry: Entry) {
        *self.statuses.entry(entry.completion.status.0).or_default() += 1;
        let twice = entry.reclaims > 0 && self.chance(self.options.told_twice);
        let queue = self.queues.get_mut(&queue).expect("its pairs keep it");
        queue.push(entry);
        if twice && queue.has_room() {
            queue.push(Entry { reclaims: 0, is_due: false, ..entry });
        }
    }

    /// The first work request that was worked on has ended.
    pub(super) fn acknowledge(&mut self, which: PairRef) {
        self.land(which);
        let Some(pair) = self.pair(which) else { return };
        if pair.executed == 0 || pair.state == State::Broken {
            return;
        }
        pair.executed -= 1;
        let sending = pair.sends.pop_front().expect("it was worked on");
        let queue = pair.queue;
        if sending.status == WorkStatus::SUCCESS && !sending.signalled {
            pair.silent += 1;
            self.queues.get_mut(&queue).expect("its pairs keep it").forgive(1);
            return;
        }
        self.end_send(which, sending.id, sending.status);
        if sending.status != WorkStatus::SUCCESS {
            let soon = self.soon();
            self.pair(which).expect("as above").state = State::Broken;
            self.schedule(soon, Due::Flush(which));
        }
    }

    fn end_send(&mut self, which: PairRef, id: u64, status: WorkStatus) {
        let Some(pair) = self.pair(which) else { return };
        let reclaims = std::mem::take(&mut pair.silent) + 1;
        let queue = pair.queue;
        let queue_pair = which.number;
        let completion = WorkCompletion { id, status, bytes: 0, queue_pair, immediate: None };
        self.complete(queue, Entry { completion, pair: which, reclaims, is_due: true });
    }

    /// Has a queue pair end: the device stops when it comes to it.
    pub(super) fn end_pair(&mut self, which: PairRef) {
        let soon = self.soon();
        let Some(pair) = self.pair(which) else { return };
        if matches!(pair.state, State::Made | State::Ready) {
            pair.state = State::Ending;
            self.schedule(soon, Due::Flush(which));
        }
    }

    /// Everything that is left ends, in order.
    pub(super) fn flush(&mut self, which: PairRef) {
        let Some(pair) = self.pair(which) else { return };
        pair.state = State::Broken;
        (pair.executed, pair.is_running, pair.waits) = (0, false, false);
        let peer = pair.peer;
        let sends = std::mem::take(&mut pair.sends);
        let receives = match &mut pair.inbound {
            Inbound::Own(posted) => std::mem::take(posted),
            // They are for others.
            Inbound::Shared(_) => VecDeque::new(),
        };
        let queue = pair.queue;
        for sending in sends {
            self.end_send(which, sending.id, FLUSHED);
        }
        for receive in receives {
            let completion = WorkCompletion {
                id: receive.id,
                status: FLUSHED,
                bytes: 0,
                queue_pair: which.number,
                immediate: None,
            };
            self.complete(queue, Entry { completion, pair: which, reclaims: 0, is_due: true });
        }
        peer.into_iter().for_each(|peer| self.try_again(peer));
    }

    /// Places of a send queue are free again, whose completion was taken.
    pub(super) fn reclaim(&mut self, entry: &Entry) {
        if let Some(pair) = self.pair(entry.pair) {
            pair.unreclaimed -= entry.reclaims;
        }
    }

    /// A queue pair is gone: none of its memory is used any more. What it told stays or goes, as is
    /// this device's way.
    pub(super) fn destroy(&mut self, which: PairRef) {
        let mut pair = self.pairs.remove(&which.number).expect("destroyed once");
        self.free_pairs.push(which.number);
        pair.peer.into_iter().for_each(|peer| self.try_again(peer));
        let own = match &pair.inbound {
            Inbound::Own(posted) => posted.len(),
            Inbound::Shared(_) => 0,
        };
        let queue = self.queues.get_mut(&pair.queue).expect("its pairs keep it");
        queue.forgive(pair.sends.len() + own);
        if self.options.keeps_completions {
            pair.arriving.drain(..).for_each(|entry| queue.push(entry));
            return;
        }
        let of_it = |entry: &Entry| entry.pair == which;
        let dropped = queue.entries.iter().filter(|entry| of_it(entry) && entry.is_due).count();
        queue.entries.retain(|entry| !of_it(entry));
        queue.forgive(dropped + pair.arriving.len());
    }
}
