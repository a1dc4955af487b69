//! The set of files and devices that make up a tier.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use extent::{Kind, Result};

use super::kernel_health::HealthReader;
use super::medium::{self, Medium};
use super::memory::MemoryQueue;
use super::mixed::{Driven, MixedDevice};
use super::nvme_disk::{DiskHealth, NvmeBus};
use super::passthrough::{self, Namespace};
use super::{
    Command, Device, DeviceIndex, Driver, Geometry, Health, PciName, Reach, UringDevice, admit,
    content, foreign,
};

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

/// A tier's files and devices: open, past the page cache where the file system can, and claimed
/// against every other process until the last clone and the last queue are gone.
#[derive(Clone, Debug)]
pub struct Media(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: Vec<Medium>,
    read_only: bool,
}

impl Media {
    /// Opens them all, each by the driver that suits it. Their order is their [`DeviceIndex`].
    ///
    /// # Errors
    /// As [`Media::open_by`].
    pub fn open(paths: &[PathBuf], options: MediaOptions) -> Result<Self> {
        let named: Vec<_> = paths.iter().map(|path| (path.clone(), Driver::Auto)).collect();
        Self::open_by(&named, options)
    }

    /// Opens them all, each by the driver named, or as [`Reach`] has it. Their order is their [`DeviceIndex`].
    ///
    /// The block size reported is the unit that survives a power cut whole: on a device the larger
    /// of its logical and (up to 4 KiB) physical block; on a file what direct I/O needs, and at
    /// least the 4 KiB that file systems keep whole. It is the same by every driver.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Denied`], [`Kind::Busy`] (another process has it, or it is
    /// mounted), [`Kind::Invalid`] (too small, named twice, no file or device),
    /// [`Kind::Unsupported`] (not by that driver) or [`Kind::Io`]; each says what to do.
    pub fn open_by<R>(devices: &[(PathBuf, R)], options: MediaOptions) -> Result<Self>
    where
        R: Copy + Into<Reach>,
    {
        Self::open_without(devices, &[], options)
    }

    /// As [`Media::open_by`], leaving out some, which keep their place: every command for them fails.
    ///
    /// # Errors
    /// As [`Media::open_by`].
    pub fn open_without<R>(
        devices: &[(PathBuf, R)],
        absent: &[DeviceIndex],
        options: MediaOptions,
    ) -> Result<Self>
    where
        R: Copy + Into<Reach>,
    {
        if devices.is_empty() || u16::try_from(devices.len()).is_err() {
            return Err(Kind::Invalid
                .error(format!("a tier has from 1 to 65535 devices, not {}", devices.len())));
        }
        for (index, (path, _)) in devices.iter().enumerate() {
            if let Some((twin, _)) = devices[..index].iter().find(|(other, _)| same(other, path)) {
                return Err(Kind::Invalid.error(format!(
                    "{} and {} are the same device: name each once",
                    twin.display(),
                    path.display()
                )));
            }
        }
        let mut bus = NvmeBus::default();
        let open = |(index, (path, reach)): (u16, &(PathBuf, R))| {
            if absent.contains(&DeviceIndex(index)) {
                return Ok(Medium::absent(path));
            }
            Medium::open(path, (*reach).into(), &mut bus, &options)
        };
        let all: Result<_> = (0..).zip(devices).map(open).collect();
        Ok(Self(Arc::new(Inner { all: all?, read_only: options.read_only })))
    }

