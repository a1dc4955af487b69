//! What nvidia-fs counts, for the whole machine.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

pub(super) const STATS: &str = "/proc/driver/nvidia-fs/stats";
/// The file has some lines for each GPU.
const MOST_BYTES: u64 = 64 << 10;

/// Reads that the module has done, by all processes, since it was loaded or its counters were reset. `None` if it is
/// not loaded, or does not count (`rw_stats_enabled`). It counts a read before that ends for who asked for it.
pub(super) fn reads(stats: &Path) -> Option<u64> {
    let mut text = String::new();
    File::open(stats).ok()?.take(MOST_BYTES).read_to_string(&mut text).ok()?;
    parse(&text)
}

/// Of the lines that begin with `Reads`, one has `ok=` and the number.
fn parse(text: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == "Reads")
        .flat_map(|(_, values)| values.split_whitespace())
        .find_map(|value| value.strip_prefix("ok=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_found_or_nothing_is() {
        let text = "GDS Version: 1.14 \nNVFS statistics(ver: 4.0)\nIO stats: Enabled, peer IO stats: Enabled\n\
            Batches\t: n=3 ok=3 err=0 Avg-Submit-Latency(usec)=0\n\
            Reads\t\t\t\t: n=42 ok=41 err=1 readMiB=7 io_state_err=0\n\
            Reads\t\t\t\t: Bandwidth(MiB/s)=0 Avg-Latency(usec)=0\n\
            Sparse Reads\t\t        : n=9 io=0 holes=0 pages=0 \nWrites : n=5\n";
        assert_eq!(parse(text), Some(41));
        assert_eq!(parse(&text.replace("n=42 ok=41 ", "")), None, "it does not count");
        assert_eq!(parse(&text.replace("ok=41", "ok=many")), None);
        assert_eq!(parse(""), None);
        assert_eq!(reads(Path::new("/proc/driver/no-such-module/stats")), None);
    }
}
