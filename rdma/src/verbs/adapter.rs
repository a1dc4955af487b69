//! RDMA devices: what they are called and what they can do.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};
use std::{io, ptr};

use extent::{Error, Kind, Result};

use super::ffi::{self, Library};

/// A device that librdmacm has opened, which stays open for as long as the process runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Adapter {
    context: NonNull<ffi::ibv_context>,
}

// SAFETY: verbs may be called from any thread, and the context is never closed.
unsafe impl Send for Adapter {}
// SAFETY: as above.
unsafe impl Sync for Adapter {}

/// What a device bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Work requests that a queue of a queue pair may hold.
    pub(super) queue_depth: u32,
    /// Entries of a completion queue.
    pub(super) completions: u32,
    /// Receives of a shared receive queue.
    pub(super) shared_receives: u32,
    /// RDMA READs that a queue pair may have under way to the other side.
    pub(super) reads_out: u8,
    /// RDMA READs that it may answer at a time.
    pub(super) reads_in: u8,
}

impl Adapter {
    /// The device behind an id of librdmacm, which stays open from now on.
    ///
    /// # Safety
    /// `context` is that of an id that is live.
    pub(super) unsafe fn of(context: *mut ffi::ibv_context) -> Result<Self> {
        let context = NonNull::new(context)
            .ok_or_else(|| Kind::Io.error("a connection that belongs to no RDMA device"))?;
        keep_open(context)?;
        Ok(Self { context })
    }

    pub(super) fn context(self) -> *mut ffi::ibv_context {
        self.context.as_ptr()
    }

    /// What is readable while it has something to tell (see [`super::events`]).
    pub(super) fn event_descriptor(self) -> libc::c_int {
        // SAFETY: the context is open.
        unsafe { (*self.context()).async_fd }
    }

    /// The kernel's name for it, such as `mlx5_0`.
    pub(super) fn name(self) -> String {
        let Ok(library) = ffi::library() else { return String::new() };
        // SAFETY: the context is open, and names its device.
        let device = unsafe { (*self.context()).device };
        // SAFETY: the device lives as long as its context.
        unsafe { name_of(library, device) }
    }

    pub(super) fn limits(self) -> Result<Limits> {
        let attributes = self.attributes()?;
        let narrow = |number: i32| u32::try_from(number).unwrap_or(0);
        let byte = |number: i32| u8::try_from(number.clamp(0, 255)).unwrap_or(0);
        Ok(Limits {
            queue_depth: narrow(attributes.max_qp_wr),
            completions: narrow(attributes.max_cqe),
            shared_receives: narrow(attributes.max_srq_wr),
            reads_out: byte(attributes.max_qp_init_rd_atom),
            reads_in: byte(attributes.max_qp_rd_atom),
        })
    }

    /// The numbers of its ports, and whether each is up. None if it does not say.
    pub(super) fn ports(self) -> Vec<(u8, bool)> {
        let (Ok(library), Ok(attributes)) = (ffi::library(), self.attributes()) else {
            return Vec::new();
        };
        let state = |number: u8| {
            let mut port = MaybeUninit::<ffi::ibv_port_attr>::zeroed();
            // SAFETY: the context is open, and the place is large enough.
            unsafe { (library.ibv_query_port)(self.context(), number, port.as_mut_ptr()) };
            // SAFETY: it was filled, or zeroes do as well: a port of no state is not up.
            let port = unsafe { port.assume_init() };
            (number, port.state == ffi::IBV_PORT_ACTIVE)
        };
        (1..=attributes.phys_port_cnt).map(state).collect()
    }

    pub(super) fn attributes(self) -> Result<ffi::ibv_device_attr> {
        let library = ffi::library()?;
        let mut attributes = MaybeUninit::<ffi::ibv_device_attr>::zeroed();
        // SAFETY: the context is open and the place is large enough.
        let failed = unsafe { (library.ibv_query_device)(self.context(), attributes.as_mut_ptr()) };
        check(failed, "asking an RDMA device for its limits")?;
        // SAFETY: it was filled, and zeroes would do as well.
        Ok(unsafe { attributes.assume_init() })
    }
}

/// librdmacm closes a device that was taken away with its last id, while memory and queues of this
/// side may still be registered with it. Whoever lists devices keeps all of them open: so they are
/// listed once for each that is new, and the list is never given back.
fn keep_open(context: NonNull<ffi::ibv_context>) -> Result<()> {
    static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if !kept.contains(&context.addr().get()) {
        // SAFETY: it counts no devices where nobody asks how many.
        let list = unsafe { (ffi::library()?.rdma_get_devices)(none()) };
        made(list, "listing RDMA devices")?;
        kept.push(context.addr().get());
    }
    Ok(())
}

/// The name of a device.
///
/// # Safety
/// `device` is on a list that was not given back, or of an open context.
pub(super) unsafe fn name_of(library: &Library, device: *mut ffi::ibv_device) -> String {
    // SAFETY: the caller vouches for the device.
    let name = unsafe { (library.ibv_get_device_name)(device) };
    if name.is_null() {
        return String::new();
    }
    // SAFETY: a C string that lives as long as the device.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// The error of a function that returns an `errno`, or -1 and sets it.
pub(super) fn check(result: libc::c_int, doing: &str) -> Result<()> {
    match result {
        0 => Ok(()),
        errno if errno > 0 => Err(failure(io::Error::from_raw_os_error(errno), doing)),
        _ => Err(failure(io::Error::last_os_error(), doing)),
    }
}

/// What a function that makes something returned, or its error.
pub(super) fn made<T>(pointer: *mut T, doing: &str) -> Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(|| failure(io::Error::last_os_error(), doing))
}

/// An error of rdma-core, with what helps.
fn failure(error: io::Error, doing: &str) -> Error {
    let (kind, advice) = match error.raw_os_error() {
        Some(libc::ENOMEM) => (
            Kind::NoSpace,
            ": out of memory that may be locked (raise `ulimit -l`) or of the device's resources",
        ),
        Some(libc::EPERM | libc::EACCES) => {
            (Kind::Denied, ": no rights on /dev/infiniband (are you in its group?)")
        }
        Some(libc::ENODEV) => {
            (Kind::Unsupported, ": no RDMA device on this machine, or none on the way there")
        }
        Some(libc::EADDRINUSE) => (Kind::Busy, ": stop what listens there, or use another port"),
        Some(libc::EADDRNOTAVAIL) => (Kind::Invalid, ": no RDMA device has this address"),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => {
            (Kind::Disconnected, ": no route there: look at the address and at `ip route`")
        }
        _ => (Kind::Io, ""),
    };
    kind.error(format!("{doing}{advice}")).caused_by(error)
}

/// A null pointer, where C has no argument.
pub(super) const fn none<T>() -> *mut T {
    ptr::null_mut()
}
