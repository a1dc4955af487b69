//! Telling devices what nobody needs any more.
//!
//! It is advice, and in nobody's way. What holds:
//! - A slot is deallocated only after the erasure of its entry is flushed, and a slab only once no
//!   slot of it is held or waits for that. Headers and entries themselves never are.
//! - Nobody gets a slot or a slab from when its command is made until it has completed.
//! - A device has one command at a time. What waits for its turn is given out at once, untold, when
//!   somebody waits for a slot or too much waits.
//! - Nothing begins while a start completes what a power cut left: its queue goes with it, and what
//!   had begun on it would never be heard to end.
//! - A device that refuses once is not asked again. It is not distrusted for that.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::Ordering;

use extent::Result;

use super::{Erasure, Ledger};
use crate::Discard;
use crate::bugs::{self, Bug};
use crate::device::{Command, Deallocation, Device, DeviceIndex, Location, Token};
use crate::holdings::SlotId;

/// The most slots of a device that wait to be deallocated: others are used again untold.
const MOST_WAITING: usize = 4096;

/// No command is in flight: the next one is to be sent, or the device's queue was full.
const NONE: Token = Token(0);

/// What is, and is to be, let go of on each device.
#[derive(Debug)]
pub(super) struct Discards {
    policy: Discard,
    devices: Vec<OnDevice>,
    next_token: u64,
    /// Devices are told nothing yet: the queue that is stepped now is not the one that would hear them.
    paused: bool,
}

#[derive(Debug)]
struct OnDevice {
    /// `None` for one that takes no advice, or does not any more.
    takes: Option<Deallocation>,
    /// Slots that are erased and wait for their turn, by slab and number.
    slots: BTreeSet<(u32, u32)>,
    /// Slabs in which nothing was held when they were noted.
    slabs: BTreeSet<u32>,
    under_way: Option<UnderWay>,
}

/// What a device is being told, command by command.
#[derive(Debug)]
struct UnderWay {
    token: Token,
    /// What comes after the command that is in flight.
    rest: Range<u64>,
    bytes: u64,
    place: Place,
}

/// What comes free when that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    Slots { slab: u32, slots: Range<u32> },
    Slab(u32),
}

impl Discards {
    pub(super) fn new(policy: Discard, takes: Vec<Option<Deallocation>>) -> Self {
        let on = |takes| OnDevice {
            takes,
            slots: BTreeSet::new(),
            slabs: BTreeSet::new(),
            under_way: None,
        };
        Self { policy, devices: takes.into_iter().map(on).collect(), next_token: 0, paused: true }
    }

    fn on(&mut self, device: DeviceIndex) -> &mut OnDevice {
        &mut self.devices[usize::from(device.0)]
    }

    /// Whether a device is told anything at present.
    pub(super) fn is_under_way(&self) -> bool {
        self.devices.iter().any(|device| device.under_way.is_some())
    }
}

impl Ledger {
    /// The start is over: from now on devices are told.
    ///
    /// # Panics
    /// If one is being told already.
    pub(crate) fn begin_discards(&mut self) {
        assert!(!self.discards.is_under_way(), "advice on a queue that only the start has");
        self.discards.paused = false;
    }

    /// The entry of a slot is durably erased: it is free, at once or once its device knows.
    pub(super) fn free_erased(&mut self, erasure: &Erasure) {
        let slot = erasure.slot();
        let on = self.discards.on(slot.device);
        let wanted = on.takes.is_some() && matches!(erasure, Erasure::Descriptor { .. });
        match self.discards.policy {
            Discard::Slots if wanted && bugs::is(Bug::DiscardedTooEarly) => {}
            Discard::Slots if wanted && self.starved.is_empty() => self.discard_slot(slot),
            Discard::Slabs if wanted => {
                self.space.finish_erase(slot);
                if self.space.slab(slot).is_unused() {
                    self.discards.on(slot.device).slabs.insert(slot.slab);
                }
            }
            _ => self.space.finish_erase(slot),
        }
    }

    /// The mistake of telling a device of slots while their erasure is not durable yet.
    pub(super) fn discard_early(&mut self, erasures: &[Erasure]) {
        if !bugs::is(Bug::DiscardedTooEarly) || self.discards.policy != Discard::Slots {
            return;
        }
        for erasure in erasures.iter().filter(|it| matches!(it, Erasure::Descriptor { .. })) {
            if self.discards.on(erasure.slot().device).takes.is_some() {
                self.discard_slot(erasure.slot());
            }
        }
    }

    fn discard_slot(&mut self, slot: SlotId) {
        self.space.begin_discard(slot);
        let on = self.discards.on(slot.device);
        on.slots.insert((slot.slab, slot.slot));
        if on.slots.len() > MOST_WAITING
            && let Some((slab, number)) = on.slots.pop_first()
        {
            self.space.finish_discard(SlotId { device: slot.device, slab, slot: number });
        }
    }

    /// Gives out untold what waits for its turn, since somebody waits for it. Whether there was any.
    pub(super) fn skip_discards(&mut self) -> bool {
        let mut any = false;
        for (device, on) in (0..).map(DeviceIndex).zip(&mut self.discards.devices) {
            on.slabs.clear();
            if self.io.failed().contains(device) {
                continue;
            }
            for (slab, slot) in std::mem::take(&mut on.slots) {
                self.space.finish_discard(SlotId { device, slab, slot });
                any = true;
            }
        }
        any
    }

