//! Memory of a device, as other devices are given it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::RegionId;

/// A range of a device's memory that other devices may reach, as a dma-buf (Linux,
/// `Documentation/driver-api/dma-buf.rst`). It counts as a region: what names one by its id names this, too.
#[derive(Debug)]
pub struct DmaBuf {
    id: RegionId,
    file: OwnedFd,
    offset: u64,
    address: u64,
    length: usize,
}

impl DmaBuf {
    /// `length` bytes from `offset` of what is exported as `file`. `address` is where they are on their own device,
    /// as its driver counts.
    #[must_use]
    pub fn new(file: OwnedFd, offset: u64, address: u64, length: usize) -> Arc<Self> {
        Arc::new(Self { id: RegionId::next(), file, offset, address, length })
    }

    /// Its number, which no region of this process has.
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// The descriptor that its exporter gave.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where the range begins in what is exported, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The address of its first byte on its own device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes in it.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}
