#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use dma::{HugePages, Region};
use extent::Result;

use super::Host;
use crate::device::nvme::PAGE_BYTES;

/// A part of a region that a controller reaches, for as long as this lives.
#[derive(Debug)]
pub(super) struct Mapping {
    host: Arc<dyn Host>,
    /// Keeps the memory mapped here while the device can reach it.
    region: Arc<Region>,
    /// Where the mapped part begins in the region; whole pages.
    start: usize,
    length: usize,
    iova: u64,
}

impl Mapping {
    /// The pages of a region that hold a range of it.
    ///
    /// # Errors
    /// As [`Host::map`].
    pub(super) fn new(
        host: &Arc<dyn Host>,
        region: &Arc<Region>,
        offset: usize,
        length: usize,
    ) -> Result<Self> {
        let start = offset & !(PAGE_BYTES - 1);
        // A region that ends within a page has all of that page.
        let pages = (offset + length - start).next_multiple_of(PAGE_BYTES);
        let iova = host.map(region.at(start, offset + length - start), pages)?;
        Ok(Self { host: Arc::clone(host), region: Arc::clone(region), start, length: pages, iova })
    }

    /// A page of its own that holds a few bytes, and zeroes beyond.
    ///
    /// # Errors
    /// As [`Mapping::new`], and without memory.
    pub(super) fn of_page(host: &Arc<dyn Host>, bytes: &[u8]) -> Result<Self> {
        let page = DmaMemory::new(host, PAGE_BYTES)?;
        page.write(0, bytes);
        Ok(page.0)
    }

    /// Where the device sees byte `offset` of the region.
    #[inline]
    pub(super) fn iova_of(&self, offset: usize) -> u64 {
        debug_assert!((self.start..self.start + self.length).contains(&offset));
        self.iova + (offset - self.start) as u64
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.host.unmap(self.iova, self.length);
    }
}

/// Memory of the driver's own for queues and what goes with them, reached by the controller.
#[derive(Debug)]
pub(super) struct DmaMemory(Mapping);

impl DmaMemory {
    /// Zeroed memory of at least so many bytes.
    ///
    /// # Errors
    /// Without memory, or as [`Host::map`].
    pub(super) fn new(host: &Arc<dyn Host>, bytes: usize) -> Result<Self> {
        let region = Region::anonymous(bytes.next_multiple_of(PAGE_BYTES), HugePages::Never)?;
        let length = region.length();
        Ok(Self(Mapping::new(host, &region, 0, length)?))
    }

    pub(super) fn iova(&self, offset: usize) -> u64 {
        self.0.iova_of(offset)
    }

    /// The address of `length` bytes in it.
    pub(super) fn at(&self, offset: usize, length: usize) -> NonNull<u8> {
        self.0.region.at(offset, length)
    }

    /// Zeroes a part of it that the controller does not use at the moment.
    pub(super) fn zero(&self, offset: usize, length: usize) {
        // SAFETY: `at` keeps the range inside; the caller knows that the controller is not at it.
        unsafe { std::ptr::write_bytes(self.at(offset, length).as_ptr(), 0, length) };
    }

    /// Writes into a part of it that the controller does not use at the moment.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len()).as_ptr();
        // SAFETY: `at` keeps the range inside; the caller knows that the controller is not at it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// A copy of a part that the controller has finished writing.
    pub(super) fn copy(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let from = self.at(offset, length).as_ptr();
        // SAFETY: `at` keeps the range inside, and the vector is as long.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), length) };
        bytes
    }
}
