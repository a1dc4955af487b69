//! Files and block devices through io_uring.
//!
//! Why this is sound: the kernel reads and writes the memory of a command from the moment that its
//! entry is pushed until its completion is reaped. All that time the command, which owns that
//! memory, lies in its slot; the slot's number is the entry's `user_data`; and nothing but that
//! completion takes the command out. What does not complete before the device is dropped is
//! leaked, never freed.
#![allow(unsafe_code)]

mod in_flight;

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use dma::{Region, RegionId};
use extent::{Error, Kind, Result};

use self::in_flight::InFlight;
use super::bell::Bell;
use super::ring::Ring;
use super::{Command, Completion, Device, DeviceIndex, Geometry, Media, Token, wait};

const LARGEST_DEPTH: usize = 4096;

/// A drop waits this often, this long, for what is in flight: five seconds in all.
const DRAIN_WAITS: u32 = 50;
const DRAIN_WAIT: Duration = Duration::from_millis(100);

/// A queue over all of a [`Media`], through one io_uring.
///
/// The thread that first kicks it owns it; it may move to another while nothing is in flight, and
/// should be dropped where it was used, since what is in flight otherwise can only be leaked. A
/// command that the device must refuse still goes through the ring, so that whoever sleeps on
/// [`Device::readiness`] wakes up for it. That descriptor stays the same for life, and nobody but
/// the device reads from it; it may be readable for nothing, and falls silent at a poll that
/// finds nothing.
pub struct UringDevice {
    media: Media,
    ring: Ring,
    bell: Bell,
    /// Owns every command that the kernel may know of.
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    broken: bool,
}

impl UringDevice {
    pub(super) fn new(media: &Media, depth: usize) -> Result<Self> {
        let entries = u32::try_from(depth).unwrap_or(0);
        if !(1..=LARGEST_DEPTH).contains(&depth) {
            return Err(Kind::Invalid
                .error(format!("a queue holds from 1 to {LARGEST_DEPTH} commands, not {depth}")));
        }
        let bell = Bell::new()?;
        let ring = Ring::new(entries.next_power_of_two(), &media.descriptors(), &bell)?;
        Ok(Self {
            media: media.clone(),
            ring,
            bell,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..entries).rev().collect(),
            broken: false,
        })
    }

    /// Whether commands on this region spare pinning its pages.
    #[must_use]
    pub fn is_registered(&self, region: &Region) -> bool {
        self.ring.place(region, 0, 1).is_some()
    }

    fn push(&mut self, index: u32) {
        let flight = self.slots[index as usize].as_ref().expect("pushed slots are occupied");
        let entry = flight.entry(&self.ring).user_data(u64::from(index));
        // SAFETY: the command in this slot owns the memory, and stays until its completion has
        // been reaped, or for ever.
        unsafe { self.ring.push(&entry) };
    }

    fn enter(&mut self) -> Result<()> {
        match self.ring.enter() {
            Ok(()) => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                self.move_here()?;
                self.ring.enter().map_err(broken)
            }
            Err(e) => Err(broken(e)),
        }
    }

    /// Makes the ring anew, for the thread that calls: the old one belongs to another.
    fn move_here(&mut self) -> Result<()> {
        let in_kernel = self.in_flight() - self.ring.queued();
        if in_kernel > 0 {
            return Err(Kind::Invalid.error(format!(
                "a queue moved to another thread with {in_kernel} commands in flight: drain it \
                 before it moves"
            )));
        }
        let entries = u32::try_from(self.slots.len()).expect("checked when made");
        let files = self.media.descriptors();
        let mut ring = Ring::new(entries.next_power_of_two(), &files, &self.bell)?;
        for region in self.ring.regions() {
            ring.register(region).map_err(|e| not_registered(region, e))?;
        }
        // The kernel never saw what is queued in the old ring, so it can be queued once more.
        self.ring = ring;
        let occupied = |index: &u32| self.slots[*index as usize].is_some();
        for index in (0..entries).filter(occupied).collect::<Vec<_>>() {
            self.push(index);
        }
        Ok(())
    }

    /// Takes what has completed, and what the kernel holds back once that is used up.
    fn collect(&mut self, completions: &mut Vec<Completion>) {
        if self.in_flight() == 0 {
            return;
        }
        let mut reaped = self.reap(completions);
        // Nobody kicks for the rest of a short transfer, so it must leave before this returns.
        while reaped.again || (reaped.entries == 0 && self.ring.holds_back()) {
            if let Err(error) = self.enter() {
                self.give_up(&error);
                return;
            }
            reaped = self.reap(completions);
            if reaped.entries == 0 {
                return;
            }
        }
    }

    /// Takes completions that the kernel has posted; how many, and whether some continue.
    fn reap(&mut self, completions: &mut Vec<Completion>) -> Reaped {
        let mut reaped = Reaped { entries: 0, again: false };
        while let Some(entry) = self.ring.next_completion() {
            reaped.entries += 1;
            let index = u32::try_from(entry.user_data()).expect("only slots are submitted");
            let place = &mut self.slots[index as usize];
            let flight = place.as_mut().expect("a completion belongs to an occupied slot");
            let Some(result) = flight.on_completion(entry.result(), &self.media) else {
                self.push(index);
                reaped.again = true;
                continue;
            };
            let (token, command) = place.take().expect("occupied, as just seen").into_parts();
            self.free.push(index);
            completions.push(Completion { token, command, result });
        }
        reaped
    }

    /// Marks the queue as broken, and says so once; later kicks report it.
    fn give_up(&mut self, error: &Error) {
        if !mem::replace(&mut self.broken, true) {
            tracing::error!(%error, "a device queue broke");
        }
    }
}

