//! One io_uring: its set-up, its tables of files and memory, and the thread it belongs to.
#![allow(unsafe_code)]

mod rings;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use dma::{Region, RegionId};
use extent::{Error, Kind, Result};
use io_uring::squeue::{self, Entry128};
use io_uring::types::{SubmitArgs, Timespec};

pub(super) use self::rings::Reaped;
use self::rings::Rings;
use super::passthrough::takes_places_whole;
use super::table::{Shape, Table};
use super::wait::until_readable;

/// How often a kernel short of memory is asked again before its thread goes on with other work.
const SUBMIT_ATTEMPTS: u32 = 16;

/// An io_uring with a thread of its own.
///
/// The fast set-up (`SINGLE_ISSUER | DEFER_TASKRUN`) lets one thread alone enter the ring, in
/// return for completions without interrupts and locks. That thread is not known here: a queue is
/// made where the node starts and used in a shard. So the ring is made disabled (`R_DISABLED`),
/// which binds it to nobody, and the first thread that enters it enables it and thereby owns it.
pub(super) struct Ring {
    uring: Rings,
    enabled: bool,
    table: Table,
    is_wide: bool,
}

impl Ring {
    /// A ring for `entries` commands at once over `files`, in the fastest set-up that the kernel
    /// has. One that takes NVMe commands, too, says how many bytes of memory it takes at most at
    /// once.
    pub(super) fn new(entries: u32, nvme_bytes: Option<u32>, files: &[RawFd]) -> Result<Self> {
        let is_wide = nvme_bytes.is_some();
        let shape = match nvme_bytes {
            None => Shape::LARGE,
            Some(_) if takes_places_whole() => Shape::PAGES,
            Some(bytes) => Shape::commands(bytes as usize),
        };
        let uring =
            Rings::build(entries, is_wide).map_err(|e| not_made("making an io_uring", e))?;
        let submitter = uring.submitter();
        submitter.register_files(files).map_err(|e| not_made("registering the tier's files", e))?;
        // Missing before Linux 5.19; then all I/O is on unregistered memory.
        let usable = submitter.register_buffers_sparse(u32::from(shape.places)).is_ok();
        Ok(Self { uring, enabled: false, table: Table::new(usable, shape), is_wide })
    }

