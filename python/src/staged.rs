//! Reads into the memory of a GPU: by a ring of host memory that the node writes and the GPU reads, and by the node alone.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::Memory;
use client::device::{Begun, Copied, CopyId, DeviceSpan, Lent, Path, Staging, Stream};
use extent::{Error, Kind, Result};

use crate::clock;
use crate::transfer::Transfer;

/// What went into a GPU's memory without a ring.
#[derive(Clone, Copy, Default)]
pub(crate) struct DirectCount {
    pub(crate) reads: u64,
    pub(crate) bytes: u64,
}

/// The ring of one GPU, and what goes through it, or past it.
pub(crate) struct Staged {
    pub(crate) staging: Staging,
    pub(crate) slot_bytes: usize,
    /// How long the GPU may take for what was in a stream before a read.
    pub(crate) timeout: Duration,
    pub(crate) direct: DirectCount,
    /// Requests under way that the node answers in the GPU's memory.
    direct_reading: usize,
    /// Whether a read waits for what is in a stream, of which nobody tells.
    pub(crate) is_awaiting: bool,
    /// Transfers that have more to ask for.
    pub(crate) hungry: VecDeque<Arc<Transfer>>,
    copying: HashMap<CopyId, Arc<Transfer>>,
    /// When a copy last ended, or the first began.
    moved_at: Instant,
    /// What went wrong with a read that had been handed to a stream.
    late: Option<Error>,
    ended: Vec<Copied>,
}

impl Staged {
    pub(crate) fn new(staging: Staging, slot_bytes: usize, timeout: Duration) -> Self {
        Self {
            staging,
            slot_bytes,
            timeout,
            direct: DirectCount::default(),
            direct_reading: 0,
            is_awaiting: false,
            hungry: VecDeque::new(),
            copying: HashMap::new(),
            moved_at: clock::now(),
            late: None,
            ended: Vec::new(),
        }
    }

    /// Makes the copies of a transfer come after what is in a stream now.
    ///
    /// # Errors
    /// What went wrong with an earlier read after its end, once; what the driver answers.
    pub(crate) fn begin(&mut self, after: &Stream) -> Result<()> {
        self.late.take().map_or(Ok(()), Err)?;
        self.staging.ring.follow(after)
    }

    /// A piece of the ring; `None` if all are in use.
    pub(crate) fn lend(&mut self) -> Option<(Lent, Memory)> {
        if self.staging.ring.available() == 0 { None } else { self.staging.ring.lend() }
    }

    /// Whether the node may be asked for one more without the ring: for as many at a time as that has pieces.
    pub(crate) fn begin_direct(&mut self) -> bool {
        let has_room = self.direct_reading < self.staging.ring.stats().slots;
        self.direct_reading += usize::from(has_room);
        has_room
    }

    /// One of those has ended, with so many bytes.
    pub(crate) fn end_direct(&mut self, bytes: usize) {
        self.direct_reading -= 1;
        self.direct.reads += u64::from(bytes != 0);
        self.direct.bytes += bytes as u64;
    }

    /// Takes back a piece of which nothing is to be copied; empty memory is lost.
    pub(crate) fn give_back(&mut self, lent: Lent, memory: Memory) {
        if memory.is_empty() {
            self.staging.ring.lose(lent);
        } else {
            self.staging.ring.give_back(lent, memory);
        }
    }

    /// Begins to copy what has come into a piece. The way that it takes.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn copy(
        &mut self,
        transfer: &Arc<Transfer>,
        (lent, memory): (Lent, Memory),
        from: Range<usize>,
        to: &DeviceSpan,
    ) -> Result<Path> {
        if memory.is_empty() {
            self.staging.ring.lose(lent);
            return Err(Kind::Disconnected.error("the memory of a read was lost"));
        }
        if self.copying.is_empty() {
            self.moved_at = clock::now();
        }
        let Begun { id, is_pinned } = self.staging.ring.copy(lent, memory, from, to)?;
        self.copying.insert(id, Arc::clone(transfer));
        Ok(if is_pinned { self.staging.ring_path } else { Path::Host })
    }

    /// Whether all of the ring is lost, as with a device, or with the session.
    pub(crate) fn is_gone(&self) -> bool {
        self.staging.ring.missing() == self.staging.ring.stats().slots
    }

    /// Copies under way.
    pub(crate) fn under_way(&self) -> usize {
        self.copying.len()
    }

    /// Tells transfers which of their copies have ended.
    pub(crate) fn poll(&mut self) {
        if self.copying.is_empty() {
            return;
        }
        let mut ended = std::mem::take(&mut self.ended);
        self.staging.ring.poll(&mut ended);
        if !ended.is_empty() {
            self.moved_at = clock::now();
        }
        for Copied { id, result, .. } in ended.drain(..) {
            if let Some(transfer) = self.copying.remove(&id)
                && let Err(error) = transfer.on_copied(result)
            {
                self.late.get_or_insert_with(|| Staging::late(error));
            }
        }
        self.ended = ended;
    }

    /// Whoever waits for copies that do not end; nobody, if they do.
    pub(crate) fn stalled(&self, timeout: Duration) -> Option<(Error, Vec<Arc<Transfer>>)> {
        if self.copying.is_empty() || clock::now() < self.moved_at + timeout {
            return None;
        }
        let error = self.staging.stalled(timeout);
        let waiting = self.copying.values().chain(&self.hungry).map(Arc::clone).collect();
        Some((error, waiting))
    }
}
