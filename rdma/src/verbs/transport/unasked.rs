//! What follows from what devices tell unasked. That it is logged, with what it means, is done by then.

use extent::{Error, Kind};

use crate::SessionId;

use super::super::events::{DeviceEvent, EventKind, Subject};
use super::VerbsTransport;

impl VerbsTransport {
    /// Hears what the devices of all tenants told.
    pub(super) fn hear_devices(&mut self) {
        let mut news = std::mem::take(&mut self.news);
        for tenant in 0..self.tenants.len() {
            self.tenants[tenant].take_news(&mut news);
            for event in news.drain(..) {
                self.on_device_event(tenant, event);
            }
        }
        self.news = news;
    }

    pub(super) fn on_device_event(&mut self, tenant: usize, event: DeviceEvent) {
        if !self.tenants[tenant].has(event.subject) {
            return;
        }
        let reason = || Kind::Disconnected.error(event.kind.meaning());
        match event.kind {
            EventKind::CompletionQueueError | EventKind::ReceivesError | EventKind::DeviceFatal => {
                self.lose_tenant(tenant, &reason())
            }
            EventKind::QueuePairFatal
            | EventKind::QueuePairRequestError
            | EventKind::QueuePairAccessError => {
                if let Some(session) = self.session_of(tenant, event.subject) {
                    self.end(session, reason());
                }
            }
            EventKind::Established => self.on_first_message(tenant, event.subject),
            EventKind::LastReceive => self.on_last_receive(tenant, event.subject),
            EventKind::ReceivesLow => self.tenants[tenant].warned(),
            // These concern connections to come, or are over before anything could be done about them.
            EventKind::PortError
            | EventKind::PortActive
            | EventKind::LidChange
            | EventKind::PartitionKeyChange
            | EventKind::SubnetManagerChange
            | EventKind::ClientReregister
            | EventKind::GidChange
            | EventKind::SendsDrained
            | EventKind::PathMigrated
            | EventKind::PathMigrationFailed
            | EventKind::WorkQueueFatal
            | EventKind::Unknown => {}
        }
    }

    /// Nothing comes of a tenant any more: its sessions end, and whoever connects gets a new one.
    pub(super) fn lose_tenant(&mut self, tenant: usize, reason: &Error) {
        self.tenants[tenant].is_broken = true;
        self.end_tenant(tenant, reason);
    }

    /// One that is lost and has no sessions left, so that another may take its place.
    pub(super) fn lost_tenant(&mut self) -> Option<usize> {
        (0..self.tenants.len()).find(|index| {
            let ids = self.slots.ids();
            let used = |id: &SessionId| self.slots.find(*id).is_some_and(|s| s.tenant == *index);
            let dying = self.dying.iter().any(|dying| dying.session.tenant == *index);
            self.tenants[*index].is_broken && !dying && !ids.iter().any(used)
        })
    }

    fn session_of(&self, tenant: usize, subject: Subject) -> Option<SessionId> {
        let Subject::QueuePair(number) = subject else { return None };
        self.pairs.get(&(tenant, number)).copied()
    }

    /// The client's word that the connection stands was lost or is late, and its first message is here.
    fn on_first_message(&mut self, tenant: usize, subject: Subject) {
        let session = self.session_of(tenant, subject);
        if let Some(session) = session.and_then(|id| self.slots.find(id)) {
            session.is_established = true;
            session.pair().id().stands();
        }
    }

    /// The device takes no more receives for a queue pair: it may be destroyed.
    fn on_last_receive(&mut self, tenant: usize, subject: Subject) {
        self.tenants[tenant].tells_of_last = true;
        let Subject::QueuePair(number) = subject else { return };
        let of = |dying: &&mut super::ending::Dying| {
            dying.session.tenant == tenant && dying.session.pair().number() == number
        };
        self.dying.iter_mut().filter(of).for_each(|dying| dying.is_drained = true);
    }
}
