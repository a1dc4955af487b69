//! Commands to namespaces: each slot's goes to the ring in one or more pieces.
#![allow(unsafe_code)]

use super::UringDevice;
use super::in_flight::{describe, fixed};
use super::pieces::{Next, PIECES_AT_ONCE};
use crate::device::ring::Reaped;
use crate::device::{Command, MOST_OTHERS};

/// Marks the entry of a piece; its number stands above.
pub(super) const PIECE: u64 = 1 << 33;
const PIECE_SHIFT: u32 = 34;

impl UringDevice {
    /// Queues a new command.
    pub(super) fn start(&mut self, index: u32) {
        let flight = self.slots[index as usize].as_ref().expect("it was just put there");
        let namespace = self.media.namespace(flight.command().device());
        let (Some(namespace), false) = (namespace, flight.is_refused()) else {
            return self.push(index);
        };
        self.pieces.begin(index, flight.command(), namespace);
        self.push_piece(index, 0);
        for piece in 1..PIECES_AT_ONCE {
            // Each free slot keeps an entry for its next command.
            if self.entries + self.free.len() + MOST_OTHERS >= self.ring.entries() {
                return;
            }
            let flight = self.slots[index as usize].as_ref().expect("as above");
            let device = flight.command().device();
            let namespace = self.media.namespace(device).expect("as above");
            if !self.pieces.cut(index, piece, flight.command(), namespace) {
                return;
            }
            self.push_piece(index, piece);
        }
    }

    /// Queues once more what the kernel has never seen.
    pub(super) fn push_again(&mut self, index: u32) {
        let mut is_split = false;
        for piece in self.pieces.busy(index) {
            is_split = true;
            self.push_piece(index, piece);
        }
        if !is_split {
            self.push(index);
        }
    }

    /// Queues what follows on a completion.
    pub(super) fn send_next(&mut self, index: u32, user_data: u64) {
        if user_data & PIECE == 0 {
            self.push(index);
        } else {
            self.push_piece(index, piece_of(user_data));
        }
    }

    /// Takes a piece's end.
    pub(super) fn on_piece(&mut self, reaped: Reaped) -> Next {
        let index = slot_of(reaped.user_data);
        let piece = piece_of(reaped.user_data);
        let flight = self.slots[index as usize].as_ref();
        let command = flight.expect("a completion belongs to an occupied slot").command();
        let namespace = self.media.namespace(command.device());
        let namespace = namespace.expect("only namespaces get pieces");
        let describe = || describe(command, &self.media);
        self.pieces.on_completion(index, piece, reaped.result, command, namespace, &describe)
    }

    fn push_piece(&mut self, index: u32, piece: usize) {
        let flight = self.slots[index as usize].as_ref().expect("pushed slots are occupied");
        let command = flight.command();
        let namespace = self.media.namespace(command.device());
        let namespace = namespace.expect("only namespaces get pieces");
        let file = fixed(command.device());
        let find = |memory, length| flight.place(&self.ring, memory, length);
        let entry = match self.pieces.prepare(index, piece, command, namespace, &find) {
            None => match command {
                Command::Deallocate { at, bytes } => {
                    let page = self.pieces.range_page(index);
                    namespace.deallocation_entry(file, (at.offset, *bytes), page)
                }
                _ => namespace.flush_entry(file),
            },
            Some(io) => namespace.entry(file, &io),
        };
        let entry = entry.user_data(u64::from(index) | PIECE | (piece as u64) << PIECE_SHIFT);
        self.entries += 1;
        // SAFETY: the command in this slot owns the data's memory, and `pieces` that of the
        // protection information; both stay until the completion has been reaped, or for ever.
        unsafe { self.ring.push_wide(&entry) };
    }
}

/// The slot that an entry was for.
pub(super) fn slot_of(user_data: u64) -> u32 {
    (user_data & 0xffff_ffff) as u32
}

fn piece_of(user_data: u64) -> usize {
    (user_data >> PIECE_SHIFT) as usize
}
