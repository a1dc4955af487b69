//! Ends of transfers, told to an event loop through a file descriptor.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use extent::{Error, Result};
use rustix::event::{EventfdFlags, eventfd};

use crate::lock::Mutex;

/// See the module.
pub(crate) struct Watch {
    event: OwnedFd,
    ended: Mutex<Vec<u64>>,
    /// Of all watches of one engine.
    watched: Arc<AtomicUsize>,
}

impl Watch {
    pub(crate) fn new(watched: &Arc<AtomicUsize>) -> Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::io("making an eventfd", error.into()))?;
        Ok(Self { event, ended: Mutex::default(), watched: Arc::clone(watched) })
    }

    /// Readable when there is something to take.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// One more is watched.
    pub(crate) fn begin(&self) {
        self.watched.fetch_add(1, Ordering::Relaxed);
    }

    /// One has ended.
    pub(crate) fn end(&self, number: u64) {
        self.watched.fetch_sub(1, Ordering::Relaxed);
        self.ended.lock().push(number);
        // It fails only if it is full of events that nobody has looked at.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// What has ended since the last time.
    pub(crate) fn take(&self) -> Vec<u64> {
        let mut count = [0; 8];
        // It fails only if there is no event.
        let _ = rustix::io::read(&self.event, &mut count);
        std::mem::take(&mut self.ended.lock())
    }
}
