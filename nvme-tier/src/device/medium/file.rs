//! A file or block device, and what the kernel says about it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use dma::{HugePages, Pool, SizeClass};
use extent::{Error, Kind, Result};

use crate::device::{Geometry, MediaOptions, foreign};

/// What is reported as the most bytes for one command: beyond it nothing gets faster.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;

/// What file systems keep atomic, and what drives with emulated 512-byte blocks really write.
const PAGE_BYTES: u32 = 4096;

/// The largest logical block there is a use for.
pub(in crate::device) const LARGEST_BLOCK_BYTES: u32 = 64 << 10;

/// A process that has just ended holds its locks until the kernel has taken down its rings, in the
/// background: ask this often, this far apart, before believing that another one has them.
const LOCK_ATTEMPTS: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// `BLKPBSZGET` of `linux/fs.h`, which `libc` does not have.
const BLKPBSZGET: libc::Ioctl = 0x127b;

/// An open, exclusively locked file or block device.
#[derive(Debug)]
pub(in crate::device) struct OpenFile {
    file: File,
    geometry: Geometry,
    direct: bool,
}

impl OpenFile {
    /// Opens and locks `path`, past the page cache where that can be, and asks the kernel about it.
    pub(super) fn open(path: &Path, options: &MediaOptions) -> Result<Self> {
        let opened = Self::open_by(path, options, open_direct)?;
        if let Ok(metadata) = opened.file.metadata()
            && metadata.is_file()
        {
            warn_if_sparse(path, &metadata);
        }
        Ok(opened)
    }

    /// Opens and locks a file that is in the page cache and nowhere else.
    pub(in crate::device) fn open_through_cache(
        path: &Path,
        options: &MediaOptions,
    ) -> Result<Self> {
        Self::open_by(path, options, |path, options, is_block_device| {
            if is_block_device {
                return Err(Kind::Unsupported.error(format!(
                    "{} is a block device, and driver memory takes files of a tmpfs alone: use driver io_uring",
                    path.display()
                )));
            }
            let file = open(path, options, 0).map_err(|e| refused(path, options, e))?;
            Ok((file, false))
        })
    }

    fn open_by(
        path: &Path,
        options: &MediaOptions,
        opener: impl Fn(&Path, &MediaOptions, bool) -> Result<(File, bool)>,
    ) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|e| refused(path, options, e))?;
        let block_device = metadata.file_type().is_block_device();
        if !block_device && !metadata.is_file() {
            return Err(Kind::Invalid.error(format!(
                "{} is neither a file nor a block device: a tier needs one or the other",
                path.display()
            )));
        }
        let (mut file, direct) = opener(path, options, block_device)?;
        if !block_device {
            lock(&file, path, options)?;
        }
        let block_bytes = match (block_device, direct) {
            (true, _) => device_block_bytes(&file, path)?,
            (false, true) => file_block_bytes(&file, path)?,
            (false, false) => PAGE_BYTES,
        };
        let length = file
            .seek(SeekFrom::End(0))
            .map_err(|e| Error::io(format!("asking {} for its size", path.display()), e))?;
        let capacity_bytes = length - length % u64::from(block_bytes);
        if capacity_bytes < options.minimum_bytes.max(u64::from(block_bytes)) {
            return Err(Kind::Invalid.error(format!(
                "{} holds {length} bytes, and a tier needs at least {}: make it larger, or name \
                 another",
                path.display(),
                options.minimum_bytes.max(u64::from(block_bytes))
            )));
        }
        let geometry = Geometry {
            capacity_bytes,
            block_bytes,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            volatile_cache: !block_device || has_volatile_cache(metadata.rdev()),
            // A hole in a file would break the promise that it never meets a full file system, and
            // io_uring has no discard of block devices before Linux 6.12.
            deallocation: None,
        };
        Ok(Self { file, geometry, direct })
    }

    pub(in crate::device) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether I/O bypasses the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(in crate::device) fn file(&self) -> &File {
        &self.file
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What tells the same device or file under two names.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    let block_device = metadata.file_type().is_block_device();
    Some(if block_device { (metadata.rdev(), 0) } else { (metadata.dev(), metadata.ino()) })
}

