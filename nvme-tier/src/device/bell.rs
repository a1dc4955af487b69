//! The descriptor that wakes whoever sleeps on a ring.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use extent::{Error, Result};

/// Empty polls between two looks for a ring that came late.
const LATE_RING_POLLS: u32 = 64;

/// An eventfd that the kernel signals when a ring has completions. The ring's own descriptor will
/// not do: with `DEFER_TASKRUN` nobody who polls it is woken by work that is held back.
///
/// It is never silenced but when a poll found nothing; then the ring is looked at once more. So it
/// may be readable for nothing, and is never silent while something is there.
#[derive(Debug)]
pub(super) struct Bell {
    file: File,
    /// Completions came since it was last silenced, so it may be readable.
    rung: bool,
    empty_polls: u32,
}

impl Bell {
    pub(super) fn new() -> Result<Self> {
        // SAFETY: eventfd touches no memory of this process.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(Error::io("making an eventfd", io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { file: descriptor.into(), rung: false, empty_polls: 0 })
    }

    /// A poll found something.
    pub(super) fn on_completions(&mut self) {
        self.rung = true;
        self.empty_polls = 0;
    }

    /// A poll found nothing. If it returns true the bell was silenced, and the ring must be looked
    /// at again.
    pub(super) fn on_nothing(&mut self) -> bool {
        // The kernel signals after it has queued the work, and by then the work may be reaped and
        // the bell silenced: such a late ring would never end, so look for one now and then.
        self.empty_polls = (self.empty_polls + 1) % LATE_RING_POLLS;
        if !self.rung && self.empty_polls != 0 {
            return false;
        }
        self.rung = false;
        let mut count = [0; 8];
        // It is either read or was silent: an eventfd has no other errors.
        let _count = (&self.file).read(&mut count);
        true
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
