//! Files of which a second copy is missing.

use std::sync::atomic::Ordering;

use crate::device::DeviceIndex;
use crate::{FileGeneration, State, Tier};

impl Tier {
    /// An extent of a generation that was committed twice is on one device: it is counted until the
    /// generation is written back, replaced, or whole again.
    pub fn note_missing_copy(&self, generation: &FileGeneration) {
        self.missing.lock().insert(generation.file_id(), generation.attempt());
    }

    /// All extents of a generation turned out to be on two devices.
    pub fn note_whole(&self, generation: &FileGeneration) {
        let mut missing = self.missing.lock();
        if missing.get(&generation.file_id()) == Some(&generation.attempt()) {
            missing.remove(&generation.file_id());
        }
    }

    pub(crate) fn files_missing_copy(&self) -> u64 {
        let mut missing = self.missing.lock();
        missing.retain(|id, attempt| {
            let newest = self.file(*id).map(|file| file.newest());
            newest.is_some_and(|g| g.attempt() == *attempt && g.state() == State::Dirty)
        });
        missing.len() as u64
    }

    /// A part of a dirty generation is on a device that was absent at the start.
    pub(crate) fn note_waiting(&self, generation: &FileGeneration) {
        self.waiting.lock().insert(generation.file_id(), generation.attempt());
    }

    /// Whether a generation is quarantined for this run only: what it lacks may come back with a device
    /// that was absent at the start.
    #[must_use]
    pub fn is_waiting(&self, generation: &FileGeneration) -> bool {
        self.waiting.lock().get(&generation.file_id()) == Some(&generation.attempt())
    }

    /// The devices that it runs without, and those that have failed.
    #[must_use]
    pub fn untrusted(&self) -> Vec<DeviceIndex> {
        let all = (0..self.device_count()).map(DeviceIndex);
        all.filter(|device| !self.is_trusted(*device)).collect()
    }

    /// Whether a device is there and has not failed.
    #[must_use]
    pub fn is_trusted(&self, device: DeviceIndex) -> bool {
        let device = self.counters.devices.get(usize::from(device.0));
        device.is_some_and(|device| !device.failed.load(Ordering::Relaxed))
    }

    /// Whether it runs without one of its devices, or one has failed.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.counters.devices.iter().any(|device| device.failed.load(Ordering::Relaxed))
    }
}
