//! Making room: slots that come back, wishes for slots, eviction, and slabs that change purpose.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use extent::Kind;

use super::batch::Batch;
use super::homes::ONE_DEVICE;
use super::{Erasure, Ledger};
use crate::bugs::{self, Bug};
use crate::device::DeviceIndex;
use crate::eviction::Turn;
use crate::layout::{Class, Purpose, to_usize};
use crate::operation::Reserve;
use crate::{Copies, Done, Reservation};

/// How many record slots of a device are kept ready.
const READY_RECORDS: u32 = 32;
/// How many extents are evicted ahead of need in one batch, and how many entries are looked at.
const EVICT_AHEAD: usize = 256;
const EVICT_EFFORT: usize = 4096;

impl Ledger {
    /// Takes in the slots that nobody holds any more. Whether there were any.
    pub(super) fn collect_returned(&mut self) -> bool {
        let returned = self.tier.holdings.take_returned();
        for returned in &returned {
            if self.io.failed().contains(returned.slot.device) {
                continue;
            }
            if returned.described && !bugs::is(Bug::OldSlotsTooEarly) {
                let epoch = self.space.begin_erase(returned.slot);
                self.erasures.push_back(Erasure::Descriptor { slot: returned.slot, epoch });
            } else {
                self.space.give_back(returned.slot);
            }
        }
        !returned.is_empty()
    }

    /// Grants wishes for slots as far as there are free ones. Whether any was.
    pub(super) fn grant(&mut self) -> bool {
        {
            // No more than may wait: the rest stays in the queue, which refuses what it cannot hold.
            let mut queue = self.tier.queue.lock();
            let room = self.tier.options.queue_limit.saturating_sub(self.starved.len());
            let count = queue.reserves.len().min(room);
            self.starved.extend(queue.reserves.drain(..count));
        }
        let granted = self.grant_free();
        // Nobody waits while a device is told of what is free.
        if !self.starved.is_empty() && self.skip_discards() {
            return self.grant_free() | granted;
        }
        granted
    }

    fn grant_free(&mut self) -> bool {
        let mut granted = false;
        for _ in 0..self.starved.len() {
            let Some(reserve) = self.starved.pop_front() else { break };
            let Some(holds) = self.space.take_data(reserve.class, reserve.copies) else {
                self.starved.push_back(reserve);
                continue;
            };
            let Reserve { index, length, purpose, done, .. } = reserve;
            done.call(Ok(Reservation::new(holds, index, length, purpose)));
            granted = true;
        }
        granted
    }

    /// Opens slabs, readies slots and evicts, for what the batch and those who wait need.
    pub(super) fn make_room(&mut self, batch: &mut Batch) {
        self.room_for_records(batch);
        // What the last batch erased is free by now: nobody is refused beside a free slot.
        self.grant();
        if self.space.healthy().len() == 1 {
            self.refuse(|reserve| reserve.copies == Copies::Two, Kind::Io, ONE_DEVICE);
        }
        let mut wanted: BTreeMap<Class, usize> = BTreeMap::new();
        self.starved.iter().for_each(|reserve| *wanted.entry(reserve.class).or_default() += 1);
        for (class, count) in wanted {
            self.room_for_data(batch, class, count);
        }
        self.evict_ahead();
        self.collect_returned();
    }

    fn room_for_records(&mut self, batch: &mut Batch) {
        let mut needed: BTreeMap<DeviceIndex, u32> = BTreeMap::new();
        for run in &batch.runs {
            for home in run.homes.each(run.copies) {
                *needed.entry(home).or_default() += 1;
            }
        }
        for (device, needed) in needed {
            let needed = needed + READY_RECORDS;
            let mut free = self.space.device(device).free_slots(Purpose::Records, needed);
            while free < needed {
                let more = self.extend(batch, device, Purpose::Records)
                    || self.reclaim(device) && self.extend(batch, device, Purpose::Records);
                if !more {
                    break;
                }
                free += batch.windows.last().map_or(0, |w| w.slots.end - w.slots.start);
            }
        }
    }

    /// Readies slots of a class on every healthy device, or evicts, or refuses those who wait.
    fn room_for_data(&mut self, batch: &mut Batch, class: Class, count: usize) {
        let purpose = Purpose::Data(class);
        let of_class = |reserve: &Reserve| reserve.class == class;
        if self.space.healthy().is_empty() {
            return self.refuse(of_class, Kind::Io, "no device of the tier is trusted any more");
        }
        // For one slot these are all devices; for two, another one on a device that has some is no help.
        let lacking = self.space.lacking(class);
        let mut extended = false;
        for device in &lacking {
            extended |= self.extend(batch, *device, purpose);
        }
        if extended || self.space.is_erasing(class, &lacking) {
            return;
        }
        if lacking.iter().any(|device| self.space.vacate_empty(*device)) {
            return self.room_for_data(batch, class, count);
        }
        if !self.tier.is_eviction_allowed() {
            let error = "the tier is full, and what is pinned is not known yet: try again soon";
            return self.refuse(of_class, Kind::Busy, error);
        }
        if self.evict_now(class, count, &lacking) {
            return;
        }
        if lacking.iter().any(|device| self.reclaim(*device)) {
            return self.room_for_data(batch, class, count);
        }
        if self.discards.is_under_way() {
            return;
        }
        let error = "everything on the tier, or on all devices of it but one where two are needed, is \
                     dirty, pinned or in use: write back, unpin or add devices";
        self.refuse(of_class, Kind::NoSpace, error);
    }

