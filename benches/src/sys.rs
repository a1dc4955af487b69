//! System calls that the standard library lacks.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Asks a process to end, by SIGTERM.
pub fn terminate(pid: u32) {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return };
    // SAFETY: a signal touches no memory of this process; the caller owns the child, which has
    // not been waited for, so that its id is not another's.
    unsafe { libc::kill(pid, libc::SIGTERM) };
}

/// Drops a file's clean pages from the page cache.
///
/// # Errors
/// What the kernel answers.
pub fn forget_pages(file: &File) -> io::Result<()> {
    // SAFETY: advice about an open descriptor touches no memory.
    let code = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Clock ticks a second, the unit of `/proc/PID/stat`.
#[must_use]
pub fn ticks_per_second() -> u64 {
    // SAFETY: asks for a constant.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100)
}

/// Processor time that this thread took so far.
///
/// # Errors
/// What the kernel answers.
pub fn thread_time() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel stores a timespec to the address it is given.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Ok(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// Writes all of a file system's dirty pages out.
///
/// # Errors
/// What the kernel answers.
pub fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: takes an open descriptor and touches no memory.
    let code = unsafe { libc::syncfs(file.as_raw_fd()) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the calling thread on one processor.
///
/// # Errors
/// What the kernel answers, for example that there is no such processor.
pub fn pin_to(core: usize) -> extent::Result<()> {
    // SAFETY: all zeroes is a valid, empty set of processors.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: sets a bit of this set; one beyond its end is ignored.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set has the size that is given and lives for the length of the call.
    let code = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if code == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(extent::Error::io(format!("keeping a thread on processor {core}"), error))
}
