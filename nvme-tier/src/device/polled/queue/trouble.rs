//! What a queue does about commands that take too long, and after a reset of its controller.

use extent::{Error, Kind};

use super::PolledQueue;
use crate::device::polled::operation::Part;
use crate::device::{Command, Completion};

/// How often a command is begun anew after a reset of its controller.
const MOST_RESTARTS: u8 = 1;

impl PolledQueue {
    /// Sends again what has waited for as long as it was asked to.
    #[cold]
    pub(super) fn send_parked(&mut self, tick: u32) {
        for at in (0..self.parked.len()).rev() {
            let cid = self.parked[at];
            let part = self.parts[usize::from(cid)];
            let is_due = tick.wrapping_sub(part.born) < u32::MAX / 2;
            if is_due {
                self.parked.swap_remove(at);
                self.send(cid, part);
            }
        }
        // Nobody else rings for them.
        self.kick();
    }

    /// Commands that take too long are aborted, and if that does not help the controller is reset.
    #[cold]
    pub(super) fn look_for_late_ones(&mut self, tick: u32) {
        let core = &self.core;
        let (abort_ticks, reset_ticks) = (core.options.abort_ticks, core.options.reset_ticks);
        for (cid, part) in (0..).zip(&mut self.parts) {
            if !part.is_in_flight() {
                continue;
            }
            let age = tick.wrapping_sub(part.born);
            if age > reset_ticks {
                core.want_reset(self.life);
            } else if age > abort_ticks && !part.is_aborted {
                part.is_aborted = true;
                core.want_abort(self.life, self.id, cid);
            }
        }
    }

    /// The controller was reset or is lost: nothing of what was in flight will complete, and no
    /// memory is touched any more.
    #[cold]
    pub(super) fn follow(&mut self, completions: &mut Vec<Completion>) {
        let life = self.core.life();
        if life.is_dead() {
            let error = self.core.obituary();
            self.fail_all(completions, &error);
        } else if life.is_working() && self.in_flight() > 0 {
            self.begin_anew(completions);
        }
        // Else it is being reset: come again.
    }

    fn fail_all(&mut self, completions: &mut Vec<Completion>, why: &Error) {
        self.forget_parts();
        let name = self.core.host.name();
        for number in self.busy() {
            let operation = &mut self.operations[usize::from(number)];
            let doing = operation.describe(&name);
            operation.failure.get_or_insert_with(|| why.kind().error(format!("{doing}: {why}")));
            self.finish(number, completions);
        }
    }

    fn begin_anew(&mut self, completions: &mut Vec<Completion>) {
        self.forget_parts();
        self.is_made = false;
        if let Err(error) = self.create() {
            tracing::error!(%error, queue = self.id, "a queue could not be made again after a reset");
            return self.fail_all(completions, &error);
        }
        let name = self.core.host.name();
        if self.namespace.geometry.volatile_cache {
            // Those in flight fail here, in the place of the next one.
            let has_flush =
                self.operations.iter().any(|o| matches!(o.command, Some(Command::Flush(_))));
            if has_flush {
                self.flushed_resets = self.life.resets();
            }
        }
        for number in self.busy() {
            let operation = &mut self.operations[usize::from(number)];
            // What a flush covers may have gone with the reset: only its caller can know.
            let is_flush = matches!(operation.command, Some(Command::Flush(_)))
                && operation.resets != self.life.resets();
            if operation.failure.is_none() && !is_flush && operation.restarts < MOST_RESTARTS {
                operation.restarts += 1;
                operation.issued = 0;
                self.waiting.push_back(number);
                continue;
            }
            let doing = operation.describe(&name);
            operation.failure.get_or_insert_with(|| {
                Kind::Io.error(format!("{doing}: the NVMe controller was reset meanwhile"))
            });
            self.finish(number, completions);
        }
        self.issue_waiting();
    }

    /// As if nothing had been issued.
    fn forget_parts(&mut self) {
        self.parts.fill(Part::FREE);
        self.free_parts.clear();
        let parts = u16::try_from(self.parts.len()).expect("command ids have 16 bits");
        self.free_parts.extend((0..parts).rev());
        self.waiting.clear();
        self.parked.clear();
        self.operations.iter_mut().for_each(|operation| operation.outstanding = 0);
    }

    /// Operations that wait for the controller.
    fn busy(&self) -> Vec<u16> {
        let numbers = (0..).zip(&self.operations);
        let busy = numbers.filter(|(_, operation)| operation.command.is_some());
        busy.map(|(number, _)| number).filter(|number| !self.ended.contains(number)).collect()
    }
}
