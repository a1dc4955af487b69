//! How sessions begin: a client that was let in gets a queue pair in its tenant's protection domain.

use extent::{Kind, Result};

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
    /// Takes over a client that asked to connect.
    ///
    /// # Errors
    /// [`Kind::Busy`] if there are [`VerbsTransport::MAX_SESSIONS`] already, or too many tenants;
    /// otherwise what the device cannot do. The client is told, unless that is to make a queue pair.
    pub(crate) fn adopt(&mut self, incoming: Incoming<P>) -> Result<()> {
        // What was told of an earlier queue pair of the same number is not of this one.
        self.hear_devices();
        let Incoming { mut id, peer_reads, tenant: name, short_replies, .. } = incoming;
        let ready = if self.sessions() == Self::MAX_SESSIONS {
            Err(Kind::Busy.error("too many RDMA sessions on one shard: use more shards"))
        } else {
            self.options.apply::<P>(&id);
            id.adapter().and_then(|adapter| {
                let place = self.tenants.place_of(&adapter, &name, &self.epoll)?;
                id.migrate(&self.channel).map(|()| place)
            })
        };
        let place = ready.inspect_err(|error| reject::<P>(&id, error))?;
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
