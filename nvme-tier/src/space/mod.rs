//! Which slabs and slots are free. Pure bookkeeping: it says what has to be written to make room,
//! and is told when that is durable.

mod discard;
mod resident;
mod slab;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use extent::ExtentIndex;

use crate::bugs::{self, Bug};
use crate::device::{DeviceIndex, Location};
use crate::holdings::{Holdings, SlotId};
use crate::layout::{Class, Layout, Purpose, Shape};
use crate::shelf::{Hold, Shelf, ShelfShape};
use crate::usage::DeviceCounters;
use crate::{Copies, FileGeneration};

pub(crate) use resident::{Resident, Ticket};
pub(crate) use slab::Slab;

/// A slab that got a new purpose: both headers are to be written before any slot of it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Opening {
    pub(crate) device: DeviceIndex,
    pub(crate) slab: u32,
}

/// Entries to erase before their slots can be used for the first time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Window {
    pub(crate) device: DeviceIndex,
    pub(crate) slab: u32,
    pub(crate) slots: Range<u32>,
    pub(crate) at: Location,
    pub(crate) bytes: u64,
}

/// The slabs of all devices.
#[derive(Debug)]
pub(crate) struct Space {
    devices: Vec<DeviceSpace>,
    turn: usize,
    /// Uses of slots so far. It may wrap: no ticket is that old.
    uses: u32,
}

/// A device with fewer free record slots may need its next free slab for more: as many as a batch may
/// take, and those that are kept ready.
const FEW_RECORDS: u32 = 2 * 1024 + 32;

/// The slabs of one device.
#[derive(Debug)]
pub(crate) struct DeviceSpace {
    index: DeviceIndex,
    layout: Layout,
    holdings: Arc<Holdings>,
    slabs: Vec<Slab>,
    /// Slabs free for anything.
    unassigned: Vec<u32>,
    /// By purpose: slabs with free slots; slabs with slots that were never used.
    with_free: Vec<Vec<u32>>,
    with_virgin: Vec<Vec<u32>>,
    failed: bool,
    /// Bytes of slots that are held, not counting those that wait to be erased.
    held_bytes: u64,
    /// The same, with those that wait to be erased.
    used_bytes: u64,
    /// Bytes of slots there are, or could be.
    capacity_bytes: u64,
}

const fn purpose_index(purpose: Purpose) -> usize {
    match purpose {
        Purpose::Records => 0,
        Purpose::Data(class) => class.index(),
    }
}

impl Space {
    pub(crate) fn new(devices: Vec<DeviceSpace>) -> Self {
        Self { devices, turn: 0, uses: 0 }
    }

    pub(crate) fn device(&self, device: DeviceIndex) -> &DeviceSpace {
        &self.devices[usize::from(device.0)]
    }

    pub(crate) fn device_mut(&mut self, device: DeviceIndex) -> &mut DeviceSpace {
        &mut self.devices[usize::from(device.0)]
    }

    /// Devices that have not failed.
    pub(crate) fn healthy(&self) -> Vec<DeviceIndex> {
        self.devices.iter().filter(|device| !device.failed).map(|device| device.index).collect()
    }

    /// Takes a free slot for data, or one on each of two devices.
    pub(crate) fn take_data(
        &mut self,
        class: Class,
        copies: Copies,
    ) -> Option<(Hold, Option<Hold>)> {
        // Once for both: first copies, which are the ones that are read, alternate.
        self.turn = (self.turn + 1) % self.devices.len();
        if copies == Copies::One {
            return self.take_data_apart(class, None).map(|hold| (hold, None));
        }
        let ready = self.devices.iter().filter(|device| device.is_ready(class)).count();
        if ready < 2 {
            return None;
        }
        let first = self.take_data_apart(class, None)?;
        let apart = Some(first.slot().device).filter(|_| !bugs::is(Bug::CopiesTogether));
        let second = self.take_data_apart(class, apart)?;
        Some((first, Some(second)))
    }

    /// On the healthy device with the least on it, apart from one.
    fn take_data_apart(&mut self, class: Class, apart: Option<DeviceIndex>) -> Option<Hold> {
        let purpose = Purpose::Data(class);
        let count = self.devices.len();
        let order = (0..count).map(|step| (self.turn + step) % count);
        let best = order
            .filter(|at| self.devices[*at].is_ready(class))
            .filter(|at| apart != Some(self.devices[*at].index))
            .min_by_key(|at| self.devices[*at].held_bytes)?;
        let device = &mut self.devices[best];
        let (slab, slot) = device.take(purpose, None)?;
        device.held_bytes += class.bytes();
        device.used_bytes += class.bytes();
        let shelf = device.slabs[slab as usize].shelf();
        Some(shelf.expect("data slabs have shelves").hold(slot))
    }

