//! What an NVMe device and its host say to each other: entries of queues, registers, and the pages
//! that Identify and Get Log Page return. Pure: nothing here touches hardware.
//!
//! Names, offsets and sections are those of the *NVM Express Base Specification*, revision 2.0c
//! ("Base"), the *NVM Command Set Specification*, revision 1.0c ("NVM"), and the *NVMe over PCIe
//! Transport Specification*, revision 1.0c ("PCIe").

mod command;
mod deallocate;
mod health;
mod identify;
#[cfg(test)]
pub(super) mod pages;
mod protection;
mod registers;
mod status;

pub(super) use command::{CompletionEntry, DataPointer, SubmissionEntry, admin, io};
pub(super) use deallocate::{CommandSetLimits, Deallocator};
pub(super) use identify::{
    IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, active_namespaces,
};
pub(super) use protection::{Protection, ProtectionType};
pub(super) use registers::{
    AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, offset,
};
pub(super) use status::Status;

pub(super) use health::{AsynchronousEvent, HEALTH_BYTES};

pub use health::Health;

/// The page size that the driver sets in `CC.MPS`, and the unit of PRP entries.
pub(super) const PAGE_BYTES: usize = 4096;

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from(u16_at(page, at)) | u32::from(u16_at(page, at + 2)) << 16
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from(u32_at(page, at)) | u64::from(u32_at(page, at + 4)) << 32
}

/// A 128-bit counter, of which nobody will see the upper half.
fn u128_at(page: &[u8], at: usize) -> u128 {
    u128::from(u64_at(page, at)) | u128::from(u64_at(page, at + 8)) << 64
}
