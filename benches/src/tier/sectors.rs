//! A file that stands in for a namespace of 512-byte blocks.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use dma::{Region, RegionId, Target};
use extent::Result;
use nvme_tier::device::{Command, Completion, Device, DeviceIndex, Geometry, Token};

const SECTOR_BYTES: u32 = 512;

/// Most NVMe namespaces have blocks of 512 bytes, and then a small descriptor takes no more. A file
/// promises whole pages only, and its descriptors would be eight times as long: this says 512, and
/// reads whole pages.
pub struct Sectors {
    inner: Box<dyn Device>,
    page_bytes: u32,
    /// Reads that were made longer, with what was asked for.
    longer: HashMap<Token, Range<usize>>,
}

impl Sectors {
    /// Over a queue on one file.
    #[must_use]
    pub fn new(inner: Box<dyn Device>) -> Self {
        let page_bytes = inner.geometry(DeviceIndex(0)).block_bytes;
        Self { inner, page_bytes, longer: HashMap::new() }
    }
}

impl Device for Sectors {
    fn count(&self) -> usize {
        self.inner.count()
    }

    fn geometry(&self, device: DeviceIndex) -> Geometry {
        Geometry { block_bytes: SECTOR_BYTES, ..self.inner.geometry(device) }
    }

    fn submit(&mut self, token: Token, command: Command) -> Result<(), Command> {
        let command = match command {
            Command::Read { at, into: Target::Buffer(buffer, range) } => {
                let length = range.len().next_multiple_of(self.page_bytes as usize);
                let wide = range.start..range.start + length;
                if wide != range {
                    self.longer.insert(token, range);
                }
                Command::Read { at, into: Target::Buffer(buffer, wide) }
            }
            other => other,
        };
        self.inner.submit(token, command)
    }

    fn kick(&mut self) -> Result<()> {
        self.inner.kick()
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        let known = completions.len();
        self.inner.poll(completions);
        for completion in &mut completions[known..] {
            let asked = self.longer.remove(&completion.token);
            if let (Some(asked), Command::Read { into: Target::Buffer(_, range), .. }) =
                (asked, &mut completion.command)
            {
                *range = asked;
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn sleep(&mut self, others: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<bool> {
        self.inner.sleep(others, limit)
    }

    fn register(&mut self, region: &Arc<Region>) -> Result<()> {
        self.inner.register(region)
    }

    fn unregister(&mut self, region: RegionId) {
        self.inner.unregister(region);
    }
}
