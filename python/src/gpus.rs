//! The GPUs that reads of a client go into.

use std::collections::BTreeMap;
use std::slice;
use std::sync::Arc;

use client::device::{
    Aim, Device, DeviceOptions, DeviceSpan, Direct, DirectStats, Ladder, Origin, Path, RingStats,
    Staging,
};
use extent::{Error, Kind, Result};

use crate::engine::Engine;
use crate::gpu::missing;
use crate::lock::Mutex;
use crate::staged::{DirectCount, Staged};

/// See the module.
pub(crate) struct Gpus {
    known: Mutex<BTreeMap<usize, Arc<Gpu>>>,
    /// Held while one is made.
    making: Mutex<()>,
    verifies: bool,
    options: DeviceOptions,
}

/// A GPU that has a ring.
pub(crate) struct Gpu {
    pub(crate) ordinal: usize,
    pub(crate) device: Device,
    /// What the node may write to by itself, if that is to be had. Taken before the engine's lock, never after it.
    direct: Mutex<Option<Direct>>,
    /// Whether the rest of a read may go through the ring.
    pub(crate) stages: bool,
}

/// What became of a GPU's reads.
pub(crate) struct Look {
    pub(crate) path: Path,
    pub(crate) ladder: Ladder,
    pub(crate) ring: RingStats,
    /// Copies under way.
    pub(crate) under_way: usize,
    pub(crate) count: DirectCount,
    pub(crate) direct: DirectStats,
}

impl Gpus {
    pub(crate) fn new(verifies: bool, options: DeviceOptions) -> Self {
        Self { known: Mutex::default(), making: Mutex::default(), verifies, options }
    }

    /// A GPU that has a ring already.
    pub(crate) fn known(&self, ordinal: usize) -> Option<Arc<Gpu>> {
        self.known.lock().get(&ordinal).map(Arc::clone)
    }

    /// A GPU, with a ring. The first call for each may take seconds.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if there is no such GPU, or no way into its memory that is good enough; as
    /// [`client::Session::allocate`].
    pub(crate) fn make(&self, engine: &Engine, ordinal: usize) -> Result<Arc<Gpu>> {
        let _making = self.making.lock();
        if let Some(gpu) = self.known(ordinal) {
            return Ok(gpu);
        }
        let device = Device::cuda(ordinal).map_err(missing)?;
        let options = &self.options;
        let mut staging = Staging::new(engine, engine.fabric(), self.verifies, &device, options)?;
        let stages = options.policy.allows(staging.ring_path);
        let direct = Mutex::new(staging.direct.take());
        let staged = Staged::new(staging, options.slot_bytes, engine.timeout());
        engine.lock().rooms.staged.insert(ordinal, staged);
        let gpu = Arc::new(Gpu { ordinal, device, direct, stages });
        self.known.lock().insert(ordinal, Arc::clone(&gpu));
        Ok(gpu)
    }

    /// The session is over: no GPU's memory is kept for it.
    pub(crate) fn close(&self, engine: &Engine) {
        let known: Vec<_> = self.known.lock().values().map(Arc::clone).collect();
        for gpu in known {
            let direct = gpu.direct.lock().take();
            if let Some(mut direct) = direct {
                direct.end(engine);
            }
        }
    }
}

impl Gpu {
    /// Where the node may write by itself, as far as that is known without waiting; `None` if [`Gpu::aim`] has to find
    /// out.
    ///
    /// # Errors
    /// Why it may not.
    pub(crate) fn known(&self, engine: &Engine, into: &DeviceSpan) -> Result<Option<Aim>> {
        let connection = connection(engine);
        self.direct.lock().as_mut().ok_or_else(never)?.known(connection, into)
    }

    /// The same, found out: a part of the file is read there, for which whatever the GPU had to do with it is done. This
    /// waits, and cannot be interrupted, but not for longer than the client is patient.
    ///
    /// # Errors
    /// Why it may not.
    pub(crate) fn aim(&self, engine: &Engine, origin: Origin, into: &DeviceSpan) -> Result<Aim> {
        let connection = connection(engine);
        let mut direct = self.direct.lock();
        let direct = direct.as_mut().ok_or_else(never)?;
        let todo = 0..into.len();
        let aimed = direct.aim(engine, connection, origin, into, slice::from_ref(&todo));
        let obstacle = direct.obstacle(connection).map(ToString::to_string);
        let mut state = engine.lock();
        let staging = &mut state.rooms.of(self.ordinal).staging;
        match (aimed, obstacle) {
            (Ok(aim), _) if aim.is_proven => {
                staging.ladder.admit(Path::GpuDirect);
                staging.path = Path::GpuDirect;
                Ok(aim)
            }
            (Ok(_), _) => Err(Kind::Unsupported.error("the file has nothing there")),
            (Err(error), obstacle) => {
                if let Some(why) = obstacle {
                    leave(staging, self.stages, why);
                }
                Err(error)
            }
        }
    }

    /// How it is reached, and what was done.
    pub(crate) fn look(&self, engine: &Engine) -> Look {
        let stats = |direct: &mut Option<Direct>| direct.as_ref().map(Direct::stats);
        let direct = stats(&mut self.direct.lock()).unwrap_or_default();
        let mut state = engine.lock();
        let staged = state.rooms.of(self.ordinal);
        let (count, staging) = (staged.direct, &staged.staging);
        let (ring, under_way) = (staging.ring.stats(), staging.ring.under_way());
        Look { path: staging.path, ladder: staging.ladder.clone(), ring, under_way, count, direct }
    }
}

/// Reads go another way from now on.
fn leave(staging: &mut Staging, stages: bool, why: String) {
    staging.ladder.deny(Path::GpuDirect, why);
    if stages {
        staging.path = staging.ring_path;
    }
}

fn connection(engine: &Engine) -> u64 {
    engine.lock().session.stats().connections
}

fn never() -> Error {
    Kind::Unsupported.error("there was no such way when the ring was made")
}
