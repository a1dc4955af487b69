//! Host memory for a test's ring.
#![allow(unsafe_code)]

use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dma::{HugePages, Region, Span, Window};
use forebay_gds::HostMemory;

/// Host memory of the test's own, which counts how many pieces of it are there.
pub(crate) struct Piece {
    region: Arc<Region>,
    length: usize,
    alive: Arc<AtomicUsize>,
}

impl Piece {
    pub(crate) fn new(length: usize, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        let region = Region::anonymous(length, HugePages::Never).expect("memory");
        Self { region, length, alive: Arc::clone(alive) }
    }

    /// Writes to the memory, as a node does.
    pub(crate) fn fill(&mut self, at: usize, bytes: &[u8]) {
        let window = Window::new(Arc::clone(&self.region), at as u64, bytes.len());
        window.expect("inside").copy_in(bytes);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        let base = self.region.at(0, self.length);
        // SAFETY: the region is this piece's alone, and nobody writes to it while it is borrowed.
        unsafe { slice::from_raw_parts(base.as_ptr(), self.length) }
    }
}

impl AsMut<[u8]> for Piece {
    fn as_mut(&mut self) -> &mut [u8] {
        let base = self.region.at(0, self.length);
        // SAFETY: as in `as_ref`, and the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(base.as_ptr(), self.length) }
    }
}

// SAFETY: the region is this piece's alone, and lives as long.
unsafe impl HostMemory for Piece {
    fn span(&self) -> Option<Span<'_>> {
        Some(Span { region: &self.region, offset: 0, length: self.length })
    }
}

/// Bytes that differ from place to place, and from mark to mark.
pub(crate) fn bytes(length: usize, mark: usize) -> Vec<u8> {
    let byte = |i: usize| u8::try_from((i * 7 + mark * 31 + (i >> 8)) % 251).expect("small");
    (0..length).map(byte).collect()
}
