//! Completion queues, and what is in them.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use extent::{Error, Kind, Result};
use libc::c_int;

use super::adapter::{Adapter, check, made, none};
use super::ffi;

/// Completions taken out at a time.
const BATCH: usize = 32;
/// Events acknowledged together: each acknowledgement takes a lock.
const EVENTS_TOGETHER: u32 = 64;

/// How a work request ended (InfiniBand specification, volume 1, section 11.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WorkStatus(pub(super) u32);

impl WorkStatus {
    pub(super) const SUCCESS: Self = Self(0);

    /// rdma-core's name for it, and what an operator may look at.
    pub(super) fn error(self) -> Error {
        let name = ffi::library().map_or_else(
            |_| format!("work completion status {}", self.0),
            |library| {
                // SAFETY: any number will do.
                let name = unsafe { (library.ibv_wc_status_str)(self.0) };
                // SAFETY: it is a C string that lives forever.
                unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
            },
        );
        Kind::Disconnected.error(format!("RDMA: {name} ({})", self.advice()))
    }

    /// What to look at: a connection ends with each of these.
    fn advice(self) -> &'static str {
        match self.0 {
            1 => "a message was longer than the memory posted for it: please report it",
            2 => "the queue pair was not in a state to do this: please report it",
            3 | 18 => "nothing here uses end-to-end contexts: please report it",
            4 => "this side named memory that is not registered, or not for this: please report it",
            5 => "the connection had failed before; the log says how",
            6 => "a memory window could not be bound, and nothing here binds any: please report it",
            7 => "the peer answered nonsense: is its driver, or its firmware, an old one?",
            8 => "memory of this side did not suit what came: please report it",
            9 => "the peer takes no such request: was its memory too short, or its receive?",
            10 => "the peer's memory is not registered (any more), or not for this",
            11 => "the peer's device failed at it: look at its log",
            12 => {
                "the peer does not answer: is it gone, does the network lose packets, or has it no room \
                   for packets of this MTU?"
            }
            13 => {
                "the peer posts no receives: is it stuck, or does it exceed its credits? Soft-RoCE says \
                 so, too, when it cannot send packets of this MTU"
            }
            14 | 15 => {
                "a request of a kind of connection that nothing here makes: please report it"
            }
            16 => "the peer broke off: look at its log",
            17 => "the device mixed up its contexts: look at the kernel's log",
            19 => {
                "the device failed: look at the kernel's log, and reset it or restart the machine"
            }
            20 => "the peer took too long: is its device overloaded?",
            21 => "the device says no more than that: look at the kernel's log",
            22 | 23 => "tag matching went wrong, and nothing here uses it: please report it",
            _ => "unknown: see the InfiniBand specification, volume 1, section 11.6.2",
        }
    }
}

/// The end of a work request.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkCompletion {
    /// As posted.
    pub(super) id: u64,
    pub(super) status: WorkStatus,
    /// Bytes received.
    pub(super) bytes: u32,
    pub(super) queue_pair: u32,
    /// What came with an RDMA WRITE, or a message.
    pub(super) immediate: Option<u32>,
}

/// What makes a descriptor readable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wake {
    /// Messages of the other side, and failures: all of its messages are solicited.
    Messages,
    /// Whatever completes.
    Everything,
}

