//! One opened device of a tier, whichever driver it is reached by.

mod file;

use std::os::fd::{AsFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use extent::{Kind, Result};

pub(super) use self::file::{
    LARGEST_BLOCK_BYTES, OpenFile, device_block_bytes, lock, open_claimed, refused,
};
use super::memory::{MemoryFile, is_in_memory};
use super::nvme_disk::{NvmeBus, NvmeDisk};
use super::passthrough::{Namespace, Nodes};
use super::{Driver, Geometry, MediaOptions, PciName, Reach, Timeouts};

/// An open device that is this process's alone.
#[derive(Debug)]
pub(super) struct Medium {
    path: PathBuf,
    reached: Reached,
    /// Why by this driver, where another one was thinkable.
    why: Option<String>,
}

#[derive(Debug)]
enum Reached {
    File(OpenFile),
    Passthrough(Namespace),
    Vfio(NvmeDisk),
    Memory(Arc<MemoryFile>),
    /// Not there: whatever is asked of it is refused.
    Absent,
}

/// What is said of a device that is not there. Nothing fits on it.
const NOTHING: Geometry = Geometry {
    deallocation: None,
    capacity_bytes: 0,
    block_bytes: LARGEST_BLOCK_BYTES,
    max_transfer_bytes: 1 << 20,
    volatile_cache: false,
};

impl Medium {
    /// Opens and claims what `path` names, by this driver.
    pub(super) fn open(
        path: &Path,
        reach: Reach,
        bus: &mut NvmeBus,
        options: &MediaOptions,
    ) -> Result<Self> {
        let doing = || format!("opening {}", path.display());
        reach.timeouts.check().map_err(|error| error.while_doing(doing()))?;
        let (reached, why) = match PciName::parse(path) {
            Some(name) => (open_pci(path, name, reach, bus, options)?, None),
            None if reach.timeouts == Timeouts::default() => {
                open_path(path, reach.driver, options)?
            }
            None => {
                return Err(Kind::Invalid.error(format!(
                    "{}: timeouts are for driver vfio; what the kernel drives has the kernel's \
                     (nvme_core.io_timeout)",
                    path.display()
                )));
            }
        };
        let medium = Self { path: path.to_owned(), reached, why };
        let (path, driver) = (path.display(), medium.driver());
        tracing::info!(%path, driver, why = medium.why.as_deref(), "opened a device");
        Ok(medium)
    }

    /// In the place of a device that is not there.
    pub(super) fn absent(path: &Path) -> Self {
        Self { path: path.to_owned(), reached: Reached::Absent, why: None }
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self.reached, Reached::Absent)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn geometry(&self) -> Geometry {
        match &self.reached {
            Reached::File(file) => file.geometry(),
            Reached::Passthrough(namespace) => namespace.geometry(),
            Reached::Vfio(disk) => disk.geometry(),
            Reached::Memory(file) => file.geometry(),
            Reached::Absent => NOTHING,
        }
    }

    /// Whether I/O bypasses the page cache.
    pub(super) fn is_direct(&self) -> bool {
        match &self.reached {
            Reached::File(file) => file.is_direct(),
            // Its memory is no cache of anything.
            Reached::Memory(_) | Reached::Passthrough(_) | Reached::Vfio(_) | Reached::Absent => {
                true
            }
        }
    }

    /// The driver, in words.
    pub(super) fn driver(&self) -> &'static str {
        match &self.reached {
            Reached::File(file) if file.is_direct() => "io_uring",
            Reached::File(_) => "io_uring, page cache",
            Reached::Passthrough(_) => "passthrough",
            Reached::Vfio(_) => "vfio",
            Reached::Memory(_) => "memory",
            Reached::Absent => "absent",
        }
    }

    /// Why not the faster one that would suit it.
    pub(super) fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// The namespace, if commands go to it as they are.
    pub(super) fn namespace(&self) -> Option<&Namespace> {
        match &self.reached {
            Reached::Passthrough(namespace) => Some(namespace),
            Reached::File(_) | Reached::Vfio(_) | Reached::Memory(_) | Reached::Absent => None,
        }
    }

    /// The namespace, if it is driven from here.
    pub(super) fn disk(&self) -> Option<&NvmeDisk> {
        match &self.reached {
            Reached::Vfio(disk) => Some(disk),
            Reached::File(_) | Reached::Passthrough(_) | Reached::Memory(_) | Reached::Absent => {
                None
            }
        }
    }

    /// The file, if it is in memory and read there.
    pub(super) fn memory(&self) -> Option<&Arc<MemoryFile>> {
        match &self.reached {
            Reached::Memory(file) => Some(file),
            Reached::File(_) | Reached::Passthrough(_) | Reached::Vfio(_) | Reached::Absent => None,
        }
    }

    /// What a ring is to register.
    pub(super) fn descriptor(&self) -> RawFd {
        match &self.reached {
            Reached::File(file) => file.descriptor(),
            Reached::Passthrough(namespace) => namespace.descriptor(),
            // A ring leaves its place empty.
            Reached::Vfio(_) | Reached::Memory(_) | Reached::Absent => -1,
        }
    }
}

