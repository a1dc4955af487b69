//! What follows from what devices tell unasked. That it is logged, with what it means, is done by then.

use extent::{Error, Kind};

use crate::SessionId;

use super::super::events::{DeviceEvent, EventKind, Subject};
use super::super::provider::{CmId as _, Provider, QueuePair as _};
use super::VerbsTransport;

#[expect(private_bounds, reason = "as of the type")]
impl<P: Provider> VerbsTransport<P> {
    /// Hears what the devices of all tenants told.
    pub(super) fn hear_devices(&mut self) {
        let mut news = std::mem::take(&mut self.news);
        for tenant in 0..self.tenants.places() {
            let Some(told) = self.tenants.find(tenant) else { continue };
            told.take_news(&mut news);
            for event in news.drain(..) {
                self.on_device_event(tenant, event);
            }
        }
        self.news = news;
    }

    pub(super) fn on_device_event(&mut self, tenant: usize, event: DeviceEvent) {
        let Some(told) = self.tenants.find(tenant).filter(|tenant| tenant.has(event.subject))
        else {
            return;
        };
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
            EventKind::ReceivesLow => told.warned(),
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
        if let Some(tenant) = self.tenants.find(tenant) {
            tenant.is_broken = true;
        }
        self.end_tenant(tenant, reason);
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
        if let Some(tenant) = self.tenants.find(tenant) {
            tenant.tells_of_last = true;
        }
        let Subject::QueuePair(number) = subject else { return };
        let alive = self.session_of(tenant, subject);
        if let Some(session) = alive.and_then(|id| self.slots.find(id)) {
            // It failed, and its completions are yet to tell.
            session.is_drained = true;
            return;
        }
        let of = |dying: &&mut super::ending::Dying<P>| {
            dying.session.tenant == tenant && dying.session.pair().number() == number
        };
        self.dying.iter_mut().filter(of).for_each(|dying| dying.is_drained = true);
    }
}
