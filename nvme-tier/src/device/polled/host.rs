#![allow(unsafe_code)]

use std::fmt::Debug;
use std::ptr::NonNull;

use extent::Result;

/// What a controller sits in: its registers, and the way to its host's memory. A PCI function under
/// VFIO, or a model of a controller in tests.
pub(in crate::device) trait Host: Send + Sync + Debug {
    /// What it is called.
    fn name(&self) -> String;

    /// Its registers; valid for as long as this value lives.
    fn registers(&self) -> Registers;

    /// Lets it reach whole pages of memory; at which address it sees them.
    ///
    /// # Errors
    /// If the memory cannot be locked, or there is no address for it.
    fn map(&self, memory: NonNull<u8>, length: usize) -> Result<u64>;

    /// Takes that memory away again.
    fn unmap(&self, iova: u64, length: usize);

    /// Lets it reach any memory at all, or none.
    ///
    /// # Errors
    /// If its configuration cannot be written.
    fn set_bus_master(&self, on: bool) -> Result<()>;

    /// Resets the function as a whole.
    ///
    /// # Errors
    /// If it has no such reset.
    fn reset(&self) -> Result<()>;

    /// Whether the kernel wants it back, since it is being removed.
    fn is_wanted_back(&self) -> bool;

    /// Gives it back: it reaches no memory any more, and its registers read as ones.
    fn release(&self);
}

/// Memory-mapped registers. Every access is one access of the hardware.
#[derive(Clone, Copy, Debug)]
pub(in crate::device) struct Registers {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: registers are an address; each access is volatile and atomic as the bus has it.
unsafe impl Send for Registers {}
// SAFETY: as above.
unsafe impl Sync for Registers {}

impl Registers {
    /// Registers that begin at `base`.
    ///
    /// # Safety
    /// `length` bytes there are mapped, readable and writable, for as long as anyone has the value
    /// or a copy of it; they are never borrowed as Rust memory.
    pub(in crate::device) unsafe fn new(base: NonNull<u8>, length: usize) -> Self {
        Self { base, length }
    }

    /// Where they are.
    pub(in crate::device) fn extent(self) -> (NonNull<u8>, usize) {
        (self.base, self.length)
    }

    /// The address of a register of 32 bits.
    ///
    /// # Panics
    /// If it is not inside, or not aligned.
    pub(super) fn at(self, offset: usize) -> NonNull<u32> {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.length, "a register at {offset:x}h");
        // SAFETY: the assertion keeps the address inside the mapping.
        unsafe { self.base.add(offset) }.cast()
    }

    pub(super) fn read_u32(self, offset: usize) -> u32 {
        // SAFETY: the register is mapped, as `new` was promised.
        unsafe { self.at(offset).as_ptr().read_volatile() }
    }

    /// In two halves, which every controller allows (Base 3.1.3).
    pub(super) fn read_u64(self, offset: usize) -> u64 {
        u64::from(self.read_u32(offset)) | u64::from(self.read_u32(offset + 4)) << 32
    }

    pub(super) fn write_u32(self, offset: usize, value: u32) {
        // SAFETY: the register is mapped, as `new` was promised.
        unsafe { self.at(offset).as_ptr().write_volatile(value) }
    }

    /// In two halves, the lower one first.
    pub(super) fn write_u64(self, offset: usize, value: u64) {
        self.write_u32(offset, (value & 0xffff_ffff) as u32);
        self.write_u32(offset + 4, (value >> 32) as u32);
    }
}