    /// Takes a free slot for a record on a device, with its entry in another page than `apart`'s.
    pub(crate) fn take_record(
        &mut self,
        device: DeviceIndex,
        apart: Option<SlotId>,
    ) -> Option<SlotId> {
        let apart = apart.map(|other| (other.slab, other.slot));
        let (slab, slot) = self.device_mut(device).take(Purpose::Records, apart)?;
        Some(SlotId { device, slab, slot })
    }

    pub(crate) fn slab(&self, slot: SlotId) -> &Slab {
        &self.device(slot.device).slabs[slot.slab as usize]
    }

    fn slab_mut(&mut self, slot: SlotId) -> &mut Slab {
        &mut self.device_mut(slot.device).slabs[slot.slab as usize]
    }

    /// Where a slot's descriptor or record stands.
    pub(crate) fn entry_at(&self, slot: SlotId) -> Location {
        let device = self.device(slot.device);
        let within = device.slabs[slot.slab as usize].shape.entry_offset(slot.slot);
        Location { device: slot.device, offset: device.layout.slab_offset(slot.slab) + within }
    }

    /// An extent is in a slot from now on. What to recognise that use of the slot by.
    pub(crate) fn occupy(
        &mut self,
        slot: SlotId,
        generation: &Arc<FileGeneration>,
        index: ExtentIndex,
    ) -> Ticket {
        self.uses = self.uses.wrapping_add(1);
        let use_number = self.uses;
        self.slab_mut(slot).occupy(slot.slot, generation, index, use_number);
        Ticket::new(slot, use_number)
    }

    /// The extent that a ticket is of, if it is still there.
    pub(crate) fn resident(&self, ticket: Ticket) -> Option<Resident> {
        let slot = ticket.slot();
        self.slab(slot).resident(slot, ticket.use_number())
    }

    /// Whether the extent that a ticket is of may still be there.
    pub(crate) fn is_valid(&self, ticket: Ticket) -> bool {
        let slot = ticket.slot();
        self.slab(slot).is_use(slot.slot, ticket.use_number())
    }

    /// A slot that was held is free at once: nothing was written to its entry.
    pub(crate) fn give_back(&mut self, slot: SlotId) {
        let device = self.device_mut(slot.device);
        let slot_bytes = device.slabs[slot.slab as usize].shape.slot_bytes;
        device.held_bytes -= slot_bytes;
        device.used_bytes -= slot_bytes;
        device.slabs[slot.slab as usize].give_back(slot.slot);
        device.note_free(slot.slab);
    }

    /// A slot that was held waits for its entry to be erased. Its slab's epoch, to recognise it by.
    pub(crate) fn begin_erase(&mut self, slot: SlotId) -> u64 {
        let device = self.device_mut(slot.device);
        let slab = &mut device.slabs[slot.slab as usize];
        device.held_bytes -= slab.shape.slot_bytes;
        slab.begin_erase(slot.slot);
        slab.epoch
    }

    /// The entry is durably erased: the slot is free.
    pub(crate) fn finish_erase(&mut self, slot: SlotId) {
        let device = self.device_mut(slot.device);
        device.used_bytes -= device.slabs[slot.slab as usize].shape.slot_bytes;
        device.slabs[slot.slab as usize].finish_erase(slot.slot);
        device.note_free(slot.slab);
    }

    /// Healthy devices without a free slot of a class: for whoever waits for one, room is made there.
    pub(crate) fn lacking(&self, class: Class) -> Vec<DeviceIndex> {
        let lacking =
            self.devices.iter().filter(|device| !device.failed && !device.is_ready(class));
        lacking.map(|device| device.index).collect()
    }

    /// Whether slots of a class will come free on some devices once their entries are erased.
    pub(crate) fn is_erasing(&self, class: Class, on: &[DeviceIndex]) -> bool {
        let slabs = on.iter().flat_map(|device| &self.device(*device).slabs);
        slabs.into_iter().any(|slab| {
            slab.purpose == Some(Purpose::Data(class)) && slab.erasing > slab.discarding
        })
    }

    /// Makes unassigned again one data slab of a device in which no slot is held.
    pub(crate) fn vacate_empty(&mut self, device: DeviceIndex) -> bool {
        let space = self.device_mut(device);
        let empty = space.slabs.iter().position(Slab::is_vacant);
        let Some(slab) = empty else { return false };
        space.vacate(u32::try_from(slab).expect("32-bit slabs"));
        true
    }

