//! Simulated disks, for tests and simulation only: nothing here survives the process.
//!
//! A [`SimDisk`] is the set of devices of one tier in memory; [`SimDisk::queue`] gives a
//! [`Device`](super::Device) onto it. Everything that is left open by the contract is drawn from
//! the seed: the order and the delay of completions, what a failed write left behind. So a run
//! that drives its queues in the same order repeats exactly.
//!
//! Faults come from a [`FaultPlan`]. Power cuts come in two ways: [`SimDisk::crash`] now, or a
//! [`Recorder`] that can rebuild the disks as of every moment of a run. What was written and not
//! flushed survives as the caller chooses, write by write and block by block.

mod fault;
mod image;
mod platter;
mod queue;
mod recorder;

use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub use fault::{Fault, FaultPlan, FaultRule, Operation, When};
pub use image::Image;
pub use platter::{Event, Survival, WriteId, WriteRecord};
pub use queue::SimDevice;
pub use recorder::{Fingerprints, Recorder};

use super::{Deallocation, DeviceIndex, Geometry, Location};
use fault::FaultState;
use platter::Platter;

/// What a [`SimDisk`] is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimOptions {
    /// How many devices.
    pub devices: u16,
    /// Bytes of each; a multiple of `block_bytes`.
    pub capacity_bytes: u64,
    /// Bytes of a logical block; a power of two.
    pub block_bytes: u32,
    /// Whether writes are lost in a power cut until they are flushed.
    pub volatile_cache: bool,
    /// Whether they take advice on what is not needed any more. Each block of what they then let go
    /// of becomes what the seed says: zeroes, rubbish, or what it was.
    pub deallocates: bool,
    /// Commands that each queue holds.
    pub queue_depth: usize,
    /// A command takes from one poll to this many more.
    pub most_delay_polls: u32,
    /// What everything random comes from.
    pub seed: u64,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            devices: 1,
            capacity_bytes: 64 << 20,
            block_bytes: 4096,
            volatile_cache: true,
            deallocates: false,
            queue_depth: 64,
            most_delay_polls: 4,
            seed: 0,
        }
    }
}

/// The simulated devices of one tier. A clone is another handle to the same ones.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    options: SimOptions,
    platter: Platter,
    recorder: Option<Recorder>,
    faults: FaultState,
    rng: SmallRng,
    /// Numbers writes and flushes.
    next_id: u64,
    gone: Vec<bool>,
    /// How often stuck commands were released.
    releases: u64,
}

impl SimDisk {
    /// Devices full of zeroes.
    ///
    /// # Panics
    /// If a capacity is not a number of blocks, or blocks are not a power of two.
    #[must_use]
    pub fn new(options: SimOptions) -> Self {
        let image = || Image::new(options.capacity_bytes);
        Self::from_images(options, (0..options.devices).map(|_| image()).collect())
    }

    /// Devices with these contents, all durable.
    ///
    /// # Panics
    /// As [`SimDisk::new`], and if the images do not fit the options.
    #[must_use]
    pub fn from_images(options: SimOptions, images: Vec<Image>) -> Self {
        assert!(options.block_bytes.is_power_of_two(), "blocks are powers of two");
        assert!(options.capacity_bytes.is_multiple_of(u64::from(options.block_bytes)));
        assert_eq!(images.len(), usize::from(options.devices), "an image for each device");
        assert!(images.iter().all(|image| image.length() == options.capacity_bytes));
        let gone = vec![false; images.len()];
        Self(Arc::new(Mutex::new(State {
            options,
            platter: Platter::new(images, options.block_bytes, options.volatile_cache),
            recorder: None,
            faults: FaultState::default(),
            rng: SmallRng::seed_from_u64(options.seed),
            next_id: 0,
            gone,
            releases: 0,
        })))
    }

    /// What the devices were made as.
    #[must_use]
    pub fn options(&self) -> SimOptions {
        self.0.lock().options
    }

    /// Another queue over all devices.
    #[must_use]
    pub fn queue(&self) -> SimDevice {
        let mut state = self.0.lock();
        let seed = state.rng.random();
        SimDevice::new(self.clone(), state.options, seed)
    }

    /// Replaces the faults to come. Operations are counted from here.
    pub fn set_faults(&self, plan: FaultPlan) {
        self.0.lock().faults = FaultState::new(plan);
    }

    /// How many operations a fault has been injected into, under the plan now in force.
    #[must_use]
    pub fn faults_injected(&self) -> u64 {
        self.0.lock().faults.injected()
    }

    /// Lets commands that are stuck now complete after all.
    pub fn release_stuck(&self) {
        self.0.lock().releases += 1;
    }

    /// What a read would find there, with completed writes whether flushed or not.
    ///
    /// # Panics
    /// If it is not on a device.
    #[must_use]
    pub fn peek(&self, at: Location, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let state = self.0.lock();
        state.platter.current(at.device).read(at.offset, &mut bytes);
        bytes
    }

    /// Changes bytes behind everyone's back, durably: bit rot. Needs no alignment.
    ///
    /// # Panics
    /// If it is not on a device.
    pub fn poke(&self, at: Location, bytes: &[u8]) {
        self.0.lock().apply(Event::Poke { at, data: bytes.into() });
    }

    /// What is on the devices for certain: all that was written and then flushed.
    #[must_use]
    pub fn durable_image(&self) -> Vec<Image> {
        self.0.lock().platter.durable().to_vec()
    }

    /// The writes that a power cut now might or might not take back: completed ones in the order of
    /// their completion, then those in flight.
    #[must_use]
    pub fn unflushed(&self) -> Vec<WriteRecord> {
        self.0.lock().platter.unflushed()
    }

    /// Cuts the power: new, healthy devices with what was durable and what `choice` lets survive
    /// of the rest. This disk and its queues stay as they are.
    #[must_use]
    pub fn crash(&self, choice: &mut dyn FnMut(&WriteRecord) -> Survival) -> Self {
        let state = self.0.lock();
        Self::from_images(state.options, state.platter.crash(choice))
    }

    /// Begins to record all that changes the devices, from how they are now. Every write's data is
    /// kept until the recorder is dropped, so this is for runs of bounded length.
    pub fn record(&self) {
        let mut state = self.0.lock();
        state.recorder = Some(Recorder::new(state.options, state.platter.clone()));
    }

    /// The moment that it is, for [`Recorder::crash_at`]: events recorded so far. Zero if nothing
    /// is recorded.
    #[must_use]
    pub fn now(&self) -> usize {
        self.0.lock().recorder.as_ref().map_or(0, Recorder::moments)
    }

    /// What was recorded so far, `None` if [`SimDisk::record`] was not called.
    #[must_use]
    pub fn recorder(&self) -> Option<Recorder> {
        self.0.lock().recorder.clone()
    }
}

impl State {
    fn apply(&mut self, event: Event) {
        self.platter.apply(&event);
        if let Some(recorder) = &mut self.recorder {
            recorder.push(event);
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn geometry(&self, device: DeviceIndex) -> Option<Geometry> {
        (device.0 < self.options.devices).then(|| geometry(&self.options))
    }
}

fn geometry(options: &SimOptions) -> Geometry {
    Geometry {
        capacity_bytes: options.capacity_bytes,
        block_bytes: options.block_bytes,
        max_transfer_bytes: 1 << 20,
        volatile_cache: options.volatile_cache,
        // More than a block and not all that is asked for, so that both count.
        deallocation: options.deallocates.then(|| Deallocation {
            granularity_bytes: 2 * u64::from(options.block_bytes),
            most_bytes: 128 << 10,
        }),
    }
}

#[cfg(test)]
mod tests;
