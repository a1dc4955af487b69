//! How sessions begin: a client that was let in gets a queue pair in its tenant's protection domain.

use extent::{Kind, Result, TenantName};

use crate::{Event, Fabric, Transport as _};

use super::super::connection::ConnectionParameters;
use super::super::greeting::Welcome;
use super::super::listener::{Incoming, reject};
use super::super::provider::{CmId as _, Provider, QueuePair as _};
use super::super::session::Session;
use super::VerbsTransport;

/// RDMA READs of one session under way: more than that is of no use on the way of writes.
const READS_OUT: u8 = 16;

#[expect(private_bounds, reason = "as of the type")]
impl<P: Provider> VerbsTransport<P> {
    /// Takes over a client that asked to connect, at once or as soon as its tenant is there.
    ///
    /// # Errors
    /// [`Kind::Busy`] if there are [`VerbsTransport::MAX_SESSIONS`] already, or too many tenants;
    /// otherwise what the device cannot do. The client is told, unless that is to make a queue pair.
    pub(crate) fn adopt(&mut self, incoming: Incoming<P>) -> Result<()> {
        let prepared = incoming.id.adapter().and_then(|adapter| {
            let place = self.prepare(&adapter, &incoming.tenant)?;
            Ok((adapter, place))
        });
        match prepared {
            Ok((_, Some(place))) => self.let_in(place, incoming),
            Ok((adapter, None)) => {
                self.nursery.wait(adapter, incoming);
                Ok(())
            }
            Err(error) => {
                reject::<P>(&incoming.id, &error);
                Err(error)
            }
        }
    }

    /// The place of a tenant, or none as long as it is being made, which this begins.
    fn prepare(&mut self, adapter: &P::Adapter, name: &TenantName) -> Result<Option<usize>> {
        if self.sessions() >= Self::MAX_SESSIONS {
            return Err(Kind::Busy.error("too many RDMA sessions on one shard: use more shards"));
        }
        let place = self.tenants.place_of(adapter, name);
        if place.is_none() && !self.nursery.expects(adapter, name) {
            self.tenants.has_room(adapter, self.nursery.expected(adapter))?;
            self.nursery.expect(adapter, name, self.tenants.regions())?;
        }
        Ok(place)
    }

    /// Takes tenants that are ready, and lets in one of those who waited for them: each takes several
    /// system calls.
    pub(super) fn receive(&mut self) {
        while let Some((adapter, name, outcome)) = self.nursery.fetch() {
            let added = outcome.and_then(|tenant| self.tenants.add(tenant, &self.epoll));
            if let Err(error) = added {
                tracing::warn!(%error, tenant = %name, "a tenant cannot be served over RDMA");
                self.nursery.abandon(&adapter, &name).for_each(|client| client.reject(&error));
            }
        }
        let Some((adapter, client)) = self.nursery.next() else { return };
        let refused = match self.tenants.place_of(&adapter, &client.tenant) {
            Some(place) => self.let_in(place, client).err(),
            // It was let go of, or failed, in between.
            None => self.adopt(client).err(),
        };
        if let Some(error) = refused {
            tracing::warn!(%error, "a client was turned away");
        }
    }

    fn let_in(&mut self, place: usize, incoming: Incoming<P>) -> Result<()> {
        // What was told of an earlier queue pair of the same number is not of this one.
        self.hear_devices();
        let Incoming { mut id, peer_reads, short_replies, .. } = incoming;
        self.options.apply::<P>(&id);
        id.migrate(&self.channel).inspect_err(|error| reject::<P>(&id, error))?;
        let tenant = self.tenants.of_sessions(place);
        let peer = id.peer();
        let number = id.number();
        let reads_out = READS_OUT.min(tenant.limits().reads_out).min(peer_reads);
        let (pair, depth) = tenant.queue_pair(id)?;
        // No READs from the client: it has no right to any memory of the node.
        let greeting = Welcome::new().encode();
        let parameters = ConnectionParameters {
            private_data: &greeting,
            reads_in: 0,
            reads_out,
            peer_patience: 7,
        };
        pair.id().accept(parameters).inspect_err(|error| reject::<P>(pair.id(), error))?;
        let settled = pair.settle();
        tenant.sessions += 1;
        let session = self.slots.next();
        self.pairs.insert((place, pair.number()), session);
        self.ids.insert(number, session);
        self.slots.insert(Session::new(session, place, pair, depth, short_replies));
        self.events.push(Event::Opened { session, fabric: Fabric::Verbs, peer });
        if let Err(error) = settled {
            // The client may have broken its queue pair already. It is not rejected any more: the kernel
            // would go on answering its request for a minute, and this thread would wait for that. And
            // requests of it may be in receives, which come back when it is buried.
            self.end(session, error);
        }
        Ok(())
    }

    /// Has a session post something that no request led to.
    #[cfg(test)]
    pub(in super::super) fn post_raw(
        &mut self,
        id: crate::SessionId,
        work: super::super::send_queue::Work,
    ) {
        if let Some(session) = self.slots.find(id) {
            session.send.push(work);
            super::queue(session, &mut self.turns);
        }
    }

    /// Its tenants, and the key that each has for the memory registered first.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> Vec<(extent::TenantName, u32)> {
        self.tenants.keys()
    }
}
