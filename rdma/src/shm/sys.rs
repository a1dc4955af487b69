//! The system calls of shared memory sessions.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use extent::{Error, Kind, Result};

/// A memory file of `bytes`, all of them allocated, sealed against changes of size. Allocating
/// charges the memory to its maker rather than to whoever touches it first.
///
/// # Errors
/// [`Kind::NoSpace`] if there is not that much memory; [`Kind::Io`] if the kernel refuses otherwise.
pub(super) fn memory_file(bytes: usize) -> Result<OwnedFd> {
    allocated_file(bytes, 0, libc::F_SEAL_SEAL)
}

/// As [`memory_file`], but of huge pages, and open to the seal that the node will add; `bytes` is a
/// multiple of a page's.
///
/// # Errors
/// [`Kind::NoSpace`] if not as many are set aside and free; [`Kind::Io`] if the kernel has none.
pub(super) fn huge_memory_file(bytes: usize) -> Result<OwnedFd> {
    allocated_file(bytes, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB, 0)
}

fn allocated_file(bytes: usize, pages: libc::c_uint, last_seal: libc::c_int) -> Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | pages;
    // Kernels before 6.3 do not know the flag; some newer ones insist on it.
    let file = memfd(flags | libc::MFD_NOEXEC_SEAL)
        .or_else(|_| memfd(flags))
        .map_err(|e| Error::io("creating a memory file", e))?;
    let length = libc::off_t::try_from(bytes)
        .map_err(|e| Kind::NoSpace.error(format!("{bytes} bytes of memory")).caused_by(e))?;
    // SAFETY: it allocates pages of a file that is ours.
    retried(|| unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) }).map_err(|e| {
        Kind::NoSpace.error(format!("allocating {bytes} bytes of shared memory")).caused_by(e)
    })?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | last_seal;
    // SAFETY: it sets a property of a file that is ours.
    retried(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })
        .map_err(|e| Error::io("sealing a memory file", e))?;
    Ok(file)
}

fn memfd(flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string.
    let fd = retried(|| unsafe { libc::memfd_create(c"forebay".as_ptr(), flags) })?;
    Ok(adopt(fd))
}

/// A memory file's seals; `None` if it is no memory file. Asks nothing that a file of a strange
/// file system could take its time to answer.
pub(super) fn seals(file: BorrowedFd<'_>) -> Option<libc::c_int> {
    // SAFETY: it reads a property of an open descriptor.
    retried(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) }).ok()
}

/// Bytes of a memory file's pages if they are huge ones.
///
/// # Errors
/// [`Kind::Io`] if the kernel does not tell.
pub(super) fn huge_page_bytes(file: BorrowedFd<'_>) -> Result<Option<u64>> {
    let mut answer = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: it writes one `statfs` to where there is room for one.
    retried(|| unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) })
        .map_err(|e| Error::io("asking what shared memory is made of", e))?;
    // SAFETY: it was zeroed, and any integers are a `statfs`.
    let answer = unsafe { answer.assume_init() };
    let is_huge = answer.f_type == libc::HUGETLBFS_MAGIC;
    Ok(is_huge.then(|| u64::try_from(answer.f_bsize).unwrap_or(u64::MAX)))
}

/// Has a memory file of `bytes` refuse to lose pages from now on, by whomever: no hole can be punched
/// into it, and nobody maps it for writing any more who has not done so yet. Then makes sure that all
/// its pages are there: pages past its end count as blocks too, so counting those would not do.
///
/// # Errors
/// [`Kind::Denied`] if its maker sealed it against seals; [`Kind::NoSpace`] if a page is missing and
/// cannot be had.
pub(super) fn keep_pages(file: BorrowedFd<'_>, bytes: u64) -> Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: it sets a property of an open descriptor.
    retried(|| unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) })
        .map_err(|e| Kind::Denied.error("the region's file takes no more seals").caused_by(e))?;
    let length = libc::off_t::try_from(bytes)
        .map_err(|e| Kind::NoSpace.error(format!("{bytes} bytes of memory")).caused_by(e))?;
    // SAFETY: it allocates pages that are missing, and touches none that is there.
    retried(|| unsafe { libc::fallocate(fd, 0, 0, length) }).map(drop).map_err(|e| {
        Kind::NoSpace.error("a region's huge pages are not all there, nor to be had").caused_by(e)
    })
}

/// Sleeps while `word` is not zero, until somebody wakes, a signal arrives, or the time is over.
pub(super) fn sleep_on(word: &AtomicU32, timeout: Duration) {
    let value = word.load(Ordering::Relaxed);
    if value == 0 {
        return;
    }
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: the word lives in a mapping that is borrowed, and `limit` on this stack; the kernel
    // reads both. It compares the word with `value` before it sleeps.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const limit)
    };
}

