//! The system calls that the fabrics need and the standard library lacks: epoll, eventfd, poll, and
//! vectored sends and receives straight from and into transfer memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::marker::PhantomData;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use dma::{Source, Target};
use libc::c_int;

/// The most pieces of memory in one send or receive.
pub(crate) const MAX_SPANS: usize = 64;

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: creates a descriptor and touches no memory.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        own(fd).map(Self)
    }

    /// Watches a descriptor, which closing it ends. `data` comes back with its events.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, interest: c_int, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.cast_unsigned(), u64: data };
        let (epoll, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: both descriptors are open; the kernel copies the event before it returns.
        check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) })
    }

    /// Waits at most so many milliseconds, forever for -1, and lists what is ready.
    pub(crate) fn wait(&self, ready: &mut Ready, timeout_ms: c_int) -> io::Result<()> {
        ready.count = 0;
        let room = c_int::try_from(ready.list.len()).expect("a few hundred");
        let (epoll, list) = (self.0.as_raw_fd(), ready.list.as_mut_ptr());
        // SAFETY: `list` has room for `room` events and is exclusively borrowed.
        let count = unsafe { libc::epoll_wait(epoll, list, room, timeout_ms) };
        match usize::try_from(count) {
            Ok(count) => ready.count = count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What [`Epoll::wait`] found.
pub(crate) struct Ready {
    list: Box<[libc::epoll_event]>,
    count: usize,
}

impl Ready {
    pub(crate) fn with_room(events: usize) -> Self {
        let empty = libc::epoll_event { events: 0, u64: 0 };
        Self { list: vec![empty; events].into_boxed_slice(), count: 0 }
    }

    /// The data that a descriptor was added with, and its events.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, c_int)> + '_ {
        self.list[..self.count].iter().map(|event| (event.u64, event.events.cast_signed()))
    }
}

/// An eventfd: readable from [`EventFd::signal`] until [`EventFd::clear`].
#[derive(Debug)]
pub(crate) struct EventFd(File);

impl EventFd {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: creates a descriptor and touches no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self(own(fd)?.into()))
    }

    pub(crate) fn signal(&self) {
        // A full counter is as readable as one more would make it.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    pub(crate) fn clear(&self) {
        // Nothing to read means that it was clear already.
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Becomes readable again and again.
#[derive(Debug)]
pub(crate) struct Ticker(File);

impl Ticker {
    /// Every so many seconds.
    pub(crate) fn new(seconds: libc::time_t) -> io::Result<Self> {
        let ticker = Self::stopped()?;
        ticker.set(seconds)?;
        Ok(ticker)
    }

    /// Never, until it is [set](Ticker::set).
    pub(crate) fn stopped() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: creates a descriptor and touches no memory.
        Ok(Self(own(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?.into()))
    }

    /// Every so many seconds from now on; never again for 0.
    pub(crate) fn set(&self, seconds: libc::time_t) -> io::Result<()> {
        let every = libc::timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = libc::itimerspec { it_interval: every, it_value: every };
        let old = std::ptr::null_mut();
        // SAFETY: the descriptor is open; the times are copied during the call.
        check(unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const times, old) })
    }

    /// Whether it ticked since it was asked last.
    pub(crate) fn ticked(&self) -> bool {
        (&self.0).read(&mut [0; 8]).is_ok()
    }
}

impl AsFd for Ticker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until one of the `events` (as in `poll(2)`) happens on `fd`, or the time is over.
pub(crate) fn wait_for(fd: BorrowedFd<'_>, events: i16, timeout: Duration) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: one pollfd and one timespec, both alive until the call returns; no signal mask.
    let result = unsafe { libc::ppoll(&raw mut poll, 1, &raw const time, std::ptr::null()) };
    match check(result) {
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}

/// Has the kernel give a connection up once sent bytes have not been taken for so long, be it that
/// the peer is unreachable or that it does not read.
pub(crate) fn limit_stall(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<()> {
    let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    let length = libc::socklen_t::try_from(size_of::<u32>()).expect("four");
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
    let value = (&raw const limit_ms).cast();
    // SAFETY: `value` points to `length` bytes that live until the call returns.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, length) })
}

/// Memory to send, in order, borrowed for `'a`.
pub(crate) struct Outgoing<'a> {
    spans: Spans,
    borrowed: PhantomData<&'a [u8]>,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new() -> Self {
        Self { spans: Spans::new(), borrowed: PhantomData }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.spans.count == MAX_SPANS
    }

    pub(crate) fn bytes(&self) -> usize {
        self.spans.bytes
    }

    pub(crate) fn push(&mut self, bytes: &'a [u8]) {
        self.spans.push(bytes.as_ptr().cast_mut(), bytes.len());
    }

    /// What is behind the first `skip` bytes of a source.
    pub(crate) fn push_source(&mut self, source: &'a Source, skip: usize) {
        let left = source.length().checked_sub(skip).expect("a source is not sent twice");
        // SAFETY: `skip` is at most the length for which the source vouches.
        let base = unsafe { source.address().add(skip) };
        self.spans.push(base.as_ptr(), left);
    }

    /// Sends as much as the socket takes now, at least one byte.
    pub(crate) fn send(mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let message = self.spans.message();
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        retry(|| {
            // SAFETY: every span is memory that is borrowed for `'a`, and is only read. Where it
            // is another process's too, torn bytes are that process's own.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) }
        })
    }
}

/// Memory to receive into, in order, borrowed for `'a`.
pub(crate) struct Incoming<'a> {
    spans: Spans,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Incoming<'a> {
    pub(crate) fn new() -> Self {
        Self { spans: Spans::new(), borrowed: PhantomData }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.spans.bytes
    }

    pub(crate) fn push(&mut self, space: &'a mut [u8]) {
        self.spans.push(space.as_mut_ptr(), space.len());
    }

    /// What is behind the first `skip` bytes of a target.
    pub(crate) fn push_target(&mut self, target: &'a mut Target, skip: usize) {
        let left = target.length().checked_sub(skip).expect("a target is not filled twice");
        // SAFETY: `skip` is at most the length for which the target vouches.
        let base = unsafe { target.address().add(skip) };
        self.spans.push(base.as_ptr(), left);
    }

    /// Receives what is there now; 0 at the end of the stream.
    pub(crate) fn receive(mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut message = self.spans.message();
        retry(|| {
            // SAFETY: every span is memory that is exclusively borrowed for `'a`, or a window,
            // whose owner promised not to touch it while a request names it.
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
        })
    }
}

struct Spans {
    list: [libc::iovec; MAX_SPANS],
    count: usize,
    bytes: usize,
}

impl Spans {
    fn new() -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { list: [none; MAX_SPANS], count: 0, bytes: 0 }
    }

    fn push(&mut self, base: *mut u8, length: usize) {
        if length != 0 {
            self.list[self.count] = libc::iovec { iov_base: base.cast(), iov_len: length };
            self.count += 1;
            self.bytes += length;
        }
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: a message header of zeroes is one without address, spans or control data.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = self.list.as_mut_ptr();
        message.msg_iovlen = self.count;
        message
    }
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn own(fd: c_int) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the call before just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
