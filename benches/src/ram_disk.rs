//! Block devices in memory, by the kernel's `brd`: what a node and the kernel's NVMe target can both
//! serve, without a device that limits either.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use extent::{Error, Kind, Result};

use crate::files::Random;
use crate::process;
use crate::verdict::Setback;

const LOADED: &str = "/sys/module/brd";
const FILL_BYTES: usize = 1 << 20;

/// Equal block devices that take memory as they are written, and give it back on drop.
pub struct RamDisks {
    modprobe: PathBuf,
    count: usize,
}

impl RamDisks {
    /// Makes them.
    ///
    /// # Errors
    /// [`Setback::Skipped`] without the right or the module; if the module is in use, by others.
    pub fn make(count: usize, bytes_each: u64) -> Result<Self, Setback> {
        let modprobe = process::find("modprobe", "kmod")?;
        if Path::new(LOADED).exists() {
            return Err(Setback::Skipped(
                "the module brd is loaded: if its devices are not needed, modprobe -r brd"
                    .to_owned(),
            ));
        }
        let number = format!("rd_nr={count}");
        let size = format!("rd_size={}", bytes_each >> 10);
        let mut load = process::command(&modprobe, ["brd", &number, &size]);
        process::run(&mut load).map_err(|error| {
            Setback::Skipped(format!(
                "block devices in memory take the module brd and root: {error}"
            ))
        })?;
        let made = Self { modprobe, count };
        if !made.path(count - 1).exists() {
            let missing = made.path(count - 1).display().to_string();
            return Err(Kind::Io.error(format!("brd made no {missing}")).into());
        }
        Ok(made)
    }

    /// The device of a number below the count.
    #[must_use]
    pub fn path(&self, number: usize) -> PathBuf {
        assert!(number < self.count, "there are {} devices", self.count);
        PathBuf::from(format!("/dev/ram{number}"))
    }

    /// Fills the front of a device with bytes that do not compress, so that reads of it copy memory
    /// rather than make zeroes.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn fill(&self, number: usize, bytes: u64) -> Result<()> {
        let path = self.path(number);
        let doing = |e| Error::io(format!("filling {}", path.display()), e);
        let mut device = File::options().write(true).open(&path).map_err(doing)?;
        let mut random = Random::new(bytes);
        let mut chunk = vec![0; FILL_BYTES];
        for _ in 0..bytes / FILL_BYTES as u64 {
            for word in chunk.chunks_mut(8) {
                word.copy_from_slice(&random.next().to_le_bytes());
            }
            device.write_all(&chunk).map_err(doing)?;
        }
        device.sync_all().map_err(doing)
    }
}

impl Drop for RamDisks {
    fn drop(&mut self) {
        // Whoever uses it still keeps it; the next one is told.
        let _ = process::run(&mut process::command(&self.modprobe, ["-r", "brd"]));
    }
}

/// Whether a kernel module could be loaded, or is.
#[must_use]
pub fn has_module(modprobe: &Path, name: &str) -> bool {
    fs::exists(format!("/sys/module/{}", name.replace('-', "_"))).unwrap_or(false)
        || process::run(&mut process::command(modprobe, [name])).is_ok()
}
