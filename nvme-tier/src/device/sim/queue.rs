//! A queue over simulated devices.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use dma::{Region, RegionId};
use extent::{Error, Kind, Result};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::platter::{Event, WriteId};
use super::{Fault, SimDisk, SimOptions, State, geometry};
use crate::device::{Command, Completion, Device, DeviceIndex, Geometry, Location, Token, admit};

/// One queue over a [`SimDisk`]. What was submitted stays put until [`Device::kick`]; then it
/// completes after a number of this queue's polls, in an order of the seed's choosing. Dropping it
/// leaves its writes hanging, as a process that dies would.
#[derive(Debug)]
pub struct SimDevice {
    disk: SimDisk,
    options: SimOptions,
    rng: SmallRng,
    /// Submitted and not kicked.
    queued: Vec<(Token, Command)>,
    running: Vec<Running>,
    polls: u64,
}

#[derive(Debug)]
struct Running {
    token: Token,
    command: Command,
    /// At which poll it completes.
    due: u64,
    /// If stuck, how often the stuck had been released when it started.
    stuck: Option<u64>,
    work: Work,
}

/// What will be done and told when it completes.
#[derive(Debug)]
enum Work {
    Refuse(Error),
    Read {
        from: Location,
        fault: Option<Fault>,
    },
    Write {
        id: WriteId,
        fails: bool,
    },
    /// A write that goes nowhere.
    Nothing,
    Flush {
        id: u64,
        fails: bool,
    },
}

impl SimDevice {
    pub(super) fn new(disk: SimDisk, options: SimOptions, seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self { disk, options, rng, queued: Vec::new(), running: Vec::new(), polls: 0 }
    }

    /// The devices it is a queue of.
    #[must_use]
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }
}

impl Device for SimDevice {
    fn count(&self) -> usize {
        usize::from(self.options.devices)
    }

    fn geometry(&self, device: DeviceIndex) -> Geometry {
        assert!(device.0 < self.options.devices, "there is no such device");
        geometry(&self.options)
    }

    fn submit(&mut self, token: Token, command: Command) -> Result<(), Command> {
        if self.in_flight() >= self.options.queue_depth {
            return Err(command);
        }
        self.queued.push((token, command));
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        let mut state = self.disk.0.lock();
        for (token, command) in self.queued.drain(..) {
            let (work, stuck) = start(&mut state, &command);
            let delay = self.rng.random_range(0..=self.options.most_delay_polls);
            let due = self.polls + 1 + u64::from(delay);
            self.running.push(Running { token, command, due, stuck, work });
        }
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        self.polls += 1;
        let mut state = self.disk.0.lock();
        let (polls, releases) = (self.polls, state.releases);
        let is_due = |running: &Running| match running.stuck {
            Some(before) => releases > before,
            None => running.due <= polls,
        };
        let mut due: Vec<_> = self.running.extract_if(.., |running| is_due(running)).collect();
        due.shuffle(&mut self.rng);
        for Running { token, mut command, work, .. } in due {
            let result = finish(&mut state, &mut command, work);
            completions.push(Completion { token, command, result });
        }
    }

    fn in_flight(&self) -> usize {
        self.queued.len() + self.running.len()
    }

