//! End-to-end data protection (NVM 5.2): T10 protection information of 8 bytes beside every block.

use crc_fast::CrcAlgorithm::Crc16T10Dif;
use extent::{Kind, Result};

/// Bytes of protection information of a block, the 16b Guard format.
const TUPLE_BYTES: usize = 8;

/// An application tag that turns off all checks of its block: one that was never written.
const ESCAPE: [u8; 2] = [0xff; 2];

/// Which of the three types a namespace is formatted with (DPS, NVM 5.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) enum ProtectionType {
    /// The reference tag is the lower half of the block's LBA.
    One,
    /// The reference tag starts where the command says; this driver says as for type 1.
    Two,
    /// The reference tag is not checked.
    Three,
}

/// What protects the blocks of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct Protection {
    /// Type 1, 2 or 3.
    pub(in crate::device) kind: ProtectionType,
    /// Bytes of data that a tuple is for.
    pub(in crate::device) block_bytes: usize,
}

impl Protection {
    /// PRINFO: what the device is to check (PRCHK), with PRACT clear since the host makes the
    /// information itself.
    pub(in crate::device) fn checks(self) -> u32 {
        const GUARD: u32 = 0b100;
        const REFERENCE_TAG: u32 = 0b001;
        if self.has_reference_tag() { GUARD | REFERENCE_TAG } else { GUARD }
    }

    /// The reference tag of a block.
    pub(in crate::device) fn reference_tag(self, lba: u64) -> u32 {
        if self.has_reference_tag() { (lba & 0xffff_ffff) as u32 } else { 0 }
    }

    fn has_reference_tag(self) -> bool {
        self.kind != ProtectionType::Three
    }

    /// Bytes of protection information for so many bytes of data.
    pub(in crate::device) fn bytes_for(self, data_bytes: usize) -> usize {
        data_bytes / self.block_bytes * TUPLE_BYTES
    }

    /// The protection information of `data`, from block `lba` on, into `tuples`.
    ///
    /// # Panics
    /// If there are not as many tuples as blocks.
    pub(in crate::device) fn protect(self, lba: u64, data: &[u8], tuples: &mut [u8]) {
        assert_eq!(tuples.len(), self.bytes_for(data.len()), "a tuple for each block");
        let blocks = data.chunks(self.block_bytes).zip(tuples.chunks_mut(TUPLE_BYTES));
        for ((block, tuple), lba) in blocks.zip(lba..) {
            tuple[..2].copy_from_slice(&guard(block).to_be_bytes());
            tuple[2..4].fill(0);
            tuple[4..].copy_from_slice(&self.reference_tag(lba).to_be_bytes());
        }
    }

    /// Whether `data` is what was written from block `lba` on.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] naming the first block that is damaged or another one's.
    pub(in crate::device) fn verify(self, lba: u64, data: &[u8], tuples: &[u8]) -> Result<()> {
        let blocks = data.chunks(self.block_bytes).zip(tuples.chunks(TUPLE_BYTES));
        for ((block, tuple), lba) in blocks.zip(lba..) {
            if tuple[2..4] == ESCAPE && (self.has_reference_tag() || tuple[4..] == [0xff; 4]) {
                continue;
            }
            let (stored, computed) = (u16::from_be_bytes([tuple[0], tuple[1]]), guard(block));
            if stored != computed {
                return Err(Kind::Corrupt.error(format!(
                    "block {lba} fails its T10 guard check: {stored:04x}h is stored, {computed:04x}h \
                     is right"
                )));
            }
            let stored = u32::from_be_bytes([tuple[4], tuple[5], tuple[6], tuple[7]]);
            let expected = self.reference_tag(lba);
            if self.has_reference_tag() && stored != expected {
                return Err(Kind::Corrupt.error(format!(
                    "block {lba} fails its T10 reference tag check: it holds block {stored}"
                )));
            }
        }
        Ok(())
    }
}

/// The CRC-16/T10-DIF of a block.
#[expect(clippy::cast_possible_truncation, reason = "a 16-bit checksum in a 64-bit return value")]
fn guard(block: &[u8]) -> u16 {
    crc_fast::checksum(Crc16T10Dif, block) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE_1: Protection = Protection { kind: ProtectionType::One, block_bytes: 512 };

    #[test]
    fn the_guard_matches_the_check_value_of_the_standard() {
        assert_eq!(guard(b"123456789"), 0xd0db);
        // SBC-4 table 20: 32 bytes of ones.
        assert_eq!(guard(&[0; 32]), 0);
    }

    #[test]
    fn damaged_and_misplaced_blocks_are_told_apart() {
        let mut data = vec![0xa5; 2048];
        let mut tuples = vec![0; TYPE_1.bytes_for(data.len())];
        TYPE_1.protect(u64::from(u32::MAX), &data, &mut tuples);
        TYPE_1.verify(u64::from(u32::MAX), &data, &tuples).expect("as written");
        let misplaced = TYPE_1.verify(7, &data, &tuples).expect_err("another place").to_string();
        assert!(misplaced.contains("block 7 fails its T10 reference tag"), "{misplaced}");
        data[1024] ^= 1;
        let damaged = TYPE_1.verify(u64::from(u32::MAX), &data, &tuples).expect_err("a bit");
        assert_eq!(damaged.kind(), Kind::Corrupt);
        assert!(damaged.to_string().contains("block 4294967297 fails its T10 guard"), "{damaged}");
    }

    #[test]
    fn what_was_never_written_passes() {
        TYPE_1.verify(3, &[0; 512], &[0xff; 8]).expect("the escape value");
        let type_3 = Protection { kind: ProtectionType::Three, ..TYPE_1 };
        type_3.verify(3, &[0; 512], &[0xff; 8]).expect("the escape value");
        let half = [0, 1, 0xff, 0xff, 0, 0, 0, 0];
        TYPE_1.verify(3, &[0; 512], &half).expect("type 1 looks at the application tag alone");
        type_3.verify(3, &[0; 512], &half).expect_err("type 3 at both");
    }
}
