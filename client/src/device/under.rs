//! A fetch under way, and its pieces.

use std::sync::Arc;
use std::time::Duration;

use dma::ALIGN_BYTES;
use extent::{Error, Kind};
use gds::DeviceSpan;

use super::DeviceRead;
use super::direct::Aim;
use crate::file::Handle;
use crate::session::Completed;

/// A fetch under way.
pub(super) struct Under {
    pub(super) handle: Arc<Handle>,
    pub(super) name: String,
    pub(super) offset: u64,
    pub(super) into: DeviceSpan,
    /// Bytes from its front on that were asked for.
    pub(super) asked: usize,
    /// Whether the file ended before that.
    pub(super) has_ended: bool,
    pub(super) error: Option<Error>,
    /// What of it the node may write into the device by itself, or why nothing.
    pub(super) aim: Option<Aim>,
    pub(super) detour: Option<Error>,
    /// Whether any of it came so.
    pub(super) is_direct: bool,
    pub(super) read: DeviceRead,
}

/// A part of a fetch, no longer than a piece of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) fetch: usize,
    /// Counted from the start of the fetch.
    pub(super) at: usize,
    pub(super) bytes: usize,
}

impl Under {
    /// Whether there is more of it to ask for.
    pub(super) fn wants_more(&self) -> bool {
        self.error.is_none() && !self.has_ended && self.asked < self.into.len()
    }

    /// The next part: up to where the file's offset is a multiple of the pieces' length, so that all but the
    /// first begin at one, and to where the way changes.
    pub(super) fn cut(&mut self, slot_bytes: usize) -> Option<(usize, usize)> {
        if !self.wants_more() {
            return None;
        }
        let at = self.asked;
        let Some(offset) = self.offset.checked_add(at as u64) else {
            self.fail(Kind::Invalid.error("the range ends beyond 64 bits"));
            return None;
        };
        let within = self.aim.as_ref().map_or(0..0, |aim| aim.within.clone());
        let turns = [within.start, within.end, self.into.len()];
        let turn = turns.into_iter().find(|turn| *turn > at).expect("there is more to ask for");
        let bytes = piece(offset, turn - at, slot_bytes);
        self.asked += bytes;
        Some((at, bytes))
    }

    pub(super) fn take_in(&mut self, piece: Piece, completed: &Completed, now: Duration) {
        let read = &mut self.read;
        read.bytes += completed.bytes;
        read.served = read.served.max(completed.served);
        read.landing = read.landing.max(completed.landing);
        (read.to_host, read.total) = (now, read.total.max(now));
        self.has_ended |= completed.bytes < piece.bytes as u64;
    }

    /// The first reason counts.
    pub(super) fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }
}

/// How much of what is left to read from an offset on: up to the next multiple of the pieces' length.
pub(super) fn piece(offset: u64, left: usize, slot_bytes: usize) -> usize {
    let into_slot = usize::try_from(offset % slot_bytes as u64).expect("less than a piece");
    (slot_bytes - into_slot).min(left)
}

/// How far into a piece of the ring the bytes from this offset on go: as far as into a page, so that
/// the node's devices may write all whole blocks of them there by themselves.
pub(super) fn head(offset: u64) -> usize {
    usize::try_from(offset % ALIGN_BYTES as u64).expect("less than a page")
}
