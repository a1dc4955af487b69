//! Files and block devices through io_uring.
//!
//! Why this is sound: the kernel reads and writes the memory of a command from the moment that its
//! entry is pushed until its completion is reaped. All that time the command, which owns that
//! memory, lies in its slot; the slot's number is the entry's `user_data`; and nothing but that
//! completion takes the command out. What does not complete before the device is dropped is
//! leaked, never freed.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dma::{Region, RegionId};
use extent::{Error, Kind, Result};
use io_uring::{opcode, squeue, types};

use super::ring::Ring;
use super::{Command, Completion, Device, DeviceIndex, Geometry, Location, Media, Token, wait};

const LARGEST_DEPTH: usize = 4096;

/// How often a command that the kernel interrupted is submitted again before it fails.
const MOST_RETRIES: u8 = 8;

/// A drop waits this often, this long, for what is in flight: five seconds in all.
const DRAIN_WAITS: u32 = 50;
const DRAIN_WAIT: Duration = Duration::from_millis(100);

/// A queue over all of a [`Media`], through one io_uring.
///
/// The thread that first kicks it owns it. It may move to another thread while nothing is in
/// flight: it then makes its ring anew, and [`Device::readiness`] is another descriptor. A command
/// that the device must refuse still goes through the ring, so that whoever sleeps on the
/// descriptor wakes up for it.
pub struct UringDevice {
    media: Media,
    ring: Ring,
    /// Owns every command that the kernel may know of.
    slots: Vec<Option<InFlight>>,
    free: Vec<u32>,
    broken: bool,
}

struct InFlight {
    token: Token,
    command: Command,
    /// Bytes that earlier, short attempts moved.
    moved: usize,
    retries: u8,
    /// Why the command fails without having been tried.
    refusal: Option<Error>,
}

impl UringDevice {
    pub(super) fn new(media: &Media, depth: usize) -> Result<Self> {
        let entries = u32::try_from(depth).unwrap_or(0);
        if !(1..=LARGEST_DEPTH).contains(&depth) {
            return Err(Kind::Invalid
                .error(format!("a queue holds from 1 to {LARGEST_DEPTH} commands, not {depth}")));
        }
        let ring = Ring::new(entries.next_power_of_two(), &media.descriptors())?;
        Ok(Self {
            media: media.clone(),
            ring,
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
        let mut ring = Ring::new(entries.next_power_of_two(), &self.media.descriptors())?;
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
            let InFlight { token, command, .. } = place.take().expect("occupied, as just seen");
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

impl InFlight {
    /// The entry for what is still to be moved.
    fn entry(&self, ring: &Ring) -> squeue::Entry {
        if self.refusal.is_some() {
            return opcode::Nop::new().build();
        }
        match &self.command {
            Command::Flush(device) => {
                opcode::Fsync::new(fixed(*device)).flags(types::FsyncFlags::DATASYNC).build()
            }
            Command::Read { at, into } => {
                let memory = into.address().as_ptr();
                let part = self.part(at, ring, into.region(), memory, into.length());
                match part.place {
                    Some(place) => {
                        opcode::ReadFixed::new(part.file, part.memory, part.length, place)
                            .offset(part.offset)
                            .build()
                    }
                    None => opcode::Read::new(part.file, part.memory, part.length)
                        .offset(part.offset)
                        .build(),
                }
            }
            Command::Write { at, from } => {
                let memory = from.address().as_ptr();
                let part = self.part(at, ring, from.region(), memory, from.length());
                match part.place {
                    Some(place) => {
                        opcode::WriteFixed::new(part.file, part.memory, part.length, place)
                            .offset(part.offset)
                            .build()
                    }
                    None => opcode::Write::new(part.file, part.memory, part.length)
                        .offset(part.offset)
                        .build(),
                }
            }
        }
    }

    fn part(
        &self,
        at: &Location,
        ring: &Ring,
        region: &Region,
        memory: *mut u8,
        length: usize,
    ) -> Part {
        let start = memory.addr() - region.base().addr().get() + self.moved;
        let length = length - self.moved;
        Part {
            file: fixed(at.device),
            memory: memory.wrapping_add(self.moved),
            length: u32::try_from(length).expect("larger commands were refused"),
            offset: at.offset + self.moved as u64,
            place: ring.place(region, start, length),
        }
    }

    /// What became of the command; `None` if the rest of it must be submitted.
    fn on_completion(&mut self, result: i32, media: &Media) -> Option<Result<()>> {
        if let Some(refusal) = self.refusal.take() {
            return Some(Err(refusal));
        }
        let moved = match usize::try_from(result) {
            Ok(moved) => moved,
            Err(_) => {
                let interrupted = matches!(-result, libc::EAGAIN | libc::EINTR);
                if interrupted && self.retries < MOST_RETRIES {
                    self.retries += 1;
                    return None;
                }
                let error = io::Error::from_raw_os_error(-result);
                return Some(Err(Error::io(self.describe(media), error)));
            }
        };
        self.moved += moved;
        let length = self.command.length();
        if self.moved == length {
            return Some(Ok(()));
        }
        let block = media.geometry(self.command.device()).block_bytes as usize;
        if moved != 0 && self.moved < length && moved.is_multiple_of(block) {
            return None;
        }
        Some(Err(Kind::Io.error(format!(
            "{} ended after {} bytes: was the file truncated?",
            self.describe(media),
            self.moved
        ))))
    }

    fn describe(&self, media: &Media) -> String {
        let path = media.path(self.command.device()).display();
        match &self.command {
            Command::Read { at, into } => {
                format!("reading {} bytes at {} of {path}", into.length(), at.offset)
            }
            Command::Write { at, from } => {
                format!("writing {} bytes at {} of {path}", from.length(), at.offset)
            }
            Command::Flush(_) => format!("flushing {path}"),
        }
    }
}

struct Part {
    file: types::Fixed,
    memory: *mut u8,
    length: u32,
    offset: u64,
    place: Option<u16>,
}

fn fixed(device: DeviceIndex) -> types::Fixed {
    types::Fixed(u32::from(device.0))
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
        let flight = InFlight { token, command, moved: 0, retries: 0, refusal };
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

    /// Without a system call unless the kernel has said that it holds completions back.
    fn poll(&mut self, completions: &mut Vec<Completion>) {
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

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.descriptor())
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
        if self.ring.queued() > 0 && self.kick().is_err() {
            waits = DRAIN_WAITS;
        }
        while self.in_flight() > 0 && waits < DRAIN_WAITS {
            self.poll(&mut completions);
            if completions.is_empty() {
                waits += 1;
                if self.broken { thread::sleep(DRAIN_WAIT) } else { wait(self, DRAIN_WAIT) }
            }
            completions.clear();
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
