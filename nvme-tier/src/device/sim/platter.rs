//! What is on the devices, what is durable of it, and what hangs in between.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Image;
use super::image::fingerprint;
use crate::device::{DeviceIndex, Location};

/// A write's number, unique on its [`SimDisk`](super::SimDisk).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteId(pub u64);

/// A write that was not flushed yet.
#[derive(Clone, Debug)]
pub struct WriteRecord {
    /// Its number, in the order of submission.
    pub id: WriteId,
    /// Where it lands.
    pub at: Location,
    /// What it writes.
    pub data: Arc<[u8]>,
    /// Whether its submitter was told that it is done.
    pub completed: bool,
}

/// What a power cut leaves of a write that was not flushed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Survival {
    /// Nothing.
    Lost,
    /// All of it.
    Whole,
    /// Only these of its blocks, counted from its first. Others are ignored.
    Torn(Vec<u32>),
}

/// Something that changes what is on the devices, or what of it is durable.
#[derive(Clone, Debug)]
pub enum Event {
    /// A write went to the device; from here on any part of it may be there after a power cut.
    WriteStarted {
        /// Its number.
        id: WriteId,
        /// Where it lands.
        at: Location,
        /// What it writes.
        data: Arc<[u8]>,
    },
    /// A write was reported.
    WriteEnded {
        /// Its number.
        id: WriteId,
        /// Reads find it from now on.
        happened: bool,
        /// It was reported as done; otherwise no flush will ever vouch for it.
        completed: bool,
    },
    /// A flush went to the device: it covers the writes that completed before.
    FlushStarted {
        /// Its number.
        id: u64,
        /// Of which device.
        device: DeviceIndex,
    },
    /// A flush was reported.
    FlushEnded {
        /// Its number.
        id: u64,
        /// Whether it succeeded. If not, no later flush vouches for the writes that it covered.
        completed: bool,
    },
    /// Bytes were changed from outside, durably.
    Poke {
        /// Where.
        at: Location,
        /// To what.
        data: Arc<[u8]>,
    },
}

/// The devices' contents under the fault model. Pure: the same events give the same contents.
#[derive(Clone, Debug)]
pub(super) struct Platter {
    block_bytes: usize,
    volatile: bool,
    /// What reads find.
    current: Vec<Image>,
    /// What was there before the last write, wherever there was one.
    previous: Vec<Image>,
    /// What survives for certain.
    durable: Vec<Image>,
    /// Ended writes in the order of their end.
    ended: VecDeque<Pending>,
    /// Writes in flight, in the order of submission.
    running: Vec<Pending>,
    flushes: Vec<OpenFlush>,
    /// Writes ended so far.
    count: u64,
}

#[derive(Clone, Debug)]
struct Pending {
    record: WriteRecord,
    /// Which write it was to end.
    order: u64,
    /// A flush that covered it has failed, or it failed itself: no flush makes it durable.
    forsaken: bool,
    /// For each block, whether it can still reach the medium: a newer write that became durable
    /// has the last word on a block.
    alive: Vec<bool>,
}

#[derive(Clone, Debug)]
struct OpenFlush {
    id: u64,
    device: DeviceIndex,
    /// It covers the writes that ended up to here.
    horizon: u64,
}

impl Platter {
    pub(super) fn new(images: Vec<Image>, block_bytes: u32, volatile: bool) -> Self {
        Self {
            block_bytes: block_bytes as usize,
            volatile,
            current: images.clone(),
            previous: images.clone(),
            durable: images,
            ended: VecDeque::new(),
            running: Vec::new(),
            flushes: Vec::new(),
            count: 0,
        }
    }

    pub(super) fn current(&self, device: DeviceIndex) -> &Image {
        &self.current[usize::from(device.0)]
    }

    pub(super) fn previous(&self, device: DeviceIndex) -> &Image {
        &self.previous[usize::from(device.0)]
    }

