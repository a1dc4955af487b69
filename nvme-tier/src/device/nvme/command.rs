//! Entries of submission and completion queues (Base 3.3.3).

use super::{Protection, Status};

/// Opcodes of admin commands (Base figure 138), and the values that go with them.
pub(in crate::device) mod admin {
    /// Get Log Page (Base 5.16).
    pub(in crate::device) const GET_LOG_PAGE: u8 = 0x02;
    /// Create I/O Submission Queue (PCIe 4.1.2 and Base 5.5).
    pub(in crate::device) const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Delete I/O Submission Queue (Base 5.7).
    pub(in crate::device) const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    /// Delete I/O Completion Queue (Base 5.6).
    pub(in crate::device) const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    /// Create I/O Completion Queue (Base 5.4).
    pub(in crate::device) const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify (Base 5.17).
    pub(in crate::device) const IDENTIFY: u8 = 0x06;
    /// Abort (Base 5.1).
    pub(in crate::device) const ABORT: u8 = 0x08;
    /// Set Features (Base 5.27).
    pub(in crate::device) const SET_FEATURES: u8 = 0x09;
    /// Get Features (Base 5.15).
    pub(in crate::device) const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request (Base 5.2).
    pub(in crate::device) const ASYNCHRONOUS_EVENT_REQUEST: u8 = 0x0c;
    /// Doorbell Buffer Config (Base 5.8).
    pub(in crate::device) const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;

    /// CNS of Identify: a namespace, the controller, the active namespaces, the controller as far as
    /// it is about a command set.
    pub(in crate::device) const CNS_NAMESPACE: u32 = 0;
    pub(in crate::device) const CNS_CONTROLLER: u32 = 1;
    pub(in crate::device) const CNS_ACTIVE_NAMESPACES: u32 = 2;
    pub(in crate::device) const CNS_COMMAND_SET: u32 = 6;

    /// Feature Identifiers (Base figure 317).
    pub(in crate::device) const FEATURE_VOLATILE_WRITE_CACHE: u32 = 0x06;
    pub(in crate::device) const FEATURE_NUMBER_OF_QUEUES: u32 = 0x07;
    pub(in crate::device) const FEATURE_ASYNCHRONOUS_EVENTS: u32 = 0x0b;
    pub(in crate::device) const FEATURE_HOST_BEHAVIOR: u32 = 0x16;

    /// LID of Get Log Page: SMART / Health Information (Base 5.16.1.3).
    pub(in crate::device) const LOG_HEALTH: u32 = 0x02;
}

/// Opcodes of I/O commands (NVM figure 20).
pub(in crate::device) mod io {
    /// Flush (Base 7.1).
    pub(in crate::device) const FLUSH: u8 = 0x00;
    /// Write (NVM 3.2.6).
    pub(in crate::device) const WRITE: u8 = 0x01;
    /// Read (NVM 3.2.4).
    pub(in crate::device) const READ: u8 = 0x02;
    /// Write Zeroes (NVM 3.2.8).
    pub(in crate::device) const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management (NVM 3.2.3).
    pub(in crate::device) const DATASET_MANAGEMENT: u8 = 0x09;
}

/// DPTR, where a command's data lies (Base 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) enum DataPointer {
    /// PRP entries: the first page, and the second or a list of all others.
    Prp(u64, u64),
    /// One SGL Data Block descriptor: an address and a length.
    Sgl {
        /// The first byte.
        address: u64,
        /// Bytes.
        length: u32,
    },
}

/// An entry of a submission queue (Base 3.3.3.1): 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C, align(64))]
pub(in crate::device) struct SubmissionEntry {
    /// OPC, FUSE, PSDT and CID.
    pub(in crate::device) cdw0: u32,
    /// NSID.
    pub(in crate::device) nsid: u32,
    pub(in crate::device) cdw2: u32,
    pub(in crate::device) cdw3: u32,
    /// MPTR.
    pub(in crate::device) metadata: u64,
    /// DPTR.
    pub(in crate::device) data: [u64; 2],
    pub(in crate::device) cdw10: u32,
    pub(in crate::device) cdw11: u32,
    pub(in crate::device) cdw12: u32,
    pub(in crate::device) cdw13: u32,
    pub(in crate::device) cdw14: u32,
    pub(in crate::device) cdw15: u32,
}

/// Every namespace, in commands that are about the controller as a whole.
const ALL_NAMESPACES: u32 = u32::MAX;

/// PSDT: SGLs, and a contiguous metadata buffer.
const SGL: u32 = 0b01 << 14;

impl SubmissionEntry {
    /// A command without data.
    pub(in crate::device) fn new(opcode: u8, cid: u16, nsid: u32) -> Self {
        let cdw0 = u32::from(opcode) | u32::from(cid) << 16;
        Self { cdw0, nsid, ..Self::default() }
    }

