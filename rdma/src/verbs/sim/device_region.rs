use std::sync::Arc;

use dma::{DmaBuf, Region};
use extent::{Kind, Result};

use super::super::memory::Rights;
use super::super::provider;
use super::handles::{SimDomain, Simulated};
use super::world::{Registered, lock};

/// Memory of another device, mapped: what stands for a dma-buf is a sealed file of memory.
#[derive(Debug)]
pub(crate) struct SimDeviceRegion {
    key: u32,
    place: (u64, usize),
    domain: Arc<SimDomain>,
}

impl provider::DeviceRegion<Simulated> for SimDeviceRegion {
    fn new(domain: &Arc<SimDomain>, memory: &Arc<DmaBuf>) -> Result<Self> {
        if !lock(&domain.world).options.takes_dma_buf {
            return Err(Kind::Unsupported.error(
                "the simulated device registers no dma-buf (EOPNOTSUPP): take one that does",
            ));
        }
        let end = memory.offset() + memory.length() as u64;
        let end = usize::try_from(end).map_err(|_| Kind::Invalid.error("longer than memory"))?;
        let known = Registered {
            domain: domain.number,
            rights: Rights::RemoteWrite,
            region: Region::sealed_memfd(memory.file(), end)?,
            offset: memory.offset(),
            length: memory.length() as u64,
            address: memory.address(),
        };
        let key = lock(&domain.world).register(known);
        let place = (memory.address(), memory.length());
        Ok(Self { key, place, domain: Arc::clone(domain) })
    }

    fn remote_key(&self) -> u32 {
        self.key
    }

    fn place(&self) -> (u64, usize) {
        self.place
    }
}

impl Drop for SimDeviceRegion {
    fn drop(&mut self) {
        lock(&self.domain.world).memory.remove(&self.key);
    }
}