    pub(super) fn durable(&self) -> &[Image] {
        &self.durable
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::WriteStarted { id, at, data } => {
                let record =
                    WriteRecord { id: *id, at: *at, data: Arc::clone(data), completed: false };
                let alive = vec![true; data.len().div_ceil(self.block_bytes)];
                self.running.push(Pending { record, order: 0, forsaken: false, alive });
            }
            Event::WriteEnded { id, happened, completed } => {
                self.end_write(*id, *happened, *completed);
            }
            Event::FlushStarted { id, device } => {
                self.flushes.push(OpenFlush { id: *id, device: *device, horizon: self.count });
            }
            Event::FlushEnded { id, completed } => self.end_flush(*id, *completed),
            Event::Poke { at, data } => {
                self.current[usize::from(at.device.0)].write(at.offset, data);
                self.durable[usize::from(at.device.0)].write(at.offset, data);
            }
        }
    }

    fn end_write(&mut self, id: WriteId, happened: bool, completed: bool) {
        let index = self.running.iter().position(|p| p.record.id == id).expect("it was started");
        let mut pending = self.running.remove(index);
        self.count += 1;
        pending.order = self.count;
        pending.record.completed = completed;
        pending.forsaken = !completed;
        if happened {
            let (at, data) = (pending.record.at, &pending.record.data);
            let device = usize::from(at.device.0);
            let mut before = vec![0; data.len()];
            self.current[device].read(at.offset, &mut before);
            self.previous[device].write(at.offset, &before);
            self.current[device].write(at.offset, data);
        }
        if self.volatile || !completed {
            self.ended.push_back(pending);
        } else {
            self.settle(&pending);
        }
    }

    fn end_flush(&mut self, id: u64, completed: bool) {
        let index = self.flushes.iter().position(|flush| flush.id == id).expect("it was started");
        let OpenFlush { device, horizon, .. } = self.flushes.remove(index);
        let covered =
            |p: &Pending| p.record.at.device == device && p.order <= horizon && !p.forsaken;
        if !completed {
            self.ended.iter_mut().filter(|p| covered(p)).for_each(|p| p.forsaken = true);
            return;
        }
        let (durable, rest): (VecDeque<_>, _) = self.ended.drain(..).partition(covered);
        self.ended = rest;
        for pending in &durable {
            self.settle(pending);
        }
        self.ended.retain(|pending| pending.alive.contains(&true));
    }

    /// Makes a write durable, and with it the end of what older ended writes left of its blocks.
    fn settle(&mut self, pending: &Pending) {
        let block = self.block_bytes;
        write_blocks(&mut self.durable, pending, block, |_| true);
        let first = pending.record.at.offset;
        let end = first + pending.record.data.len() as u64;
        for older in self.ended.iter_mut().filter(|older| older.order < pending.order) {
            if older.record.at.device != pending.record.at.device {
                continue;
            }
            let mut at = older.record.at.offset;
            for alive in &mut older.alive {
                *alive &= !(first..end).contains(&at);
                at += block as u64;
            }
        }
    }

    pub(super) fn unflushed(&self) -> Vec<WriteRecord> {
        self.pending().map(|pending| pending.record.clone()).collect()
    }

    pub(super) fn crash(&self, choice: &mut dyn FnMut(&WriteRecord) -> Survival) -> Vec<Image> {
        let mut images = self.durable.clone();
        for pending in self.pending() {
            match choice(&pending.record) {
                Survival::Lost => {}
                Survival::Whole => write_blocks(&mut images, pending, self.block_bytes, |_| true),
                Survival::Torn(blocks) => {
                    let survives =
                        |block: usize| blocks.iter().any(|survivor| *survivor as usize == block);
                    write_blocks(&mut images, pending, self.block_bytes, survives);
                }
            }
        }
        images
    }

    /// The fingerprint of what is durable, and by what each block of each unflushed write would
    /// change it; `None` if two of them want the same block, so that it depends on both.
    pub(super) fn fingerprints(&self) -> Option<(u128, Vec<Vec<u128>>)> {
        let pending: Vec<_> = self.pending().collect();
        let overlap = |a: &Pending, b: &Pending| {
            let (a, b) = (&a.record, &b.record);
            a.at.device == b.at.device
                && a.at.offset < b.at.offset + b.data.len() as u64
                && b.at.offset < a.at.offset + a.data.len() as u64
        };
        if pending.iter().enumerate().any(|(n, a)| pending[..n].iter().any(|b| overlap(a, b))) {
            return None;
        }
        let changes = pending.into_iter().map(|pending| self.changes(pending)).collect();
        Some((fingerprint_all(&self.durable), changes))
    }

    fn changes(&self, pending: &Pending) -> Vec<u128> {
        let at = pending.record.at;
        let device = usize::from(at.device.0);
        let mut before = vec![0; pending.record.data.len()];
        self.durable[device].read(at.offset, &mut before);
        let blocks = pending.record.data.chunks(self.block_bytes);
        let pairs = blocks.zip(before.chunks(self.block_bytes));
        let places = (at.offset..).step_by(self.block_bytes);
        let changes = places
            .zip(pairs)
            .map(|(at, (new, old))| on_device(fingerprint(at, new) ^ fingerprint(at, old), device));
        changes.zip(&pending.alive).map(|(change, alive)| if *alive { change } else { 0 }).collect()
    }

    fn pending(&self) -> impl Iterator<Item = &Pending> {
        self.ended.iter().chain(&self.running)
    }
}

/// One number for all devices.
pub(super) fn fingerprint_all(images: &[Image]) -> u128 {
    let each = images.iter().map(Image::fingerprint).enumerate();
    each.fold(0, |sum, (device, one)| sum ^ on_device(one, device))
}

fn on_device(fingerprint: u128, device: usize) -> u128 {
    fingerprint.rotate_left(u32::try_from(device % 128).expect("small"))
}

fn write_blocks(
    images: &mut [Image],
    pending: &Pending,
    block_bytes: usize,
    survives: impl Fn(usize) -> bool,
) {
    let at = pending.record.at;
    let image = &mut images[usize::from(at.device.0)];
    let mut offset = at.offset;
    for (block, bytes) in pending.record.data.chunks(block_bytes).enumerate() {
        if pending.alive[block] && survives(block) {
            image.write(offset, bytes);
        }
        offset += bytes.len() as u64;
    }
}
