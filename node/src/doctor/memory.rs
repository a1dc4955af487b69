//! Memory and the limits on it.

use std::fs;

use super::Finding;
use crate::{system, units};

/// What a node with default buffers locks.
const WANTED_LOCKED_BYTES: u64 = 512 << 20;
const WANTED_OPEN_FILES: u64 = 65536;

pub(super) fn huge_pages() -> Finding {
    const NAME: &str = "huge pages";
    let read = |name: &str| -> u64 {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    let (total, free) = (read("nr_hugepages"), read("free_hugepages"));
    if total > 0 {
        return Finding::ok(NAME, format!("{free} of {total} free, 2 MiB each"));
    }
    Finding::warn(
        NAME,
        "none set aside; buffers take ordinary pages",
        "echo 256 > /proc/sys/vm/nr_hugepages (256 × 2 MiB holds the default buffers)",
    )
}

pub(super) fn locked() -> Finding {
    const NAME: &str = "locked memory";
    let (soft, hard) = system::limit(libc::RLIMIT_MEMLOCK);
    let found = if soft == u64::MAX { "no limit".to_owned() } else { units::bytes(soft) };
    if soft >= WANTED_LOCKED_BYTES {
        return Finding::ok(NAME, found);
    }
    if system::is_root() {
        return Finding::ok(NAME, format!("{found}, which does not bind root"));
    }
    let hard = if hard == u64::MAX { "no limit".to_owned() } else { units::bytes(hard) };
    Finding::warn(
        NAME,
        format!("{found} (hard limit: {hard})"),
        "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`: registered buffers are locked",
    )
}

pub(super) fn open_files() -> Finding {
    const NAME: &str = "open files";
    let (soft, hard) = system::limit(libc::RLIMIT_NOFILE);
    let found = format!("{} (hard limit: {})", units::count(soft), units::count(hard));
    if hard >= WANTED_OPEN_FILES {
        return Finding::ok(NAME, found);
    }
    Finding::warn(NAME, found, format!("LimitNOFILE={WANTED_OPEN_FILES}: each client takes a few"))
}