struct Reaped {
    entries: usize,
    again: bool,
}

fn broken(error: io::Error) -> Error {
    Error::io("entering an io_uring: its queue cannot be used any more", error)
}

fn not_registered(region: &Region, error: io::Error) -> Error {
    let sentence = format!("registering {} bytes of memory for I/O", region.length());
    match error.raw_os_error() {
        Some(libc::ENOBUFS) => {
            Kind::Busy.error(format!("{sentence}: unregister some first")).caused_by(error)
        }
        _ => Error::io(sentence, error),
    }
}

impl Device for UringDevice {
    fn count(&self) -> usize {
        self.media.count()
    }

    fn geometry(&self, device: DeviceIndex) -> Geometry {
        self.media.geometry(device)
    }

    fn submit(&mut self, token: Token, command: Command) -> Result<(), Command> {
        let Some(index) = self.free.pop() else { return Err(command) };
        let refusal = self.media.admit(&command).err();
        let flight = InFlight::new(token, command, refusal);
        self.slots[index as usize] = Some(flight);
        self.push(index);
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        if self.ring.queued() == 0 {
            return Ok(());
        }
        self.enter().inspect_err(|error| self.give_up(error))
    }

    /// Without a system call unless the kernel holds completions back, or nothing is there and
    /// the readiness descriptor must fall silent.
    fn poll(&mut self, completions: &mut Vec<Completion>) {
        let before = completions.len();
        self.collect(completions);
        if completions.len() > before {
            self.bell.on_completions();
        } else if self.bell.on_nothing() {
            // The bell is silent now, so whatever rang it before must not be left behind.
            fence(Ordering::SeqCst);
            self.collect(completions);
            if completions.len() > before {
                self.bell.on_completions();
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.descriptor())
    }

    /// As the trait has it, but a limit on locked memory is no error: it is logged once, and
    /// commands pin their pages one by one ([`UringDevice::is_registered`] tells). The region
    /// stays mapped until it is unregistered.
    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        match self.ring.register(region) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                self.move_here()?;
                self.ring.register(region).map_err(|e| not_registered(region, e))
            }
            other => other.map_err(|e| not_registered(region, e)),
        }
    }

    fn unregister(&mut self, region: RegionId) {
        self.ring.unregister(region);
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        let mut completions = Vec::new();
        let mut waits = 0;
        // A queue that broke stays broken: waiting for it would be in vain.
        while self.kick().is_ok() && self.in_flight() > 0 && waits < DRAIN_WAITS && !self.broken {
            completions.clear();
            self.poll(&mut completions);
            if completions.is_empty() {
                waits += 1;
                wait(self, DRAIN_WAIT);
            }
        }
        if self.in_flight() > 0 {
            let leaked = self.in_flight();
            tracing::error!(leaked, "commands did not complete: their memory is given up");
            mem::forget(mem::take(&mut self.slots));
        }
    }
}

#[cfg(test)]
mod tests;
