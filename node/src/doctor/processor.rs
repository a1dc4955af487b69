//! The kernel and its processors.

use extent::checksum::{Choice, Way};

use super::Finding;
use crate::system;

/// Before this, io_uring lacks what the tier relies on to be fast.
const GOOD_KERNEL: (u32, u32) = (6, 1);

pub(super) fn kernel() -> Finding {
    let release = system::kernel_release();
    match version(&release) {
        Some(version) if version >= GOOD_KERNEL => {
            Finding::ok("kernel", format!("Linux {release}"))
        }
        _ => Finding::warn(
            "kernel",
            format!("Linux {release}"),
            format!("Linux {}.{} or later has a faster io_uring", GOOD_KERNEL.0, GOOD_KERNEL.1),
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn cores() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shards = (cores / 2).max(1);
    let found = format!("{cores}; a node takes {shards} for shards unless told");
    if cores >= 4 {
        return Finding::ok("cores", found);
    }
    Finding::warn("cores", found, "clients, shards and silos share few cores: fine for trying it")
}

pub(super) fn checksums() -> Finding {
    let Choice { way, instructions, shifts } = system::choose_checksums();
    let names = checksum_instructions().join(", ");
    let found =
        format!("4 KiB in {instructions:?} by instructions ({names}), {shifts:?} by shifts");
    match way {
        Way::Instructions if !names.is_empty() => Finding::ok("crc32c", found),
        _ => Finding::warn(
            "crc32c",
            found,
            "every read is verified: without these instructions, or where they are emulated, \
             checksums bound its speed",
        ),
    }
}

/// Those of use for checksums that the processor has.
fn checksum_instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let have = [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("pclmulqdq", is_x86_feature_detected!("pclmulqdq")),
        ("vpclmulqdq", is_x86_feature_detected!("vpclmulqdq")),
    ];
    #[cfg(target_arch = "aarch64")]
    let have = [
        ("crc", std::arch::is_aarch64_feature_detected!("crc")),
        ("pmull", std::arch::is_aarch64_feature_detected!("pmull")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let have: [(&str, bool); 0] = [];
    have.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("5.4-generic"), Some((5, 4)));
        assert_eq!(version("unknown"), None);
    }
}