    /// Whether NVMe passthrough works on a namespace here, without claiming it.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn try_passthrough(path: &Path) -> Result<()> {
        passthrough::attempt(path)
    }

    /// Whether nothing was ever written to the first mebibyte of a device, where a tier's
    /// superblocks are.
    ///
    /// # Errors
    /// [`Kind::Io`] and what else [`Media::queue`] says.
    pub fn is_blank(&self, device: DeviceIndex) -> Result<bool> {
        let length = self.geometry(device).capacity_bytes.min(1 << 20);
        let head = content::read(&mut *self.queue(content::DEPTH)?, device, 0, length)?;
        Ok(head.iter().all(|byte| *byte == 0))
    }

    /// Refuses a device that already holds something: a file system, a partition table, a member of
    /// a RAID or volume group, swap or an encrypted volume. Only what is known can be recognised;
    /// unknown data passes. Call it before formatting, unless the operator insists.
    ///
    /// # Errors
    /// [`Kind::Denied`] naming what is there; [`Kind::Io`] if it cannot be read.
    pub fn check_foreign(&self, device: DeviceIndex) -> Result<()> {
        let mut queue = self.queue(content::DEPTH)?;
        let length = self.geometry(device).capacity_bytes;
        foreign::check(self.path(device), length, &mut |offset, length| {
            content::read(&mut *queue, device, offset, length)
        })
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

    /// Whether it was left out.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn is_absent(&self, device: DeviceIndex) -> bool {
        self.0.all[usize::from(device.0)].is_absent()
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

    /// By which driver it is reached: `io_uring`, `passthrough`, `vfio`, `memory`.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn driver(&self, device: DeviceIndex) -> &'static str {
        self.0.all[usize::from(device.0)].driver()
    }

    /// Why it is not reached by a faster driver, if one was tried.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn why(&self, device: DeviceIndex) -> Option<&str> {
        self.0.all[usize::from(device.0)].why()
    }

    /// The driver, and what it drives or why it is not a faster one, for people.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn describe_driver(&self, device: DeviceIndex) -> String {
        if let Some(disk) = self.0.all[usize::from(device.0)].disk() {
            return disk.describe();
        }
        let driver = self.driver(device);
        self.why(device).map_or_else(|| driver.to_owned(), |why| format!("{driver} ({why})"))
    }

    /// A new queue over all of them, for at most `depth` commands in flight.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a depth outside 1 to 4096; [`Kind::Unsupported`] if the kernel has no
    /// `io_uring` or forbids it; [`Kind::NoSpace`] if it has no memory for another.
    pub fn queue(&self, depth: usize) -> Result<Box<dyn Device>> {
        let is_driven = |medium: &Medium| medium.disk().is_some() || medium.memory().is_some();
        if !self.0.all.iter().any(is_driven) {
            return Ok(Box::new(UringDevice::new(self, depth)?));
        }
        let all_driven = self.0.all.iter().all(is_driven);
        let uring = if all_driven { None } else { Some(UringDevice::new(self, depth)?) };
        let queue = |medium: &Medium| {
            Ok(match (medium.disk(), medium.memory()) {
                (Some(disk), _) => Some(Driven::Polled(disk.queue(depth)?)),
                (None, Some(file)) => Some(Driven::Memory(MemoryQueue::new(file, depth)?)),
                (None, None) => None,
            })
        };
        let queues: Result<_> = self.0.all.iter().map(queue).collect();
        let geometries = self.0.all.iter().map(Medium::geometry).collect();
        Ok(Box::new(MixedDevice::new(uring, queues?, geometries)))
    }

    /// What tells of the devices' own state, for as long as they are open.
    #[must_use]
    pub fn health(&self) -> HealthWatch {
        let teller = |medium: &Medium| match medium.disk() {
            // It was left out: it is not even asked how it is.
            _ if medium.is_absent() => None,
            Some(disk) => Some(Teller::Driven(disk.health_watch())),
            None => HealthReader::of(medium.path())?
                .inspect_err(|error| tracing::warn!(%error, "no health log"))
                .ok()
                .map(|reader| Teller::Kernel(Arc::new(reader))),
        };
        HealthWatch(self.0.all.iter().map(teller).collect())
    }

    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.0.all.iter().map(Medium::descriptor).collect()
    }

    /// The namespace that commands for this device go to as they are.
    pub(super) fn namespace(&self, device: DeviceIndex) -> Option<&Namespace> {
        self.0.all.get(usize::from(device.0))?.namespace()
    }

    /// All such namespaces.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.0.all.iter().filter_map(Medium::namespace)
    }

    pub(super) fn admit(&self, command: &Command) -> Result<()> {
        let medium = self.0.all.get(usize::from(command.device().0));
        if self.0.read_only && !matches!(command, Command::Read { .. }) {
            return Err(admit::read_only());
        }
        if medium.is_some_and(Medium::is_absent) {
            return Err(admit::absent(command.device()));
        }
        admit::check(command, medium.map(Medium::geometry))
    }
}

