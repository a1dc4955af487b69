//! What Forebay uses of cuFile, declared here and looked up when it is asked for. Names as in `cufile.h`.
#![allow(non_camel_case_types)]

use std::ffi::{c_int, c_long, c_uint, c_void};

use extent::{Kind, Result};

pub(super) type CUfileHandle_t = *mut c_void;

/// `CUfileError_t`: cuFile's own answer, and that of CUDA's driver under it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CUfileError {
    pub(super) err: c_int,
    pub(super) cu_err: c_uint,
}

/// `CUfileDescr_t`. No file system is brought along.
#[repr(C)]
pub(super) struct CUfileDescr {
    pub(super) kind: c_int,
    pub(super) handle: CUfileDescrHandle,
    pub(super) fs_ops: *const c_void,
}

#[repr(C)]
pub(super) union CUfileDescrHandle {
    pub(super) fd: c_int,
    pub(super) handle: *mut c_void,
}

/// The struct named `nvfs` in `CUfileDrvProps_t`: sizes in KiB.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct NvfsProps {
    pub(super) major_version: c_uint,
    pub(super) minor_version: c_uint,
    pub(super) poll_thresh_size: usize,
    pub(super) max_direct_io_size: usize,
    pub(super) dstatusflags: c_uint,
    pub(super) dcontrolflags: c_uint,
}

/// `CUfileDrvProps_t`, as far as it has been the same in all versions. It has grown at its end, and may again:
/// `room` is for that.
#[repr(C)]
#[derive(Default)]
pub(super) struct CUfileDrvProps {
    pub(super) nvfs: NvfsProps,
    pub(super) fflags: c_uint,
    pub(super) max_device_cache_size: c_uint,
    pub(super) per_buffer_cache_size: c_uint,
    pub(super) max_device_pinned_mem_size: c_uint,
    room: [u64; 32],
}

pub(super) const CU_FILE_HANDLE_TYPE_OPAQUE_FD: c_int = 1;
/// Bits of `dstatusflags`, by their numbers: what nvidia-fs reads itself, and counts.
pub(super) const CU_FILE_LUSTRE_SUPPORTED: u32 = 0;
pub(super) const CU_FILE_NFS_SUPPORTED: u32 = 2;
pub(super) const CU_FILE_NVME_SUPPORTED: u32 = 4;
pub(super) const CU_FILE_NVMEOF_SUPPORTED: u32 = 5;
pub(super) const CU_FILE_SCSI_SUPPORTED: u32 = 6;
/// The kernel's own way from NVMe to the GPU, without nvidia-fs.
pub(super) const CU_FILE_NVME_P2P_SUPPORTED: u32 = 11;
/// A bit of `dcontrolflags`, by its number.
pub(super) const CU_FILE_ALLOW_COMPAT_MODE: u32 = 1;

pub(super) type DriverOpen = unsafe extern "C" fn() -> CUfileError;
pub(super) type DriverClose = unsafe extern "C" fn() -> CUfileError;
pub(super) type GetProperties = unsafe extern "C" fn(*mut CUfileDrvProps) -> CUfileError;
pub(super) type GetVersion = unsafe extern "C" fn(*mut c_int) -> CUfileError;
pub(super) type HandleRegister =
    unsafe extern "C" fn(*mut CUfileHandle_t, *mut CUfileDescr) -> CUfileError;
pub(super) type HandleDeregister = unsafe extern "C" fn(CUfileHandle_t);
pub(super) type BufRegister = unsafe extern "C" fn(*const c_void, usize, c_int) -> CUfileError;
pub(super) type BufDeregister = unsafe extern "C" fn(*const c_void) -> CUfileError;
/// The file's offset and that in memory are `off_t`, the result is `ssize_t`.
pub(super) type Read =
    unsafe extern "C" fn(CUfileHandle_t, *mut c_void, usize, c_long, c_long) -> isize;

/// The functions, for as long as the process runs: the library is never closed.
pub(super) struct Functions {
    pub(super) driver_open: DriverOpen,
    pub(super) driver_close: DriverClose,
    pub(super) get_properties: GetProperties,
    /// Old libraries have none.
    pub(super) get_version: Option<GetVersion>,
    pub(super) handle_register: HandleRegister,
    pub(super) handle_deregister: HandleDeregister,
    pub(super) buf_register: BufRegister,
    pub(super) buf_deregister: BufDeregister,
    pub(super) read: Read,
}

