//! The ledger's thread: it sleeps unless there is metadata to write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use extent::{Error, Result};
use nvme_tier::device::Device;
use nvme_tier::{Ledger, Tier};
use rustix::event::{PollFd, PollFlags, poll};

use crate::inbox::Bell;

/// A ledger on a thread of its own.
pub(crate) struct LedgerThread {
    thread: JoinHandle<()>,
    shared: Arc<Shared>,
}

struct Shared {
    bell: Bell,
    stop: AtomicBool,
}

impl LedgerThread {
    pub(crate) fn start(
        tier: &Tier,
        mut ledger: Ledger,
        mut device: Box<dyn Device>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared { bell: Bell::new()?, stop: AtomicBool::new(false) });
        let ring = Arc::clone(&shared);
        tier.on_work(Arc::new(move || ring.bell.ring()));
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || {
                while !(own.stop.load(Ordering::Acquire) && ledger.is_idle()) {
                    if !ledger.step(device.as_mut()) {
                        own.sleep(&mut ledger, device.as_mut());
                    }
                }
            })
            .map_err(|e| Error::io("starting the ledger's thread", e))?;
        Ok(Self { thread, shared })
    }

    /// Finishes what is queued, and ends.
    pub(crate) fn stop(self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.bell.ring();
        if self.thread.join().is_err() {
            tracing::error!("the ledger's thread had panicked");
        }
    }
}

impl Shared {
    fn sleep(&self, ledger: &mut Ledger, device: &mut dyn Device) {
        self.bell.fall_asleep();
        // Once more: what was queued before the announcement rang no bell.
        let mut rung = false;
        let stop = self.stop.load(Ordering::Acquire) && ledger.is_idle();
        if !stop && !ledger.step(device) {
            let bell = self.bell.descriptor();
            rung = device.sleep(&[bell], None).unwrap_or_else(|error| {
                // The ledger's next command fails and says so; until then, do not spin.
                tracing::error!(%error, "the ledger's command queue is broken");
                poll(&mut [PollFd::from_borrowed_fd(bell, PollFlags::IN)], None).is_ok()
            });
        }
        self.bell.wake_up(rung);
    }
}
