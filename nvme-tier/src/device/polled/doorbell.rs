#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use extent::Result;

use super::memory::DmaMemory;
use super::{Host, Registers};
use crate::device::nvme::{Capabilities, PAGE_BYTES, offset};

/// Whether a queue's doorbell is its tail or its head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// A submission queue's tail.
    Submission,
    /// A completion queue's head.
    Completion,
}

/// Doorbells as memory that the controller looks at while it is awake (Base 5.8): a write of a
/// register, which is dear where the controller is emulated, is needed only to wake it.
#[derive(Debug)]
pub(super) struct ShadowDoorbells {
    /// A page of values, then a page of event indexes.
    memory: DmaMemory,
}

impl ShadowDoorbells {
    pub(super) fn new(host: &Arc<dyn Host>) -> Result<Self> {
        Ok(Self { memory: DmaMemory::new(host, 2 * PAGE_BYTES)? })
    }

    /// Where the controller sees the values and the event indexes.
    pub(super) fn iovas(&self) -> (u64, u64) {
        (self.memory.iova(0), self.memory.iova(PAGE_BYTES))
    }

    /// As before anything was rung. Only while the controller is disabled.
    pub(super) fn clear(&self) {
        self.memory.zero(0, 2 * PAGE_BYTES);
    }

    fn at(&self, place: usize) -> Option<Shadow> {
        if place + 4 > PAGE_BYTES {
            return None;
        }
        let value = self.memory.at(place, 4).cast();
        let event = self.memory.at(PAGE_BYTES + place, 4).cast();
        Some(Shadow { value, event })
    }
}

/// One doorbell.
#[derive(Debug)]
pub(super) struct Doorbell {
    register: NonNull<u32>,
    shadow: Option<Shadow>,
    last: u16,
}

#[derive(Debug)]
struct Shadow {
    value: NonNull<u32>,
    event: NonNull<u32>,
}

// SAFETY: a doorbell belongs to one queue; whoever owns the queue is the only one to ring it, and
// keeps the registers and the shadow's memory alive.
unsafe impl Send for Doorbell {}

impl Doorbell {
    pub(super) fn new(
        registers: Registers,
        capabilities: Capabilities,
        queue: u16,
        side: Side,
        shadows: Option<&ShadowDoorbells>,
    ) -> Self {
        let number = 2 * usize::from(queue) + usize::from(side == Side::Completion);
        let place = number * capabilities.doorbell_stride();
        let shadow = shadows.and_then(|shadows| shadows.at(place));
        Self { register: registers.at(offset::DOORBELLS + place), shadow, last: 0 }
    }

    /// Tells the controller where the ring stands, after all that was written to memory before.
    pub(super) fn ring(&mut self, value: u16) {
        write_barrier();
        let before = std::mem::replace(&mut self.last, value);
        if let Some(shadow) = &self.shadow {
            // SAFETY: the shadow is inside memory that the queue keeps.
            unsafe { shadow.value.as_ptr().write_volatile(u32::from(value)) };
            // The controller writes the event index and then looks at the value; the other way
            // round here, and nobody misses both.
            fence(Ordering::SeqCst);
            // SAFETY: as above.
            let event = unsafe { shadow.event.as_ptr().read_volatile() };
            if !is_wanted((event & 0xffff) as u16, value, before) {
                return;
            }
        }
        // SAFETY: the register is mapped for as long as the queue has its controller.
        unsafe { self.register.as_ptr().write_volatile(u32::from(value)) };
    }

    /// As before it was ever rung.
    pub(super) fn clear(&mut self) {
        self.last = 0;
    }
}

/// Whether the step from `before` to `value` passes the value that the controller waits for.
fn is_wanted(event: u16, value: u16, before: u16) -> bool {
    value.wrapping_sub(event).wrapping_sub(1) < value.wrapping_sub(before)
}

/// Orders writes to memory before a write to a register, as another observer on the bus sees them.
fn write_barrier() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier changes nothing but the order of accesses.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
    // Elsewhere (x86-64) stores keep their order, and only the compiler has to be told.
    #[cfg(not(target_arch = "aarch64"))]
    fence(Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_step_past_the_event_wakes_the_controller() {
        assert!(is_wanted(0, 1, 0));
        assert!(is_wanted(5, 6, 3) && is_wanted(5, 9, 5));
        assert!(!is_wanted(5, 5, 3) && !is_wanted(9, 7, 6));
        // Around the end of sixteen bits.
        assert!(is_wanted(65535, 3, 65530));
        assert!(!is_wanted(3, 2, 65530));
    }
}
