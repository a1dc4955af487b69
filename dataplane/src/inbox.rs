//! How other threads speak to a shard.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_queue::SegQueue;
use dma::{Buffer, Frozen};
use extent::{Error, Result};
use nvme_tier::{Extent, File, FileGeneration, Reservation};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use crate::slots::Key;

/// An extent's bytes as they came from a silo, padded with zeroes to the checksum block.
pub(crate) struct Fetched {
    pub(crate) buffer: Frozen,
    /// Bytes that belong to the file.
    pub(crate) length: usize,
    /// One CRC32C a block.
    pub(crate) checksums: Box<[u32]>,
}

/// What a shard is told.
pub(crate) enum Message {
    /// A recall ended: the bytes, or `None` if the extent was in the tier all the time.
    Arrived { op: Key, result: Result<Option<Arc<Fetched>>>, joined: bool },
    /// An OPEN by name has found, or adopted, its file.
    Opened { request: Key, result: Result<Arc<File>> },
    /// A slot for a new generation's extent.
    Reserved { draft: Key, index: u32, result: Result<Reservation> },
    /// A new generation is durable, or is not.
    Committed { request: Key, result: Result<Arc<FileGeneration>> },
    /// Write these bytes to this slot and answer with the slot.
    Store {
        reservation: Reservation,
        fetched: Arc<Fetched>,
        done: oneshot::Sender<Result<Reservation>>,
    },
    /// Read checksum blocks of an extent that has its checksums, verified, into this buffer.
    Load {
        extent: Extent,
        blocks: Range<u32>,
        buffer: Buffer,
        done: oneshot::Sender<Result<Buffer>>,
    },
    /// Read an extent's descriptor into this buffer, as it stands on the device.
    LoadDescriptor { extent: Extent, buffer: Buffer, done: oneshot::Sender<Result<Buffer>> },
    /// Write checksum blocks of an extent where they stand.
    Mend { extent: Extent, blocks: Range<u32>, buffer: Buffer, done: oneshot::Sender<Result<()>> },
    /// Finish what runs and end.
    Stop,
}

/// A shard's mailbox and the bell beside it. There is no bound of its own: every message answers
/// an operation that was bounded where it began, by a session's credits or the mover's limits.
pub(crate) struct Inbox {
    queue: SegQueue<Message>,
    bell: Bell,
}

impl Inbox {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self { queue: SegQueue::new(), bell: Bell::new()? }))
    }

    /// Leaves a message, and wakes the shard if it sleeps.
    pub(crate) fn send(&self, message: Message) {
        self.queue.push(message);
        self.bell.ring();
    }

    pub(crate) fn receive(&self) -> Option<Message> {
        self.queue.pop()
    }

    /// Announces sleep. `false` if there is a message after all.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.bell.fall_asleep();
        if self.queue.is_empty() {
            return true;
        }
        self.bell.wake_up(false);
        false
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }
}

/// Wakes a thread, and costs nothing while it is awake.
pub(crate) struct Bell {
    asleep: AtomicBool,
    event: OwnedFd,
}

impl Bell {
    pub(crate) fn new() -> Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|e| Error::io("making an eventfd", e.into()))?;
        Ok(Self { asleep: AtomicBool::new(false), event })
    }

    /// Wakes the owner if it sleeps. Call it after leaving work where the owner will look.
    pub(crate) fn ring(&self) {
        // Pairs with the fence in `fall_asleep`: either we see `asleep`, or the owner, who looks
        // once more after announcing, sees the work that was left before this fence.
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::Relaxed) {
            let rung = rustix::io::write(&self.event, &1u64.to_ne_bytes());
            debug_assert!(rung.is_ok() || rung == Err(rustix::io::Errno::AGAIN));
        }
    }

    /// Announces sleep: look for work once more, then sleep on [`Bell::descriptor`].
    pub(crate) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Ends the announcement and quiets the bell. `rung` is whether it may have woken its owner.
    pub(crate) fn wake_up(&self, rung: bool) {
        // Whoever took the announcement rings, perhaps only after this: then it rings in the
        // middle of a later sleep, and that one's end quiets it.
        if !self.asleep.swap(false, Ordering::Relaxed) || rung {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.event, &mut count);
        }
    }

    /// Readable when rung.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(bell: &Bell) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(bell.descriptor(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).expect("a descriptor") == 1
    }

    #[test]
    fn a_ring_that_comes_late_ends_one_sleep_and_no_more() {
        let bell = Bell::new().expect("a descriptor");
        bell.fall_asleep();
        // The ringer has taken the announcement, and not rung yet, when the owner looks around.
        assert!(bell.asleep.swap(false, Ordering::Relaxed));
        bell.wake_up(false);
        rustix::io::write(&bell.event, &1u64.to_ne_bytes()).expect("room");
        bell.fall_asleep();
        assert!(is_readable(&bell), "so the sleep is a short one");
        bell.wake_up(true);
        bell.fall_asleep();
        assert!(!is_readable(&bell), "and the next is not");
    }
}