    /// Time passes by polls alone.
    fn sleep(&mut self, _: &[BorrowedFd<'_>], _: Option<Duration>) -> Result<bool> {
        self.kick()?;
        Ok(true)
    }

    fn register(&mut self, _: &Arc<Region>) -> Result<()> {
        Ok(())
    }

    fn unregister(&mut self, _: RegionId) {}
}

/// Sends a command to its device, with the fault that the plan has for it.
fn start(state: &mut State, command: &Command) -> (Work, Option<u64>) {
    let device = command.device();
    if let Err(error) = admit::check(command, state.geometry(device)) {
        return (Work::Refuse(error), None);
    }
    let fault = state.faults.next(command, &mut state.rng);
    if fault == Some(Fault::Vanish) {
        state.gone[usize::from(device.0)] = true;
    }
    let stuck = (fault == Some(Fault::Stick)).then_some(state.releases);
    let fails = fault == Some(Fault::Fail);
    let work = match command {
        _ if state.gone[usize::from(device.0)] => {
            Work::Refuse(failed(command, "the device is gone"))
        }
        Command::Read { at, .. } => {
            let elsewhere = fault == Some(Fault::Misdirect);
            let from = if elsewhere { another_place(state, *at, command.length()) } else { *at };
            Work::Read { from, fault }
        }
        Command::Write { .. } if fault == Some(Fault::Lose) => Work::Nothing,
        Command::Write { at, from } => {
            let mut data = vec![0; from.length()];
            from.copy_out(&mut data);
            let mut at = *at;
            match fault {
                Some(Fault::FlipBit) => flip_bit(&mut data, &mut state.rng),
                Some(Fault::Misdirect) => at = another_place(state, at, data.len()),
                _ => {}
            }
            let id = WriteId(state.new_id());
            state.apply(Event::WriteStarted { id, at, data: data.into() });
            Work::Write { id, fails }
        }
        Command::Flush(_) | Command::Deallocate { .. } if fault == Some(Fault::Lose) => {
            Work::Nothing
        }
        Command::Flush(device) => {
            let id = state.new_id();
            state.apply(Event::FlushStarted { id, device: *device });
            Work::Flush { id, fails }
        }
        // As a write: until it is flushed, any block of it may have happened or not.
        Command::Deallocate { at, bytes } => {
            let data = let_go(state, *at, *bytes);
            let id = WriteId(state.new_id());
            state.apply(Event::WriteStarted { id, at: *at, data: data.into() });
            Work::Write { id, fails }
        }
    };
    (work, stuck)
}

/// What blocks become that nobody needs: each what it was, or zeroes, or rubbish.
fn let_go(state: &mut State, at: Location, bytes: u64) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(bytes).expect("admitted")];
    state.platter.current(at.device).read(at.offset, &mut data);
    for block in data.chunks_mut(state.options.block_bytes as usize) {
        match state.rng.random_range(0..3) {
            0 => {}
            1 => block.fill(0),
            _ => state.rng.fill(block),
        }
    }
    data
}

/// Completes a command: moves the bytes, and says how it went.
fn finish(state: &mut State, command: &mut Command, work: Work) -> Result<()> {
    let gone = state.gone.get(usize::from(command.device().0)) == Some(&true);
    let failure = if gone { "the device is gone" } else { "injected" };
    match work {
        Work::Refuse(error) => Err(error),
        Work::Nothing => Ok(()),
        Work::Read { fault, .. } if gone || fault == Some(Fault::Fail) => {
            Err(failed(command, failure))
        }
        Work::Read { from, fault } => {
            let mut bytes = vec![0; command.length()];
            let stale = fault == Some(Fault::Stale);
            let platter = &state.platter;
            let image =
                if stale { platter.previous(from.device) } else { platter.current(from.device) };
            image.read(from.offset, &mut bytes);
            if fault == Some(Fault::FlipBit) {
                flip_bit(&mut bytes, &mut state.rng);
            }
            if let Command::Read { into, .. } = command {
                into.copy_in(&bytes);
            }
            Ok(())
        }
        Work::Write { id, fails } => {
            let completed = !fails && !gone;
            // A failed write may have happened all the same.
            let happened = completed || state.rng.random();
            state.apply(Event::WriteEnded { id, happened, completed });
            if completed { Ok(()) } else { Err(failed(command, failure)) }
        }
        Work::Flush { id, fails } => {
            let completed = !fails && !gone;
            state.apply(Event::FlushEnded { id, completed });
            if completed { Ok(()) } else { Err(failed(command, failure)) }
        }
    }
}

fn failed(command: &Command, why: &str) -> Error {
    let device = command.device().0;
    match command {
        Command::Read { at, .. } => {
            Kind::Io.error(format!("reading at {} of simulated device {device}: {why}", at.offset))
        }
        Command::Write { at, .. } => {
            Kind::Io.error(format!("writing at {} of simulated device {device}: {why}", at.offset))
        }
        Command::Flush(_) => Kind::Io.error(format!("flushing simulated device {device}: {why}")),
        Command::Deallocate { at, .. } => Kind::Io
            .error(format!("deallocating at {} of simulated device {device}: {why}", at.offset)),
    }
}

/// Another place on the same device with room for `length` bytes; the same one if there is none.
fn another_place(state: &mut State, at: Location, length: usize) -> Location {
    let block = u64::from(state.options.block_bytes);
    let last = (state.options.capacity_bytes - length as u64) / block;
    let own = at.offset / block;
    // Any but its own: skip over it.
    let drawn = if last == 0 { 0 } else { state.rng.random_range(0..last) };
    let place = if last > 0 && drawn >= own { drawn + 1 } else { drawn };
    Location { device: at.device, offset: place * block }
}

fn flip_bit(bytes: &mut [u8], rng: &mut SmallRng) {
    let at = rng.random_range(0..bytes.len());
    bytes[at] ^= 1 << rng.random_range(0..8);
}