/// What devices say of their own state. It keeps none of them open.
#[derive(Clone, Debug, Default)]
pub struct HealthWatch(Vec<Option<Teller>>);

/// Who tells of a device's state.
#[derive(Clone, Debug)]
enum Teller {
    /// The controller, which is driven from here.
    Driven(DiskHealth),
    /// The kernel, if it lets us ask.
    Kernel(Arc<HealthReader>),
}

impl HealthWatch {
    /// What a device last said; `None` for one that does not say, or is closed.
    #[must_use]
    pub fn of(&self, device: usize) -> Option<Health> {
        match self.0.get(device)?.as_ref()? {
            Teller::Driven(disk) => disk.now(),
            Teller::Kernel(reader) => reader.now(),
        }
    }

    /// Why an NVMe device does not say; `None` for one that does, and for what is none.
    #[must_use]
    pub fn why_not(&self, device: usize) -> Option<String> {
        match self.0.get(device)?.as_ref()? {
            Teller::Driven(_) => None,
            Teller::Kernel(reader) => reader.why_not(),
        }
    }
}

/// Whether two names are for the same device.
fn same(one: &Path, other: &Path) -> bool {
    let known = |path| medium::identity(path);
    match (PciName::parse(one), PciName::parse(other)) {
        (Some(one), Some(other)) => one == other,
        _ => known(one).is_some_and(|one| Some(one) == known(other)),
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
        let name = Path::new("0000:00:04.0");
        let twice = refusal(&[name, name], options);
        assert!(twice.to_string().contains("the same device"), "{twice}");
        assert_eq!(refusal(&[], options).kind(), Kind::Invalid);
    }

    #[test]
    fn a_driver_that_cannot_is_refused_by_name() {
        let file = TempFile::new("driver");
        fs::write(file.path(), vec![0; 1 << 16]).expect("writable");
        let options = MediaOptions { minimum_bytes: 0, read_only: false };
        let open = |path: &Path, driver| Media::open_by(&[(path.to_owned(), driver)], options);
        let refused = open(file.path(), Driver::Passthrough).expect_err("a file");
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert!(refused.to_string().contains("use driver io_uring"), "{refused}");
        let refused = open(file.path(), Driver::Vfio).expect_err("a file");
        assert!(refused.to_string().contains("PCI address"), "{refused}");
        let absent = open(Path::new("/dev/none-such"), Driver::Passthrough).expect_err("absent");
        assert_eq!(absent.kind(), Kind::NotFound);
        let media = open(file.path(), Driver::IoUring).expect("a file");
        assert!(media.driver(DeviceIndex(0)).starts_with("io_uring"));
        assert_eq!(media.why(DeviceIndex(0)), None);
    }

    #[test]
    fn blank_and_foreign_are_told_through_the_device() {
        let file = TempFile::new("foreign");
        let mut bytes = vec![0; 2 << 20];
        fs::write(file.path(), &bytes).expect("writable");
        let media = open(file.path()).expect("opens");
        media.check_foreign(DeviceIndex(0)).expect("nothing there");
        assert!(media.is_blank(DeviceIndex(0)).expect("readable"));
        drop(media);
        bytes[..4].copy_from_slice(b"XFSB");
        fs::write(file.path(), &bytes).expect("writable");
        let media = open(file.path()).expect("opens");
        assert!(!media.is_blank(DeviceIndex(0)).expect("readable"));
        let error = media.check_foreign(DeviceIndex(0)).expect_err("a file system");
        assert_eq!(error.kind(), Kind::Denied);
        assert!(error.to_string().contains("an XFS file system"), "{error}");
    }
}
