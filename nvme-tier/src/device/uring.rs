//! Files, block devices and NVMe namespaces through io_uring.
//!
//! Why this is sound: the kernel reads and writes the memory of a command from the moment that its
//! entry is pushed until its completion is reaped. All that time the command, which owns that
//! memory, lies in its slot; the slot's number is the entry's `user_data`; and nothing but that
//! completion takes the command out. What does not complete before the device is dropped is
//! leaked, never freed.
#![allow(unsafe_code)]

mod in_flight;
mod passthrough;
mod pieces;
mod watches;

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use dma::{Region, RegionId};
use extent::{Error, Kind, Result};

use self::in_flight::InFlight;
use self::passthrough::{PIECE, slot_of};
use self::pieces::{Next, Pieces};
use self::watches::Watches;
use super::passthrough::Namespace;
use super::ring::Ring;
use super::wait::until_readable;
use super::{Command, Completion, Device, DeviceIndex, Geometry, MOST_OTHERS, Media, Token};

const LARGEST_DEPTH: usize = 4096;

/// A drop waits this often, this long, for what is in flight: five seconds in all.
const DRAIN_WAITS: u32 = 50;
const DRAIN_WAIT: Duration = Duration::from_millis(100);

/// A queue over all of a [`Media`], through one io_uring.
///
/// The thread that first kicks it owns it; it may move to another while nothing is in flight, and
/// should be dropped where it was used, since what is in flight otherwise can only be leaked. A
/// command that the device must refuse still goes through the ring, so that a [`Device::sleep`]
/// ends for it. That sleep is one system call: it submits, waits, and watches the other
/// descriptors, too.
pub struct UringDevice {
    media: Media,
    ring: Ring,
    watches: Watches,
    /// Owns every command that the kernel may know of.
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    /// What the kernel knows of, or will: a command to a namespace may be several entries.
    entries: usize,
    pieces: Pieces,
    /// Found by a sleep, for the next poll.
    ripe: Vec<Completion>,
    broken: bool,
}

