use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::ptr;

use extent::{Kind, Result};

use super::{CuFile, answer, ffi};
use crate::bugs::{self, Bug};

/// A file as cuFile knows it: given back before its descriptor is closed.
pub(super) struct Handle {
    pub(super) library: &'static CuFile,
    pub(super) raw: ffi::CUfileHandle_t,
    /// Opened with `O_DIRECT`; there until this is dropped.
    descriptor: Option<File>,
}

// SAFETY: cuFile's functions may be called by several threads at once, with one handle, too.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    pub(super) fn register(library: &'static CuFile, plain: &File) -> Result<Self> {
        // The same file, whatever has its name by now.
        let path = PathBuf::from(format!("/proc/self/fd/{}", plain.as_raw_fd()));
        let descriptor = open(&path, libc::O_DIRECT).map_err(|error| {
            if error.raw_os_error() == Some(libc::EINVAL) {
                Kind::Unsupported.error("its file system takes no O_DIRECT, which cuFile needs")
            } else {
                answer::of_errno("opening it with O_DIRECT", error)
            }
        })?;
        let mut description = ffi::CUfileDescr {
            kind: ffi::CU_FILE_HANDLE_TYPE_OPAQUE_FD,
            handle: ffi::CUfileDescrHandle { fd: descriptor.as_raw_fd() },
            fs_ops: ptr::null(),
        };
        let mut raw = ptr::null_mut();
        let register = library.functions.handle_register;
        // SAFETY: it reads the description and writes a pointer; the descriptor stays open until the handle is
        // given back.
        let answer = unsafe { register(&raw mut raw, &raw mut description) };
        answer::check("cuFileHandleRegister", answer)?;
        Ok(Self { library, raw, descriptor: Some(descriptor) })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if bugs::is(Bug::ClosedWhileRegistered) {
            self.descriptor = None;
        }
        // SAFETY: it was registered once, and nobody reads any more.
        unsafe { (self.library.functions.handle_deregister)(self.raw) };
    }
}

/// Opens a file for reading.
pub(super) fn open(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}