/// Where completions of any number of queue pairs come, with a channel to sleep on.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    queue: NonNull<ffi::ibv_cq>,
    channel: NonNull<ffi::ibv_comp_channel>,
    /// Events that were not acknowledged yet.
    unacknowledged: AtomicU32,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above; rdma-core locks the queue itself.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// A queue of at least `capacity` entries. More completions than that must never be due: a queue
    /// that overflows takes its queue pairs with it.
    pub(super) fn new(adapter: Adapter, capacity: u32) -> Result<Arc<Self>> {
        let library = ffi::library()?;
        let entries = c_int::try_from(capacity).unwrap_or(c_int::MAX);
        // SAFETY: the context is open.
        let channel = unsafe { (library.ibv_create_comp_channel)(adapter.context()) };
        let channel = made(channel, "making a completion channel")?;
        // SAFETY: context and channel are live; no context value, first vector.
        let queue = unsafe {
            (library.ibv_create_cq)(adapter.context(), entries, none(), channel.as_ptr(), 0)
        };
        let queue = match made(queue, "making a completion queue") {
            Ok(queue) => queue,
            Err(error) => {
                // SAFETY: nothing uses the channel.
                unsafe { (library.ibv_destroy_comp_channel)(channel.as_ptr()) };
                return Err(error);
            }
        };
        let made = Self { queue, channel, unacknowledged: AtomicU32::new(0) };
        // SAFETY: changes flags of a descriptor that is open.
        let failed = unsafe { libc::fcntl(made.raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        check(failed, "setting up a completion channel")?;
        Ok(Arc::new(made))
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::ibv_cq {
        self.queue.as_ptr()
    }

    fn raw_fd(&self) -> c_int {
        // SAFETY: the channel is live.
        unsafe { (*self.channel.as_ptr()).fd }
    }

    /// Takes what has completed, at most a batch. Whether there may be more.
    pub(super) fn poll(&self, out: &mut Vec<WorkCompletion>) -> Result<bool> {
        let mut batch = [const { MaybeUninit::<ffi::ibv_wc>::uninit() }; BATCH];
        let room = c_int::try_from(BATCH).expect("small");
        // SAFETY: the queue is live and the batch has room for so many.
        let count = unsafe { ffi::poll_cq(self.as_ptr(), room, batch.as_mut_ptr().cast()) };
        let Ok(count) = usize::try_from(count) else {
            return Err(Kind::Io.error("an RDMA device's completion queue is broken"));
        };
        for completion in &batch[..count] {
            // SAFETY: so many were filled.
            let completion = unsafe { completion.assume_init_ref() };
            out.push(WorkCompletion {
                id: completion.wr_id,
                status: WorkStatus(completion.status),
                bytes: completion.byte_len,
                queue_pair: completion.qp_num,
                immediate: (completion.wc_flags & ffi::IBV_WC_WITH_IMM != 0)
                    .then(|| u32::from_be(completion.imm_data)),
            });
        }
        Ok(count == BATCH)
    }

    /// Makes the descriptor readable at the next completion that is worth waking for. Those that came
    /// before may not do so: poll once more before sleeping.
    pub(super) fn arm(&self, wake: Wake) -> Result<()> {
        let solicited_only = wake == Wake::Messages;
        // SAFETY: the queue is live.
        let failed = unsafe { ffi::req_notify_cq(self.as_ptr(), solicited_only) };
        check(failed, "arming a completion queue")
    }

    /// Takes the events that made the descriptor readable.
    pub(super) fn clear(&self) {
        let Ok(library) = ffi::library() else { return };
        let (mut queue, mut context) = (none(), none());
        // SAFETY: the channel is live and both places are written to; it does not block.
        while unsafe {
            (library.ibv_get_cq_event)(self.channel.as_ptr(), &raw mut queue, &raw mut context)
        } == 0
        {
            self.unacknowledged.fetch_add(1, Ordering::Relaxed);
        }
        if self.unacknowledged.load(Ordering::Relaxed) >= EVENTS_TOGETHER {
            self.acknowledge();
        }
    }

    fn acknowledge(&self) {
        let Ok(library) = ffi::library() else { return };
        let count = self.unacknowledged.swap(0, Ordering::Relaxed);
        // SAFETY: so many events of this queue were taken and not acknowledged.
        unsafe { (library.ibv_ack_cq_events)(self.as_ptr(), count) };
    }
}

impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the channel is there.
        unsafe { BorrowedFd::borrow_raw(self.raw_fd()) }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // Or destroying it waits for ever.
        self.acknowledge();
        let Ok(library) = ffi::library() else { return };
        // SAFETY: queue pairs hold what keeps their queue alive, so there are none.
        let failed = unsafe { (library.ibv_destroy_cq)(self.queue.as_ptr()) };
        if let Err(error) = check(failed, "destroying a completion queue") {
            tracing::warn!(%error, "a completion queue is leaked");
            return;
        }
        // SAFETY: its only queue is gone.
        unsafe { (library.ibv_destroy_comp_channel)(self.channel.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last that rdma-core 50 has (`IBV_WC_TM_RNDV_INCOMPLETE`).
    const LAST: u32 = 23;

    #[test]
    fn every_status_ends_a_connection_and_says_what_to_look_at() {
        for status in 1..=LAST {
            let error = WorkStatus(status).error();
            assert_eq!(error.kind(), Kind::Disconnected);
            let advice = WorkStatus(status).advice();
            assert!(!advice.starts_with("unknown"), "{status}: {advice}");
            assert!(error.to_string().contains(advice), "{error}");
        }
        assert!(WorkStatus(LAST + 1).advice().starts_with("unknown"));
        let error = WorkStatus(u32::MAX).error();
        assert_eq!(error.kind(), Kind::Disconnected, "{error}");
    }
}
