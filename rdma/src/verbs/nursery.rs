//! Tenants that are being made: to register all of a node's memory takes seconds where there is much of it,
//! and those who are connected do not wait for that. Those who asked to connect as one of them do.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dma::Region;
use extent::{Error, Kind, Result, TenantName};

use crate::sys::EventFd;

use super::listener::Incoming;
use super::provider::{Adapter as _, Provider};
use super::rdma_core::RdmaCore;
use super::tenant::Tenant;

/// See the module.
#[derive(Debug)]
pub(super) struct Nursery<P: Provider = RdmaCore> {
    made: Arc<Made<P>>,
    /// Those under way.
    expected: Vec<(P::Adapter, TenantName)>,
    /// Clients, in the order in which they came: they count as sessions, and are bounded with those.
    waiting: VecDeque<(P::Adapter, Incoming<P>)>,
}

/// What comes of it: a tenant, or the reason why there is none.
type Outcome<P> = (<P as Provider>::Adapter, TenantName, Result<Tenant<P>>);

/// What was made and not fetched yet.
#[derive(Debug)]
struct Made<P: Provider> {
    list: Mutex<Vec<Outcome<P>>>,
    /// Readable while there is some.
    bell: EventFd,
}

impl<P: Provider> Made<P> {
    fn list(&self) -> MutexGuard<'_, Vec<Outcome<P>>> {
        // Nobody panics between two steps of a change.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Provider> Nursery<P> {
    pub(super) fn new() -> Result<Self> {
        let bell = EventFd::new().map_err(|e| Error::io("making an eventfd", e))?;
        let made = Arc::new(Made { list: Mutex::default(), bell });
        Ok(Self { made, expected: Vec::new(), waiting: VecDeque::new() })
    }

    /// What is readable while a tenant is to be fetched.
    pub(super) fn readiness(&self) -> BorrowedFd<'_> {
        self.made.bell.as_fd()
    }

    /// Tenants under way that come by a device.
    pub(super) fn expected(&self, adapter: &P::Adapter) -> usize {
        self.expected.iter().filter(|(by, _)| by == adapter).count()
    }

    /// Clients that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a tenant is under way.
    pub(super) fn expects(&self, adapter: &P::Adapter, name: &TenantName) -> bool {
        self.expected.iter().any(|(by, other)| by == adapter && other == name)
    }

    /// Begins to make a tenant that has these regions registered.
    ///
    /// # Errors
    /// What the system says that has no thread for it.
    pub(super) fn expect(
        &mut self,
        adapter: &P::Adapter,
        name: &TenantName,
        regions: &[Arc<Region>],
    ) -> Result<()> {
        let (made, regions) = (Arc::clone(&self.made), regions.to_vec());
        let (by, called) = (adapter.clone(), name.clone());
        adapter.aside(Box::new(move || {
            let make = || {
                let mut tenant: Tenant<P> = Tenant::new(by.clone(), called.clone())?;
                regions.iter().try_for_each(|region| tenant.register(region).map(drop))?;
                Ok(tenant)
            };
            // Clients wait for an answer, whatever it is.
            let tenant = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| {
                Err(Kind::Io.error("a tenant could not be made: the node's log says why"))
            });
            let mut list = made.list();
            list.push((by, called, tenant));
            // Under the lock: a bell that is rung after the tenant was fetched would ring for ever.
            made.bell.signal();
        }))?;
        self.expected.push((adapter.clone(), name.clone()));
        Ok(())
    }

    /// Has a client wait for a tenant that is under way.
    pub(super) fn wait(&mut self, adapter: P::Adapter, client: Incoming<P>) {
        self.waiting.push_back((adapter, client));
    }

    /// A tenant that is ready, or why it is not. It is not under way any more.
    pub(super) fn fetch(&mut self) -> Option<Outcome<P>> {
        if self.expected.is_empty() {
            return None;
        }
        let mut list = self.made.list();
        let outcome = list.pop()?;
        if list.is_empty() {
            self.made.bell.clear();
        }
        drop(list);
        self.expected.retain(|(by, name)| (by, name) != (&outcome.0, &outcome.1));
        Some(outcome)
    }

    /// Whether there is something to fetch, or a client to let in.
    pub(super) fn has_news(&self) -> bool {
        let is_due = |(by, client): &(P::Adapter, Incoming<P>)| !self.expects(by, &client.tenant);
        !self.expected.is_empty() && !self.made.list().is_empty() || self.waiting.iter().any(is_due)
    }

    /// The client that has waited longest of those whose tenants are not under way any more.
    pub(super) fn next(&mut self) -> Option<(P::Adapter, Incoming<P>)> {
        let is_due = |(by, client): &(P::Adapter, Incoming<P>)| !self.expects(by, &client.tenant);
        let place = self.waiting.iter().position(is_due)?;
        self.waiting.remove(place)
    }

    /// Takes out all clients that wait for a tenant.
    pub(super) fn abandon(
        &mut self,
        adapter: &P::Adapter,
        name: &TenantName,
    ) -> impl Iterator<Item = Incoming<P>> {
        let is_of =
            |(by, client): &(P::Adapter, Incoming<P>)| by == adapter && client.tenant == *name;
        let (gone, kept) = std::mem::take(&mut self.waiting).into_iter().partition(is_of);
        self.waiting = kept;
        let gone: VecDeque<_> = gone;
        gone.into_iter().map(|(_, client)| client)
    }

    /// Whether anybody waits, or anything is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.expected.is_empty() || !self.waiting.is_empty()
    }
}

impl<P: Provider> Drop for Nursery<P> {
    fn drop(&mut self) {
        let leaving = Kind::Disconnected.error("the node is shutting down");
        self.waiting.drain(..).for_each(|(_, client)| client.reject(&leaving));
    }
}
