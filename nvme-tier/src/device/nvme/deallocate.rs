//! Telling a namespace that nobody needs some of its blocks.

use super::{DataPointer, IdentifyController, IdentifyNamespace, PAGE_BYTES};
use super::{Protection, SubmissionEntry, io, u32_at, u64_at};
use crate::device::Deallocation;

/// More at once keeps a device from others for longer, and spares hardly anything.
const MOST_BYTES: u64 = 256 << 20;

/// A deallocated block has no protection information that could hold, and reads well only if the device
/// remembers that it is one. Emulated ones (QEMU) remember 4 KiB at a time: beside a block of 512 bytes
/// that is written later, its deallocated neighbours become unreadable. Where blocks are protected and
/// smaller than this, only zeroes are written, with theirs.
const LEAST_PROTECTED_BYTES: u64 = 4096;

/// Bytes of a range of Dataset Management (NVM figure 40).
const RANGE_BYTES: usize = 16;

/// AD, Attribute - Deallocate (NVM figure 39).
const DEALLOCATE_RANGES: u32 = 1 << 2;
/// DEAC, Deallocate (NVM figure 66).
const DEALLOCATE_ZEROES: u32 = 1 << 25;
/// PRACT, the bit of PRINFO by which the controller makes protection information itself.
const PROTECTION_ACTION: u32 = 1 << 29;

/// What Identify Controller for the NVM Command Set (CNS 06h, NVM 4.1.5.4) says of these commands;
/// `None` where there is no limit, or no such page.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(in crate::device) struct CommandSetLimits {
    /// WZSL: bytes of a Write Zeroes.
    pub(in crate::device) write_zeroes_bytes: Option<u64>,
    /// DMRSL: blocks of a range of a Dataset Management.
    pub(in crate::device) range_blocks: Option<u64>,
    /// DMSL: blocks of a Dataset Management.
    pub(in crate::device) ranges_blocks: Option<u64>,
}

impl CommandSetLimits {
    /// From an Identify page.
    pub(in crate::device) fn parse(page: &[u8]) -> Self {
        let some = |value: u64| Some(value).filter(|value| *value != 0);
        let write_zeroes = u32::from(page[1]);
        Self {
            write_zeroes_bytes: some(write_zeroes.into())
                .and_then(|_| (PAGE_BYTES as u64).checked_shl(write_zeroes.min(40))),
            range_blocks: some(u32_at(page, 4).into()),
            ranges_blocks: some(u64_at(page, 8)),
        }
    }
}

/// How a namespace is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Method {
    /// Dataset Management (NVM 3.2.3), with one range.
    DatasetManagement,
    /// Write Zeroes (NVM 3.2.8), which reads as zeroes from then on.
    WriteZeroes,
}

/// Makes the commands by which a namespace is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct Deallocator {
    method: Method,
    block_shift: u32,
    protection: Option<Protection>,
    deallocation: Deallocation,
}

impl Deallocator {
    /// For a namespace; `None` if it takes neither command. Zeroes are written only where that is
    /// said to deallocate: else it would wear the medium for nothing.
    pub(in crate::device) fn of(
        controller: &IdentifyController,
        limits: &CommandSetLimits,
        namespace: &IdentifyNamespace,
    ) -> Option<Self> {
        let block = u64::from(namespace.block_bytes);
        let forgetful = namespace.protection.is_some() && block < LEAST_PROTECTED_BYTES;
        let (method, most) = if controller.has_deallocate && !forgetful {
            let blocks = limits.range_blocks.unwrap_or(u64::MAX).min(u64::from(u32::MAX));
            let blocks = blocks.min(limits.ranges_blocks.unwrap_or(u64::MAX));
            (Method::DatasetManagement, blocks.saturating_mul(block))
        } else if controller.has_write_zeroes && namespace.zeroes_deallocate {
            // Without a limit of its own the one for transfers is kept, as cautious hosts do.
            let bytes = limits.write_zeroes_bytes.or(controller.max_transfer_bytes);
            (Method::WriteZeroes, bytes.unwrap_or(u64::MAX).min(block << 16))
        } else {
            return None;
        };
        let most = most.min(MOST_BYTES);
        let unit = u64::from(namespace.unit_bytes());
        let preferred = common_multiple(namespace.deallocate_bytes, unit);
        // What is preferred is advice, too.
        let granularity = if preferred <= most { preferred } else { unit };
        let deallocation =
            Deallocation { granularity_bytes: granularity, most_bytes: most - most % granularity };
        (deallocation.most_bytes != 0).then_some(Self {
            method,
            block_shift: namespace.block_bytes.trailing_zeros(),
            protection: namespace.protection,
            deallocation,
        })
    }

    pub(in crate::device) fn deallocation(&self) -> Deallocation {
        self.deallocation
    }

    /// Whether the command reads its range from memory.
    pub(in crate::device) fn has_range(&self) -> bool {
        self.method == Method::DatasetManagement
    }

    /// The range in memory.
    pub(in crate::device) fn range(&self, offset: u64, bytes: u64) -> [u8; RANGE_BYTES] {
        let (lba, blocks) = (offset >> self.block_shift, bytes >> self.block_shift);
        let mut range = [0; RANGE_BYTES];
        // Context attributes stay zero: hints that nobody follows.
        range[4..8].copy_from_slice(&u32::try_from(blocks).unwrap_or(u32::MAX).to_le_bytes());
        range[8..].copy_from_slice(&lba.to_le_bytes());
        range
    }