/// A file, a block device or a namespace, by its path.
fn open_path(
    path: &Path,
    driver: Driver,
    options: &MediaOptions,
) -> Result<(Reached, Option<String>)> {
    let nodes = Nodes::find(path);
    Ok(match (driver, &nodes) {
        (Driver::Vfio, _) => return Err(no_pci_name(path, nodes.as_ref())),
        (Driver::Passthrough, None) => return Err(no_namespace(path, options)),
        (Driver::Passthrough, Some(nodes)) => {
            (Reached::Passthrough(Namespace::open(nodes, options)?), None)
        }
        (Driver::Auto, Some(nodes)) => open_namespace(nodes, options)?,
        (Driver::Auto, None) => open_file(path, options)?,
        (Driver::Memory, _) => (Reached::Memory(Arc::new(MemoryFile::open(path, options)?)), None),
        (Driver::IoUring, nodes) => {
            let path = nodes.as_ref().map_or(path, Nodes::block);
            (Reached::File(OpenFile::open(path, options)?), None)
        }
    })
}

/// A file or block device through io_uring; of one in memory it is said that there is another way.
fn open_file(path: &Path, options: &MediaOptions) -> Result<(Reached, Option<String>)> {
    let file = OpenFile::open(path, options)?;
    let why = is_in_memory(file.as_fd()).then(|| {
        "driver memory, which reads a tmpfs where it lies, is not chosen unless named".to_owned()
    });
    Ok((Reached::File(file), why))
}

/// Passthrough if it works here, and else the block device, with the reason.
fn open_namespace(nodes: &Nodes, options: &MediaOptions) -> Result<(Reached, Option<String>)> {
    match Namespace::open(nodes, options) {
        Ok(namespace) => Ok((Reached::Passthrough(namespace), None)),
        Err(error) if matches!(error.kind(), Kind::Denied | Kind::Unsupported) => {
            let file = OpenFile::open(nodes.block(), options)?;
            Ok((Reached::File(file), Some(format!("no passthrough: {error}"))))
        }
        Err(error) => Err(error),
    }
}

/// A namespace of a controller that is driven from here.
fn open_pci(
    path: &Path,
    name: PciName,
    reach: Reach,
    bus: &mut NvmeBus,
    options: &MediaOptions,
) -> Result<Reached> {
    match reach.driver {
        Driver::Auto | Driver::Vfio => {
            Ok(Reached::Vfio(bus.open(name, reach.timeouts, options)?))
        }
        driver @ (Driver::Passthrough | Driver::IoUring | Driver::Memory) => Err(Kind::Invalid
            .error(format!(
                "{} is a PCI address, which driver {driver} does not take: name the namespace's \
             /dev/nvmeXnY, or use driver vfio",
                path.display()
            ))),
    }
}

fn no_pci_name(path: &Path, nodes: Option<&Nodes>) -> extent::Error {
    let found = nodes.and_then(Nodes::pci_address);
    Kind::Invalid.error(format!(
        "{} is a path, and driver vfio takes the PCI address of a controller that is bound to \
         vfio-pci{}",
        path.display(),
        found.map_or_else(String::new, |address| format!(", here {address}"))
    ))
}

fn no_namespace(path: &Path, options: &MediaOptions) -> extent::Error {
    match std::fs::metadata(path) {
        Err(error) => refused(path, options, error),
        Ok(_) => Kind::Unsupported.error(format!(
            "{} is no whole NVMe namespace, and driver passthrough takes nothing else: name \
             /dev/nvmeXnY or /dev/ngXnY, or use driver io_uring",
            path.display()
        )),
    }
}

/// What tells the same device or file under two names.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    match Nodes::find(path) {
        Some(nodes) => file::identity(nodes.block()),
        None => file::identity(path),
    }
}
