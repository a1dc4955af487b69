use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use dma::{DmaBuf, Span};
use extent::{Error, Kind, Result};

use super::driver::CudaDriver;
use super::ffi::{self, CUcontext, CUdevice, CUresult};
use crate::api::{DeviceApi, DeviceInfo, DevicePointer, EventHandle, Progress, StreamHandle};

/// The primary context of a GPU.
///
/// Every call makes it the thread's own for its length, so that threads of the program may have
/// whichever they want.
pub(super) struct Context {
    driver: &'static CudaDriver,
    info: DeviceInfo,
    device: CUdevice,
    context: CUcontext,
}

// SAFETY: a context may be used by any thread that makes it its current one.
unsafe impl Send for Context {}
// SAFETY: the driver's functions may be called by several threads at once.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn retain(driver: &'static CudaDriver, info: &DeviceInfo) -> Result<Arc<Self>> {
        let ordinal = i32::try_from(info.ordinal).unwrap_or(i32::MAX);
        let device = driver.handle(ordinal)?;
        let mut context = ptr::null_mut();
        // SAFETY: it writes a pointer.
        let code = unsafe { (driver.functions.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Arc::new(Self { driver, info: info.clone(), device, context }))
    }

    /// Calls the driver with the context as the thread's own.
    fn call(&self, function: &str, act: impl FnOnce(&ffi::Functions) -> CUresult) -> Result<()> {
        let code = self.within(act)?;
        self.driver.check(function, code)
    }

    fn within(&self, act: impl FnOnce(&ffi::Functions) -> CUresult) -> Result<CUresult> {
        let functions = &self.driver.functions;
        // SAFETY: the context is retained until this is dropped.
        let code = unsafe { (functions.cuCtxPushCurrent)(self.context) };
        self.driver.check("cuCtxPushCurrent", code)?;
        let answer = act(functions);
        let mut popped = ptr::null_mut();
        // SAFETY: it writes a pointer.
        let code = unsafe { (functions.cuCtxPopCurrent)(&raw mut popped) };
        self.driver.check("cuCtxPopCurrent", code)?;
        Ok(answer)
    }

    /// The number of the GPU whose memory is at an address.
    pub(super) fn owner_of(&self, pointer: DevicePointer) -> Result<usize> {
        let nobodys = || Kind::Invalid.error(format!("{:#x} is no GPU's memory", pointer.0));
        let asked = self.attribute(ffi::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer);
        let ordinal: i32 =
            asked.map_err(|error| if error.kind() == Kind::Invalid { nobodys() } else { error })?;
        usize::try_from(ordinal).map_err(|_| nobodys())
    }

    fn attribute<T: Default>(&self, what: i32, pointer: DevicePointer) -> Result<T> {
        let mut value = T::default();
        self.call("cuPointerGetAttribute", |functions| {
            // SAFETY: callers ask for the type that cuda.h says the attribute has.
            unsafe { (functions.cuPointerGetAttribute)((&raw mut value).cast(), what, pointer.0) }
        })?;
        Ok(value)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and everything that used it is gone.
        let code = unsafe { (self.driver.functions.cuDevicePrimaryCtxRelease)(self.device) };
        if let Err(error) = self.driver.check("cuDevicePrimaryCtxRelease", code) {
            tracing::debug!(%error, "a context was not given back");
        }
    }
}

impl DeviceApi for Context {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn identity(&self) -> (usize, usize) {
        ((&raw const *self.driver).addr(), self.info.ordinal)
    }

