//! Memory of other devices, registered with an RDMA device.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use dma::DmaBuf;
use extent::wire::Segment;
use extent::{Kind, Result};

use crate::bugs::{self, Bug};

use super::adapter::{check, made, name_of};
use super::ffi;
use super::memory::ProtectionDomain;

/// A device's memory that an RDMA device may write to, for whoever has its key and a queue pair in its domain. What is
/// exported stays so until it is unregistered.
#[derive(Debug)]
pub(super) struct DeviceRegion {
    registration: NonNull<ffi::ibv_mr>,
    /// Where it is, as the other device counts, and how long. Whose it is is for others to keep: the kernel keeps what
    /// is registered.
    place: (u64, usize),
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for DeviceRegion {}
// SAFETY: nothing of it changes once it is made.
unsafe impl Sync for DeviceRegion {}

impl DeviceRegion {
    /// Makes exported memory known to the RDMA device, under the addresses that it has on its own.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if rdma-core, the kernel or the RDMA device takes none; [`Kind::NoSpace`] if the device has
    /// no room for it.
    pub(super) fn new(domain: &Arc<ProtectionDomain>, memory: &Arc<DmaBuf>) -> Result<Self> {
        let register = ffi::library()?.ibv_reg_dmabuf_mr.ok_or_else(|| {
            Kind::Unsupported
                .error("libibverbs here has no ibv_reg_dmabuf_mr: install rdma-core 34 or newer")
        })?;
        let access = ffi::IBV_ACCESS_LOCAL_WRITE | ffi::IBV_ACCESS_REMOTE_WRITE;
        let (offset, length, file) = (memory.offset(), memory.length(), memory.file().as_raw_fd());
        // SAFETY: the domain and the descriptor are open, and the exporter keeps the memory behind that.
        let mr =
            unsafe { register(domain.as_ptr(), offset, length, memory.address(), file, access) };
        if mr.is_null()
            && let Some(why) = refusal(&io::Error::last_os_error())
        {
            return Err(Kind::Unsupported.error(format!(
                "{} registers no dma-buf ({why}): it takes an RDMA device whose driver does, and one of the GPU's \
                 that exports it to that",
                device_of(domain)
            )));
        }
        let registration = made(mr, "registering device memory with an RDMA device")?;
        let place = (memory.address(), length);
        Ok(Self { registration, place, _domain: Arc::clone(domain) })
    }

    /// The key to hand to the other side.
    pub(super) fn remote_key(&self) -> u32 {
        // SAFETY: it is registered, and never changes.
        unsafe { (*self.registration.as_ptr()).rkey }
    }

    pub(super) fn place(&self) -> (u64, usize) {
        self.place
    }
}

impl Drop for DeviceRegion {
    fn drop(&mut self) {
        let Ok(library) = ffi::library() else { return };
        // SAFETY: it was registered, and is unregistered once.
        let failed = unsafe { (library.ibv_dereg_mr)(self.registration.as_ptr()) };
        if let Err(error) = check(failed, "unregistering device memory") {
            // The kernel keeps it from being used for something else.
            tracing::error!(%error, "device memory stays registered, and is never given back");
        }
    }
}

/// A segment of a device's memory as the node sees it.
///
/// # Errors
/// [`Kind::Invalid`] if it is not inside.
pub(super) fn of_device(
    (address, length): (u64, usize),
    key: u32,
    segment: Segment,
) -> Result<Segment> {
    let end = segment.address.checked_add(segment.length.into());
    let is_outside = end.is_none_or(|end| end > length as u64);
    if is_outside && !bugs::is(Bug::DeviceUnbounded) {
        return Err(Kind::Invalid.error(format!(
            "{} bytes at {} are outside {length} bytes of device memory",
            segment.length, segment.address
        )));
    }
    Ok(Segment { address: address.wrapping_add(segment.address), length: segment.length, key })
}

/// What an error number is called that means that this cannot be done here.
fn refusal(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EOPNOTSUPP => Some("EOPNOTSUPP"),
        libc::EPROTONOSUPPORT => Some("EPROTONOSUPPORT"),
        libc::ENOSYS => Some("ENOSYS"),
        libc::EINVAL => Some("EINVAL"),
        _ => None,
    }
}

fn device_of(domain: &ProtectionDomain) -> String {
    let Ok(library) = ffi::library() else { return String::new() };
    // SAFETY: the domain is live, and so is the context that it was made in.
    let context = unsafe { (*domain.as_ptr()).context };
    // SAFETY: as above.
    let device = unsafe { (*context).device };
    // SAFETY: it is the device of an open context.
    unsafe { name_of(library, device) }
}