    /// Queues an entry for the next [`Ring::enter`].
    ///
    /// # Safety
    /// The memory that the entry names stays valid, and nobody else's, until its completion.
    ///
    /// # Panics
    /// If there are more entries than the ring was made for.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller keeps the memory.
        let pushed = unsafe { self.uring.push(entry) };
        pushed.expect("never more entries than the ring was made for");
    }

    /// Queues an NVMe command for the next [`Ring::enter`].
    ///
    /// # Safety
    /// As [`Ring::push`].
    ///
    /// # Panics
    /// If there are more entries than the ring was made for, or it is not wide.
    pub(super) unsafe fn push_wide(&mut self, entry: &Entry128) {
        // SAFETY: the caller keeps the memory.
        let pushed = unsafe { self.uring.push_wide(entry) };
        pushed.expect("never more entries than the ring was made for");
    }

    /// Entries that the kernel has not seen yet.
    pub(super) fn queued(&mut self) -> usize {
        self.uring.queued()
    }

    /// Entries that it holds at once.
    pub(super) fn entries(&self) -> usize {
        self.uring.parameters().sq_entries() as usize
    }

    /// Hands over what is queued and lets the kernel post what it held back. What a kernel short
    /// of memory does not take stays queued.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        self.enable()?;
        let mut attempts = 0;
        loop {
            match self.uring.hand_over() {
                Ok(_) if self.uring.queued() == 0 => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => continue,
                // Completions are in the way: reap them, then come again.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(e) if e.raw_os_error() != Some(libc::EAGAIN) => return Err(e),
                Ok(_) | Err(_) => {}
            }
            attempts += 1;
            if attempts == SUBMIT_ATTEMPTS {
                tracing::warn!("the kernel takes no more I/O just now: is it out of memory?");
                return Ok(());
            }
            thread::yield_now();
        }
    }

    /// Hands over what is queued and sleeps until there are so many completions, or the time is
    /// over. May return early.
    pub(super) fn sleep(&mut self, count: usize, limit: Option<Duration>) -> io::Result<()> {
        self.enable()?;
        let slept = match limit {
            None => self.uring.submitter().submit_and_wait(count),
            Some(limit) if self.uring.parameters().is_feature_ext_arg() => {
                let time = Timespec::from(limit);
                self.uring.submitter().submit_with_args(count, &SubmitArgs::new().timespec(&time))
            }
            // Linux before 5.11 posts completions without being entered, and so can be polled.
            Some(limit) => self.uring.submitter().submit().inspect(|_| {
                // SAFETY: the ring is open while it is borrowed.
                let ring = unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) };
                until_readable(&[ring], Some(limit));
            }),
        };
        let early = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
        match slept {
            Err(e) if e.raw_os_error().is_none_or(|code| !early.contains(&code)) => Err(e),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.uring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Whether the kernel holds completions back until the ring is entered.
    pub(super) fn holds_back(&mut self) -> bool {
        self.uring.holds_back()
    }

    pub(super) fn next_completion(&mut self) -> Option<Reaped> {
        self.uring.next_completion()
    }

    /// Pins a region's pages once and for all. A refusal for want of lockable memory is no error:
    /// commands on the region then pin its pages each time.
    pub(super) fn register(&mut self, region: &Arc<Region>) -> io::Result<()> {
        let first = match self.table.claim(region) {
            Ok(Some(first)) => first,
            Ok(None) => return Ok(()),
            // Its places are small, so that much memory may well find none.
            Err(error) if self.is_wide && error.raw_os_error() == Some(libc::ENOBUFS) => {
                tracing::debug!(bytes = region.length(), "no place to register this memory");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // One by one, since the kernel reports an update that stops half-way as a success.
        for (done, piece) in (0..).zip(self.table.pieces(region)) {
            let Err(error) = self.fill_place(first + done, piece) else { continue };
            self.empty_places(first, done);
            self.table.release(region.id());
            if error.raw_os_error() == Some(libc::ENOMEM) {
                warn_of_limit();
                return Ok(());
            }
            return Err(error);
        }
        Ok(())
    }

    pub(super) fn unregister(&mut self, region: RegionId) {
        if let Some(entry) = self.table.release(region) {
            self.empty_places(entry.first, entry.places);
        }
    }

    fn empty_places(&mut self, first: u16, places: u16) {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        for place in first..first + places {
            if let Err(error) = self.fill_place(place, none) {
                tracing::warn!(%error, "memory could not be unregistered and stays pinned");
            }
        }
    }

    fn fill_place(&self, place: u16, piece: libc::iovec) -> io::Result<()> {
        let submitter = self.uring.submitter();
        // SAFETY: the piece is empty, or in a region that the table keeps mapped until the place
        // is emptied; the kernel pins its pages besides.
        unsafe { submitter.register_buffers_update(u32::from(place), &[piece], None) }
    }

    /// The place of the registered memory that holds a range of `region`.
    pub(super) fn place(&self, region: &Region, offset: usize, length: usize) -> Option<u16> {
        self.table.place(region.id(), offset, length)
    }

    /// The regions registered, for a ring that takes over from this one.
    pub(super) fn regions(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.table.regions()
    }
}

impl Drop for Ring {
    /// The kernel takes a ring down in the background, and until then holds on to its files and
    /// thereby to their locks: give those back at once. Another thread than the ring's may not.
    fn drop(&mut self) {
        if let Err(error) = self.uring.submitter().unregister_files() {
            tracing::debug!(%error, "a ring keeps its files until the kernel has taken it down");
        }
    }
}

fn not_made(doing: &str, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => Kind::Unsupported
            .error(
                "io_uring is not available: allow it with sysctl kernel.io_uring_disabled=0, and \
                 in the container's seccomp profile",
            )
            .caused_by(error),
        Some(libc::ENOMEM) => Kind::NoSpace
            .error(format!("{doing}: raise `ulimit -l`, or use fewer or shorter queues"))
            .caused_by(error),
        Some(libc::EMFILE | libc::ENFILE) => {
            Kind::NoSpace.error(format!("{doing}: raise `ulimit -n`")).caused_by(error)
        }
        _ => Error::io(doing, error),
    }
}

fn warn_of_limit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::warn!(
            "the limit on locked memory is too low to register the I/O buffers, so every command \
             pins its own pages: raise `ulimit -l` (LimitMEMLOCK= in a unit file)"
        );
    });
}
