use std::ffi::{CStr, c_char, c_int};
use std::ptr;
use std::sync::OnceLock;

use extent::{Error, Kind, Result};

use super::context::Context;
use super::ffi::{self, CUresult, Functions};
use crate::Device;
use crate::api::{DeviceInfo, DevicePointer};
use crate::opening::{PATIENCE, in_time};

const LIBRARY: &str = "libcuda.so.1";

/// NVIDIA's driver, opened and initialised.
pub struct CudaDriver {
    pub(super) functions: Functions,
    devices: Vec<DeviceInfo>,
}

/// What there is of CUDA on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CudaState {
    /// No driver.
    NoLibrary,
    /// A driver, and why it is of no use.
    Useless(String),
    /// GPUs.
    Devices(Vec<DeviceInfo>),
}

impl CudaState {
    /// The first GPU, or in a few words why there is none.
    ///
    /// # Errors
    /// Those words.
    pub fn first(&self) -> Result<&DeviceInfo, &str> {
        match self {
            Self::NoLibrary => Err("no libcuda.so.1"),
            Self::Useless(why) => Err(why),
            Self::Devices(devices) => devices.first().ok_or("libcuda, but no GPU"),
        }
    }
}

impl CudaDriver {
    /// The system's, `libcuda.so.1`, opened at the first call.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if there is none, or it has no GPU; the message says which.
    pub fn system() -> Result<&'static Self> {
        static SYSTEM: OnceLock<Result<&'static CudaDriver>> = OnceLock::new();
        SYSTEM.get_or_init(|| Self::open(LIBRARY)).as_ref().copied().map_err(Error::duplicate)
    }

    /// What there is of CUDA on this machine.
    #[must_use]
    pub fn look() -> CudaState {
        match Self::system() {
            Ok(driver) => CudaState::Devices(driver.devices.clone()),
            Err(error) if error.kind() == Kind::NotFound => CudaState::NoLibrary,
            Err(error) => CudaState::Useless(error.to_string()),
        }
    }

    /// Opens a driver by the name or the path of its library, and initialises it. It stays open.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if the library cannot be loaded; [`Kind::Unsupported`] if it is too old, has no GPU, or
    /// does not initialise in time.
    pub fn open(library: &str) -> Result<&'static Self> {
        let late = || {
            Kind::Unsupported.error(format!(
                "libcuda, but cuInit did not return within {PATIENCE:?}: look at nvidia-smi and dmesg"
            ))
        };
        let name = library.to_owned();
        in_time("cuda-init", late, move || Self::open_at_once(&name))
    }

    fn open_at_once(library: &str) -> Result<&'static Self> {
        // SAFETY: the driver's library does nothing at load time but prepare itself.
        let opened = unsafe { libloading::Library::new(library) };
        let opened = opened.map_err(|error| {
            Kind::NotFound.error(format!("no {library} ({error}): install the NVIDIA driver"))
        })?;
        let functions = Functions::look_up(Box::leak(Box::new(opened)))?;
        let mut driver = Self { functions, devices: Vec::new() };
        // SAFETY: it takes no memory of ours.
        let code = unsafe { (driver.functions.cuInit)(0) };
        if code != ffi::CUDA_SUCCESS {
            return Err(Kind::Unsupported.error(if code == ffi::CUDA_ERROR_NO_DEVICE {
                format!(
                    "libcuda, but no GPU (cuInit: {}): look at nvidia-smi",
                    driver.describe(code)
                )
            } else {
                format!("libcuda, but cuInit: {}: look at nvidia-smi", driver.describe(code))
            }));
        }
        driver.devices = driver.list()?;
        if driver.devices.is_empty() {
            return Err(Kind::Unsupported
                .error("libcuda, but no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES"));
        }
        Ok(Box::leak(Box::new(driver)))
    }

    /// One of its GPUs.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there are not so many; what the driver answers.
    pub fn device(&'static self, ordinal: usize) -> Result<Device> {
        let info = self.devices.get(ordinal).ok_or_else(|| {
            Kind::NotFound.error(format!("no GPU {ordinal}: there are {} here", self.devices.len()))
        })?;
        Ok(Device::over(Context::retain(self, info)?))
    }

    /// The number of the GPU whose memory is at an address. The first GPU's primary context is made for that, if
    /// there is none yet.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is no GPU's; what the driver answers.
    pub fn owner_of(&'static self, pointer: DevicePointer) -> Result<usize> {
        let first = self.devices.first().ok_or_else(|| Kind::NotFound.error("no GPU"))?;
        Context::retain(self, first)?.owner_of(pointer)
    }

    /// Its GPUs.
    #[must_use]
    pub fn devices(&self) -> &[DeviceInfo] {
        &self.devices
    }

    fn list(&self) -> Result<Vec<DeviceInfo>> {
        let mut count = 0;
        // SAFETY: it writes an int.
        let code = unsafe { (self.functions.cuDeviceGetCount)(&raw mut count) };
        self.check("cuDeviceGetCount", code)?;
        (0..count).map(|ordinal| self.info(ordinal)).collect()
    }

    fn info(&self, ordinal: i32) -> Result<DeviceInfo> {
        let device = self.handle(ordinal)?;
        let mut name = [0 as c_char; 256];
        // SAFETY: it writes no more than it is told there is room for, and a zero at its end.
        let code = unsafe { (self.functions.cuDeviceGetName)(name.as_mut_ptr(), 255, device) };
        self.check("cuDeviceGetName", code)?;
        // SAFETY: the last byte is zero in any case.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let mut bytes = 0_usize;
        // SAFETY: it writes a size_t.
        let code = unsafe { (self.functions.cuDeviceTotalMem)(&raw mut bytes, device) };
        self.check("cuDeviceTotalMem", code)?;
        let dma_buf = self.attribute(ffi::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED, device);
        Ok(DeviceInfo {
            ordinal: usize::try_from(ordinal).unwrap_or(0),
            name,
            memory_bytes: bytes as u64,
            dma_buf: dma_buf != 0,
        })
    }

    pub(super) fn handle(&self, ordinal: i32) -> Result<ffi::CUdevice> {
        let mut device = 0;
        // SAFETY: it writes an int.
        let code = unsafe { (self.functions.cuDeviceGet)(&raw mut device, ordinal) };
        self.check("cuDeviceGet", code)?;
        Ok(device)
    }

    /// An attribute of a GPU; 0 if the driver does not know it.
    pub(super) fn attribute(&self, wanted: c_int, device: ffi::CUdevice) -> c_int {
        let mut value = 0;
        // SAFETY: it writes an int.
        let code = unsafe { (self.functions.cuDeviceGetAttribute)(&raw mut value, wanted, device) };
        if code == ffi::CUDA_SUCCESS { value } else { 0 }
    }

    /// Makes an error of what a function answered.
    pub(super) fn check(&self, function: &str, code: CUresult) -> Result<()> {
        if code == ffi::CUDA_SUCCESS {
            return Ok(());
        }
        let (kind, advice) = match code {
            ffi::CUDA_ERROR_OUT_OF_MEMORY => (Kind::NoSpace, "free some, or ask for less"),
            ffi::CUDA_ERROR_INVALID_VALUE
            | ffi::CUDA_ERROR_INVALID_HANDLE
            | ffi::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
            | ffi::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED => {
                (Kind::Invalid, "the driver takes no such argument")
            }
            ffi::CUDA_ERROR_NOT_PERMITTED | ffi::CUDA_ERROR_NOT_SUPPORTED => {
                (Kind::Unsupported, "this GPU or driver cannot do it")
            }
            // Most other errors end the context, and nobody knows what is still being read or written.
            _ => (Kind::Disconnected, "the device is lost to this process: start it anew"),
        };
        Err(kind.error(format!("{function}: {}: {advice}", self.describe(code))))
    }

    /// The number, the name and the words of an answer.
    pub(super) fn describe(&self, code: CUresult) -> String {
        let text = |look: unsafe extern "C" fn(CUresult, *mut *const c_char) -> CUresult| {
            let mut found = ptr::null();
            // SAFETY: it writes a pointer.
            let answer = unsafe { look(code, &raw mut found) };
            if answer != ffi::CUDA_SUCCESS || found.is_null() {
                return None;
            }
            // SAFETY: it is a string of the driver's, which stays.
            Some(unsafe { CStr::from_ptr(found) }.to_string_lossy().into_owned())
        };
        let name = text(self.functions.cuGetErrorName).unwrap_or_else(|| "unknown".to_owned());
        match text(self.functions.cuGetErrorString) {
            Some(words) => format!("{code} {name}, {words}"),
            None => format!("{code} {name}"),
        }
    }
}
