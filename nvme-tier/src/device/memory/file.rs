//! A file in memory, mapped.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr::{self, NonNull};

use dma::{Source, Target};
use extent::{Error, Kind, Result};

use crate::device::allocate::free_bytes;
use crate::device::medium::OpenFile;
use crate::device::{Command, Geometry, MediaOptions, admit};

/// An open, exclusively locked file in memory.
#[derive(Debug)]
pub(in crate::device) struct MemoryFile {
    base: NonNull<u8>,
    length: usize,
    geometry: Geometry,
    read_only: bool,
    // Behind the mapping: unmapped before its lock is let go.
    file: OpenFile,
}

// SAFETY: an address that is only read from, inside a mapping that lives as long as this, and a file.
unsafe impl Send for MemoryFile {}
// SAFETY: as above. What is read may change under the read, as on any device; it is copied, never borrowed.
unsafe impl Sync for MemoryFile {}

impl MemoryFile {
    /// Opens, locks and maps `path`.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it is not in memory; [`Kind::NoSpace`] if there is not enough for all of it; and as
    /// any file.
    pub(in crate::device) fn open(path: &Path, options: &MediaOptions) -> Result<Self> {
        let file = OpenFile::open_through_cache(path, options)?;
        if !is_in_memory(file.as_fd()) {
            return Err(elsewhere(path));
        }
        let geometry = file.geometry();
        let length = usize::try_from(geometry.capacity_bytes).map_err(|_| {
            Kind::Invalid.error(format!("{} is larger than what can be mapped", path.display()))
        })?;
        if !options.read_only {
            fill_holes(file.file(), path)?;
        }
        let base = map(file.as_fd(), length)
            .map_err(|e| Error::io(format!("mapping {}", path.display()), e))?;
        let read_only = options.read_only;
        let mapped = Self { base, length, geometry, read_only, file };
        mapped.populate(path)?;
        if !read_only {
            mapped.keep_in_memory(path);
            tracing::warn!(
                path = %path.display(),
                "this device is memory: what is on it outlasts the node, but not the next boot of the machine, or \
                 of the container that has this tmpfs"
            );
        }
        Ok(mapped)
    }

    pub(in crate::device) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Does what a command says.
    pub(super) fn execute(&self, command: &mut Command) -> Result<()> {
        if self.read_only && !matches!(command, Command::Read { .. }) {
            return Err(admit::read_only());
        }
        admit::check(command, Some(self.geometry))?;
        match command {
            Command::Read { at, into } => {
                self.read(usize::try_from(at.offset).expect("inside, as checked"), into);
                Ok(())
            }
            Command::Write { at, from } => self
                .write(at.offset, from)
                .map_err(|e| Error::io(format!("writing {} bytes", from.length()), e)),
            // There is nothing between it and the memory.
            Command::Flush(_) => Ok(()),
            Command::Deallocate { .. } => unreachable!("advice is not taken, as checked"),
        }
    }

    fn read(&self, offset: usize, into: &mut Target) {
        let length = into.length();
        assert!(offset + length <= self.length, "as checked");
        let to = into.address();
        // SAFETY: inside the mapping, as asserted.
        let from = unsafe { self.base.add(offset) };
        // SAFETY: both are that long, the mapping as asserted. They do not overlap: the mapping is nobody's
        // memory for commands. Who writes to the file does so by a system call, so that a read beside it may
        // get some of either, as on any device.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), length) };
    }

    fn write(&self, offset: u64, from: &Source) -> io::Result<()> {
        let (address, length) = (from.address(), from.length());
        let mut done = 0;
        while done < length {
            let at = libc::off_t::try_from(offset + done as u64).map_err(io::Error::other)?;
            // SAFETY: `done` is less than the length of the memory, which the command owns.
            let rest = unsafe { address.add(done) };
            // SAFETY: so many bytes are left of that memory.
            let written = unsafe {
                libc::pwrite(self.file.as_fd().as_raw_fd(), rest.as_ptr().cast(), length - done, at)
            };
            match usize::try_from(written) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => done += bytes,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Has all its pages found and mapped, by the kernel, which answers for what cannot be: a touch would end
    /// this process.
    fn populate(&self, path: &Path) -> Result<()> {
        // SAFETY: it advises on a mapping that is ours.
        let failed = unsafe {
            libc::madvise(self.base.as_ptr().cast(), self.length, libc::MADV_POPULATE_READ)
        };
        if failed == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Linux before 5.14 has no such advice.
            Some(libc::EINVAL) => Ok(()),
            Some(libc::EFAULT | libc::ENOMEM) => Err(no_memory(path, self.length as u64, error)),
            _ => Err(Error::io(format!("reading {}", path.display()), error)),
        }
    }

    /// Has its pages kept from being swapped out.
    fn keep_in_memory(&self, path: &Path) {
        // SAFETY: it locks a mapping that is ours.
        if unsafe { libc::mlock(self.base.as_ptr().cast(), self.length) } == 0 {
            return;
        }
        let error = io::Error::last_os_error();
        tracing::warn!(
            path = %path.display(),
            %error,
            "this file may be swapped out, and reads of it wait then: raise the limit on locked memory (ulimit -l)"
        );
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and nobody reads from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// What is said of a file that is in no tmpfs.
pub(in crate::device) fn elsewhere(path: &Path) -> Error {
    Kind::Unsupported.error(format!(
        "{} is not in memory, and driver memory takes files of a tmpfs alone, /dev/shm or another: \
         name one there, or use driver io_uring",
        path.display()
    ))
}

/// Whether a file or folder is in a tmpfs.
pub(in crate::device) fn is_in_memory(file: BorrowedFd<'_>) -> bool {
    // SAFETY: all zeroes is a valid value of this plain C struct.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `found` is the struct that the call fills.
    let status = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) };
    status == 0 && found.f_type == libc::TMPFS_MAGIC
}

/// Has a page for every byte of the file. What is there already stays.
fn fill_holes(file: &File, path: &Path) -> Result<()> {
    let doing = |e| Error::io(format!("allocating {}", path.display()), e);
    let metadata = file.metadata().map_err(doing)?;
    let missing = metadata.len().saturating_sub(metadata.blocks().saturating_mul(512));
    if free_bytes(file).is_some_and(|free| free < missing) {
        // Asked first: fallocate would take all there is before it finds that it does not suffice.
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        return Err(no_memory(path, metadata.len(), full));
    }
    let length = libc::off_t::try_from(metadata.len()).expect("a file's length is one");
    loop {
        // SAFETY: fallocate changes an open file and touches no memory of this process.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ENOSPC | libc::ENOMEM) => {
                return Err(no_memory(path, metadata.len(), error));
            }
            _ => return Err(doing(error)),
        }
    }
}

fn no_memory(path: &Path, bytes: u64, error: io::Error) -> Error {
    Kind::NoSpace
        .error(format!(
            "there is no memory for all {bytes} bytes of {}: make it smaller, or its tmpfs larger",
            path.display()
        ))
        .caused_by(error)
}

fn map(file: BorrowedFd<'_>, length: usize) -> io::Result<NonNull<u8>> {
    let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED);
    // SAFETY: a mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe { libc::mmap(ptr::null_mut(), length, access, flags, file.as_raw_fd(), 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))
}
