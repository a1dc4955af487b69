//! Protection domains and registered memory.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use dma::Region;
use extent::{Kind, Result};

use super::adapter::{Adapter, check, made};
use super::ffi;

/// What memory and queue pairs belong to: one cannot be used through the other unless they share it.
#[derive(Debug)]
pub(super) struct ProtectionDomain {
    domain: NonNull<ffi::ibv_pd>,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub(super) fn new(adapter: Adapter) -> Result<Arc<Self>> {
        // SAFETY: the context is open.
        let domain = unsafe { (ffi::library()?.ibv_alloc_pd)(adapter.context()) };
        let domain = made(domain, "making a protection domain")?;
        Ok(Arc::new(Self { domain }))
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::ibv_pd {
        self.domain.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        let Ok(library) = ffi::library() else { return };
        // SAFETY: whatever is in it holds an `Arc` of it, so nothing is.
        let failed = unsafe { (library.ibv_dealloc_pd)(self.domain.as_ptr()) };
        if failed != 0 {
            tracing::warn!(errno = failed, "a protection domain could not be given back: leaked");
        }
    }
}

/// What others may do with memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rights {
    /// Nothing: only work requests of this side use it. All that a node ever grants.
    Local,
    /// Read and write by RDMA, for whoever has its key and a queue pair in its domain. What a client
    /// grants its node.
    Remote,
    /// The same, without reading: of memory of other devices.
    RemoteWrite,
}

impl Rights {
    /// Whether memory that has these may be used so.
    pub(super) fn allow(self, wanted: Self) -> bool {
        match wanted {
            Self::Local => true,
            Self::Remote => self == Self::Remote,
            Self::RemoteWrite => self != Self::Local,
        }
    }
}

/// Memory that a device may use. Unregistered before the region goes.
#[derive(Debug)]
pub(super) struct MemoryRegion {
    registration: NonNull<ffi::ibv_mr>,
    rights: Rights,
    region: Arc<Region>,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for MemoryRegion {}
// SAFETY: nothing of it changes once it is made.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    /// Locks a region's pages and makes them known to the device.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] over the limit on locked memory, or if the device has no room for it.
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        region: &Arc<Region>,
        rights: Rights,
    ) -> Result<Self> {
        let access = ffi::IBV_ACCESS_LOCAL_WRITE
            | match rights {
                Rights::Local => 0,
                Rights::Remote => ffi::IBV_ACCESS_REMOTE_READ | ffi::IBV_ACCESS_REMOTE_WRITE,
                Rights::RemoteWrite => ffi::IBV_ACCESS_REMOTE_WRITE,
            };
        let (base, length) = (region.base().as_ptr().cast(), region.length());
        // SAFETY: the region stays mapped until after it is unregistered: see the fields' order of
        // use in `drop`.
        let mr = unsafe { (ffi::library()?.ibv_reg_mr)(domain.as_ptr(), base, length, access) };
        let registration = made(mr, "registering memory with an RDMA device")?;
        Ok(Self { registration, rights, region: Arc::clone(region), _domain: Arc::clone(domain) })
    }

    /// The key for work requests of this side.
    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: it is registered, and never changes.
        unsafe { (*self.registration.as_ptr()).lkey }
    }

    /// The key to hand to the other side.
    ///
    /// # Errors
    /// [`Kind::Denied`] for memory without remote rights.
    pub(super) fn remote_key(&self) -> Result<u32> {
        if self.rights == Rights::Local {
            return Err(Kind::Denied.error("this memory is for nobody else"));
        }
        // SAFETY: as above.
        Ok(unsafe { (*self.registration.as_ptr()).rkey })
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The address of byte `offset`, as work requests name it.
    pub(super) fn address(&self, offset: usize, length: usize) -> u64 {
        self.region.at(offset, length).addr().get() as u64
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        let Ok(library) = ffi::library() else { return };
        // SAFETY: no work request names it any more: whoever posts one keeps this alive.
        let failed = unsafe { (library.ibv_dereg_mr)(self.registration.as_ptr()) };
        if let Err(error) = check(failed, "unregistering memory") {
            // The device may still use it: better lost than used for something else.
            tracing::error!(%error, "memory stays registered: its region is leaked");
            std::mem::forget(Arc::clone(&self.region));
        }
    }
}
