//! A command of the tier between its submission and its end, and the NVMe commands it takes.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::slice;

use extent::{Error, Result};

use super::places::Hold;
use crate::device::nvme::{DataPointer, PAGE_BYTES, Protection};
use crate::device::{Command, Token};

/// A place for a command, used over and over.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) token: Token,
    /// `None` while the place is free.
    pub(super) command: Option<Command>,
    pub(super) hold: Hold,
    /// Where the controller sees its first byte.
    pub(super) iova: u64,
    /// Bytes.
    pub(super) length: u32,
    /// Bytes that NVMe commands were issued for.
    pub(super) issued: u32,
    /// NVMe commands in flight.
    pub(super) outstanding: u16,
    /// How often it was begun anew after a reset.
    pub(super) restarts: u8,
    /// How often the controller had been reset when a flush was submitted.
    pub(super) resets: u32,
    pub(super) failure: Option<Error>,
}

impl Operation {
    pub(super) fn free() -> Self {
        Self {
            token: Token(0),
            command: None,
            hold: Hold::default(),
            iova: 0,
            length: 0,
            issued: 0,
            outstanding: 0,
            restarts: 0,
            resets: 0,
            failure: None,
        }
    }

    /// Whether all that there is to issue has been.
    pub(super) fn is_issued(&self) -> bool {
        self.issued >= self.length
    }

    /// What it is, for a person.
    pub(super) fn describe(&self, device: &str) -> String {
        let bytes = self.length;
        match &self.command {
            Some(Command::Read { at, .. }) => {
                format!("reading {bytes} bytes at {} of {device}", at.offset)
            }
            Some(Command::Write { at, .. }) => {
                format!("writing {bytes} bytes at {} of {device}", at.offset)
            }
            Some(Command::Deallocate { at, bytes }) => {
                format!("deallocating {bytes} bytes at {} of {device}", at.offset)
            }
            Some(Command::Flush(_)) | None => format!("flushing {device}"),
        }
    }
}

/// An NVMe command in flight, in the table by its command id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Which operation; [`Part::FREE`] while the id is free.
    pub(super) operation: u16,
    pub(super) tries: u8,
    /// Whether its abort was asked for.
    pub(super) is_aborted: bool,
    /// Whether it has ended, and waits to be sent again.
    pub(super) is_parked: bool,
    /// The tick at which it was sent; the one from which on it may be sent again while it is parked.
    pub(super) born: u32,
    /// Bytes into the operation.
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl Part {
    pub(super) const FREE: Self = Self {
        operation: u16::MAX,
        tries: 0,
        is_aborted: false,
        is_parked: false,
        born: 0,
        offset: 0,
        length: 0,
    };

    /// Whether the controller has it.
    #[inline]
    pub(super) fn is_in_flight(&self) -> bool {
        self.operation != u16::MAX && !self.is_parked
    }
}

/// The PRP entries of memory that is contiguous for the controller (Base 4.1.1). `list` is a page of
/// the driver's own, which the controller sees at `list_iova`.
///
/// # Panics
/// If the memory takes more pages than fit into the list.
pub(super) fn prp(iova: u64, length: u32, list: NonNull<u8>, list_iova: u64) -> DataPointer {
    let page = PAGE_BYTES as u64;
    let next = (iova & !(page - 1)) + page;
    let end = iova + u64::from(length);
    if end <= next {
        return DataPointer::Prp(iova, 0);
    }
    if end <= next + page {
        return DataPointer::Prp(iova, next);
    }
    let entries = (end - next).div_ceil(page);
    let entries = usize::try_from(entries).unwrap_or(usize::MAX);
    assert!(entries <= PAGE_BYTES / 8, "{length} bytes are more than one PRP list has entries for");
    let list: NonNull<u64> = list.cast();
    for (index, address) in (0..entries).zip((next..).step_by(PAGE_BYTES)) {
        // SAFETY: the list is a page, and there are no more entries than fit.
        let place = unsafe { list.add(index) };
        // SAFETY: as above; the page is the driver's own, and its command is not in flight yet.
        unsafe { place.write_volatile(address) };
    }
    DataPointer::Prp(iova, list_iova)
}

/// Fills a page with the protection information of a write.
///
/// # Safety
/// `data` and the tuples at `tuples` are valid for the part's length. In a client's memory the
/// bytes may change meanwhile: then the device finds that they do not match.
pub(super) unsafe fn protect(
    protection: Protection,
    lba: u64,
    data: (NonNull<u8>, usize),
    tuples: NonNull<u8>,
) {
    // SAFETY: as promised by the caller.
    let bytes = unsafe { slice::from_raw_parts(data.0.as_ptr(), data.1) };
    let length = protection.bytes_for(data.1);
    // SAFETY: as promised by the caller; the page is the queue's own, and not in flight.
    let tuples = unsafe { slice::from_raw_parts_mut(tuples.as_ptr(), length) };
    protection.protect(lba, bytes, tuples);
}

/// Checks what was read against its protection information.
///
/// # Errors
/// As [`Protection::verify`].
///
/// # Safety
/// As [`protect`]; the command has completed.
pub(super) unsafe fn verify(
    protection: Protection,
    lba: u64,
    data: (NonNull<u8>, usize),
    tuples: NonNull<u8>,
) -> Result<()> {
    // SAFETY: as promised by the caller.
    let bytes = unsafe { slice::from_raw_parts(data.0.as_ptr(), data.1) };
    // SAFETY: as promised by the caller.
    let tuples = unsafe { slice::from_raw_parts(tuples.as_ptr(), protection.bytes_for(data.1)) };
    protection.verify(lba, bytes, tuples)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(iova: u64, length: u32) -> (DataPointer, Vec<u64>) {
        let mut page = vec![0u64; PAGE_BYTES / 8];
        let memory = NonNull::new(page.as_mut_ptr()).expect("a vector").cast();
        let pointer = prp(iova, length, memory, 0xabc000);
        page.retain(|entry| *entry != 0);
        (pointer, page)
    }

    #[test]
    fn one_page_two_pages_and_lists() {
        assert_eq!(list(0x10_0200, 512).0, DataPointer::Prp(0x10_0200, 0));
        assert_eq!(list(0x10_0000, 4096).0, DataPointer::Prp(0x10_0000, 0));
        assert_eq!(list(0x10_0200, 4096).0, DataPointer::Prp(0x10_0200, 0x10_1000));
        assert_eq!(list(0x10_0000, 8192).0, DataPointer::Prp(0x10_0000, 0x10_1000));
        let (pointer, entries) = list(0x10_0200, 8192);
        assert_eq!(pointer, DataPointer::Prp(0x10_0200, 0xabc000));
        assert_eq!(entries, [0x10_1000, 0x10_2000]);
        assert_eq!(list(0x10_0000, 2 << 20).1.len(), 511);
    }
}
