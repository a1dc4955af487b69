//! Creates a tier's file, whole.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dma::{HugePages, Pool, SizeClass, Source};
use extent::{Error, Kind, Result};

use super::{
    Command, Completion, Device, DeviceIndex, Driver, Location, Media, MediaOptions, Token, memory,
};

const CHUNK_BYTES: usize = 4 << 20;
const CHUNKS_IN_FLIGHT: usize = 8;

/// A length that every block size divides.
const UNIT_BYTES: u64 = 64 << 10;

/// Creates a file of `bytes` for a tier: allocated, then written with zeroes from end to end and
/// made durable, so that the tier never meets a hole, a full file system or the price of a first
/// write. It is written by the driver that it is for. Calls `progress` with the bytes done and the bytes in all. If it fails, no file is left.
///
/// # Errors
/// [`Kind::Invalid`] if the file exists or `bytes` is not a multiple of 64 KiB;
/// [`Kind::Unsupported`] if that driver takes no file there; [`Kind::NoSpace`] if the file system has no room; [`Kind::NotFound`] or [`Kind::Denied`] for a
/// folder that is not there or not writable; [`Kind::Io`].
pub fn allocate_file(
    path: &Path,
    bytes: u64,
    driver: Driver,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    check_folder(path, driver)?;
    if bytes == 0 || !bytes.is_multiple_of(UNIT_BYTES) {
        return Err(Kind::Invalid
            .error(format!("{bytes} bytes: a tier's file is a multiple of {UNIT_BYTES} bytes")));
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| not_created(path, e))?;
    let made = reserve(&file, path, bytes)
        .and_then(|()| fill(path, bytes, driver, progress))
        .and_then(|()| make_durable(&file, path));
    if made.is_err()
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), %error, "an unfinished tier file was left behind");
    }
    made
}

/// Whether a file that is to be made there would suit its driver.
///
/// # Errors
/// [`Kind::Unsupported`] if not; [`Kind::NotFound`] or what else keeps its folder from being looked at.
pub fn check_folder(path: &Path, driver: Driver) -> Result<()> {
    if driver != Driver::Memory {
        return Ok(());
    }
    let folder = File::open(parent(path)).map_err(|e| not_created(path, e))?;
    if memory::is_in_memory(folder.as_fd()) { Ok(()) } else { Err(memory::elsewhere(path)) }
}

fn not_created(path: &Path, error: io::Error) -> Error {
    let folder = parent(path).display();
    let path = path.display();
    let (kind, sentence) = match error.kind() {
        io::ErrorKind::AlreadyExists => {
            (Kind::Invalid, format!("{path} exists and is not overwritten: remove it first"))
        }
        io::ErrorKind::NotFound => {
            (Kind::NotFound, format!("there is no folder {folder}: create it first"))
        }
        io::ErrorKind::PermissionDenied => {
            (Kind::Denied, format!("{folder} may not be written: give this user the right to"))
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            (Kind::Denied, format!("{folder} is on a read-only file system: name another"))
        }
        _ => (Kind::Io, format!("creating {path}")),
    };
    kind.error(sentence).caused_by(error)
}

/// Takes the space, so that a full file system shows at once and not after an hour of writing.
fn reserve(file: &File, path: &Path, bytes: u64) -> Result<()> {
    let free = free_bytes(file);
    if free.is_some_and(|free| free < bytes) {
        // Asked first: fallocate would take all there is before it finds that it does not suffice.
        return Err(no_space(path, bytes, free, io::Error::from_raw_os_error(libc::ENOSPC)));
    }
    let length = libc::off_t::try_from(bytes)
        .map_err(|_| Kind::Invalid.error(format!("{bytes} bytes are more than any file holds")))?;
    // SAFETY: fallocate changes an open file and touches no memory of this process.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
            file.set_len(bytes).map_err(|e| Error::io(format!("extending {}", path.display()), e))
        }
        Some(libc::ENOSPC | libc::EDQUOT) => Err(no_space(path, bytes, free, error)),
        Some(libc::EFBIG) => Err(Kind::Invalid
            .error(format!(
                "{bytes} bytes are more than a file may have where {} is",
                path.display()
            ))
            .caused_by(error)),
        _ => Err(Error::io(format!("allocating {}", path.display()), error)),
    }
}

fn no_space(path: &Path, bytes: u64, free: Option<u64>, error: io::Error) -> Error {
    let free = free.map_or_else(|| "too few".to_owned(), |free| free.to_string());
    Kind::NoSpace
        .error(format!(
            "{bytes} bytes for {} where {free} are free: ask for less or free some",
            path.display()
        ))
        .caused_by(error)
}

