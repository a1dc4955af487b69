//! What Forebay uses of CUDA's driver, declared here and looked up when the first GPU is asked for: a build
//! needs nothing of CUDA. Names as in `cuda.h`; where that gives a function's second version the first
//! one's name, the second is meant.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

use extent::{Kind, Result};

pub(super) type CUresult = c_uint;
pub(super) type CUdevice = c_int;
pub(super) type CUdeviceptr = u64;
pub(super) type CUcontext = *mut c_void;
pub(super) type CUstream = *mut c_void;
pub(super) type CUevent = *mut c_void;

pub(super) const CUDA_SUCCESS: CUresult = 0;
pub(super) const CUDA_ERROR_INVALID_VALUE: CUresult = 1;
pub(super) const CUDA_ERROR_OUT_OF_MEMORY: CUresult = 2;
pub(super) const CUDA_ERROR_NO_DEVICE: CUresult = 100;
pub(super) const CUDA_ERROR_INVALID_HANDLE: CUresult = 400;
pub(super) const CUDA_ERROR_NOT_READY: CUresult = 600;
pub(super) const CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED: CUresult = 712;
pub(super) const CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED: CUresult = 713;
pub(super) const CUDA_ERROR_NOT_PERMITTED: CUresult = 800;
pub(super) const CUDA_ERROR_NOT_SUPPORTED: CUresult = 801;

pub(super) const CU_STREAM_NON_BLOCKING: c_uint = 1;
pub(super) const CU_EVENT_DISABLE_TIMING: c_uint = 2;
/// Pinned for all contexts of the process.
pub(super) const CU_MEMHOSTREGISTER_PORTABLE: c_uint = 1;
pub(super) const CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED: c_int = 124;
pub(super) const CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS: c_int = 117;
pub(super) const CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING: c_int = 118;
/// The processor may ask for a flush.
pub(super) const CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST: c_int = 1;
/// What others wrote is in order for the device that it was written to, without a flush.
pub(super) const CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER: c_int = 100;
pub(super) const CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX: c_uint = 0;
pub(super) const CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER: c_uint = 100;
pub(super) const CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD: c_uint = 1;
pub(super) const CU_POINTER_ATTRIBUTE_BUFFER_ID: c_int = 7;
pub(super) const CU_POINTER_ATTRIBUTE_MEMORY_TYPE: c_int = 2;
pub(super) const CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: c_int = 9;
pub(super) const CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: c_int = 10;
pub(super) const CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: c_int = 11;
pub(super) const CU_POINTER_ATTRIBUTE_RANGE_SIZE: c_int = 12;
pub(super) const CU_MEMORYTYPE_DEVICE: c_uint = 2;

/// Declares the functions, each with the name under which it is looked up; those in brackets older drivers lack.
macro_rules! driver {
    (
        $($name:ident = $symbol:literal: fn($($argument:ty),*);)*
        [ $($later:ident: fn($($needs:ty),*);)* ]
    ) => {
        /// The functions, for as long as the process runs: the library is never closed.
        #[expect(non_snake_case, reason = "as in cuda.h")]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> CUresult,)*
            $(pub(super) $later: Option<unsafe extern "C" fn($($needs),*) -> CUresult>,)*
        }

        impl Functions {
            pub(super) fn look_up(library: &'static libloading::Library) -> Result<Self> {
                Ok(Self {
                    $(
                        // SAFETY: the driver has had the function, as cuda.h declares it, under this
                        // name since CUDA 11 at the latest.
                        $name: unsafe { symbol(library, $symbol)? },
                    )*
                    $(
                        // SAFETY: as cuda.h declares it since there is such a function.
                        $later: unsafe { symbol(library, stringify!($later)) }.ok(),
                    )*
                })
            }
        }
    };
}

driver! {
    cuInit = "cuInit": fn(c_uint);
    cuGetErrorName = "cuGetErrorName": fn(CUresult, *mut *const c_char);
    cuGetErrorString = "cuGetErrorString": fn(CUresult, *mut *const c_char);
    cuDeviceGetCount = "cuDeviceGetCount": fn(*mut c_int);
    cuDeviceGet = "cuDeviceGet": fn(*mut CUdevice, c_int);
    cuDeviceGetName = "cuDeviceGetName": fn(*mut c_char, c_int, CUdevice);
    cuDeviceGetAttribute = "cuDeviceGetAttribute": fn(*mut c_int, c_int, CUdevice);
    cuDeviceTotalMem = "cuDeviceTotalMem_v2": fn(*mut usize, CUdevice);
    cuDevicePrimaryCtxRetain = "cuDevicePrimaryCtxRetain": fn(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease = "cuDevicePrimaryCtxRelease_v2": fn(CUdevice);
    cuCtxPushCurrent = "cuCtxPushCurrent_v2": fn(CUcontext);
    cuCtxPopCurrent = "cuCtxPopCurrent_v2": fn(*mut CUcontext);
    cuPointerGetAttribute = "cuPointerGetAttribute": fn(*mut c_void, c_int, CUdeviceptr);
    cuMemAlloc = "cuMemAlloc_v2": fn(*mut CUdeviceptr, usize);
    cuMemFree = "cuMemFree_v2": fn(CUdeviceptr);
    cuMemHostRegister = "cuMemHostRegister_v2": fn(*mut c_void, usize, c_uint);
    cuMemHostUnregister = "cuMemHostUnregister": fn(*mut c_void);
    cuMemcpyHtoDAsync = "cuMemcpyHtoDAsync_v2": fn(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync = "cuMemcpyDtoHAsync_v2": fn(*mut c_void, CUdeviceptr, usize, CUstream);
    cuStreamCreate = "cuStreamCreate": fn(*mut CUstream, c_uint);
    cuStreamDestroy = "cuStreamDestroy_v2": fn(CUstream);
    cuStreamWaitEvent = "cuStreamWaitEvent": fn(CUstream, CUevent, c_uint);
    cuEventCreate = "cuEventCreate": fn(*mut CUevent, c_uint);
    cuEventRecord = "cuEventRecord": fn(CUevent, CUstream);
    cuEventQuery = "cuEventQuery": fn(CUevent);
    cuEventDestroy = "cuEventDestroy_v2": fn(CUevent);
    [
        // Since CUDA 11.7 and 11.3.
        cuMemGetHandleForAddressRange: fn(*mut c_void, CUdeviceptr, usize, c_uint, c_ulonglong);
        cuFlushGPUDirectRDMAWrites: fn(c_uint, c_uint);
    ]
}

/// The address of a function.
///
/// # Safety
/// `T` is the type of that function.
unsafe fn symbol<T: Copy>(library: &'static libloading::Library, name: &str) -> Result<T> {
    // SAFETY: the caller vouches for the type.
    let symbol = unsafe { library.get::<T>(name) };
    symbol.map(|symbol| *symbol).map_err(|error| {
        Kind::Unsupported
            .error(format!("the NVIDIA driver here has no {name} ({error}): install a newer one"))
    })
}
