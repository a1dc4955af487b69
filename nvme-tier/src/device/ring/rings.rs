//! The two sizes of ring.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::squeue::{self, Entry128};
use io_uring::{Builder, EnterFlags, IoUring, Parameters, Submitter, cqueue};

/// A ring of ordinary entries, or one of twice the size, which NVMe commands need. The wide one takes
/// ordinary entries, too.
pub(super) enum Rings {
    Plain(IoUring),
    Wide(IoUring<Entry128, cqueue::Entry32>),
}

/// What a completion says.
#[derive(Clone, Copy, Debug)]
pub(in crate::device) struct Reaped {
    pub(in crate::device) user_data: u64,
    pub(in crate::device) result: i32,
}

impl Rings {
    /// From the fastest set-up to one that every kernel with io_uring has.
    pub(super) fn build(entries: u32, is_wide: bool) -> io::Result<Self> {
        if is_wide {
            build(IoUring::builder, entries).map(Self::Wide)
        } else {
            build(IoUring::builder, entries).map(Self::Plain)
        }
    }

    /// # Safety
    /// As [`squeue::SubmissionQueue::push`].
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), squeue::PushError> {
        match self {
            // SAFETY: the caller keeps the memory.
            Self::Plain(ring) => unsafe { ring.submission().push(entry) },
            Self::Wide(ring) => {
                let entry = Entry128::from(entry.clone());
                // SAFETY: the caller keeps the memory.
                unsafe { ring.submission().push(&entry) }
            }
        }
    }

    /// # Safety
    /// As [`squeue::SubmissionQueue::push`].
    ///
    /// # Panics
    /// If the ring is plain.
    pub(super) unsafe fn push_wide(&mut self, entry: &Entry128) -> Result<(), squeue::PushError> {
        match self {
            Self::Plain(_) => panic!("a ring for passthrough is wide"),
            // SAFETY: the caller keeps the memory.
            Self::Wide(ring) => unsafe { ring.submission().push(entry) },
        }
    }

    /// Entries that the kernel has not seen yet.
    pub(super) fn queued(&mut self) -> usize {
        match self {
            Self::Plain(ring) => ring.submission().len(),
            Self::Wide(ring) => ring.submission().len(),
        }
    }

    /// Whether the kernel holds completions back until the ring is entered.
    pub(super) fn holds_back(&mut self) -> bool {
        match self {
            Self::Plain(ring) => {
                let queue = ring.submission();
                queue.taskrun() || queue.cq_overflow()
            }
            Self::Wide(ring) => {
                let queue = ring.submission();
                queue.taskrun() || queue.cq_overflow()
            }
        }
    }

    /// Hands over what is queued, and has the kernel post what it holds back in the same system call: unless it
    /// takes only some of the entries, what a device answers at once is there when this returns.
    pub(super) fn hand_over(&mut self) -> io::Result<usize> {
        let queued = u32::try_from(self.queued()).expect("no more than the ring's entries");
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: without an argument it reads nothing of ours but the ring; the memory that entries name is
        // kept by whoever pushed them.
        unsafe { self.submitter().enter::<()>(queued, 0, flags, None) }
    }

    pub(super) fn next_completion(&mut self) -> Option<Reaped> {
        match self {
            Self::Plain(ring) => {
                let entry = ring.completion().next()?;
                Some(Reaped { user_data: entry.user_data(), result: entry.result() })
            }
            Self::Wide(ring) => {
                let entry = ring.completion().next()?;
                Some(Reaped { user_data: entry.user_data(), result: entry.result() })
            }
        }
    }

    pub(super) fn submitter(&self) -> Submitter<'_> {
        match self {
            Self::Plain(ring) => ring.submitter(),
            Self::Wide(ring) => ring.submitter(),
        }
    }

    pub(super) fn parameters(&self) -> &Parameters {
        match self {
            Self::Plain(ring) => ring.params(),
            Self::Wide(ring) => ring.params(),
        }
    }
}

impl AsRawFd for Rings {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Plain(ring) => ring.as_raw_fd(),
            Self::Wide(ring) => ring.as_raw_fd(),
        }
    }
}

fn build<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
    builder: fn() -> Builder<S, C>,
    entries: u32,
) -> io::Result<IoUring<S, C>> {
    let fast = builder()
        .setup_r_disabled()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    let since_5_19 = || {
        builder()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries)
    };
    let plain = || builder().setup_r_disabled().build(entries);
    // Only EINVAL means "I do not know these flags"; anything else would come again.
    let unknown = |error: io::Error, next: &dyn Fn() -> io::Result<IoUring<S, C>>| {
        if error.raw_os_error() == Some(libc::EINVAL) { next() } else { Err(error) }
    };
    fast.or_else(|error| unknown(error, &since_5_19)).or_else(|error| unknown(error, &plain))
}
