//! Messages on a UNIX socket, with descriptors.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::sys::{adopt, retried_while};

/// `cmsghdr` as the kernel lays it out: a length of the machine's word, then level and type.
const CONTROL_HEADER_BYTES: usize = size_of::<usize>() + 8;
/// The most descriptors that any message carries.
const MAX_FILES: usize = 2;
const CONTROL_BYTES: usize = CONTROL_HEADER_BYTES + MAX_FILES * 4;

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Sends bytes and descriptors. A message of this module's lengths goes whole or not at all.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    files: &[BorrowedFd<'_>],
    flags: libc::c_int,
) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_BYTES]);
    let control_bytes = CONTROL_HEADER_BYTES + files.len() * 4;
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = empty_message(&mut part);
    if !files.is_empty() {
        let (header, rest) = control.0.split_at_mut(CONTROL_HEADER_BYTES);
        let (length, kind) = header.split_at_mut(size_of::<usize>());
        length.copy_from_slice(&control_bytes.to_ne_bytes());
        kind[..4].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        kind[4..].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
        for (place, file) in rest.chunks_exact_mut(4).zip(files) {
            place.copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        }
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control_bytes;
    }
    let flags = flags | libc::MSG_NOSIGNAL;
    // SAFETY: the message points to `bytes` and `control`, which outlive the call.
    retried_length(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// What [`receive`] found.
pub(super) struct Received {
    pub(super) bytes: usize,
    pub(super) files: [Option<OwnedFd>; MAX_FILES],
    /// More descriptors came than there was room for, here or in the process's table.
    pub(super) truncated: bool,
}

/// Receives bytes and up to `max_files` descriptors; the kernel throws away any others.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    max_files: usize,
    flags: libc::c_int,
) -> io::Result<Received> {
    assert!(max_files <= MAX_FILES, "{max_files} descriptors");
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = empty_message(&mut part);
    if max_files != 0 {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_HEADER_BYTES + max_files * 4;
    }
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message points to `bytes` and `control`, which outlive the call.
    let received =
        retried_length(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })?;
    let control = control.0.get(..message.msg_controllen).unwrap_or_default();
    Ok(Received {
        bytes: received,
        files: descriptors(control),
        truncated: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// The descriptors of the one control message that there is room for.
fn descriptors(control: &[u8]) -> [Option<OwnedFd>; MAX_FILES] {
    let mut files = [const { None }; MAX_FILES];
    let Some((header, rest)) = control.split_at_checked(CONTROL_HEADER_BYTES) else {
        return files;
    };
    let (length, kind) = header.split_at(size_of::<usize>());
    let number = |bytes: &[u8]| bytes.first_chunk().map(|b| i32::from_ne_bytes(*b));
    let is_rights =
        number(kind) == Some(libc::SOL_SOCKET) && number(&kind[4..]) == Some(libc::SCM_RIGHTS);
    if is_rights {
        let length = length.first_chunk().map_or(0, |b| usize::from_ne_bytes(*b));
        let sent = &rest[..length.saturating_sub(CONTROL_HEADER_BYTES).min(rest.len())];
        for (place, fd) in files.iter_mut().zip(sent.chunks_exact(4)) {
            *place = number(fd).map(adopt);
        }
    }
    files
}

fn empty_message(part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: a message header of zeroes is one without name, parts and control data.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
}

fn retried_length(call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    let length = retried_while(call, |&result| result < 0)?;
    Ok(usize::try_from(length).expect("not negative"))
}
