//! io_uring, direct I/O and NVMe devices.
#![allow(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use io_uring::{IoUring, Probe, opcode};
use nvme_tier::device::Media;

use super::{Finding, names_in};
use crate::system;
use crate::units;

const BLOCK_BYTES: usize = 4096;

/// A block of memory at an address that direct I/O takes.
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

pub(super) fn io_uring() -> Finding {
    const NAME: &str = "io_uring";
    let ring = match IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => {
            return Finding::missing(
                NAME,
                error.to_string(),
                "set kernel.io_uring_disabled=0, and let the container's seccomp profile pass \
                 io_uring_setup, io_uring_enter and io_uring_register",
            );
        }
    };
    let mut lacking = Vec::new();
    let mut probe = Probe::new();
    let probed = ring.submitter().register_probe(&mut probe).is_ok();
    if !probed || !probe.is_supported(opcode::ReadFixed::CODE) {
        lacking.push("fixed-buffer reads");
    }
    if !probed || !probe.is_supported(opcode::Fsync::CODE) {
        lacking.push("fsync");
    }
    if !registers_buffers(&ring) {
        lacking.push("registered buffers (see locked memory)");
    }
    let deferred = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8);
    let deferred: io::Result<IoUring> = deferred;
    if deferred.is_err() {
        lacking.push("DEFER_TASKRUN");
    }
    if lacking.is_empty() {
        return Finding::ok(NAME, "fixed buffers, DEFER_TASKRUN");
    }
    Finding::warn(
        NAME,
        format!("works, without {}", lacking.join(", ")),
        "a newer kernel or a higher limit on locked memory makes reads cheaper",
    )
}

fn registers_buffers(ring: &IoUring) -> bool {
    let mut block = Box::new(Block([0; BLOCK_BYTES]));
    let vector = libc::iovec { iov_base: block.0.as_mut_ptr().cast(), iov_len: BLOCK_BYTES };
    // SAFETY: the block outlives its registration, which ends on the next line.
    let registered = unsafe { ring.submitter().register_buffers(&[vector]) };
    registered.is_ok() && ring.submitter().unregister_buffers().is_ok()
}

pub(super) fn direct_io(state_dir: &Path) -> Finding {
    const NAME: &str = "direct I/O";
    let place = system::nearest_existing(state_dir);
    let path = place.join(format!(".forebay-doctor-{}", std::process::id()));
    let tried = try_direct_io(&path);
    let _ = fs::remove_file(&path);
    let free = system::free_bytes(place).map(units::bytes);
    let free = free.unwrap_or_else(|_| "unknown".to_owned());
    match tried {
        Ok(()) => Finding::ok(NAME, format!("on {} ({free} free)", place.display())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::warn(
            NAME,
            format!("{} cannot be written by this user", place.display()),
            "run as the node's user, or give --state-dir",
        ),
        Err(error) => Finding::warn(
            NAME,
            format!("not on {}: {error}", place.display()),
            "put the tier on ext4 or xfs, or on a block device; else the page cache is in between",
        ),
    }
}

fn try_direct_io(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT);
    let file = options.open(path)?;
    let mut block = Box::new(Block([7; BLOCK_BYTES]));
    file.write_all_at(&block.0, 0)?;
    block.0.fill(0);
    file.read_exact_at(&mut block.0, 0)?;
    if block.0.iter().all(|byte| *byte == 7) {
        Ok(())
    } else {
        Err(io::Error::other("wrong bytes"))
    }
}

pub(super) fn nvme() -> Finding {
    const NAME: &str = "NVMe";
    let controllers = names_in("/sys/class/nvme");
    if controllers.is_empty() {
        return Finding::missing(
            NAME,
            "no controllers",
            "the tier lives in a file instead: right for trying, not for speed",
        );
    }
    let described: Vec<String> = controllers
        .iter()
        .map(|name| {
            let model = fs::read_to_string(format!("/sys/class/nvme/{name}/model"));
            format!("{name} ({})", model.as_deref().unwrap_or("unknown model").trim())
        })
        .collect();
    Finding::ok(NAME, described.join(", "))
}

/// Which driver the namespaces would get, and why not a faster one.
pub(super) fn passthrough() -> Finding {
    const NAME: &str = "NVMe passthrough";
    let nodes = names_in("/sys/class/nvme-generic");
    if nodes.is_empty() {
        return Finding::missing(
            NAME,
            "no namespaces with the kernel's driver",
            "files and other disks are reached by io_uring instead",
        );
    }
    let tried = |name: &String| {
        Media::try_passthrough(&Path::new("/dev").join(name)).map_err(|error| format!("{error}"))
    };
    match nodes.iter().try_for_each(tried) {
        Ok(()) => Finding::ok(NAME, format!("on {}", nodes.join(", "))),
        Err(why) => Finding::warn(
            NAME,
            why,
            "until then such a namespace is reached by io_uring on its block device, which costs \
             more processor time",
        ),
    }
}
