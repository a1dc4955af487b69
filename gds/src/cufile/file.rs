use std::fmt;
use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use extent::{Error, Kind, Result};

use super::handle::Handle;
use super::reading::Reading;
use super::{CuFile, Transfer, answer, handle};
use crate::bugs::{self, Bug};
use crate::{Device, DeviceSpan};

/// A file of this machine, read into device memory by cuFile, or by the processor into the host's.
///
/// Opening it asks nothing of cuFile: that is done by the first read into device memory, or by
/// [`LocalFile::check`].
pub struct LocalFile {
    path: PathBuf,
    /// Not for cuFile: any offset may be read from it.
    plain: File,
    /// The system's, if none is named.
    library: Option<&'static CuFile>,
    handle: OnceLock<Result<Handle>>,
}

/// What a read by cuFile did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalRead {
    /// Bytes read: fewer than asked for only at the end of the file, also of one that became shorter meanwhile.
    pub bytes: u64,
    /// How they came to the device, as far as that can be known.
    pub transfer: Transfer,
    /// Calls of the library that it took.
    pub calls: u64,
    /// Whether the memory was registered.
    pub is_registered: bool,
}

impl LocalFile {
    /// A regular file, for reading.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Denied`] or [`Kind::Io`] as the file system says; [`Kind::Invalid`] if it is no
    /// regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::with(path.as_ref(), None)
    }

    pub(super) fn with(path: &Path, library: Option<&'static CuFile>) -> Result<Self> {
        let failed = |error| answer::of_errno(format!("opening {}", path.display()), error);
        // So that a pipe does not keep the caller until somebody writes to it. Files do not mind.
        let plain = handle::open(path, libc::O_NONBLOCK).map_err(failed)?;
        if !plain.metadata().map_err(failed)?.is_file() {
            let reason = format!("{} is no regular file: name one", path.display());
            return Err(Kind::Invalid.error(reason));
        }
        Ok(Self { path: path.to_owned(), plain, library, handle: OnceLock::new() })
    }

    /// Its path, as it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in it now.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn length(&self) -> Result<u64> {
        let metadata = self.plain.metadata();
        metadata.map(|found| found.len()).map_err(|error| self.failed(error))
    }

    /// Whether cuFile reads it into a device's memory, which opens the library.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] or [`Kind::NotFound`] if the device is not CUDA's, there is no cuFile, or the file system
    /// takes no `O_DIRECT`; what registering the file answers.
    pub fn check(&self, device: &Device) -> Result<()> {
        device.api.with_context(&mut || {})?;
        self.handle().map(drop)
    }

    /// Reads from an offset into device memory by cuFile, until that is full or the file ends. Neither has to be
    /// aligned to anything. It ends when the bytes are there, and is in no order with streams: what is queued
    /// there must be done with the memory before.
    ///
    /// # Errors
    /// As [`LocalFile::check`]; [`Kind::Invalid`] past 63 bits; what cuFile, the file system or the device answers.
    /// What is in the memory is then anything. After [`Kind::Disconnected`] nobody knows what still writes to
    /// it: it is kept for ever.
    pub fn read_into(&self, offset: u64, into: &DeviceSpan) -> Result<LocalRead> {
        let outcome = self.read(offset, into);
        let is_lost = |error: &Error| error.kind() == Kind::Disconnected;
        if outcome.as_ref().is_err_and(is_lost) && !bugs::is(Bug::FreedUnderStorage) {
            mem::forget(into.clone());
        }
        outcome.map_err(|error| {
            error.while_doing(format_args!(
                "reading {} at {offset} into device memory by cuFile",
                self.path.display()
            ))
        })
    }

    /// Reads from an offset into host memory, through the page cache, until that is full or the file ends. How
    /// many bytes.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let mut at = 0;
        while at < into.len() {
            let position = offset.checked_add(at as u64).ok_or_else(too_far)?;
            match self.plain.read_at(&mut into[at..], position) {
                Ok(0) => break,
                Ok(bytes) => at += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(at)
    }

    fn handle(&self) -> Result<&Handle> {
        let register = || {
            let library = self.library.map_or_else(CuFile::system, Ok)?;
            // Whatever the reason, cuFile does not read this file: its answers to that are many.
            Handle::register(library, &self.plain).map_err(|error| match error.kind() {
                Kind::Disconnected => error,
                _ => Kind::Unsupported.error(error.to_string()),
            })
        };
        self.handle.get_or_init(register).as_ref().map_err(Error::duplicate)
    }

    fn read(&self, offset: u64, into: &DeviceSpan) -> Result<LocalRead> {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(too_far());
        }
        self.check(into.device())?;
        let handle = self.handle()?;
        let registered = handle.library.registered(into)?;
        let is_registered = registered.is_some();
        let mut reading = Reading::new(self, handle, offset, into, registered);
        let before = handle.library.direct_reads();
        let mut outcome = Ok(0);
        into.device().api.with_context(&mut || outcome = reading.run())?;
        let bytes = outcome? as u64;
        let calls = reading.calls();
        let after = handle.library.direct_reads();
        let transfer = Transfer::judge(handle.library.info(), calls, before, after);
        Ok(LocalRead { bytes, transfer, calls, is_registered })
    }

    /// How many of so many bytes from an offset on there are now.
    pub(super) fn there(&self, offset: u64, wanted: usize) -> Result<usize> {
        let left = self.length()?.saturating_sub(offset);
        Ok(usize::try_from(left).map_or(wanted, |left| left.min(wanted)))
    }

    fn failed(&self, error: io::Error) -> Error {
        answer::of_errno(format!("reading {}", self.path.display()), error)
    }
}

impl fmt::Debug for LocalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalFile").field(&self.path).finish()
    }
}

fn too_far() -> Error {
    Kind::Invalid.error("the range ends beyond 63 bits")
}
