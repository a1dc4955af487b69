//! The two libraries, opened at run time.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

use extent::{Error, Kind, Result};
use libc::{c_char, c_int, c_uint};

use super::structs::*;

/// Declares the functions that are looked up, each under its own name; those in brackets older libraries lack.
macro_rules! library {
    ($($library:ident {
        $($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*
        $([ $($later:ident: fn($($needs:ty),*) -> $gives:ty;)* ])?
    })*) => {
        /// The functions, for as long as the process runs: the libraries are never closed.
        pub(in crate::verbs) struct Library {
            $($(pub(in crate::verbs) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*)*
            $($($(pub(in crate::verbs) $later: Option<unsafe extern "C" fn($($needs),*) -> $gives>,)*)?)*
        }

        impl Library {
            fn open() -> Result<Self> {
                $(let $library = open(concat!(stringify!($library), ".so.1"))?;)*
                Ok(Self {
                    $($(
                        // SAFETY: rdma-core has declared the function so since its first release
                        // with this version of its ABI.
                        $name: unsafe { look_up(&$library, stringify!($name))? },
                    )*)*
                    $($($(
                        // SAFETY: rdma-core has declared it so since it has it.
                        $later: unsafe { look_up(&$library, stringify!($later)) }.ok(),
                    )*)?)*
                })
            }
        }
    };
}

library! {
    libibverbs {
        ibv_get_device_list: fn(*mut c_int) -> *mut *mut ibv_device;
        ibv_free_device_list: fn(*mut *mut ibv_device);
        ibv_get_device_name: fn(*mut ibv_device) -> *const c_char;
        ibv_open_device: fn(*mut ibv_device) -> *mut ibv_context;
        ibv_close_device: fn(*mut ibv_context) -> c_int;
        ibv_query_device: fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        ibv_query_port: fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
        ibv_query_gid: fn(*mut ibv_context, u8, c_int, *mut [u8; 16]) -> c_int;
        ibv_alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd;
        ibv_dealloc_pd: fn(*mut ibv_pd) -> c_int;
        ibv_reg_mr: fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
        ibv_dereg_mr: fn(*mut ibv_mr) -> c_int;
        ibv_create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel;
        ibv_destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int;
        ibv_create_cq: fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int)
            -> *mut ibv_cq;
        ibv_destroy_cq: fn(*mut ibv_cq) -> c_int;
        ibv_get_cq_event: fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
        ibv_ack_cq_events: fn(*mut ibv_cq, c_uint);
        ibv_create_srq: fn(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
        ibv_destroy_srq: fn(*mut ibv_srq) -> c_int;
        ibv_modify_srq: fn(*mut ibv_srq, *mut ibv_srq_attr, c_int) -> c_int;
        ibv_get_async_event: fn(*mut ibv_context, *mut ibv_async_event) -> c_int;
        ibv_ack_async_event: fn(*mut ibv_async_event);
        ibv_modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
        ibv_wc_status_str: fn(c_uint) -> *const c_char;
        [
            // Since rdma-core 34.
            ibv_reg_dmabuf_mr: fn(*mut ibv_pd, u64, usize, u64, c_int, c_int) -> *mut ibv_mr;
        ]
    }
    librdmacm {
        rdma_get_devices: fn(*mut c_int) -> *mut *mut ibv_context;
        rdma_create_event_channel: fn() -> *mut rdma_event_channel;
        rdma_destroy_event_channel: fn(*mut rdma_event_channel);
        rdma_create_id: fn(*mut rdma_event_channel, *mut *mut rdma_cm_id, *mut c_void, c_uint)
            -> c_int;
        rdma_destroy_id: fn(*mut rdma_cm_id) -> c_int;
        rdma_bind_addr: fn(*mut rdma_cm_id, *mut c_sockaddr) -> c_int;
        rdma_listen: fn(*mut rdma_cm_id, c_int) -> c_int;
        rdma_get_src_port: fn(*mut rdma_cm_id) -> u16;
        rdma_resolve_addr: fn(*mut rdma_cm_id, *mut c_sockaddr, *mut c_sockaddr, c_int) -> c_int;
        rdma_resolve_route: fn(*mut rdma_cm_id, c_int) -> c_int;
        rdma_create_qp: fn(*mut rdma_cm_id, *mut ibv_pd, *mut ibv_qp_init_attr) -> c_int;
        rdma_destroy_qp: fn(*mut rdma_cm_id);
        rdma_connect: fn(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        rdma_accept: fn(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        rdma_reject: fn(*mut rdma_cm_id, *const c_void, u8) -> c_int;
        rdma_disconnect: fn(*mut rdma_cm_id) -> c_int;
        rdma_notify: fn(*mut rdma_cm_id, c_uint) -> c_int;
        rdma_migrate_id: fn(*mut rdma_cm_id, *mut rdma_event_channel) -> c_int;
        rdma_set_option: fn(*mut rdma_cm_id, c_int, c_int, *mut c_void, usize) -> c_int;
        rdma_get_cm_event: fn(*mut rdma_event_channel, *mut *mut rdma_cm_event) -> c_int;
        rdma_ack_cm_event: fn(*mut rdma_cm_event) -> c_int;
        rdma_event_str: fn(c_uint) -> *const c_char;
    }
}

/// The libraries, opened at the first call.
///
/// # Errors
/// [`Kind::Unsupported`] if they are not installed, or too old.
pub(in crate::verbs) fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library>> = OnceLock::new();
    LIBRARY.get_or_init(Library::open).as_ref().map_err(Error::duplicate)
}

/// Opens a library and keeps it open.
fn open(name: &str) -> Result<ManuallyDrop<libloading::Library>> {
    // SAFETY: rdma-core's libraries do nothing at load time but register themselves.
    let opened = unsafe { libloading::Library::new(name) };
    opened.map(ManuallyDrop::new).map_err(|error| {
        Kind::Unsupported.error(format!(
            "RDMA needs {name}, which cannot be loaded ({error}): install rdma-core (on Debian: \
             librdmacm1 and ibverbs-providers)"
        ))
    })
}

/// The address of a function.
///
/// # Safety
/// `T` is the type of that function.
unsafe fn look_up<T: Copy>(library: &libloading::Library, name: &str) -> Result<T> {
    // SAFETY: the caller vouches for the type.
    let symbol = unsafe { library.get::<T>(name) };
    symbol.map(|symbol| *symbol).map_err(|error| {
        Kind::Unsupported
            .error(format!("rdma-core here has no {name} ({error}): install a newer one"))
    })
}
