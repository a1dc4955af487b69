//! Memory of a device that others are to write to.

use std::ops::Range;
use std::sync::Arc;

use dma::{DmaBuf, page_bytes};
use extent::{Kind, Result};

use crate::bugs::{self, Bug};
use crate::{Device, DevicePointer, DeviceSpan};

/// Memory of a device that was allocated at once: not what is allocated at the same address later.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Allocation {
    range: Range<u64>,
    number: u64,
}

impl Allocation {
    /// Where it is on its device.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The whole pages of the host's in it, which may be none: only such can be exported.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        let page = page_bytes() as u64;
        let start = self.range.start.next_multiple_of(page);
        if bugs::is(Bug::PagesOfOthers) {
            return start..self.range.end.next_multiple_of(page);
        }
        start..(self.range.end / page * page).max(start)
    }
}

impl DeviceSpan {
    /// The allocation that it is a part of.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is in none, or not all of it is; what the driver answers.
    pub fn allocation(&self) -> Result<Allocation> {
        let api = &self.device().api;
        let range = api.find(self.pointer())?;
        if self.pointer().after(self.len()).0 > range.end {
            return Err(Kind::Invalid.error("device memory of several allocations"));
        }
        Ok(Allocation { range, number: api.allocation(self.pointer())? })
    }
}

impl Device {
    /// Exports the whole pages of an allocation, for an RDMA device to write to. While what comes of it lives,
    /// the memory is not given back to the device, also if it is freed.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the device, its driver or this memory does not allow it, or there is no whole
    /// page; [`Kind::Invalid`] if the memory is gone.
    pub fn export(&self, allocation: &Allocation) -> Result<Arc<DmaBuf>> {
        let pages = allocation.pages();
        let bytes = usize::try_from(pages.end - pages.start).unwrap_or(usize::MAX);
        if bytes == 0 {
            return Err(Kind::Unsupported.error(format!(
                "{} bytes of device memory without a whole page of {}: allocate more at once",
                allocation.range.end - allocation.range.start,
                page_bytes()
            )));
        }
        let from = DevicePointer(pages.start);
        if !self.has(allocation) {
            return Err(Kind::Invalid.error("device memory that was freed meanwhile"));
        }
        self.api.export(from, bytes).map_err(|error| {
            error.while_doing(format_args!("exporting {bytes} bytes of device memory"))
        })
    }

    /// Whether the allocation is still there: not freed, nor replaced by another.
    #[must_use]
    pub fn has(&self, allocation: &Allocation) -> bool {
        let now = self.api.allocation(DevicePointer(allocation.range.start));
        now.is_ok_and(|number| number == allocation.number)
    }

    /// Sees to it that what other devices have written to its memory by now is what it reads from now on.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it has no way to do that: what others write to it is of no use then.
    pub fn flush_writes(&self) -> Result<()> {
        self.api.flush_writes()
    }
}