    /// Takes in what devices have been told of. Whether there was any.
    pub(super) fn collect_discards(&mut self) -> bool {
        let advised = self.io.take_advised();
        let any = !advised.is_empty();
        for (token, result) in advised {
            self.on_discarded(token, result);
        }
        for device in self.io.failed().iter() {
            // Nothing on it is used again, nor waited for.
            let on = self.discards.on(device);
            (on.takes, on.under_way) = (None, None);
            on.slots.clear();
            on.slabs.clear();
        }
        any
    }

    fn on_discarded(&mut self, token: Token, result: Result<()>) {
        let is_it = |on: &OnDevice| on.under_way.as_ref().is_some_and(|it| it.token == token);
        let Some(at) = self.discards.devices.iter().position(is_it) else { return };
        let device = DeviceIndex(u16::try_from(at).expect("64 devices at most"));
        let on = &mut self.discards.devices[at];
        let Some(mut under_way) = on.under_way.take() else { return };
        match result {
            Ok(()) => {
                let counted = &self.tier.counters.devices[at].deallocated_bytes;
                counted.fetch_add(under_way.bytes, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(device = at, %error, "a device takes no advice on unused blocks");
                (on.takes, under_way.rest) = (None, 0..0);
            }
        }
        if under_way.rest.is_empty() {
            self.end_discard(device, &under_way.place);
        } else {
            on.under_way = Some(UnderWay { token: NONE, bytes: 0, ..under_way });
        }
        if self.discards.on(device).takes.is_none() {
            self.skip_discards();
        }
    }

    /// The device knows, or need not.
    fn end_discard(&mut self, device: DeviceIndex, place: &Place) {
        if !bugs::is(Bug::GrantedWhileDiscarded) {
            self.free_discarded(device, place);
        }
    }

    fn free_discarded(&mut self, device: DeviceIndex, place: &Place) {
        match place {
            Place::Slots { slab, slots } => {
                for slot in slots.clone() {
                    self.space.finish_discard(SlotId { device, slab: *slab, slot });
                }
            }
            Place::Slab(slab) => self.space.device_mut(device).end_discard(*slab),
        }
    }

    /// Tells each device that is told nothing of what waits, if nobody waits for slots. Whether any
    /// was.
    pub(super) fn discard(&mut self, device: &mut dyn Device) -> bool {
        if self.discards.paused {
            return false;
        }
        let mut any = false;
        for index in 0..self.discards.devices.len() {
            let at = DeviceIndex(u16::try_from(index).expect("64 devices at most"));
            any |= self.discard_on(at, device);
        }
        if any && let Err(error) = device.kick() {
            // The next flush or write finds the same, and says so.
            tracing::warn!(%error, "the ledger's command queue is broken");
        }
        any
    }

    fn discard_on(&mut self, index: DeviceIndex, device: &mut dyn Device) -> bool {
        let on = self.discards.on(index);
        let Some(takes) = on.takes else { return false };
        let begun = on.under_way.take();
        let is_new = begun.is_none();
        let (place, range) = match begun {
            Some(under_way) if under_way.token != NONE => {
                on.under_way = Some(under_way);
                return false;
            }
            Some(under_way) if !self.starved.is_empty() => {
                self.end_discard(index, &under_way.place);
                return true;
            }
            None if !self.starved.is_empty() => return false,
            Some(under_way) => (under_way.place, under_way.rest),
            None => match self.next_discard(index, takes) {
                Some(next) => next,
                None => return false,
            },
        };
        let bytes = takes.next_bytes(&range);
        let at = Location { device: index, offset: range.start };
        self.discards.next_token += 1;
        let token = Token(self.discards.next_token);
        let is_queued = device.submit(token, Command::Deallocate { at, bytes }).is_ok();
        let (token, bytes) = if is_queued { (token, bytes) } else { (NONE, 0) };
        if is_new && bugs::is(Bug::GrantedWhileDiscarded) {
            self.free_discarded(index, &place);
        }
        let rest = range.start + bytes..range.end;
        self.discards.on(index).under_way = Some(UnderWay { token, rest, bytes, place });
        is_queued
    }

    /// What a device is to be told next, and the bytes of it that are whole units.
    fn next_discard(
        &mut self,
        device: DeviceIndex,
        takes: Deallocation,
    ) -> Option<(Place, Range<u64>)> {
        while let Some((place, range)) = self.next_place(device) {
            if let Some(units) = takes.whole_units(range) {
                return Some((place, units));
            }
            // Too little to be told of.
            self.free_discarded(device, &place);
        }
        None
    }

    fn next_place(&mut self, device: DeviceIndex) -> Option<(Place, Range<u64>)> {
        let on = self.discards.on(device);
        if let Some((slab, first)) = on.slots.pop_first() {
            // Neighbours together.
            let mut end = first + 1;
            while on.slots.remove(&(slab, end)) {
                end += 1;
            }
            let space = self.space.device(device);
            return Some((
                Place::Slots { slab, slots: first..end },
                space.data_range(slab, first..end),
            ));
        }
        while let Some(slab) = self.discards.on(device).slabs.pop_first() {
            let space = self.space.device_mut(device);
            if space.is_spare(slab) {
                let range = space.data_range(slab, 0..space.slab(slab).shape.slots);
                space.begin_slab_discard(slab);
                return Some((Place::Slab(slab), range));
            }
        }
        None
    }
}