    fn with_context(&self, act: &mut dyn FnMut()) -> Result<()> {
        self.call("cuCtxPushCurrent", |_| {
            act();
            ffi::CUDA_SUCCESS
        })
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePointer> {
        let mut pointer = 0;
        // SAFETY: it writes an address.
        self.call("cuMemAlloc", |f| unsafe { (f.cuMemAlloc)(&raw mut pointer, bytes) })
            .map_err(|error| error.while_doing(format_args!("{bytes} bytes of device memory")))?;
        Ok(DevicePointer(pointer))
    }

    fn free(&self, pointer: DevicePointer) -> Result<()> {
        // SAFETY: who has the memory frees it once, when no copy uses it.
        self.call("cuMemFree", |f| unsafe { (f.cuMemFree)(pointer.0) })
    }

    fn find(&self, pointer: DevicePointer) -> Result<Range<u64>> {
        let elsewhere = |error: Error| {
            let reason = format!("{:#x} is no memory of GPU {}", pointer.0, self.info.ordinal);
            if error.kind() == Kind::Invalid { Kind::Invalid.error(reason) } else { error }
        };
        let kind: u32 =
            self.attribute(ffi::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pointer).map_err(elsewhere)?;
        if kind != ffi::CU_MEMORYTYPE_DEVICE || self.owner_of(pointer)? != self.info.ordinal {
            return Err(elsewhere(Kind::Invalid.error("")));
        }
        let start: u64 = self.attribute(ffi::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, pointer)?;
        let bytes: usize = self.attribute(ffi::CU_POINTER_ATTRIBUTE_RANGE_SIZE, pointer)?;
        Ok(start..start.saturating_add(bytes as u64))
    }

    fn allocation(&self, pointer: DevicePointer) -> Result<u64> {
        self.attribute(ffi::CU_POINTER_ATTRIBUTE_BUFFER_ID, pointer)
    }

    fn export(&self, from: DevicePointer, bytes: usize) -> Result<Arc<DmaBuf>> {
        let export = self.driver.functions.cuMemGetHandleForAddressRange.ok_or_else(|| {
            Kind::Unsupported.error(
                "the NVIDIA driver here has no cuMemGetHandleForAddressRange: install that of CUDA 11.7 or a \
                 newer one",
            )
        })?;
        // What is behind other addresses may be changed without their getting another number: by cuMemMap, or in a
        // pool. Then a registration would be of what is no longer there.
        let capable = ffi::CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE;
        if self.attribute::<u64>(capable, from)? == 0 {
            return Err(Kind::Unsupported.error(
                "device memory that is mapped or of a pool: only that of cuMemAlloc (cudaMalloc) is registered",
            ));
        }
        let mut file: c_int = -1;
        let kind = ffi::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD;
        self.call("cuMemGetHandleForAddressRange", |_| {
            // SAFETY: for this type it writes an int.
            unsafe { export((&raw mut file).cast(), from.0, bytes, kind, 0) }
        })?;
        if file < 0 {
            return Err(Kind::Unsupported.error("the driver exports no descriptor"));
        }
        // SAFETY: the driver has opened it for the caller, who closes it.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        Ok(DmaBuf::new(file, 0, from.0, bytes))
    }

    fn flush_writes(&self) -> Result<()> {
        let attribute = |wanted| self.driver.attribute(wanted, self.device);
        let ordering = attribute(ffi::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING);
        if ordering >= ffi::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER {
            return Ok(());
        }
        let options = attribute(ffi::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS);
        let is_offered = options & ffi::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST != 0;
        let flush = self.driver.functions.cuFlushGPUDirectRDMAWrites.filter(|_| is_offered);
        let flush = flush.ok_or_else(|| {
            Kind::Unsupported
                .error("the GPU keeps what others write in no order, and is not to be told to")
        })?;
        let target = ffi::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX;
        self.call("cuFlushGPUDirectRDMAWrites", |_| {
            // SAFETY: it takes no memory.
            unsafe { flush(target, ffi::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER) }
        })
    }

    fn pin(&self, memory: Span<'_>) -> Result<()> {
        let base = address(memory);
        let flags = ffi::CU_MEMHOSTREGISTER_PORTABLE;
        self.call("cuMemHostRegister", |f| {
            // SAFETY: the memory is mapped, and stays so until it is unpinned or for ever.
            unsafe { (f.cuMemHostRegister)(base, memory.length, flags) }
        })
    }

    fn unpin(&self, memory: Span<'_>) -> Result<()> {
        // SAFETY: it was pinned from this address on.
        self.call("cuMemHostUnregister", |f| unsafe { (f.cuMemHostUnregister)(address(memory)) })
    }

    fn create_stream(&self) -> Result<StreamHandle> {
        let mut stream = ptr::null_mut();
        // SAFETY: it writes a pointer.
        self.call("cuStreamCreate", |f| unsafe {
            (f.cuStreamCreate)(&raw mut stream, ffi::CU_STREAM_NON_BLOCKING)
        })?;
        Ok(StreamHandle(stream.expose_provenance() as u64))
    }

    fn destroy_stream(&self, stream: StreamHandle) -> Result<()> {
        // SAFETY: it was made here, and nobody uses it any more.
        self.call("cuStreamDestroy", |f| unsafe { (f.cuStreamDestroy)(pointer(stream.0)) })
    }

    fn create_event(&self) -> Result<EventHandle> {
        let mut event = ptr::null_mut();
        // SAFETY: it writes a pointer.
        self.call("cuEventCreate", |f| unsafe {
            (f.cuEventCreate)(&raw mut event, ffi::CU_EVENT_DISABLE_TIMING)
        })?;
        Ok(EventHandle(event.expose_provenance() as u64))
    }

    fn destroy_event(&self, event: EventHandle) -> Result<()> {
        // SAFETY: it was made here, and nobody uses it any more.
        self.call("cuEventDestroy", |f| unsafe { (f.cuEventDestroy)(pointer(event.0)) })
    }

    unsafe fn copy_in(
        &self,
        to: DevicePointer,
        from: Span<'_>,
        stream: StreamHandle,
    ) -> Result<()> {
        self.call("cuMemcpyHtoDAsync", |f| {
            // SAFETY: the caller vouches for the host's memory; the driver knows its own.
            unsafe { (f.cuMemcpyHtoDAsync)(to.0, address(from), from.length, pointer(stream.0)) }
        })
    }

    unsafe fn copy_out(
        &self,
        from: DevicePointer,
        to: Span<'_>,
        stream: StreamHandle,
    ) -> Result<()> {
        self.call("cuMemcpyDtoHAsync", |f| {
            // SAFETY: as in `copy_in`.
            unsafe { (f.cuMemcpyDtoHAsync)(address(to), from.0, to.length, pointer(stream.0)) }
        })
    }

    fn record(&self, event: EventHandle, stream: StreamHandle) -> Result<()> {
        // SAFETY: both are the driver's, and live.
        self.call("cuEventRecord", |f| unsafe {
            (f.cuEventRecord)(pointer(event.0), pointer(stream.0))
        })
    }

    fn wait(&self, stream: StreamHandle, event: EventHandle) -> Result<()> {
        // SAFETY: both are the driver's, and live.
        self.call("cuStreamWaitEvent", |f| unsafe {
            (f.cuStreamWaitEvent)(pointer(stream.0), pointer(event.0), 0)
        })
    }

    fn query(&self, event: EventHandle) -> Result<Progress> {
        // SAFETY: it is the driver's, and lives.
        let code = self.within(|f| unsafe { (f.cuEventQuery)(pointer(event.0)) })?;
        match code {
            ffi::CUDA_SUCCESS => Ok(Progress::Done),
            ffi::CUDA_ERROR_NOT_READY => Ok(Progress::Pending),
            // Whatever it is, nobody can tell any more what is done.
            code => Err(Kind::Disconnected.error(format!(
                "cuEventQuery: {}: the device is lost to this process: start it anew",
                self.driver.describe(code)
            ))),
        }
    }
}

fn address(memory: Span<'_>) -> *mut c_void {
    memory.region.at(memory.offset, memory.length).as_ptr().cast()
}

/// A handle as the driver has it.
fn pointer(handle: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(usize::try_from(handle).unwrap_or(0))
}
