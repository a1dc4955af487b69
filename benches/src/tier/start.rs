//! What a start costs.

use std::fmt;
use std::fs;

use extent::{Error, Kind, Result};
use nvme_tier::TierOptions;
use serde::{Deserialize, Serialize};

use super::image::Image;

/// A recovery, and the memory that it left in use.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Extents found.
    pub extents: u64,
    /// Files found.
    pub files: u64,
    /// Seconds from the first read to a tier that can serve.
    pub seconds: f64,
    /// Bytes of the records and descriptors that were read meanwhile.
    pub table_bytes: u64,
    /// By how much the process grew: bytes that stay.
    pub resident_bytes: u64,
    /// The most that it grew meanwhile.
    pub peak_bytes: u64,
    /// Of those that stay, bytes of checksums.
    pub checksum_bytes: u64,
}

impl Start {
    /// Recovers a tier in this process, which should have done nothing else before.
    ///
    /// # Errors
    /// As [`Image::recover`].
    pub fn measure(image: &Image, options: TierOptions) -> Result<Self> {
        let before = memory("VmRSS:")?;
        let recovered = image.recover_with(options)?;
        let (after, peak) = (memory("VmRSS:")?, memory("VmHWM:")?);
        let report = &recovered.report;
        Ok(Self {
            extents: report.extents,
            files: report.files,
            seconds: report.elapsed.as_secs_f64(),
            table_bytes: image.table_bytes(report.files),
            resident_bytes: after.saturating_sub(before),
            peak_bytes: peak.saturating_sub(before),
            checksum_bytes: recovered.tier.usage().checksum_bytes,
        })
    }

    /// Bytes of memory for each extent, besides its checksums.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an average is rounded anyway")]
    pub fn bytes_per_extent(&self) -> f64 {
        self.resident_bytes.saturating_sub(self.checksum_bytes) as f64 / self.extents as f64
    }

    /// Bytes of checksums in memory for each extent.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an average is rounded anyway")]
    pub fn checksums_per_extent(&self) -> f64 {
        self.checksum_bytes as f64 / self.extents.max(1) as f64
    }

    /// Bytes of tables read in a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
    pub fn bytes_per_second(&self) -> f64 {
        self.table_bytes as f64 / self.seconds
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} extents in {} files: recovered in {:.2} s, {:.0} MB/s; {:.1} bytes of memory an \
             extent and {:.1} of checksums, {} MiB of these in all; {} MiB at most meanwhile",
            self.extents,
            self.files,
            self.seconds,
            self.bytes_per_second() / 1e6,
            self.bytes_per_extent(),
            self.checksums_per_extent(),
            self.checksum_bytes >> 20,
            self.peak_bytes >> 20,
        )
    }
}

/// A line of `/proc/self/status`, in bytes.
fn memory(name: &str) -> Result<u64> {
    let path = "/proc/self/status";
    let text = fs::read_to_string(path).map_err(|e| Error::io(format!("reading {path}"), e))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .ok_or_else(|| Kind::Unsupported.error(format!("{path} has no line {name}")))
}