/// Bytes that this user may still take on the file's file system.
pub(super) fn free_bytes(file: &File) -> Option<u64> {
    // SAFETY: all zeroes is a valid value of this plain C struct.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `found` is the struct that the call fills.
    let status = unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut found) };
    (status == 0).then(|| found.f_bavail.saturating_mul(found.f_frsize))
}

fn fill(path: &Path, bytes: u64, driver: Driver, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let options = MediaOptions { read_only: false, minimum_bytes: 0 };
    let mut device =
        Media::open_by(&[(path.to_owned(), driver)], options)?.queue(CHUNKS_IN_FLIGHT)?;
    let class = SizeClass { bytes: CHUNK_BYTES, count: 1 };
    let zeroes = Pool::new(&[class], HugePages::Never)?.take(1).expect("a fresh pool's one buffer");
    // One buffer, which nobody writes, is the source of all writes in flight.
    let zeroes = Arc::new(zeroes);
    let mut completions = Vec::with_capacity(CHUNKS_IN_FLIGHT);
    let (mut submitted, mut done) = (0, 0);
    progress(0, bytes);
    while done < bytes {
        while submitted < bytes && device.in_flight() < CHUNKS_IN_FLIGHT {
            let length = CHUNK_BYTES.min(usize::try_from(bytes - submitted).unwrap_or(CHUNK_BYTES));
            let from = Source::Frozen(Arc::clone(&zeroes), 0..length);
            let at = Location { device: DeviceIndex(0), offset: submitted };
            let queued = device.submit(Token(submitted), Command::Write { at, from });
            queued.expect("fewer are in flight than the queue holds");
            submitted += length as u64;
        }
        done += collect(&mut *device, &mut completions, path)?;
        progress(done, bytes);
    }
    Ok(())
}

/// Waits for at least one write; the bytes of those that ended.
fn collect(device: &mut dyn Device, completions: &mut Vec<Completion>, path: &Path) -> Result<u64> {
    device.kick()?;
    device.poll(completions);
    while completions.is_empty() {
        device.sleep(&[], Some(Duration::from_secs(1)))?;
        device.poll(completions);
    }
    let mut done = 0;
    for completion in completions.drain(..) {
        completion.result.map_err(|e| e.while_doing(format!("filling {}", path.display())))?;
        done += completion.command.length() as u64;
    }
    Ok(done)
}

/// The data, then the name.
fn make_durable(file: &File, path: &Path) -> Result<()> {
    file.sync_all().map_err(|e| Error::io(format!("flushing {}", path.display()), e))?;
    let folder = parent(path);
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io(format!("flushing {}", folder.display()), e))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A path of its own, removed at the end.
    pub(in crate::device) struct TempFile(PathBuf);

    impl TempFile {
        pub(in crate::device) fn new(name: &str) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let own = format!("forebay-{}-{number}-{name}", std::process::id());
            Self(std::env::temp_dir().join(own))
        }

        pub(in crate::device) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _gone_already = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_new_file_is_whole_and_zero_and_not_overwritten() {
        let file = TempFile::new("allocate");
        let bytes = 10 * (1 << 20) + (64 << 10);
        let mut seen = Vec::new();
        allocate_file(file.path(), bytes, Driver::Auto, &mut |done, all| seen.push((done, all)))
            .expect("room");
        assert_eq!(seen.first(), Some(&(0, bytes)));
        assert_eq!(seen.last(), Some(&(bytes, bytes)));
        let metadata = fs::metadata(file.path()).expect("there");
        assert_eq!(metadata.len(), bytes);
        assert!(metadata.blocks() * 512 >= bytes, "no holes");
        assert!(fs::read(file.path()).expect("readable").iter().all(|byte| *byte == 0));
        let error =
            allocate_file(file.path(), bytes, Driver::Auto, &mut |_, _| {}).expect_err("exists");
        assert!(error.to_string().contains("exists and is not overwritten"), "{error}");
        assert_eq!(fs::metadata(file.path()).expect("still there").len(), bytes);
    }

    #[test]
    fn too_much_is_refused_and_leaves_nothing() {
        let file = TempFile::new("too-much");
        let error =
            allocate_file(file.path(), 1 << 43, Driver::Auto, &mut |_, _| {}).expect_err("8 TiB");
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        assert!(error.to_string().contains("are free"), "{error}");
        assert!(!file.path().exists());
        let odd = allocate_file(file.path(), 4097, Driver::Auto, &mut |_, _| {}).expect_err("odd");
        assert_eq!(odd.kind(), Kind::Invalid);
        let nowhere = file.path().join("no/such/folder");
        let error =
            allocate_file(&nowhere, 1 << 16, Driver::Auto, &mut |_, _| {}).expect_err("no folder");
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    }
}