impl UringDevice {
    /// A queue for at most `depth` commands in flight.
    ///
    /// # Errors
    /// As [`Media::queue`].
    pub fn new(media: &Media, depth: usize) -> Result<Self> {
        let entries = u32::try_from(depth).unwrap_or(0);
        if !(1..=LARGEST_DEPTH).contains(&depth) {
            return Err(Kind::Invalid
                .error(format!("a queue holds from 1 to {LARGEST_DEPTH} commands, not {depth}")));
        }
        let ring = new_ring(media, depth)?;
        Ok(Self {
            pieces: Pieces::new(media, depth)?,
            entries: 0,
            media: media.clone(),
            ring,
            watches: Watches::default(),
            slots: (0..depth).map(|_| None).collect(),
            free: (0..entries).rev().collect(),
            ripe: Vec::with_capacity(depth),
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
        self.entries += 1;
        // SAFETY: the command in this slot owns the memory, and stays until its completion has
        // been reaped, or for ever.
        unsafe { self.ring.push(&entry) };
    }

    fn enter(&mut self) -> Result<()> {
        match self.ring.enter() {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                self.move_here()?;
                self.ring.enter().map_err(broken)?;
            }
            Err(e) => return Err(broken(e)),
        }
        self.note_submitted();
        Ok(())
    }

    /// Makes the ring anew, for the thread that calls: the old one belongs to another.
    fn move_here(&mut self) -> Result<()> {
        // Watches are counted as queued for too long rather than too short.
        let queued = self.ring.queued().saturating_sub(self.watches.queued());
        let in_kernel = self.entries.saturating_sub(queued);
        if in_kernel > 0 {
            return Err(Kind::Invalid.error(format!(
                "a queue moved to another thread with {in_kernel} commands in flight: drain it \
                 before it moves"
            )));
        }
        let slots = u32::try_from(self.slots.len()).expect("checked when made");
        let mut ring = new_ring(&self.media, self.slots.len())?;
        for region in self.ring.regions() {
            ring.register(region).map_err(|e| not_registered(region, e))?;
        }
        // The kernel never saw what is queued in the old ring, so it can be queued once more.
        self.ring = ring;
        self.watches = Watches::default();
        self.entries = 0;
        for index in 0..slots {
            if self.slots[index as usize].is_some() {
                self.push_again(index);
            }
        }
        Ok(())
    }

    /// Sleeps until so many entries completed, and takes them.
    fn sleep_for(&mut self, count: usize, limit: Option<Duration>) -> Result<()> {
        match self.ring.sleep(count, limit) {
            Ok(()) => self.note_submitted(),
            // The caller comes again, and sleeps on the new ring.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => self.move_here()?,
            Err(e) => {
                let error = broken(e);
                self.give_up(&error);
                return Err(error);
            }
        }
        let mut ripe = mem::take(&mut self.ripe);
        self.collect(&mut ripe);
        self.ripe = ripe;
        Ok(())
    }

    /// The ring was entered; a kernel short of memory may have left some of it queued.
    fn note_submitted(&mut self) {
        if self.ring.queued() == 0 {
            self.watches.submitted();
        }
    }

    /// Commands that the kernel knows or will know.
    fn occupied(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes what has completed, and what the kernel holds back once that is used up.
    fn collect(&mut self, completions: &mut Vec<Completion>) {
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
            if self.watches.take(entry.user_data) {
                continue;
            }
            self.entries -= 1;
            let index = slot_of(entry.user_data);
            let next = if entry.user_data & PIECE == 0 {
                let flight = self.slots[index as usize].as_mut();
                let flight = flight.expect("a completion belongs to an occupied slot");
                flight.on_completion(entry.result, &self.media).map_or(Next::Send, Next::Over)
            } else {
                self.on_piece(entry)
            };
            let result = match next {
                Next::Over(result) => result,
                Next::Wait => continue,
                Next::Send => {
                    self.send_next(index, entry.user_data);
                    reaped.again = true;
                    continue;
                }
            };
            let place = &mut self.slots[index as usize];
            let (token, command) = place.take().expect("occupied, as just seen").into_parts();
            self.free.push(index);
            completions.push(Completion { token, command, result });
        }
        reaped
    }

    /// Marks the queue as broken, and says so once; later kicks report it. A call from the wrong
    /// thread breaks nothing.
    fn give_up(&mut self, error: &Error) {
        if error.kind() == Kind::Invalid {
            return;
        }
        if !mem::replace(&mut self.broken, true) {
            tracing::error!(%error, "a device queue broke");
        }
    }
}

struct Reaped {
    entries: usize,
    again: bool,
}

/// A ring for so many commands, and the descriptors that sleeps are for.
fn new_ring(media: &Media, depth: usize) -> Result<Ring> {
    let nvme_bytes = media.namespaces().map(Namespace::largest_piece_bytes).min();
    // A command to a namespace may leave in several pieces.
    let commands = if nvme_bytes.is_some() { depth + depth.div_ceil(2) } else { depth };
    let places = u32::try_from(commands + MOST_OTHERS).expect("checked by whoever made it");
    Ring::new(places.next_power_of_two(), nvme_bytes, &media.descriptors())
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
        let namespace = self.media.namespace(command.device());
        let admitted = self.media.admit(&command);
        let refusal =
            admitted.and_then(|()| self.pieces.make_room(index, &command, namespace)).err();
        let flight = InFlight::new(token, command, refusal);
        self.slots[index as usize] = Some(flight);
        self.start(index);
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        if self.ring.queued() == 0 {
            return Ok(());
        }
        self.enter().inspect_err(|error| self.give_up(error))
    }

    /// Without a system call unless the kernel holds completions back.
    fn poll(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.ripe);
        if self.occupied() > 0 {
            self.collect(completions);
        }
    }

    fn in_flight(&self) -> usize {
        self.occupied() + self.ripe.len()
    }

    fn sleep(&mut self, others: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<bool> {
        if self.broken {
            // Nothing will complete, and whoever polls the others must not spin.
            return match others {
                [] => Err(Kind::Io.error("the device's queue broke: its log says why")),
                _ => Ok(until_readable(others, limit)),
            };
        }
        if !self.ripe.is_empty() || (self.occupied() == 0 && others.is_empty()) {
            return Ok(false);
        }
        for other in others {
            if let Some(entry) = self.watches.arm(other.as_raw_fd())? {
                // SAFETY: a poll of a descriptor names no memory.
                unsafe { self.ring.push(&entry) };
            }
        }
        self.sleep_for(1, limit)?;
        Ok(self.watches.were_rung())
    }

    fn gather(&mut self, count: usize) -> Result<()> {
        if self.broken {
            return Err(Kind::Io.error("the device's queue broke: its log says why"));
        }
        // Pieces of commands count as completions, too, so this may return early.
        match count.min(self.in_flight()).saturating_sub(self.ripe.len()) {
            0 => Ok(()),
            missing => self.sleep_for(missing, None),
        }
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
                let _ = self.sleep(&[], Some(DRAIN_WAIT));
            }
        }
        if self.in_flight() > 0 {
            let leaked = self.in_flight();
            tracing::error!(leaked, "commands did not complete: their memory is given up");
            mem::forget(mem::take(&mut self.slots));
            self.pieces.leak();
        }
    }
}

#[cfg(test)]
mod tests;