impl Functions {
    pub(super) fn look_up(library: &'static libloading::Library) -> Result<Self> {
        // SAFETY: cufile.h renames the function to this one; older headers declare the same under the old name.
        let newer = unsafe { symbol::<DriverClose>(library, "cuFileDriverClose_v2") };
        // SAFETY: cufile.h declares each with the type that its field has, here and below.
        let driver_close = newer.or_else(|_| unsafe { symbol(library, "cuFileDriverClose") })?;
        Ok(Self {
            // SAFETY: as above.
            driver_open: unsafe { symbol(library, "cuFileDriverOpen")? },
            driver_close,
            // SAFETY: as above.
            get_properties: unsafe { symbol(library, "cuFileDriverGetProperties")? },
            // SAFETY: as above.
            get_version: unsafe { symbol(library, "cuFileGetVersion").ok() },
            // SAFETY: as above.
            handle_register: unsafe { symbol(library, "cuFileHandleRegister")? },
            // SAFETY: as above.
            handle_deregister: unsafe { symbol(library, "cuFileHandleDeregister")? },
            // SAFETY: as above.
            buf_register: unsafe { symbol(library, "cuFileBufRegister")? },
            // SAFETY: as above.
            buf_deregister: unsafe { symbol(library, "cuFileBufDeregister")? },
            // SAFETY: as above.
            read: unsafe { symbol(library, "cuFileRead")? },
        })
    }
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
            .error(format!("libcufile here has no {name} ({error}): install a newer one"))
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::io::Write as _;
    use std::mem::{offset_of, size_of};
    use std::process::{Command, Stdio};

    use super::super::answer::CODES;
    use super::*;

    /// What the compiler must find true of the C declarations: those of NVIDIA where its headers are found,
    /// else the ones that the library without a GPU is built with.
    fn assertions() -> String {
        let mut source = String::from("#include \"fake_cufile.h\"\n#include <stddef.h>\n");
        let mut claim = |what: String| {
            writeln!(source, "_Static_assert({what}, \"{what}\");").expect("a string");
        };
        claim(format!("sizeof(CUfileError_t) == {}", size_of::<CUfileError>()));
        claim(format!("offsetof(CUfileError_t, cu_err) == {}", offset_of!(CUfileError, cu_err)));
        claim(format!("sizeof(CUfileDescr_t) == {}", size_of::<CUfileDescr>()));
        claim(format!("offsetof(CUfileDescr_t, handle) == {}", offset_of!(CUfileDescr, handle)));
        claim(format!("offsetof(CUfileDescr_t, fs_ops) == {}", offset_of!(CUfileDescr, fs_ops)));
        claim(format!("sizeof(CUfileDrvProps_t) <= {}", size_of::<CUfileDrvProps>()));
        for (field, offset) in [
            ("nvfs.major_version", offset_of!(NvfsProps, major_version)),
            ("nvfs.minor_version", offset_of!(NvfsProps, minor_version)),
            ("nvfs.poll_thresh_size", offset_of!(NvfsProps, poll_thresh_size)),
            ("nvfs.max_direct_io_size", offset_of!(NvfsProps, max_direct_io_size)),
            ("nvfs.dstatusflags", offset_of!(NvfsProps, dstatusflags)),
            ("nvfs.dcontrolflags", offset_of!(NvfsProps, dcontrolflags)),
            ("fflags", offset_of!(CUfileDrvProps, fflags)),
            ("max_device_cache_size", offset_of!(CUfileDrvProps, max_device_cache_size)),
            ("per_buffer_cache_size", offset_of!(CUfileDrvProps, per_buffer_cache_size)),
            ("max_device_pinned_mem_size", offset_of!(CUfileDrvProps, max_device_pinned_mem_size)),
        ] {
            claim(format!("offsetof(CUfileDrvProps_t, {field}) == {offset}"));
        }
        claim(format!("CU_FILE_HANDLE_TYPE_OPAQUE_FD == {CU_FILE_HANDLE_TYPE_OPAQUE_FD}"));
        for (name, bit) in [
            ("CU_FILE_LUSTRE_SUPPORTED", CU_FILE_LUSTRE_SUPPORTED),
            ("CU_FILE_NFS_SUPPORTED", CU_FILE_NFS_SUPPORTED),
            ("CU_FILE_NVME_SUPPORTED", CU_FILE_NVME_SUPPORTED),
            ("CU_FILE_NVMEOF_SUPPORTED", CU_FILE_NVMEOF_SUPPORTED),
            ("CU_FILE_SCSI_SUPPORTED", CU_FILE_SCSI_SUPPORTED),
            ("CU_FILE_NVME_P2P_SUPPORTED", CU_FILE_NVME_P2P_SUPPORTED),
            ("CU_FILE_ALLOW_COMPAT_MODE", CU_FILE_ALLOW_COMPAT_MODE),
        ] {
            claim(format!("{name} == {bit}"));
        }
        claim("CU_FILE_SUCCESS == 0".to_owned());
        for (code, name, _, _) in CODES {
            claim(format!("{name} == {code}"));
        }
        source
    }

    /// Whether a C program compiles, and what the compiler says.
    fn compile(source: &str) -> (bool, String) {
        let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
        let mut compiler = Command::new("cc")
            .args(["-fsyntax-only", "-Wall", "-Werror", "-x", "c", "-I", tests, "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a C compiler");
        compiler.stdin.take().expect("piped").write_all(source.as_bytes()).expect("written");
        let output = compiler.wait_with_output().expect("ended");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    fn declarations_are_those_of_the_header() {
        let (compiles, said) = compile(&assertions());
        assert!(compiles, "{said}");
        let wrong = format!("{}_Static_assert(CU_FILE_SUCCESS == 1, \"wrong\");\n", assertions());
        let (compiles, said) = compile(&wrong);
        assert!(!compiles && said.contains("wrong"), "a check that cannot fail: {said}");
    }
}