/// Wakes whoever sleeps on `word`, in whichever process.
pub(super) fn wake(word: &AtomicU32) {
    // SAFETY: the word lives in a mapping that is borrowed; only its address is used.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// A doorbell.
///
/// # Errors
/// [`Kind::Io`] if the node is out of descriptors.
pub(super) fn doorbell() -> Result<File> {
    // SAFETY: it makes a new descriptor.
    let fd = retried(|| unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
        .map_err(|e| Error::io("creating an eventfd (raise the limit on open files?)", e))?;
    Ok(File::from(adopt(fd)))
}

/// Who is at the other end of a UNIX socket: process and effective user when it connected.
///
/// # Errors
/// [`Kind::Io`] if the kernel does not tell.
pub(super) fn peer(socket: BorrowedFd<'_>) -> Result<(libc::pid_t, libc::uid_t)> {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
    let mut length = libc::socklen_t::try_from(size_of_val(&peer)).expect("a few bytes");
    // SAFETY: it writes at most `length` bytes to `peer`, which has as many.
    retried(|| unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    })
    .map_err(|e| Error::io("asking who connects", e))?;
    Ok((peer.pid, peer.uid))
}

/// This process's effective user.
pub(super) fn own_user() -> libc::uid_t {
    // SAFETY: it has no preconditions.
    unsafe { libc::geteuid() }
}

/// Waits until a socket has something to read, or hung up; `false` if the time was over first.
pub(super) fn wait_readable(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let mut wanted = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: it reads `limit` and writes to the one `pollfd`; no signal mask is passed.
    let ready = unsafe { libc::ppoll(&raw mut wanted, 1, &raw const limit, std::ptr::null()) };
    match ready {
        0 => Ok(false),
        1.. => Ok(true),
        _ => match io::Error::last_os_error() {
            // A signal: the caller looks around and waits again.
            error if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            error => Err(error),
        },
    }
}

/// An epoll instance.
#[derive(Debug)]
pub(super) struct Epoll(OwnedFd);

/// How many events one [`Epoll::ready`] returns at most.
pub(super) const EVENTS: usize = 64;

impl Epoll {
    /// # Errors
    /// [`Kind::Io`] if the node is out of descriptors.
    pub(super) fn new() -> Result<Self> {
        // SAFETY: it makes a new descriptor.
        let fd = retried(|| unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
            .map_err(|e| Error::io("creating an epoll instance", e))?;
        Ok(Self(adopt(fd)))
    }

    /// Reports `data` whenever `file` has something to read: each time anew for an `edge`, else
    /// for as long as it is unread.
    ///
    /// # Errors
    /// [`Kind::Io`] if the kernel refuses.
    pub(super) fn add(&self, file: BorrowedFd<'_>, data: u64, edge: bool) -> Result<()> {
        let trigger = if edge { libc::EPOLLET } else { libc::EPOLLRDHUP };
        let mut event =
            libc::epoll_event { events: (libc::EPOLLIN | trigger).cast_unsigned(), u64: data };
        self.control(libc::EPOLL_CTL_ADD, file, &raw mut event)
            .map_err(|e| Error::io("watching a client", e))
    }

    /// Forgets a file. Closing it would not do where its peer holds the same open file.
    pub(super) fn remove(&self, file: BorrowedFd<'_>) {
        let removed = self.control(libc::EPOLL_CTL_DEL, file, std::ptr::null_mut());
        debug_assert!(removed.is_ok(), "only what was added is removed: {removed:?}");
    }

    fn control(
        &self,
        operation: libc::c_int,
        file: BorrowedFd<'_>,
        event: *mut libc::epoll_event,
    ) -> io::Result<()> {
        let (epoll, file) = (self.0.as_raw_fd(), file.as_raw_fd());
        // SAFETY: both descriptors are open, and `event` is null or points to a live value.
        retried(|| unsafe { libc::epoll_ctl(epoll, operation, file, event) }).map(drop)
    }

    /// The data of what is ready, without waiting; how many.
    pub(super) fn ready(&self, data: &mut [u64; EVENTS]) -> usize {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let most = libc::c_int::try_from(EVENTS).expect("a few");
        // SAFETY: there is room for that many events.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), most, 0) };
        // Only a signal makes this fail, and then the next call tells.
        let count = usize::try_from(count).unwrap_or(0);
        for (data, event) in data.iter_mut().zip(&events[..count]) {
            *data = event.u64;
        }
        count
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes over a descriptor that the kernel has just made.
pub(super) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: every caller has just got it from the kernel and gives it to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn retried(call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    retried_while(call, |&result| result < 0)
}

/// A system call's result, once no signal gets in its way.
pub(super) fn retried_while<T>(
    mut call: impl FnMut() -> T,
    failed: impl Fn(&T) -> bool,
) -> io::Result<T> {
    loop {
        let result = call();
        if !failed(&result) {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A memory file with whatever flags, allocated not at all and not sealed.
#[cfg(test)]
pub(super) fn test_memory(bytes: u64, flags: libc::c_uint) -> io::Result<OwnedFd> {
    let file = File::from(memfd(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | flags)?);
    file.set_len(bytes)?;
    Ok(file.into())
}

/// Punches a hole into a memory file.
#[cfg(test)]
pub(super) fn test_punch(file: &OwnedFd, at: i64, bytes: i64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: it frees pages of a file that nothing here is borrowed from.
    retried(|| unsafe { libc::fallocate(file.as_raw_fd(), mode, at, bytes) }).map(drop)
}

/// Seals a memory file.
#[cfg(test)]
pub(super) fn test_seal(file: &OwnedFd, seals: libc::c_int) {
    // SAFETY: it sets a property of a file that is ours.
    retried(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })
        .expect("a memfd");
}
