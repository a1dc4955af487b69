//! Where the controller sees the memory of commands.

use std::sync::Arc;

use dma::{Region, RegionId, Span};
use extent::Result;

use super::Controller;
use super::memory::Mapping;

/// Entries of the table that is asked first: as many regions as a shard commonly has.
const RECENT: usize = 64;
const NOBODY: RegionId = RegionId(u32::MAX);

/// The regions that a queue's commands may lie in, with what is in flight on each.
#[derive(Debug)]
pub(super) struct Places {
    all: Vec<Place>,
    recent: [(RegionId, u16); RECENT],
}

#[derive(Debug)]
struct Place {
    /// `None` for one that is free.
    mapping: Option<Arc<Mapping>>,
    in_flight: u32,
    /// Unregistered, and kept only for what is in flight.
    is_leaving: bool,
}

/// What keeps a command's memory within the controller's reach.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// A registered region, by its number here.
    registered: Option<u16>,
    /// A mapping for this command alone.
    temporary: Option<Box<Mapping>>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self { all: Vec::new(), recent: [(NOBODY, 0); RECENT] }
    }

    /// Maps a region for many commands to come.
    pub(super) fn register(&mut self, controller: &Controller, region: &Arc<Region>) -> Result<()> {
        if let Some(known) = self.number(region.id()) {
            self.all[usize::from(known)].is_leaving = false;
            return Ok(());
        }
        let place =
            Place { mapping: Some(controller.map(region)?), in_flight: 0, is_leaving: false };
        match self.all.iter().position(|place| place.mapping.is_none()) {
            Some(free) => self.all[free] = place,
            None => self.all.push(place),
        }
        Ok(())
    }

    /// Forgets a region, as soon as nothing is in flight on it.
    pub(super) fn unregister(&mut self, region: RegionId) {
        let Some(number) = self.number(region) else { return };
        let place = &mut self.all[usize::from(number)];
        place.is_leaving = true;
        let is_unused = place.in_flight == 0;
        self.recent.iter_mut().filter(|recent| recent.1 == number).for_each(|r| *r = (NOBODY, 0));
        if is_unused {
            self.all[usize::from(number)].mapping = None;
        }
    }

    /// Where the controller sees memory that lies in a region used lately, and what has to be held
    /// meanwhile.
    #[inline(always)]
    pub(super) fn hold_recent(&mut self, span: Span<'_>) -> Option<(u64, Hold)> {
        let (known, number) = self.recent[span.region.id().0 as usize % RECENT];
        if known != span.region.id() {
            return None;
        }
        let place = &mut self.all[usize::from(number)];
        let iova = place.mapping.as_ref()?.iova_of(span.offset);
        place.in_flight += 1;
        Some((iova, Hold { registered: Some(number), temporary: None }))
    }

    /// Where the controller sees any memory, and what has to be held meanwhile.
    pub(super) fn hold(&mut self, controller: &Controller, span: Span<'_>) -> Result<(u64, Hold)> {
        if self.look_up(span.region.id())
            && let Some(held) = self.hold_recent(span)
        {
            return Ok(held);
        }
        let mapping = Mapping::new(&controller.core().host, span.region, span.offset, span.length)?;
        let iova = mapping.iova_of(span.offset);
        Ok((iova, Hold { registered: None, temporary: Some(Box::new(mapping)) }))
    }

    /// A page for a command alone that holds a few bytes, and what has to be held meanwhile.
    pub(super) fn hold_page(controller: &Controller, bytes: &[u8]) -> Result<(u64, Hold)> {
        let mapping = Mapping::of_page(&controller.core().host, bytes)?;
        let iova = mapping.iova_of(0);
        Ok((iova, Hold { registered: None, temporary: Some(Box::new(mapping)) }))
    }

    /// A command has ended.
    #[inline]
    pub(super) fn let_go(&mut self, hold: &mut Hold) {
        if let Some(number) = hold.registered.take() {
            let place = &mut self.all[usize::from(number)];
            place.in_flight -= 1;
            if place.is_leaving && place.in_flight == 0 {
                place.mapping = None;
            }
        } else {
            hold.temporary = None;
        }
    }

    /// Makes a region a recent one, if it is registered.
    fn look_up(&mut self, id: RegionId) -> bool {
        let staying = |number: &u16| !self.all[usize::from(*number)].is_leaving;
        let Some(number) = self.number(id).filter(staying) else { return false };
        self.recent[id.0 as usize % RECENT] = (id, number);
        true
    }

    fn number(&self, id: RegionId) -> Option<u16> {
        let is_it = |place: &Place| place.mapping.as_ref().is_some_and(|m| m.region().id() == id);
        self.all.iter().position(is_it).and_then(|number| u16::try_from(number).ok())
    }
}
