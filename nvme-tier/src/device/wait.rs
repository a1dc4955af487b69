//! Sleeping on descriptors.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread;
use std::time::Duration;

/// The most descriptors that one sleep is for.
pub(super) const MOST_DESCRIPTORS: usize = 5;

/// Sleeps until one of the descriptors is readable, a signal arrives, or the time is over. Returns
/// whether one was readable. Without any it merely yields.
pub(super) fn until_readable(descriptors: &[BorrowedFd<'_>], limit: Option<Duration>) -> bool {
    if descriptors.is_empty() {
        thread::yield_now();
        return false;
    }
    let mut entries = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; MOST_DESCRIPTORS];
    for (entry, descriptor) in entries.iter_mut().zip(descriptors) {
        entry.fd = descriptor.as_raw_fd();
    }
    let limit_ms = limit
        .map_or(-1, |limit| libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX));
    let count = descriptors.len().min(MOST_DESCRIPTORS) as libc::nfds_t;
    // SAFETY: as many valid entries as that, on this stack for the length of the call.
    unsafe { libc::poll(entries.as_mut_ptr(), count, limit_ms) > 0 }
}