fn open_direct(path: &Path, options: &MediaOptions, block_device: bool) -> Result<(File, bool)> {
    let open = |flags| {
        if block_device { open_claimed(path, options, flags) } else { open(path, options, flags) }
    };
    match open(libc::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let file = open(0).map_err(|e| refused(path, options, e))?;
            tracing::warn!(
                path = %path.display(),
                "this file system has no direct I/O: the tier goes through the page cache, at \
                 the cost of memory and speed"
            );
            Ok((file, false))
        }
        Err(error) => Err(refused(path, options, error)),
    }
}

fn open(path: &Path, options: &MediaOptions, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(!options.read_only).custom_flags(flags).open(path)
}

/// Opens a block device and, by `O_EXCL`, claims it from mounts, swap, RAID and other claimants.
pub(in crate::device) fn open_claimed(
    path: &Path,
    options: &MediaOptions,
    flags: i32,
) -> io::Result<File> {
    let busy = |opened: &io::Result<File>| matches!(opened, Err(error) if error.raw_os_error() == Some(libc::EBUSY));
    patiently(|| open(path, options, flags | libc::O_EXCL), busy)
}

/// The operator's sentence for a path that would not open.
pub(in crate::device) fn refused(path: &Path, options: &MediaOptions, error: io::Error) -> Error {
    let mounted = foreign::mounted_at(path);
    let path = path.display();
    let rights = if options.read_only { "read" } else { "read and write" };
    let (kind, advice) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => (
            Kind::NotFound,
            "does not exist: correct the path, or create the tier's file first".to_owned(),
        ),
        Some(libc::EACCES | libc::EPERM) => (
            Kind::Denied,
            format!("may not be opened: give this user the right to {rights} it, or run as root"),
        ),
        Some(libc::EROFS) => {
            (Kind::Denied, "is on a read-only file system: remount it writable".to_owned())
        }
        Some(libc::EBUSY) if mounted.is_some() => (
            Kind::Busy,
            format!(
                "is mounted at {}: unmount it, or name another device",
                mounted.unwrap_or_default()
            ),
        ),
        Some(libc::EBUSY) => (
            Kind::Busy,
            "is in use: another process has it, or it is mounted, swap, or part of a RAID or \
             volume group; see `lsblk` and `fuser -v`, and stop that first"
                .to_owned(),
        ),
        Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => {
            (Kind::NotFound, "has no device behind it: is the drive still there?".to_owned())
        }
        _ => (Kind::Io, "could not be opened".to_owned()),
    };
    kind.error(format!("{path} {advice}")).caused_by(error)
}

/// Tries for a while, as long as the answer is one that may pass.
fn patiently<T>(attempt: impl Fn() -> T, passing: impl Fn(&T) -> bool) -> T {
    for _ in 1..LOCK_ATTEMPTS {
        let answer = attempt();
        if !passing(&answer) {
            return answer;
        }
        thread::sleep(LOCK_PAUSE);
    }
    attempt()
}

pub(in crate::device) fn lock(file: &File, path: &Path, options: &MediaOptions) -> Result<()> {
    let attempt = || if options.read_only { file.try_lock_shared() } else { file.try_lock() };
    match patiently(attempt, |locked| matches!(locked, Err(TryLockError::WouldBlock))) {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let holder = match lock_holder(path) {
                Some(pid) if pid == std::process::id() => "this process itself".to_owned(),
                Some(pid) => format!("another process (pid {pid})"),
                None => "another process".to_owned(),
            };
            Err(Kind::Busy.error(format!(
                "{} is in use by {holder}: only one at a time may have a tier; stop it first",
                path.display()
            )))
        }
        Err(TryLockError::Error(e)) => Err(Error::io(format!("locking {}", path.display()), e)),
    }
}