    /// Get Log Page for the health of the controller as a whole: [`super::HEALTH_BYTES`].
    pub(in crate::device) fn health_log() -> Self {
        Self::log_page(admin::LOG_HEALTH)
    }

    /// Get Log Page for as many bytes of any page as the health log has.
    pub(in crate::device) fn log_page(page: u32) -> Self {
        // NUMDL, zero-based.
        const DWORDS: u32 = 512 / 4 - 1;
        const { assert!(super::HEALTH_BYTES == 512) };
        let cdw10 = page | DWORDS << 16;
        Self { cdw10, ..Self::new(admin::GET_LOG_PAGE, 0, ALL_NAMESPACES) }
    }

    /// The same with data.
    pub(in crate::device) fn with_data(mut self, data: DataPointer) -> Self {
        match data {
            DataPointer::Prp(first, second) => self.data = [first, second],
            DataPointer::Sgl { address, length } => {
                self.cdw0 |= SGL;
                // The descriptor's type, in its last byte, is 0h: Data Block.
                self.data = [address, u64::from(length)];
            }
        }
        self
    }

    /// The same for `blocks` logical blocks from `lba` (NVM 3.2.4 and 3.2.6).
    pub(in crate::device) fn with_blocks(mut self, lba: u64, blocks: u32) -> Self {
        debug_assert!((1..=1 << 16).contains(&blocks), "NLB is zero-based and has 16 bits");
        self.cdw10 = (lba & 0xffff_ffff) as u32;
        self.cdw11 = (lba >> 32) as u32;
        self.cdw12 = blocks - 1;
        self
    }

    /// The same with protection information in a buffer of its own, to be checked by the device as
    /// well (NVM 5.2).
    pub(in crate::device) fn with_protection(
        mut self,
        protection: Protection,
        lba: u64,
        metadata: u64,
    ) -> Self {
        self.metadata = metadata;
        self.cdw12 |= protection.checks() << 26;
        // Initial or expected reference tag; application tags are not used.
        self.cdw14 = protection.reference_tag(lba);
        self
    }

    /// OPC.
    pub(in crate::device) fn opcode(&self) -> u8 {
        self.cdw0.to_le_bytes()[0]
    }

    /// CID.
    pub(in crate::device) fn cid(&self) -> u16 {
        (self.cdw0 >> 16) as u16
    }

    /// Whether DPTR is an SGL descriptor.
    #[cfg(test)]
    pub(in crate::device) fn is_sgl(&self) -> bool {
        self.cdw0 & SGL != 0
    }
}

/// An entry of a completion queue (Base 3.3.3.2): 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C, align(16))]
pub(in crate::device) struct CompletionEntry {
    /// Command specific.
    pub(in crate::device) result: u32,
    pub(in crate::device) dw1: u32,
    /// SQHD.
    pub(in crate::device) submission_head: u16,
    /// SQID.
    pub(in crate::device) submission_queue: u16,
    /// CID.
    pub(in crate::device) cid: u16,
    /// Status, with the Phase Tag in bit 0.
    pub(in crate::device) status_and_phase: u16,
}

impl CompletionEntry {
    /// Status.
    pub(in crate::device) fn status(&self) -> Status {
        Status::from_entry(self.status_and_phase)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn entries_lie_as_the_specification_draws_them() {
        assert_eq!(size_of::<SubmissionEntry>(), 64);
        assert_eq!(offset_of!(SubmissionEntry, metadata), 16);
        assert_eq!(offset_of!(SubmissionEntry, data), 24);
        assert_eq!(offset_of!(SubmissionEntry, cdw10), 40);
        assert_eq!(size_of::<CompletionEntry>(), 16);
        assert_eq!(offset_of!(CompletionEntry, submission_head), 8);
        assert_eq!(offset_of!(CompletionEntry, cid), 12);
        assert_eq!(offset_of!(CompletionEntry, status_and_phase), 14);
    }

    #[test]
    fn a_read_names_its_blocks_and_memory() {
        let data = DataPointer::Sgl { address: 0x1000, length: 8192 };
        let entry =
            SubmissionEntry::new(io::READ, 7, 1).with_blocks(1 << 32 | 5, 16).with_data(data);
        assert_eq!((entry.opcode(), entry.cid(), entry.is_sgl()), (io::READ, 7, true));
        assert_eq!((entry.cdw10, entry.cdw11, entry.cdw12), (5, 1, 15));
        assert_eq!(entry.data, [0x1000, 8192]);
        let entry = SubmissionEntry::new(io::READ, 7, 1).with_data(DataPointer::Prp(1, 2));
        assert!(!entry.is_sgl());
    }
}