    /// Evicts until slots of a class are on their way on some devices. Whether any is.
    fn evict_now(&mut self, class: Class, count: usize, on: &[DeviceIndex]) -> bool {
        let now = self.tier.now_unix_ms();
        loop {
            let effort = self.evictor.full_effort(class);
            let turn = Turn { on, now_unix_ms: now, space: &self.space };
            let evicted = self.evictor.evict(class, count, effort, turn);
            self.tier.counters.evicted_extents.fetch_add(evicted as u64, Ordering::Relaxed);
            self.collect_returned();
            if evicted == 0 || self.space.is_erasing(class, on) {
                return evicted > 0;
            }
        }
    }

    fn refuse(&mut self, whom: impl Fn(&Reserve) -> bool, kind: Kind, error: &str) {
        let starved = std::mem::take(&mut self.starved);
        let (refused, kept): (Vec<Reserve>, Vec<Reserve>) = starved.into_iter().partition(whom);
        self.starved = kept.into();
        for Reserve { done, purpose, .. } in refused {
            drop(purpose);
            let done: Done<Reservation> = done;
            done.call(Err(kind.error(error)));
        }
    }

    /// Readies slots of a purpose on a device: entries of a slab that has it, or of a free slab.
    fn extend(&mut self, batch: &mut Batch, device: DeviceIndex, purpose: Purpose) -> bool {
        let most = self.io.zero_bytes(device);
        let space = self.space.device_mut(device);
        if let Some(window) = space.extend(purpose, most) {
            batch.windows.push(window);
            return true;
        }
        if !space.has_unassigned() {
            return false;
        }
        let Ok(epoch) = self.tier.ids.take() else { return false };
        let Some(opening) = space.open(purpose, epoch) else { return false };
        batch.openings.push(opening);
        space.extend(purpose, most).is_some_and(|window| {
            batch.windows.push(window);
            true
        })
    }

    /// Empties the emptiest slab in which everything can be evicted. Whether there was one.
    fn reclaim(&mut self, on: DeviceIndex) -> bool {
        if !self.tier.is_eviction_allowed() {
            return false;
        }
        self.skip_discards();
        let now = self.tier.now_unix_ms();
        for slab in self.space.emptiest() {
            if on != slab.device {
                continue;
            }
            let Some(residents) = self.space.slab(slab).residents(slab) else { continue };
            let all_go = residents.iter().all(|extent| {
                !extent.is_in_use()
                    && !extent.generation.is_superseded()
                    && extent.generation.is_evictable(now)
            });
            if !all_go {
                continue;
            }
            let mut evicted = 0;
            for extent in residents {
                evicted += u64::from(extent.generation.remove(extent.index, extent.slot));
            }
            self.tier.counters.evicted_extents.fetch_add(evicted, Ordering::Relaxed);
            self.collect_returned();
            return self.space.vacate_empty(slab.device);
        }
        false
    }

    /// Evicts between the watermarks, before anybody has to wait for it.
    fn evict_ahead(&mut self) {
        if !self.tier.is_eviction_allowed() {
            return;
        }
        let options = &self.tier.options;
        let excess = self.space.excess_bytes(options.low_watermark);
        self.evicting =
            excess > 0 && (self.evicting || self.space.excess_bytes(options.high_watermark) > 0);
        if !self.evicting {
            return;
        }
        let classes = (0..Class::COUNT).filter_map(|shift| Class::of(1 << shift));
        let Some(class) = classes.max_by_key(|class| self.evictor.queued_bytes(*class)) else {
            return;
        };
        let now = self.tier.now_unix_ms();
        let want = to_usize(excess.div_ceil(class.bytes())).min(EVICT_AHEAD);
        let effort = EVICT_EFFORT.min(self.evictor.full_effort(class));
        let on = self.space.healthy();
        let turn = Turn { on: &on, now_unix_ms: now, space: &self.space };
        let evicted = self.evictor.evict(class, want, effort, turn);
        self.tier.counters.evicted_extents.fetch_add(evicted as u64, Ordering::Relaxed);
        // Nothing to find there for now: not a reason to look again in every batch.
        self.evicting = evicted > 0;
    }
}