    /// Data slabs of healthy devices in the order of how little is held in them.
    pub(crate) fn emptiest(&self) -> Vec<SlotId> {
        let mut slabs: Vec<(u32, SlotId)> = Vec::new();
        for device in self.devices.iter().filter(|device| !device.failed) {
            for (number, slab) in (0u32..).zip(&device.slabs) {
                if matches!(slab.purpose, Some(Purpose::Data(_))) && !slab.withheld {
                    let share = (slab.used - slab.erasing) * 1024 / slab.shape.slots;
                    slabs.push((share, SlotId { device: device.index, slab: number, slot: 0 }));
                }
            }
        }
        slabs.sort_unstable();
        slabs.into_iter().map(|(_, slab)| slab).collect()
    }

    /// By how many bytes more than a share of the slot bytes on healthy devices is held.
    pub(crate) fn excess_bytes(&self, share: f64) -> u64 {
        let healthy = || self.devices.iter().filter(|device| !device.failed);
        let held: u64 = healthy().map(|device| device.held_bytes).sum();
        let capacity: u64 = healthy().map(|device| device.capacity_bytes).sum();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a watermark need not be exact, and a negative one is none"
        )]
        let allowed = (capacity as f64 * share) as u64;
        held.saturating_sub(allowed)
    }

    /// Copies what there is to know into the counters that everybody sees.
    pub(crate) fn publish(&self, counters: &[DeviceCounters]) {
        for (device, counters) in self.devices.iter().zip(counters) {
            counters.capacity_bytes.store(device.capacity_bytes, Ordering::Relaxed);
            counters.used_bytes.store(device.used_bytes, Ordering::Relaxed);
            counters.failed.store(device.failed, Ordering::Relaxed);
        }
    }
}

impl DeviceSpace {
    /// The slabs of a device as recovery found them.
    pub(crate) fn new(
        index: DeviceIndex,
        layout: Layout,
        holdings: Arc<Holdings>,
        slabs: Vec<Slab>,
    ) -> Self {
        let mut device = Self {
            index,
            layout,
            holdings,
            slabs: Vec::new(),
            unassigned: Vec::new(),
            with_free: vec![Vec::new(); Class::COUNT],
            with_virgin: vec![Vec::new(); Class::COUNT],
            failed: false,
            held_bytes: 0,
            used_bytes: 0,
            capacity_bytes: 0,
        };
        device.slabs = slabs;
        for number in (0..device.layout.slab_count).rev() {
            let slab = &device.slabs[number as usize];
            if slab.withheld {
                continue;
            }
            device.held_bytes += u64::from(slab.used - slab.erasing) * slab.shape.slot_bytes;
            device.used_bytes += u64::from(slab.used) * slab.shape.slot_bytes;
            let Some(purpose) = slab.purpose else {
                device.unassigned.push(number);
                continue;
            };
            if slab.free_slots() > 0 {
                device.with_free[purpose_index(purpose)].push(number);
            }
            if slab.virgin_slots() > 0 {
                device.with_virgin[purpose_index(purpose)].push(number);
            }
        }
        device.capacity_bytes = device.count_capacity();
        device
    }