    /// The command for whole blocks; `range_iova` is where the controller sees their range, in a page
    /// of its own: some controllers read all of it, whatever the number of ranges.
    pub(in crate::device) fn entry(
        &self,
        (cid, nsid): (u16, u32),
        offset: u64,
        bytes: u64,
        range_iova: u64,
    ) -> SubmissionEntry {
        let (lba, blocks) = (offset >> self.block_shift, bytes >> self.block_shift);
        match self.method {
            Method::DatasetManagement => {
                // NR in the tenth dword is zero-based: one range.
                let mut entry = SubmissionEntry::new(io::DATASET_MANAGEMENT, cid, nsid)
                    .with_data(DataPointer::Prp(range_iova, 0));
                entry.cdw11 = DEALLOCATE_RANGES;
                entry
            }
            Method::WriteZeroes => {
                let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
                let mut entry =
                    SubmissionEntry::new(io::WRITE_ZEROES, cid, nsid).with_blocks(lba, blocks);
                entry.cdw12 |= DEALLOCATE_ZEROES;
                if let Some(protection) = self.protection {
                    entry.cdw12 |= PROTECTION_ACTION;
                    entry.cdw14 = protection.reference_tag(lba);
                }
                entry
            }
        }
    }
}

/// The least that both divide; the second if that is out of all bounds.
pub(super) fn common_multiple(one: u64, other: u64) -> u64 {
    let (mut a, mut b) = (one, other);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    (one / a.max(1)).checked_mul(other).filter(|multiple| *multiple != 0).unwrap_or(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::nvme::IDENTIFY_BYTES;
    use crate::device::nvme::pages::{controller_page, namespace_page};

    fn made(
        change: impl Fn(&mut Vec<u8>, &mut Vec<u8>, &mut CommandSetLimits),
    ) -> Option<Deallocator> {
        let (mut controller, mut namespace) = (controller_page(), namespace_page(1 << 32, 9));
        let mut limits = CommandSetLimits::default();
        change(&mut controller, &mut namespace, &mut limits);
        let controller = IdentifyController::parse(&controller).expect("sound");
        let namespace = IdentifyNamespace::parse(&namespace, &controller).expect("sound");
        Deallocator::of(&controller, &limits, &namespace)
    }

    fn units(made: Option<Deallocator>) -> (u64, u64) {
        let Deallocation { granularity_bytes, most_bytes } = made.expect("told").deallocation();
        (granularity_bytes, most_bytes)
    }

    #[test]
    fn limits_of_the_command_set_are_read() {
        let mut page = vec![0; IDENTIFY_BYTES];
        assert_eq!(CommandSetLimits::parse(&page), CommandSetLimits::default());
        page[1] = 3;
        page[4..8].copy_from_slice(&100u32.to_le_bytes());
        page[8..16].copy_from_slice(&200u64.to_le_bytes());
        let limits = CommandSetLimits::parse(&page);
        assert_eq!(limits.write_zeroes_bytes, Some(32 << 10));
        assert_eq!((limits.range_blocks, limits.ranges_blocks), (Some(100), Some(200)));
        page[1] = 255;
        assert!(CommandSetLimits::parse(&page).write_zeroes_bytes.is_some());
    }

    #[test]
    fn dataset_management_names_one_range() {
        let deallocator = made(|_, _, _| {}).expect("it has Dataset Management");
        assert!(deallocator.has_range());
        assert_eq!(units(Some(deallocator)), (512, 256 << 20));
        let entry = deallocator.entry((3, 1), 8192, 4096, 0xabc000);
        assert_eq!((entry.opcode(), entry.cid(), entry.nsid), (0x09, 3, 1));
        assert_eq!((entry.cdw10, entry.cdw11, entry.data), (0, 4, [0xabc000, 0]));
        let range = deallocator.range(8192, 4096);
        assert_eq!(range, [0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn limits_and_preferences_bound_a_command() {
        let dmrsl = made(|_, _, limits| limits.range_blocks = Some(100));
        assert_eq!(units(dmrsl), (512, 51_200));
        let dmsl = made(|_, _, limits| limits.ranges_blocks = Some(10));
        assert_eq!(units(dmsl), (512, 5120));
        // OPTPERF with NPDG of 8 blocks and NPDA of 12.
        let npdg = made(|_, page, _| (page[24], page[68], page[70]) = (1 << 4, 7, 11));
        assert_eq!(units(npdg), (24 * 512, (256 << 20) / (24 * 512) * (24 * 512)));
        // More than a command takes: then it is no help.
        let both = made(|_, page, limits| {
            (page[24], page[68]) = (1 << 4, 7);
            limits.range_blocks = Some(4);
        });
        assert_eq!(units(both), (512, 2048));
    }

    #[test]
    fn zeroes_are_written_only_where_that_deallocates() {
        let none = made(|controller, _, _| controller[520] = 0);
        assert_eq!(none, None);
        let wears = made(|controller, _, _| controller[520] = 0b1000);
        assert_eq!(wears, None, "DLFEAT does not say that DEAC is honoured");
        let zeroes = made(|controller, namespace, _| {
            controller[520] = 0b1000;
            namespace[33] = 0b1001;
            (namespace[128], namespace[29]) = (8, 1);
        });
        let deallocator = zeroes.expect("told");
        assert!(!deallocator.has_range());
        assert_eq!(units(zeroes), (512, 512 << 10), "MDTS, without WZSL");
        let entry = deallocator.entry((3, 1), 8192, 4096, 0);
        assert_eq!((entry.opcode(), entry.cdw10, entry.data), (0x08, 16, [0, 0]));
        assert_eq!(entry.cdw12, 7 | 1 << 25 | 1 << 29, "eight blocks, DEAC, PRACT");
        assert_eq!(entry.cdw14, 16, "the reference tag");
        let limited = made(|controller, namespace, limits| {
            (controller[520], namespace[33]) = (0b1000, 0b1001);
            limits.write_zeroes_bytes = Some(64 << 10);
        });
        assert_eq!(units(limited), (512, 64 << 10));
    }
}