/// The process that `/proc/locks` names for the file.
fn lock_holder(path: &Path) -> Option<u32> {
    let inode = fs::metadata(path).ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| *word == "FLOCK")?;
        let pid = words.nth(2)?;
        (words.next()?.rsplit(':').next()? == inode).then(|| pid.parse().ok())?
    })
}

fn warn_if_sparse(path: &Path, metadata: &Metadata) {
    if metadata.blocks().saturating_mul(512) < metadata.len() {
        tracing::warn!(
            path = %path.display(),
            "this file has holes: writes to it can run out of space while the tier is in use; \
             have Forebay create it, which allocates it whole"
        );
    }
}

/// The unit that the device keeps whole. Where a drive emulates 512-byte blocks on 4 KiB ones, a
/// write of 512 bytes rewrites its neighbours, so the larger unit counts.
pub(in crate::device) fn device_block_bytes(file: &File, path: &Path) -> Result<u32> {
    let failed = |e| Error::io(format!("asking {} for its block size", path.display()), e);
    let mut logical: libc::c_int = 0;
    // SAFETY: BLKSSZGET stores an int to the address it is given.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut logical) } < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    let mut physical: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET stores an unsigned int to the address it is given.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKPBSZGET, &raw mut physical) } < 0 {
        physical = PAGE_BYTES;
    }
    let logical = u32::try_from(logical).unwrap_or(0);
    usable_block(logical.max(physical.min(PAGE_BYTES)), path)
}

/// The unit of direct I/O on a file: at least the 4 KiB that a file system keeps whole, though
/// many take smaller pieces.
fn file_block_bytes(file: &File, path: &Path) -> Result<u32> {
    let announced = direct_alignment(path).unwrap_or(0);
    let mut block = usable_block(announced.max(PAGE_BYTES), path)?;
    // Kernels before 6.1 announce nothing, and some file systems announce too little: try it.
    let class = SizeClass { bytes: LARGEST_BLOCK_BYTES as usize, count: 1 };
    let pool = Pool::new(&[class], HugePages::Never)?;
    let mut buffer = pool.take(1).expect("a fresh pool has its one buffer");
    loop {
        match file.read_at(&mut buffer.as_mut_slice()[..block as usize], 0) {
            Ok(_) => return Ok(block),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && block < LARGEST_BLOCK_BYTES => {
                block *= 2;
            }
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        }
    }
}

fn usable_block(block: u32, path: &Path) -> Result<u32> {
    if block.is_power_of_two() && (512..=LARGEST_BLOCK_BYTES).contains(&block) {
        return Ok(block);
    }
    Err(Kind::Unsupported.error(format!(
        "{} has blocks of {block} bytes; a tier takes powers of two from 512 to \
         {LARGEST_BLOCK_BYTES}",
        path.display()
    )))
}

/// The alignment of offsets that `statx(2)` announces for direct I/O.
fn direct_alignment(path: &Path) -> Option<u32> {
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeroes is a valid value of this plain C struct.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the name ends in a zero byte and `found` is the size the call expects; both live.
    let status = unsafe {
        libc::statx(libc::AT_FDCWD, name.as_ptr(), 0, libc::STATX_DIOALIGN, &raw mut found)
    };
    (status == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0)
        .then_some(found.stx_dio_offset_align)
}

/// Whether the device says that it caches writes; when it cannot be asked, it is assumed to.
fn has_volatile_cache(device: u64) -> bool {
    let base = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    // A partition has no queue of its own: its disk is the directory above.
    let answer = ["queue/write_cache", "../queue/write_cache"]
        .iter()
        .find_map(|name| fs::read_to_string(Path::new(&base).join(name)).ok());
    answer.is_none_or(|answer| answer.trim() != "write through")
}