    /// Slabs in use, from one on.
    pub(crate) fn assigned_from(&self, first: u32) -> impl Iterator<Item = u32> {
        let slabs = (first..).zip(self.slabs.iter().skip(first as usize));
        slabs.filter(|(_, slab)| slab.purpose.is_some() && !slab.withheld).map(|(at, _)| at)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn slab(&self, slab: u32) -> &Slab {
        &self.slabs[slab as usize]
    }

    pub(crate) fn fail(&mut self) {
        self.failed = true;
    }

    /// Whether it has a free slot of a class, and is trusted.
    fn is_ready(&self, class: Class) -> bool {
        !self.failed && !self.with_free[purpose_index(Purpose::Data(class))].is_empty()
    }

    /// Free slots of a purpose, counted no further than `enough`.
    pub(crate) fn free_slots(&self, purpose: Purpose, enough: u32) -> u32 {
        let mut free = 0;
        for slab in &self.with_free[purpose_index(purpose)] {
            free += self.slabs[*slab as usize].free_slots();
            if free >= enough {
                break;
            }
        }
        free
    }

    fn take(&mut self, purpose: Purpose, apart: Option<(u32, u32)>) -> Option<(u32, u32)> {
        let list = &mut self.with_free[purpose_index(purpose)];
        for at in (0..list.len()).rev() {
            let number = list[at];
            let slab = &mut self.slabs[number as usize];
            let other = apart.filter(|(slab, _)| *slab == number).map(|(_, slot)| slot);
            if let Some(slot) = slab.take(other) {
                if slab.free_slots() == 0 {
                    list.swap_remove(at);
                }
                return Some((number, slot));
            }
        }
        None
    }

    /// A slot of the slab has come free: it goes on the list if it is the first.
    fn note_free(&mut self, number: u32) {
        let slab = &self.slabs[number as usize];
        if slab.free_slots() == 1
            && let Some(purpose) = slab.purpose
        {
            self.with_free[purpose_index(purpose)].push(number);
        }
    }

    /// Entries to erase so that slots that were never used become usable, at most `max_bytes`.
    pub(crate) fn extend(&mut self, purpose: Purpose, max_bytes: u64) -> Option<Window> {
        let list = &mut self.with_virgin[purpose_index(purpose)];
        let number = *list.last()?;
        let slab = &mut self.slabs[number as usize];
        let stride = u64::from(slab.shape.stride);
        let most = u32::try_from((max_bytes / stride).max(1)).unwrap_or(u32::MAX);
        let slots = slab.virgin_from..slab.virgin_from + slab.virgin_slots().min(most);
        slab.virgin_from = slots.end;
        slab.windows += 1;
        if slab.virgin_slots() == 0 {
            list.pop();
        }
        let offset = self.layout.slab_offset(number) + slab.shape.entry_offset(slots.start);
        let bytes = stride * u64::from(slots.end - slots.start);
        let at = Location { device: self.index, offset };
        Some(Window { device: self.index, slab: number, slots, at, bytes })
    }

    /// The entries of a window are durably erased: its slots are free.
    pub(crate) fn extended(&mut self, window: &Window) {
        let slab = &mut self.slabs[window.slab as usize];
        let had_free = slab.free_slots() > 0;
        slab.windows -= 1;
        for slot in window.slots.clone() {
            slab.set_free(slot);
        }
        if let (false, Some(purpose)) = (had_free, slab.purpose) {
            self.with_free[purpose_index(purpose)].push(window.slab);
        }
    }

    pub(crate) fn has_unassigned(&self) -> bool {
        !self.unassigned.is_empty()
    }

    /// Gives an unassigned slab a purpose.
    pub(crate) fn open(&mut self, purpose: Purpose, epoch: u64) -> Option<Opening> {
        let number = self.unassigned.pop()?;
        let shape = self.layout.shape(purpose);
        let shelf = shelf(&self.holdings, self.index, (number, epoch), &self.layout, purpose);
        self.slabs[number as usize] = Slab::assigned(purpose, epoch, shape, shelf);
        self.with_virgin[purpose_index(purpose)].push(number);
        self.capacity_bytes = self.count_capacity();
        Some(Opening { device: self.index, slab: number })
    }

    fn vacate(&mut self, number: u32) {
        let slab = &mut self.slabs[number as usize];
        if let Some(purpose) = slab.purpose {
            let at = purpose_index(purpose);
            self.with_free[at].retain(|other| *other != number);
            self.with_virgin[at].retain(|other| *other != number);
        }
        self.used_bytes -= u64::from(slab.used) * slab.shape.slot_bytes;
        *slab = Slab::unassigned(no_shape());
        self.unassigned.push(number);
        self.capacity_bytes = self.count_capacity();
    }

    fn count_capacity(&self) -> u64 {
        let of = |slab: &Slab| match slab.purpose {
            _ if slab.withheld => 0,
            Some(Purpose::Records) => 0,
            Some(Purpose::Data(_)) => u64::from(slab.shape.slots) * slab.shape.slot_bytes,
            None => self.layout.slab_bytes,
        };
        self.slabs.iter().map(of).sum()
    }
}

/// The shelf of a slab in one use of it; `None` for a slab of records.
pub(crate) fn shelf(
    holdings: &Arc<Holdings>,
    device: DeviceIndex,
    (slab, epoch): (u32, u64),
    layout: &Layout,
    purpose: Purpose,
) -> Option<Arc<Shelf>> {
    let Purpose::Data(class) = purpose else { return None };
    let shape = layout.shape(purpose);
    let shape = ShelfShape {
        device,
        slab,
        first: layout.slab_offset(slab) + shape.slots_offset,
        slots: shape.slots,
        slot_bytes: class.bytes(),
        checksum_block_bytes: layout.checksum_block_bytes,
        epoch,
        descriptors: layout.slab_offset(slab) + shape.entry_offset(0),
        stride: shape.stride,
        block_bytes: layout.block_bytes,
    };
    Some(Shelf::new(holdings, shape))
}

/// A slab shape for a slab that is not in use.
pub(crate) const fn no_shape() -> Shape {
    Shape { stride: 0, slots: 0, slot_bytes: 0, slots_offset: 0 }
}
