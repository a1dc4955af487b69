//! What a queue is made for and of: its namespace and its own memory.

use std::mem;
use std::ptr::NonNull;
use std::sync::Arc;

use extent::Result;

use crate::device::nvme::{Deallocator, IdentifyNamespace, PAGE_BYTES, Protection};
use crate::device::polled::Controller;
use crate::device::polled::memory::DmaMemory;
use crate::device::polled::operation::Operation;
use crate::device::{Command, Geometry};

/// What the hot path needs to know of the namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Namespace {
    pub(super) nsid: u32,
    pub(super) block_shift: u32,
    /// Of the unit that offsets and lengths are multiples of.
    pub(super) block_mask: u64,
    /// Whether plain commands need nothing special.
    pub(super) takes_simple: bool,
    pub(super) geometry: Geometry,
    /// The most bytes of one NVMe command.
    pub(super) part_bytes: u32,
    /// What one NVMe command should not cross; zero if nothing.
    pub(super) boundary_bytes: u64,
    pub(super) protection: Option<Protection>,
    pub(super) deallocator: Option<Deallocator>,
    pub(super) uses_sgl: bool,
    pub(super) read_only: bool,
}

/// The pair's own memory: submission entries, completion entries, then for each command id a page
/// of PRP entries and a page of protection information, if there are any.
#[derive(Debug)]
pub(super) struct QueueMemory {
    pub(super) memory: Arc<DmaMemory>,
    pub(super) completions_at: usize,
    pub(super) completion_bytes: usize,
    pub(super) lists_at: usize,
    pub(super) tuples_at: usize,
}

impl Namespace {
    pub(super) fn new(
        controller: &Controller,
        nsid: u32,
        identity: &IdentifyNamespace,
        geometry: Geometry,
        read_only: bool,
    ) -> Self {
        let core = controller.core();
        let uses_sgl = core.identity().has_sgl && core.options.sgl;
        let block = u64::from(identity.block_bytes);
        // NLB has sixteen bits; a page holds the tuples of so many blocks.
        let mut most = controller.max_transfer_bytes().min(block << 16).min(1 << 20);
        if identity.protection.is_some() {
            most = most.min(PAGE_BYTES as u64 / 8 * block);
        }
        Self {
            nsid,
            block_shift: identity.block_bytes.trailing_zeros(),
            block_mask: u64::from(geometry.block_bytes) - 1,
            takes_simple: identity.protection.is_none() && identity.boundary_bytes == 0,
            geometry,
            part_bytes: u32::try_from((most / block * block).max(block)).expect("at most 1 MiB"),
            boundary_bytes: identity.boundary_bytes,
            protection: identity.protection,
            deallocator: core.deallocator(identity),
            uses_sgl,
            read_only,
        }
    }

    /// Bytes of the next NVMe command of an operation.
    #[inline]
    pub(super) fn part_length(&self, operation: &Operation) -> u32 {
        let left = operation.length - operation.issued;
        if left <= self.part_bytes && self.boundary_bytes == 0 {
            return left;
        }
        let mut length = left.min(self.part_bytes);
        if let (1.., Some(Command::Read { at, .. } | Command::Write { at, .. })) =
            (self.boundary_bytes, &operation.command)
        {
            let start = at.offset + u64::from(operation.issued);
            let to_boundary = self.boundary_bytes - start % self.boundary_bytes;
            length = length.min(u32::try_from(to_boundary).unwrap_or(u32::MAX));
        }
        length
    }
}

impl QueueMemory {
    pub(super) fn new(
        controller: &Controller,
        namespace: &Namespace,
        (submissions, completions, parts): (u16, u16, u16),
    ) -> Result<Self> {
        let pages = |wanted: bool| if wanted { usize::from(parts) * PAGE_BYTES } else { 0 };
        let completions_at = (usize::from(submissions) * 64).next_multiple_of(PAGE_BYTES);
        let completion_bytes = usize::from(completions) * 16;
        let lists_at = (completions_at + completion_bytes).next_multiple_of(PAGE_BYTES);
        let tuples_at = lists_at + pages(!namespace.uses_sgl);
        let all = tuples_at + pages(namespace.protection.is_some());
        let memory = Arc::new(DmaMemory::new(&controller.core().host, all)?);
        Ok(Self { memory, completions_at, completion_bytes, lists_at, tuples_at })
    }

    #[inline]
    pub(super) fn list(&self, cid: u16) -> (NonNull<u8>, u64) {
        let at = self.lists_at + usize::from(cid) * PAGE_BYTES;
        (self.memory.at(at, PAGE_BYTES), self.memory.iova(at))
    }

    /// Leaves the memory to the controller for good.
    pub(super) fn leak(&self) {
        mem::forget(Arc::clone(&self.memory));
    }

    pub(super) fn tuples(&self, cid: u16) -> (NonNull<u8>, u64) {
        let at = self.tuples_at + usize::from(cid) * PAGE_BYTES;
        (self.memory.at(at, PAGE_BYTES), self.memory.iova(at))
    }
}
