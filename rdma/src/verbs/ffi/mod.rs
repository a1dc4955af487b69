//! What Forebay uses of libibverbs and librdmacm (rdma-core), declared here and looked up when the
//! first of it is needed: a build needs neither, and a machine without them still runs everything
//! else. `layout.rs` compares the declarations with rdma-core's own headers where they are installed.
//!
//! The functions on the way of data ([`poll_cq`], [`post_send`] and the like) are no symbols of the
//! library: a device's driver puts them into the table in its context.
#![allow(unsafe_code)]
// As in C.
#![allow(non_camel_case_types)]

#[cfg(test)]
mod layout;
mod library;
mod structs;

pub(super) use library::{Library, library};
pub(super) use structs::*;

use libc::c_int;

/// Takes up to `count` completions out of a queue; a negative number is an error of the device.
///
/// # Safety
/// `cq` is a live completion queue, and `completions` has room for `count`.
pub(super) unsafe fn poll_cq(cq: *mut ibv_cq, count: c_int, completions: *mut ibv_wc) -> c_int {
    // SAFETY: the queue is live.
    let context = unsafe { (*cq).context };
    // SAFETY: a queue's context is open.
    let poll = unsafe { (*context).ops.poll_cq };
    // SAFETY: the caller vouches for both.
    unsafe { poll(cq, count, completions) }
}

/// Asks for one event on the queue's channel at its next completion, or at the next that the sender of
/// a message asked for.
///
/// # Safety
/// `cq` is a live completion queue.
pub(super) unsafe fn req_notify_cq(cq: *mut ibv_cq, solicited_only: bool) -> c_int {
    // SAFETY: the queue is live.
    let context = unsafe { (*cq).context };
    // SAFETY: a queue's context is open.
    let request = unsafe { (*context).ops.req_notify_cq };
    // SAFETY: the caller vouches for it.
    unsafe { request(cq, c_int::from(solicited_only)) }
}

/// Posts a list of sends. Returns an `errno`; then `bad` is the first one that was not posted.
///
/// # Safety
/// `qp` is a live queue pair; the list, and what its entries point to, live until this returns, and
/// the memory that they name until they complete.
pub(super) unsafe fn post_send(
    qp: *mut ibv_qp,
    list: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    // SAFETY: the queue pair is live.
    let context = unsafe { (*qp).context };
    // SAFETY: a queue pair's context is open.
    let post = unsafe { (*context).ops.post_send };
    // SAFETY: the caller vouches for all three.
    unsafe { post(qp, list, bad) }
}

/// Posts a list of receives, as [`post_send`].
///
/// # Safety
/// As [`post_send`].
pub(super) unsafe fn post_recv(
    qp: *mut ibv_qp,
    list: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the queue pair is live.
    let context = unsafe { (*qp).context };
    // SAFETY: a queue pair's context is open.
    let post = unsafe { (*context).ops.post_recv };
    // SAFETY: the caller vouches for all three.
    unsafe { post(qp, list, bad) }
}

/// Posts a list of receives to a shared queue, as [`post_send`].
///
/// # Safety
/// As [`post_send`], for a live shared receive queue.
pub(super) unsafe fn post_srq_recv(
    srq: *mut ibv_srq,
    list: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the queue is live.
    let context = unsafe { (*srq).context };
    // SAFETY: a queue's context is open.
    let post = unsafe { (*context).ops.post_srq_recv };
    // SAFETY: the caller vouches for all three.
    unsafe { post(srq, list, bad) }
}
