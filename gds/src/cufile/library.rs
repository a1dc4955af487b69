use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use extent::{Error, Kind, Result};
use parking_lot::Mutex;

use super::registration::Entry;
use super::{LocalFile, answer, counters, ffi};
use crate::CudaDriver;
use crate::opening::{PATIENCE, in_time};

const LIBRARY: &str = "libcufile.so.0";
/// Bytes of a call where the library says nothing of it, and the most in any case.
const USUAL_BYTES: usize = 16 << 20;
const MOST_BYTES: usize = 1 << 30;
/// Calls are cut where a file's offset is a multiple of this.
pub(super) const ALIGN_BYTES: usize = 4096;

/// NVIDIA's cuFile, opened, with its driver.
pub struct CuFile {
    pub(super) functions: ffi::Functions,
    info: CuFileInfo,
    /// Where nvidia-fs counts.
    stats: PathBuf,
    /// Device memory that is registered, by its address.
    pub(super) registered: Mutex<BTreeMap<u64, Entry>>,
}

/// What cuFile says of itself and of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CuFileInfo {
    /// The library's version, 1000 times the major one and 10 times the minor; old ones do not tell.
    pub version: Option<u32>,
    /// The version of the kernel's module, if it is loaded.
    pub nvidia_fs: Option<(u32, u32)>,
    /// Whether the kernel moves bytes from NVMe to GPUs without that module.
    pub has_p2p: bool,
    /// Whether nvidia-fs counts everything that can go direct here.
    pub all_is_counted: bool,
    /// Whether the library may read through host memory instead (`allow_compat_mode`).
    pub allows_compatible: bool,
    /// Bytes of one call at most: longer reads are cut.
    pub most_bytes: usize,
}

impl CuFile {
    /// The system's, `libcufile.so.0`, opened at the first call: that starts threads of it, and reads its
    /// configuration (`/etc/cufile.json`). Without a GPU it is not opened: nothing could come of it.
    ///
    /// # Errors
    /// As [`CuFile::open`], and [`CudaDriver::system`].
    pub fn system() -> Result<&'static Self> {
        static SYSTEM: OnceLock<Result<&'static CuFile>> = OnceLock::new();
        let open = || {
            CudaDriver::system()?;
            Self::open(LIBRARY, Path::new(counters::STATS))
        };
        let opened = SYSTEM.get_or_init(open);
        opened.as_ref().copied().map_err(Error::duplicate)
    }

    /// Opens a library by its name or path, and its driver. It stays open. `stats` is where nvidia-fs counts.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if the library cannot be loaded; [`Kind::Unsupported`] if it lacks a function, its driver
    /// does not open, or not in time; the message says which.
    pub fn open(library: &str, stats: &Path) -> Result<&'static Self> {
        let late = || {
            Kind::Unsupported.error(format!(
                "libcufile, but cuFileDriverOpen did not return within {PATIENCE:?}: look at gdscheck -p and dmesg, and \
                 whether /proc/modules is there"
            ))
        };
        let (name, stats) = (library.to_owned(), stats.to_owned());
        in_time("cufile-open", late, move || Self::open_at_once(&name, stats))
    }

    fn open_at_once(library: &str, stats: PathBuf) -> Result<&'static Self> {
        // SAFETY: the library does nothing at load time but prepare itself.
        let opened = unsafe { libloading::Library::new(library) };
        let opened = opened.map_err(|error| {
            let reason = format!("no {library}: install libcufile of the CUDA toolkit");
            Kind::NotFound.error(reason).caused_by(error)
        })?;
        let functions = ffi::Functions::look_up(Box::leak(Box::new(opened)))?;
        let useless = |error: Error| Kind::Unsupported.error(format!("libcufile, but {error}"));
        // SAFETY: it takes no memory of ours.
        let answer = unsafe { (functions.driver_open)() };
        let is_ours = answer.err != answer::CU_FILE_DRIVER_ALREADY_OPEN;
        if is_ours {
            answer::check("cuFileDriverOpen", answer).map_err(useless)?;
        }
        match look(&functions) {
            Ok(info) => Ok(Box::leak(Box::new(Self {
                functions,
                info,
                stats,
                registered: Mutex::default(),
            }))),
            Err(error) => {
                // What somebody else in this process has opened stays as it is.
                if is_ours {
                    // SAFETY: it was opened above, and nothing was done with it.
                    let answer = unsafe { (functions.driver_close)() };
                    if let Err(error) = answer::check("cuFileDriverClose", answer) {
                        tracing::debug!(%error, "cuFile's driver stays open");
                    }
                }
                Err(useless(error))
            }
        }
    }

    /// What it says of itself and of this machine.
    #[must_use]
    pub fn info(&self) -> &CuFileInfo {
        &self.info
    }

    /// A file that this library reads: otherwise as [`LocalFile::open`].
    ///
    /// # Errors
    /// As [`LocalFile::open`].
    pub fn file(&'static self, path: impl AsRef<Path>) -> Result<LocalFile> {
        LocalFile::with(path.as_ref(), Some(self))
    }

    /// Reads that nvidia-fs has done for anybody, if it counts.
    pub(super) fn direct_reads(&self) -> Option<u64> {
        counters::reads(&self.stats)
    }
}

/// What an open driver says.
fn look(functions: &ffi::Functions) -> Result<CuFileInfo> {
    let mut properties = ffi::CUfileDrvProps::default();
    // SAFETY: it writes properties, and there is room for more than any version has had.
    let answer = unsafe { (functions.get_properties)(&raw mut properties) };
    answer::check("cuFileDriverGetProperties", answer)?;
    let version = functions.get_version.and_then(|get_version| {
        let mut version = 0;
        // SAFETY: it writes an int.
        let answer = unsafe { get_version(&raw mut version) };
        answer::check("cuFileGetVersion", answer).ok().and_then(|()| u32::try_from(version).ok())
    });
    let nvfs = properties.nvfs;
    let bit = |flags: u32, number: u32| flags & (1 << number) != 0;
    let counted = [
        ffi::CU_FILE_LUSTRE_SUPPORTED,
        ffi::CU_FILE_NFS_SUPPORTED,
        ffi::CU_FILE_NVME_SUPPORTED,
        ffi::CU_FILE_NVMEOF_SUPPORTED,
        ffi::CU_FILE_SCSI_SUPPORTED,
    ];
    let counted = counted.into_iter().fold(0_u32, |flags, number| flags | 1 << number);
    let kib = nvfs.max_direct_io_size;
    let most_bytes = if kib == 0 { USUAL_BYTES } else { kib.saturating_mul(1024) };
    let has_module = (nvfs.major_version, nvfs.minor_version) != (0, 0);
    Ok(CuFileInfo {
        version,
        nvidia_fs: has_module.then_some((nvfs.major_version, nvfs.minor_version)),
        has_p2p: bit(nvfs.dstatusflags, ffi::CU_FILE_NVME_P2P_SUPPORTED),
        all_is_counted: has_module && nvfs.dstatusflags & !counted == 0,
        allows_compatible: bit(nvfs.dcontrolflags, ffi::CU_FILE_ALLOW_COMPAT_MODE),
        most_bytes: most_bytes.clamp(ALIGN_BYTES, MOST_BYTES) / ALIGN_BYTES * ALIGN_BYTES,
    })
}
