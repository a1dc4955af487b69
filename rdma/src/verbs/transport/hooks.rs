//! What tests do to a transport.

use crate::SessionId;

use super::super::events::{DeviceEvent, EventKind, Subject};
use super::VerbsTransport;

impl VerbsTransport {
    /// Takes a session's queue pair through states, one after the other.
    pub(crate) fn force(&mut self, session: SessionId, states: &[u32]) {
        let session = self.slots.find(session).expect("it is open");
        states.iter().for_each(|state| session.pair().force(*state).expect("a step that exists"));
    }

    /// Leaves the first tenant no more room in its completion queue than this. Returns what there was.
    pub(crate) fn leave_room(&mut self, room: u32) -> u32 {
        let tenant = self.tenants.find(self.tenants.first()).expect("somebody connected");
        let had = tenant.room;
        tenant.room = had.min(room);
        had
    }

    /// As if the first tenant's device told this: of a session's queue pair, or of a part of the tenant's.
    pub(super) fn pretend_of(&mut self, kind: EventKind, subject: Subject) {
        self.on_device_event(self.tenants.first(), DeviceEvent { kind, subject });
    }

    pub(in crate::verbs) fn pretend(&mut self, kind: EventKind, session: Option<SessionId>) {
        let subject = match session.and_then(|id| self.slots.find(id)) {
            Some(session) => Subject::QueuePair(session.pair().number()),
            None => self.tenants.get(self.tenants.first()).part(kind),
        };
        self.pretend_of(kind, subject);
    }

    /// As if it told that every queue pair that ended takes no more receives.
    pub(in crate::verbs) fn pretend_last_receives(&mut self) {
        let numbers: Vec<u32> =
            self.dying.iter().map(|dying| dying.session.pair().number()).collect();
        for number in numbers {
            self.pretend_of(EventKind::LastReceive, Subject::QueuePair(number));
        }
    }

    /// As if those that wait for a device's word had begun to just now.
    pub(crate) fn forget_ticks(&mut self) {
        self.dying.iter_mut().for_each(|dying| dying.ticks = 0);
    }

    /// Sessions that have ended, but for their queue pairs.
    pub(crate) fn dying(&self) -> usize {
        self.dying.len()
    }
}
