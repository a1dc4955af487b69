//! Small questions to the operating system.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use extent::checksum::Choice;
use extent::{Error, Kind, Result};

use crate::clock;

/// Whether this process is root's.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Times both ways to compute checksums on this processor, and takes the faster one from now on.
pub(crate) fn choose_checksums() -> Choice {
    let begin = clock::now();
    extent::checksum::choose(|| begin.elapsed())
}

/// The number of the user of this name.
pub(crate) fn user_number(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut strings = vec![0; 16 << 10];
    let mut found = std::ptr::null_mut();
    // SAFETY: the name ends in a zero byte; the entry, its strings and the pointer have room.
    let rc = unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            entry.as_mut_ptr(),
            strings.as_mut_ptr(),
            strings.len(),
            &raw mut found,
        )
    };
    if rc != 0 || found.is_null() {
        return None;
    }
    // SAFETY: it was found, and so the entry is filled.
    Some(unsafe { entry.assume_init() }.pw_uid)
}

/// Whether this user may make something in a directory.
pub(crate) fn may_write(directory: &Path) -> bool {
    let Ok(text) = CString::new(directory.as_os_str().as_bytes()) else { return false };
    // SAFETY: `text` ends in a zero byte.
    unsafe { libc::access(text.as_ptr(), libc::W_OK | libc::X_OK) == 0 }
}

/// Bytes that this user may still write to the file system that holds `path`, or would hold it.
///
/// # Errors
/// [`Kind::Io`] if no part of the path can be looked at.
pub(crate) fn free_bytes(path: &Path) -> Result<u64> {
    let existing = nearest_existing(path);
    let text = CString::new(existing.as_os_str().as_bytes())
        .map_err(|e| Kind::Invalid.error("a path with a zero byte").caused_by(e))?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `text` ends in a zero byte and `stat` has room for the answer.
    let rc = unsafe { libc::statvfs(text.as_ptr(), stat.as_mut_ptr()) };
    if rc != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Error::io(format!("asking for free space at {}", existing.display()), error));
    }
    // SAFETY: statvfs succeeded and has filled it.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of memory that programs may still take, as the kernel estimates; `None` if it does not.
pub(crate) fn available_memory_bytes() -> Option<u64> {
    memory_line("MemAvailable:")
}

/// Bytes of memory of the machine, or of the control group that this runs in if that has less.
pub(crate) fn memory_bytes() -> Option<u64> {
    let all = memory_line("MemTotal:")?;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse().ok());
    Some(group.map_or(all, |most: u64| most.min(all)))
}

fn memory_line(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The path itself, or the deepest directory above it that exists.
pub(crate) fn nearest_existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|part| !part.as_os_str().is_empty() && part.exists())
        .unwrap_or_else(|| Path::new("."))
}

/// The soft and hard limit of a resource of this process; `u64::MAX` for none.
pub(crate) fn limit(resource: libc::__rlimit_resource_t) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` has room for the answer; an unknown resource is an error, not a fault.
    let rc = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if rc == 0 { (limit.rlim_cur, limit.rlim_max) } else { (0, 0) }
}

/// Raises the soft limit of open files to the hard one: every client costs a few.
pub(crate) fn raise_open_files() {
    let (soft, hard) = limit(libc::RLIMIT_NOFILE);
    let wanted = libc::rlimit { rlim_cur: hard, rlim_max: hard };
    if soft < hard {
        // SAFETY: `wanted` is a filled rlimit; failure leaves the old limit in force.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) };
    }
}

/// Whether a shared library can be opened, without keeping it open.
pub(crate) fn library_opens(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: `name` ends in a zero byte; opening runs the library's constructors, which for the
    // libraries asked for here only initialise themselves.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
    // Not closed: some of these libraries do not survive being unloaded.
    !handle.is_null()
}

/// Makes a child process end when the thread that starts it does, so that none is left behind
/// even if this process is killed.
pub(crate) fn die_with_parent(command: &mut Command) {
    let die = || {
        // SAFETY: prctl with these arguments only sets a property of the new process.
        let rc = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec, `die` makes one system call and takes no lock.
    unsafe { command.pre_exec(die) };
}

/// Asks a process to stop in order (SIGTERM).
pub(crate) fn terminate(pid: u32) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: kill takes plain numbers; the caller has not waited for this child yet, so the
        // number is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// The kernel's name and release.
pub(crate) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_of_a_place_to_be() {
        let free = free_bytes(Path::new("/tmp/not/there/yet")).expect("/tmp is there");
        assert!(free > 0);
        assert_eq!(nearest_existing(Path::new("/tmp/not/there")), Path::new("/tmp"));
    }

    #[test]
    fn there_is_more_memory_than_is_free() {
        let (all, free) = (memory_line("MemTotal:"), available_memory_bytes());
        assert!(all.is_some() && all > free && memory_bytes() <= all, "{free:?} of {all:?}");
    }

    #[test]
    fn libraries_that_are_not_there_do_not_open() {
        assert!(library_opens("libc.so.6"));
        assert!(!library_opens("libforebay-does-not-exist.so.9"));
    }
}
