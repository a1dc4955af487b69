use std::collections::HashSet;
use std::sync::Arc;

use dma::{DmaBuf, Region};
use extent::wire::{Command, Request};
use extent::{Kind, Result};

/// How a node's RDMA device treats memory of other devices.
#[derive(Default)]
pub(crate) struct FakeDevices {
    /// It registers none, and why not.
    pub(crate) refuses: Option<&'static str>,
    /// What is written there gets lost, now or over the next connection.
    pub(crate) loses_writes: bool,
    pub(crate) loses_writes_next: bool,
    /// Connections end when something is written there.
    pub(crate) breaks: bool,
    /// What was ever registered.
    known: HashSet<u32>,
}

impl FakeDevices {
    pub(super) fn on_connection(&mut self) {
        self.loses_writes |= std::mem::take(&mut self.loses_writes_next);
    }

    pub(super) fn map(&mut self, memory: &Arc<DmaBuf>) -> Result<Arc<Region>> {
        if let Some(why) = self.refuses {
            return Err(Kind::Unsupported.error(why));
        }
        assert_eq!(memory.offset(), 0, "a software device exports from an allocation's front on");
        self.known.insert(memory.id().0);
        Region::sealed_memfd(memory.file(), memory.length())
    }

    pub(super) fn loses(&self, key: u32) -> bool {
        self.loses_writes && self.known.contains(&key)
    }

    pub(super) fn ends_connection(&self, request: &Request) -> bool {
        let Command::Read { into, .. } = &request.command else { return false };
        self.breaks && into.as_slice().iter().any(|segment| self.known.contains(&segment.key))
    }

    /// How many of these regions are devices'.
    pub(crate) fn count<'a>(&self, regions: impl Iterator<Item = &'a (u64, u32)>) -> usize {
        regions.filter(|(_, key)| self.known.contains(key)).count()
    }
}
