//! Descriptors that a sleep ends for, watched by the ring itself.

use std::os::fd::RawFd;

use extent::{Kind, Result};
use io_uring::{opcode, squeue, types};

use crate::device::MOST_OTHERS;

/// Marks the completion of a watch; a command's is its slot's number.
const MARK: u64 = 1 << 32;

/// Watches fire once. A watch that fired, and nothing else, is armed again by the next sleep, in
/// the system call that the sleep is anyway.
#[derive(Debug, Default)]
pub(super) struct Watches {
    all: Vec<Watch>,
    /// Armed, and not handed to the kernel yet.
    queued: usize,
    rung: bool,
}

#[derive(Debug)]
struct Watch {
    descriptor: RawFd,
    is_armed: bool,
}

impl Watches {
    /// The entry that arms a descriptor's watch, unless it is armed.
    pub(super) fn arm(&mut self, descriptor: RawFd) -> Result<Option<squeue::Entry>> {
        let known = self.all.iter().position(|watch| watch.descriptor == descriptor);
        let index = match known {
            Some(index) if self.all[index].is_armed => return Ok(None),
            Some(index) => index,
            None if self.all.len() == MOST_OTHERS => {
                return Err(Kind::Invalid.error(format!(
                    "a device sleeps for {MOST_OTHERS} other descriptors at most, always the same"
                )));
            }
            None => {
                self.all.push(Watch { descriptor, is_armed: false });
                self.all.len() - 1
            }
        };
        self.all[index].is_armed = true;
        self.queued += 1;
        let events = libc::POLLIN.unsigned_abs().into();
        let entry = opcode::PollAdd::new(types::Fd(descriptor), events).build();
        Ok(Some(entry.user_data(MARK | index as u64)))
    }

    /// Watches in the ring that the kernel has not seen.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// The kernel has seen everything in the ring.
    pub(super) fn submitted(&mut self) {
        self.queued = 0;
    }

    /// Whether a completion was a watch's.
    pub(super) fn take(&mut self, user_data: u64) -> bool {
        if user_data & MARK == 0 {
            return false;
        }
        // Whatever its result: whoever polls the descriptor learns what is wrong with it.
        let index = usize::try_from(user_data & !MARK).expect("a small number");
        self.all[index].is_armed = false;
        self.rung = true;
        true
    }

    /// Whether one fired since this was asked.
    pub(super) fn were_rung(&mut self) -> bool {
        std::mem::take(&mut self.rung)
    }
}
