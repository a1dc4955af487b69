//! Sleeping until a device has something to report.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use super::Device;

/// Sleeps until `device` has a completion to report, a signal arrives, or `limit` has passed;
/// returns at once if nothing is in flight. For tools and recovery, which have nothing else to
/// do; a shard waits on [`Device::readiness`] together with its other descriptors. A device that
/// can only be polled makes this a mere yield.
pub fn wait(device: &dyn Device, limit: Duration) {
    if device.in_flight() == 0 {
        return;
    }
    let Some(readiness) = device.readiness() else {
        thread::yield_now();
        return;
    };
    let mut entry = libc::pollfd { fd: readiness.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit_ms = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `entry` is one valid entry, on this stack for the length of the call.
    unsafe { libc::poll(&raw mut entry, 1, limit_ms) };
}
