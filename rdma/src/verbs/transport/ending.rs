//! How sessions end: by themselves, or because nothing is heard of them.

use extent::{Error, Kind};

use crate::SessionId;
use crate::bugs::{self, Bug};

use super::super::provider::{CmId as _, Provider, QueuePair as _};
use super::super::session::Session;
use super::{TICK_S, VerbsTransport, queue};

/// Ticks before a client that says nothing is asked whether it is there, and before one is given up that
/// asked for a connection and did not take it.
const PROBE_TICKS: u32 = 3;
const ESTABLISH_TICKS: u32 = 2;
/// Ticks without an acknowledgement after which a session ends, whatever its device thinks: how often it
/// tries again is for the client to say, and some devices take the most for ever.
const STALL_TICKS: u64 = 6;
/// How often a turn's worth of completions is taken before a queue pair goes.
const DRAIN_TURNS: usize = 256;
/// Polls between the end of a connection and that of its queue pair, where the device does not tell that
/// it takes no more receives for it: its last completions have come then, and with them the receives
/// that they used.
const BURY_POLLS: u32 = 64;
/// Queue pairs that are destroyed in a poll.
const BURIED_AT_ONCE: usize = 8;
/// Ticks that a device which does tell is waited for.
const BURY_TICKS: u32 = 2;

/// A session that has ended, but for its queue pair.
#[derive(Debug)]
pub(super) struct Dying<P: Provider> {
    pub(super) session: Session<P>,
    reason: Error,
    /// Whether the device told that its queue pair takes no more receives.
    pub(super) is_drained: bool,
    polls: u32,
    pub(super) ticks: u32,
}

#[expect(private_bounds, reason = "as of the type")]
impl<P: Provider> VerbsTransport<P> {
    /// Ends a session's connection. Its queue pair follows a little later, and then its transfers.
    pub(super) fn end(&mut self, id: SessionId, reason: Error) {
        let Some(mut session) = self.slots.remove(id) else { return };
        session.forget_awaited(&mut self.awaited);
        self.pairs.remove(&(session.tenant, session.pair().number()));
        self.ids.remove(&session.pair().id().number());
        session.pair().id().disconnect();
        let is_drained = session.is_drained;
        self.dying.push(Dying { session, reason, is_drained, polls: 0, ticks: 0 });
    }

    /// Whether a queue pair may go: its device says so, or has never said so of any and had some time, or
    /// failed, or is silent for too long.
    fn is_over(&self, dying: &Dying<P>) -> bool {
        let tenant = self.tenants.get(dying.session.tenant);
        let rested = !tenant.tells_of_last && dying.polls >= BURY_POLLS;
        let waited = rested || dying.ticks >= BURY_TICKS || is_hasty();
        dying.is_drained || tenant.is_broken || waited
    }

    /// Looks at those that are dying, once in a poll.
    pub(super) fn attend(&mut self) {
        self.dying.iter_mut().for_each(|dying| dying.polls += 1);
        if self.dying.iter().any(|dying| dying.polls == BURY_POLLS) {
            self.hear_devices();
        }
        if self.dying.iter().any(|dying| self.is_over(dying)) {
            self.bury(false);
        }
    }

    /// Whether all that are dying wait for word of their device, which ends a sleep.
    pub(super) fn may_sleep(&self) -> bool {
        let waits = |dying: &Dying<P>| {
            self.tenants.get(dying.session.tenant).tells_of_last && !self.is_over(dying)
        };
        self.dying.iter().all(waits)
    }

    /// Destroys the queue pairs of connections that have ended and whose time has come, a few at a time
    /// since each takes system calls that others wait for; or `all`.
    /// Completions are taken before, since some devices drop those of a queue pair that goes, and with them
    /// the receives that they tell of; and after, since others leave them, and the room that they take is
    /// given away again.
    pub(super) fn bury(&mut self, all: bool) {
        self.drain();
        let mut ended = vec![(0, 0); self.tenants.places()];
        let dying = std::mem::take(&mut self.dying);
        let mut left = if all { usize::MAX } else { BURIED_AT_ONCE };
        let (over, waiting): (Vec<_>, _) = dying.into_iter().partition(|dying| {
            let goes = all || (left > 0 && self.is_over(dying));
            left -= usize::from(goes && !all);
            goes
        });
        self.dying = waiting;
        for Dying { session, reason, .. } in over {
            let (room, sessions) = &mut ended[session.tenant];
            *room += session.end(reason, &mut self.events);
            *sessions += 1;
        }
        self.drain();
        for (place, (room, sessions)) in ended.into_iter().enumerate().filter(|(_, (_, n))| *n > 0)
        {
            let tenant = self.tenants.of_sessions(place);
            tenant.room += if bugs::is(Bug::RoomLost) { 0 } else { room };
            tenant.sessions -= sessions;
            tenant.idle_ticks = 0;
        }
    }

    /// Takes what has completed so far.
    fn drain(&mut self) {
        if bugs::is(Bug::LastCompletionsLeft) {
            return;
        }
        for tenant in 0..self.tenants.places() {
            for _ in 0..DRAIN_TURNS {
                if !self.look(tenant) {
                    break;
                }
            }
        }
    }

    /// Looks after those of whom nothing was heard for a while.
    pub(super) fn tick(&mut self) {
        self.tenants.tick();
        self.dying.iter_mut().for_each(|dying| dying.ticks += 1);
        let stalled = STALL_TICKS.max(self.options.patience_s() / TICK_S.unsigned_abs() * 2);
        let stalled = u32::try_from(stalled).unwrap_or(u32::MAX);
        for id in self.slots.ids() {
            let Some(session) = self.slots.find(id) else { continue };
            session.quiet_ticks += 1;
            session.stalled_ticks += u32::from(session.send.posted() > 0);
            session.send.shrink();
            if let Some(reason) = session.closing.take() {
                self.end(id, reason);
            } else if !session.is_established && session.quiet_ticks > ESTABLISH_TICKS {
                let late = "the client asked for a connection and did not take it";
                self.end(id, Kind::Disconnected.error(late));
            } else if session.stalled_ticks > stalled {
                let stuck =
                    "the client's device acknowledges nothing, and this side's does not give it up";
                self.end(id, Kind::Disconnected.error(stuck));
            } else if session.quiet_ticks >= PROBE_TICKS && session.send.is_idle() {
                session.quiet_ticks = 0;
                session.probe();
                queue(session, &mut self.turns);
            }
        }
    }
}

/// Whether a mistake is made that shows best if nobody waits.
fn is_hasty() -> bool {
    bugs::is(Bug::BuriedAtOnce) || bugs::is(Bug::LastCompletionsLeft)
}
