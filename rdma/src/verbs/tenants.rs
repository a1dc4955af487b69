//! The tenants of one shard, over each device that they come by.

use std::sync::Arc;

use dma::Region;
use extent::{Error, Kind, Result, TenantName};

use crate::sys::Epoll;

use super::provider::{Adapter as _, Provider};
use super::rdma_core::RdmaCore;
use super::tenant::Tenant;

/// The most of one shard over one device: each takes some memory, and registers all of the node's.
pub(super) const MAX_TENANTS: usize = 16;
/// Ticks without a session after which a tenant is let go of, five minutes: to register all memory
/// again takes its time. The default tenant goes only if its place is needed.
const IDLE_TICKS: u32 = 30;

/// See the module. A tenant keeps its place for as long as it is here.
#[derive(Debug)]
pub(super) struct Tenants<P: Provider = RdmaCore> {
    list: Vec<Option<Tenant<P>>>,
    /// What every tenant registers.
    regions: Vec<Arc<Region>>,
}

impl<P: Provider> Default for Tenants<P> {
    fn default() -> Self {
        Self { list: Vec::new(), regions: Vec::new() }
    }
}

impl<P: Provider> Tenants<P> {
    /// The place of a tenant that comes by a device.
    pub(super) fn place_of(&self, adapter: &P::Adapter, name: &TenantName) -> Option<usize> {
        let same = |tenant: &Tenant<P>| tenant.is_for(adapter, name) && !tenant.is_broken;
        self.list.iter().position(|slot| slot.as_ref().is_some_and(same))
    }

    /// Whether there is a place for one more tenant that comes by a device, beside those under way.
    ///
    /// # Errors
    /// [`Kind::Busy`] if there are too many that have sessions.
    pub(super) fn has_room(&self, adapter: &P::Adapter, expected: usize) -> Result<()> {
        let all = self.list.iter().flatten().filter(|tenant| tenant.adapter() == adapter);
        if all.filter(|tenant| tenant.sessions > 0).count() + expected < MAX_TENANTS {
            return Ok(());
        }
        Err(Kind::Busy.error(format!(
            "{MAX_TENANTS} tenants have sessions on this shard: end some, or use more shards"
        )))
    }

    /// Puts a tenant that was made into a place. Whatever is registered by now it has, too.
    ///
    /// # Errors
    /// As [`Tenants::has_room`]; what the system says.
    pub(super) fn add(&mut self, mut tenant: Tenant<P>, epoll: &Epoll) -> Result<()> {
        self.has_room(tenant.adapter(), 0)?;
        for region in &self.regions {
            tenant.register(region)?;
        }
        for descriptor in [tenant.readiness(), tenant.news()].into_iter().flatten() {
            epoll
                .add(descriptor, libc::EPOLLIN, 0)
                .map_err(|e| Error::io("watching completions and a device", e))?;
        }
        tenant.warn_when_low();
        tracing::info!(
            device = tenant.adapter().name(), tenant = %tenant.name(), "serving over RDMA"
        );
        let place = self.free_place(tenant.adapter());
        if place == self.list.len() {
            self.list.push(None);
        }
        if let Some(former) = self.list[place].replace(tenant) {
            release(former);
        }
        Ok(())
    }

    /// An empty place, if need be that of the tenant that has had no session for longest.
    fn free_place(&self, adapter: &P::Adapter) -> usize {
        let places = self.list.iter().enumerate();
        let tenants = places.filter_map(|(place, slot)| Some((place, slot.as_ref()?)));
        let tenants: Vec<_> = tenants.filter(|(_, tenant)| tenant.adapter() == adapter).collect();
        if tenants.len() < MAX_TENANTS {
            let empty = self.list.iter().position(Option::is_none);
            return empty.unwrap_or(self.list.len());
        }
        let idle = tenants.iter().filter(|(_, tenant)| tenant.sessions == 0);
        let longest = idle.max_by_key(|(_, tenant)| tenant.idle_ticks);
        longest.map(|(place, _)| *place).expect("there is room, so one of them is idle")
    }

    /// What every tenant registers.
    pub(super) fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Work requests that could be posted, of all together.
    pub(super) fn room(&self) -> u32 {
        self.list.iter().flatten().map(|tenant| tenant.room).sum()
    }

    /// Places, of which some may be empty.
    pub(super) fn places(&self) -> usize {
        self.list.len()
    }

    pub(super) fn find(&mut self, place: usize) -> Option<&mut Tenant<P>> {
        self.list.get_mut(place)?.as_mut()
    }

    /// A tenant that has sessions: such a one stays.
    pub(super) fn get(&self, place: usize) -> &Tenant<P> {
        self.list[place].as_ref().expect("a tenant with sessions stays")
    }

    /// As [`Tenants::get`], to be changed.
    pub(super) fn of_sessions(&mut self, place: usize) -> &mut Tenant<P> {
        self.find(place).expect("a tenant with sessions stays")
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tenant<P>> {
        self.list.iter_mut().flatten()
    }

    /// Registers memory for all, and for those to come.
    pub(super) fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        self.regions.push(Arc::clone(region));
        self.iter_mut().try_for_each(|tenant| tenant.register(region).map(drop))
    }

    /// Lets go of those that nobody has come for in a while, and of broken ones.
    pub(super) fn tick(&mut self) {
        for slot in &mut self.list {
            let Some(tenant) = slot.as_mut() else { continue };
            tenant.warn_when_low();
            if tenant.sessions > 0 {
                continue;
            }
            tenant.idle_ticks += 1;
            let stays = *tenant.name() == TenantName::DEFAULT || tenant.idle_ticks < IDLE_TICKS;
            if tenant.is_broken || !stays {
                tracing::info!(tenant = %tenant.name(), "let go of a tenant without sessions");
                if let Some(tenant) = slot.take() {
                    release(tenant);
                }
            }
        }
    }

    /// The place of the first that is sound.
    #[cfg(test)]
    pub(super) fn first(&self) -> usize {
        let is_sound = |slot: &Option<Tenant<P>>| slot.as_ref().is_some_and(|t| !t.is_broken);
        self.list.iter().position(is_sound).expect("somebody connected")
    }

    /// The names, and the key that each has for the memory registered first.
    #[cfg(test)]
    pub(super) fn keys(&self) -> Vec<(TenantName, u32)> {
        let tenants = self.list.iter().flatten();
        tenants.filter_map(|tenant| Some((tenant.name().clone(), tenant.first_key()?))).collect()
    }
}

/// Lets go of a tenant: to unregister all memory takes its time, too.
fn release<P: Provider>(tenant: Tenant<P>) {
    let adapter = tenant.adapter().clone();
    if let Err(error) = adapter.aside(Box::new(move || drop(tenant))) {
        tracing::warn!(%error, "memory was unregistered while others waited");
    }
}
