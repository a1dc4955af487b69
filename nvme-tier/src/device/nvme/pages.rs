//! Pages as a plain controller returns them, for tests.

use super::IDENTIFY_BYTES;

/// What a plain controller says.
pub(in crate::device) fn controller_page() -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_BYTES];
    page[4..24].fill(b' ');
    page[4..9].copy_from_slice(b"S1234");
    page[24..64].fill(b' ');
    page[24..33].copy_from_slice(b"A  device");
    page[77] = 7;
    page[80..84].copy_from_slice(&0x0001_0400u32.to_le_bytes());
    page[258] = 3;
    page[259] = 3;
    page[512] = 0x66;
    page[513] = 0x44;
    page[516] = 1;
    page[520] = 0b1100;
    page[525] = 1;
    page
}

/// What a namespace of so many blocks of 2^`power` bytes says.
pub(in crate::device) fn namespace_page(blocks: u64, power: u8) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_BYTES];
    page[..8].copy_from_slice(&blocks.to_le_bytes());
    page[8..16].copy_from_slice(&blocks.to_le_bytes());
    page[128 + 2] = power;
    page
}
