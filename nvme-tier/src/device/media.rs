//! The set of files and block devices that make up a tier.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use extent::{Kind, Result};

use super::medium::{self, Medium};
use super::{Command, DeviceIndex, Geometry, UringDevice, admit, foreign};

/// How to open a tier's files and devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MediaOptions {
    /// Open for reading only, beside other readers; writes are refused. For offline inspection.
    pub read_only: bool,
    /// Refuse whatever holds fewer bytes.
    pub minimum_bytes: u64,
}

impl Default for MediaOptions {
    fn default() -> Self {
        Self { read_only: false, minimum_bytes: 16 << 20 }
    }
}

/// A tier's files and block devices: open, past the page cache where the file system can, and
/// locked against every other process until the last clone and the last queue are gone.
#[derive(Clone, Debug)]
pub struct Media(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: Vec<Medium>,
    read_only: bool,
}

impl Media {
    /// Opens them all. Their order is their [`DeviceIndex`].
    ///
    /// The block size reported is the unit that survives a power cut whole: on a device the larger
    /// of its logical and (up to 4 KiB) physical block; on a file what direct I/O needs, and at
    /// least the 4 KiB that file systems keep whole.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Denied`], [`Kind::Busy`] (another process has it, or it is
    /// mounted), [`Kind::Invalid`] (too small, named twice, no file or block device) or
    /// [`Kind::Io`]; each says what to do.
    pub fn open(paths: &[PathBuf], options: MediaOptions) -> Result<Self> {
        if paths.is_empty() || u16::try_from(paths.len()).is_err() {
            return Err(Kind::Invalid
                .error(format!("a tier has from 1 to 65535 devices, not {}", paths.len())));
        }
        for (index, path) in paths.iter().enumerate() {
            let same = |other: &&PathBuf| {
                medium::identity(path).is_some_and(|id| medium::identity(other) == Some(id))
            };
            if let Some(twin) = paths[..index].iter().find(same) {
                return Err(Kind::Invalid.error(format!(
                    "{} and {} are the same device: name each once",
                    twin.display(),
                    path.display()
                )));
            }
        }
        let all: Result<_> = paths.iter().map(|path| Medium::open(path, &options)).collect();
        Ok(Self(Arc::new(Inner { all: all?, read_only: options.read_only })))
    }

    /// Refuses a file or block device that already holds something: a file system, a partition
    /// table, a member of a RAID or volume group, swap, an encrypted volume, or a mount. Only what
    /// is known can be recognised; unknown data passes. Call it before formatting, unless the
    /// operator insists.
    ///
    /// # Errors
    /// [`Kind::Denied`] naming what is there; [`Kind::Busy`] if it is mounted or claimed;
    /// [`Kind::NotFound`] or [`Kind::Io`] if it cannot be read.
    pub fn check_foreign(path: &Path) -> Result<()> {
        foreign::check(path)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.all.len()
    }

    /// What one of them is like.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn geometry(&self, device: DeviceIndex) -> Geometry {
        self.0.all[usize::from(device.0)].geometry()
    }

    /// Under which name it was opened.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn path(&self, device: DeviceIndex) -> &Path {
        self.0.all[usize::from(device.0)].path()
    }

    /// Whether its I/O bypasses the page cache.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn is_direct(&self, device: DeviceIndex) -> bool {
        self.0.all[usize::from(device.0)].is_direct()
    }

    /// A new queue over all of them, for at most `depth` commands in flight.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a depth outside 1 to 4096; [`Kind::Unsupported`] if the kernel has no
    /// `io_uring` or forbids it; [`Kind::NoSpace`] if it has no memory for another.
    pub fn queue(&self, depth: usize) -> Result<UringDevice> {
        UringDevice::new(self, depth)
    }

    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.0.all.iter().map(Medium::descriptor).collect()
    }

    pub(super) fn admit(&self, command: &Command) -> Result<()> {
        let medium = self.0.all.get(usize::from(command.device().0));
        if self.0.read_only && !matches!(command, Command::Read { .. }) {
            return Err(admit::read_only());
        }
        admit::check(command, medium.map(Medium::geometry))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::device::allocate::tests::TempFile;

    fn open(path: &Path) -> Result<Media> {
        Media::open(&[path.to_owned()], MediaOptions { minimum_bytes: 4096, read_only: false })
    }

    fn refusal(paths: &[&Path], options: MediaOptions) -> extent::Error {
        let paths: Vec<_> = paths.iter().map(|path| path.to_path_buf()).collect();
        Media::open(&paths, options).expect_err("must be refused")
    }

    #[test]
    fn a_file_reports_whole_blocks_and_at_least_a_page() {
        let file = TempFile::new("geometry");
        fs::write(file.path(), vec![7; 3 * 4096 + 100]).expect("writable");
        let media = open(file.path()).expect("opens");
        let geometry = media.geometry(DeviceIndex(0));
        assert!(geometry.block_bytes >= 4096);
        assert_eq!(geometry.capacity_bytes, 3 * 4096 / u64::from(geometry.block_bytes) * 4096);
        assert!(geometry.volatile_cache);
        assert_eq!(media.path(DeviceIndex(0)), file.path());
    }

    #[test]
    fn two_cannot_have_one_file_but_two_readers_can() {
        let file = TempFile::new("lock");
        fs::write(file.path(), vec![0; 1 << 16]).expect("writable");
        let first = open(file.path()).expect("free");
        let error = open(file.path()).expect_err("taken");
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains("in use by this process"), "{error}");
        let options = MediaOptions { read_only: true, minimum_bytes: 0 };
        assert_eq!(refusal(&[file.path()], options).kind(), Kind::Busy);
        drop(first);
        let readers = [0; 2].map(|_| Media::open(&[file.path().to_owned()], options));
        assert!(readers.iter().all(Result::is_ok));
        assert_eq!(open(file.path()).expect_err("being read").kind(), Kind::Busy);
    }

    #[test]
    fn a_queue_keeps_the_lock() {
        let file = TempFile::new("queue-lock");
        fs::write(file.path(), vec![0; 1 << 16]).expect("writable");
        let queue = open(file.path()).and_then(|media| media.queue(1)).expect("a queue");
        assert_eq!(open(file.path()).expect_err("taken").kind(), Kind::Busy);
        drop(queue);
        open(file.path()).expect("free again");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let file = TempFile::new("refused");
        let absent = refusal(&[file.path()], MediaOptions::default());
        assert_eq!(absent.kind(), Kind::NotFound);
        assert!(absent.to_string().contains("correct the path"), "{absent}");
        fs::write(file.path(), vec![0; 1 << 16]).expect("writable");
        let small = refusal(&[file.path()], MediaOptions::default());
        assert_eq!(small.kind(), Kind::Invalid);
        assert!(small.to_string().contains("needs at least 16777216"), "{small}");
        let options = MediaOptions { minimum_bytes: 0, read_only: false };
        let twice = refusal(&[file.path(), file.path()], options);
        assert!(twice.to_string().contains("the same device"), "{twice}");
        let folder = refusal(&[&std::env::temp_dir()], options);
        assert!(folder.to_string().contains("neither a file nor"), "{folder}");
        assert_eq!(refusal(&[], options).kind(), Kind::Invalid);
    }
}
