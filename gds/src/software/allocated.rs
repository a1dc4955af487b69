use std::os::fd::OwnedFd;
use std::sync::Arc;

use dma::{HugePages, Region, Window};
use extent::Result;

/// Memory of a software device.
pub(super) struct Allocated {
    pub(super) bytes: usize,
    pub(super) memory: Arc<Region>,
    /// The file that the memory is, where it can be exported.
    pub(super) file: Option<OwnedFd>,
    /// Which no other allocation has.
    pub(super) number: u64,
}

impl Allocated {
    pub(super) fn new(bytes: usize, is_shareable: bool, number: u64) -> Result<Self> {
        let (memory, file) = if is_shareable {
            let (memory, file) = Region::shareable(bytes)?;
            (memory, Some(file))
        } else {
            (Region::anonymous(bytes, HugePages::Never)?, None)
        };
        // Nobody shall take it for zeroes.
        Window::new(Arc::clone(&memory), 0, bytes)?.copy_in(&vec![0xA5; bytes]);
        Ok(Self { bytes, memory, file, number })
    }
}
