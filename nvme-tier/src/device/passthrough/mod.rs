//! NVMe namespaces through the kernel's driver, but past its block layer: commands go to
//! `/dev/ngXnY` as they are (Linux 6.1), by io_uring.
//!
//! The kernel neither splits such a command nor checks it against mounts, so this side does: see
//! [`Namespace`].

mod command;
mod nodes;
mod trial;

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use extent::{Error, Kind, Result};

pub(super) use self::command::Io;
pub(super) use self::nodes::Nodes;
use super::medium::{LARGEST_BLOCK_BYTES, device_block_bytes, lock, open_claimed, refused};
use super::nvme::{
    CommandSetLimits, Deallocator, HEALTH_BYTES, Health, IDENTIFY_BYTES, IdentifyController,
    IdentifyNamespace, Protection, SubmissionEntry, admin,
};
use super::{Geometry, MediaOptions};

/// From this release on Linux counts the segments of a command on registered memory, and not all
/// that follow in its place (`blk_rq_map_user_bvec`).
const FIRST_EXACT_KERNEL: (u32, u32) = (6, 12);

/// Whether this kernel takes a command on registered memory for all from its first page to the end of
/// its place.
pub(super) fn takes_places_whole() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    release.is_ok_and(|release| is_before_exact(release.trim()))
}

fn is_before_exact(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    version.is_some_and(|version| version < FIRST_EXACT_KERNEL)
}

/// What is reported as the most bytes for one command: it leaves in as many pieces as need be.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;

/// NLB, the number of blocks of a command, has 16 bits.
const MOST_BLOCKS: u64 = 1 << 16;

/// A page of the host's memory, a segment of its own in the worst case.
const PAGE_BYTES: u64 = 4096;

/// Beyond this, larger pieces gain nothing.
const LARGEST_PIECE_BYTES: u64 = 1 << 20;

/// An open namespace. Beside its character device it holds its block device exclusively, so that
/// nothing on it can be mounted, and nothing mounted is overwritten.
#[derive(Debug)]
pub(super) struct Namespace {
    character: File,
    _claim: File,
    id: u32,
    format: IdentifyNamespace,
    /// The most bytes of one command to the device: a power of two.
    piece_bytes: u32,
    deallocator: Option<Deallocator>,
    geometry: Geometry,
}

impl Namespace {
    /// Claims the namespace, asks it what it is like, and tries a read.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] and [`Kind::Denied`] where the kernel, its configuration or this user's
    /// rights do not allow passthrough, or the namespace keeps metadata that is not supported;
    /// [`Kind::Busy`] if it is in use; each says what to do.
    pub(super) fn open(nodes: &Nodes, options: &MediaOptions) -> Result<Self> {
        let block = nodes.block();
        let claim = open_claimed(block, options, 0).map_err(|e| refused(block, options, e))?;
        let character = open_character(nodes, options)?;
        lock(&character, nodes.character(), options)?;
        let answers = identify(&character, nodes.character())?;
        let format = answers.namespace;
        let block_bytes = unit_bytes(&claim, nodes, &format)?;
        let held = format.capacity_bytes();
        let capacity_bytes = held - held % u64::from(block_bytes);
        if capacity_bytes < options.minimum_bytes {
            return Err(Kind::Invalid.error(format!(
                "{} holds {held} bytes, and a tier needs at least {}: name another",
                nodes.character().display(),
                options.minimum_bytes
            )));
        }
        let piece_bytes = piece_bytes(&answers.controller, &format, block_bytes, nodes)?;
        let geometry = Geometry {
            capacity_bytes,
            block_bytes,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            volatile_cache: answers.has_volatile_cache,
            deallocation: answers.deallocator.map(|told| told.deallocation()),
        };
        let namespace = Self {
            character,
            _claim: claim,
            id: answers.id,
            format,
            piece_bytes,
            deallocator: answers.deallocator,
            geometry,
        };
        trial::read_a_block(&namespace, nodes.character())?;
        Ok(namespace)
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What protects its blocks, if anything does.
    pub(super) fn protection(&self) -> Option<Protection> {
        self.format.protection
    }

    /// How it is told of blocks that nobody needs, if it takes that.
    pub(super) fn deallocator(&self) -> Option<Deallocator> {
        self.deallocator
    }

    /// Bytes of one of the device's own blocks, of which the geometry's may be several.
    pub(super) fn block_bytes(&self) -> u32 {
        self.format.block_bytes
    }

    /// The most bytes from `offset` on that one command to the device may move.
    pub(super) fn piece_bytes(&self, offset: u64) -> u32 {
        match self.format.boundary_bytes {
            0 => self.piece_bytes,
            boundary => {
                let left = boundary - offset % boundary;
                self.piece_bytes.min(u32::try_from(left).unwrap_or(u32::MAX))
            }
        }
    }

    /// The largest of all pieces.
    pub(super) fn largest_piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.character.as_raw_fd()
    }
}

/// Whether passthrough works on what `path` names, without claiming it.
///
/// # Errors
/// Why not, as [`Namespace::open`] says.
pub(super) fn attempt(path: &Path) -> Result<()> {
    let options = MediaOptions { read_only: true, minimum_bytes: 0 };
    let Some(nodes) = Nodes::find(path) else {
        return Err(Kind::Unsupported.error(format!("{} is no NVMe namespace", path.display())));
    };
    let character = open_character(&nodes, &options)?;
    let answers = identify(&character, nodes.character())?;
    trial::read(&character, answers.id, &answers.namespace, nodes.character())
}

fn open_character(nodes: &Nodes, options: &MediaOptions) -> Result<File> {
    let path = nodes.character();
    let opened = OpenOptions::new().read(true).write(!options.read_only).open(path);
    opened.map_err(|error| {
        if error.raw_os_error() == Some(libc::ENOENT) {
            return Kind::Unsupported
                .error(format!(
                    "there is no {}: passthrough needs Linux 6.1 or later, and in a container that \
                     device beside the block device",
                    path.display()
                ))
                .caused_by(error);
        }
        refused(path, options, error)
    })
}

/// What a namespace's controller says of its own state (Base 5.16.1.3).
///
/// # Errors
/// [`Kind::Denied`] without the right, which only root has; what the device answers.
pub(super) fn health(node: &File, path: &Path) -> Result<Health> {
    let entry = SubmissionEntry::health_log();
    let mut page = vec![0; HEALTH_BYTES];
    let doing = || format!("reading the health log of {}", path.display());
    command::admin(node, entry, &mut page, &doing).map_err(|error| match error.kind() {
        Kind::Denied => Kind::Denied.error(format!(
            "{}: no rights: the kernel lets only root and CAP_SYS_ADMIN read it",
            doing()
        )),
        _ => error,
    })?;
    Ok(Health::parse(&page))
}

struct Answers {
    id: u32,
    controller: IdentifyController,
    namespace: IdentifyNamespace,
    deallocator: Option<Deallocator>,
    has_volatile_cache: bool,
}

fn identify(character: &File, path: &Path) -> Result<Answers> {
    let doing = || format!("asking {} what it is", path.display());
    let id = command::namespace_id(character).map_err(|e| Error::io(doing(), e))?;
    let mut page = vec![0; IDENTIFY_BYTES];
    let ask = |cns, nsid, page: &mut Vec<u8>| {
        let mut entry = SubmissionEntry::new(admin::IDENTIFY, 0, nsid);
        entry.cdw10 = cns;
        command::admin(character, entry, page, &doing)
    };
    ask(admin::CNS_CONTROLLER, 0, &mut page)?;
    let controller =
        IdentifyController::parse(&page).map_err(|e| e.while_doing(path.display().to_string()))?;
    ask(admin::CNS_NAMESPACE, id, &mut page)?;
    let namespace = IdentifyNamespace::parse(&page, &controller)
        .map_err(|e| e.while_doing(path.display().to_string()))?;
    let limits = if controller.has_command_set_pages() {
        ask(admin::CNS_COMMAND_SET, 0, &mut page).map_or_else(
            |_no_such_page| CommandSetLimits::default(),
            |_| CommandSetLimits::parse(&page),
        )
    } else {
        CommandSetLimits::default()
    };
    let deallocator = Deallocator::of(&controller, &limits, &namespace);
    let has_volatile_cache = controller.has_volatile_cache && cache_is_on(character);
    Ok(Answers { id, controller, namespace, deallocator, has_volatile_cache })
}

/// Whether the cache that there is has not been turned off; it is on when this cannot be asked.
fn cache_is_on(character: &File) -> bool {
    let mut entry = SubmissionEntry::new(admin::GET_FEATURES, 0, 0);
    entry.cdw10 = admin::FEATURE_VOLATILE_WRITE_CACHE;
    let answer = command::admin(character, entry, &mut [], &|| "asking for its cache".to_owned());
    answer.map_or(true, |enabled| enabled & 1 != 0)
}

/// The unit that survives a power cut whole: what the kernel says of the block device, so that a
/// tier is the same by either way.
fn unit_bytes(claim: &File, nodes: &Nodes, format: &IdentifyNamespace) -> Result<u32> {
    let unit = device_block_bytes(claim, nodes.block())?;
    if unit != format.unit_bytes() {
        let (path, own) = (nodes.block().display(), format.unit_bytes());
        tracing::debug!(%path, unit, own, "the kernel and Identify differ on the physical block");
    }
    if unit % format.block_bytes != 0 || unit > LARGEST_BLOCK_BYTES {
        return Err(Kind::Unsupported.error(format!(
            "{} has blocks of {} bytes, and the kernel believes in {unit}: rescan it (nvme \
             ns-rescan) after a new format",
            nodes.character().display(),
            format.block_bytes
        )));
    }
    Ok(unit)
}

/// What the device (MDTS), the command's format (NLB) and the kernel's queue allow at once, down to
/// a power of two.
fn piece_bytes(
    controller: &IdentifyController,
    format: &IdentifyNamespace,
    unit: u32,
    nodes: &Nodes,
) -> Result<u32> {
    let device = controller.max_transfer_bytes.unwrap_or(u64::MAX);
    let kibibytes = nodes.queue_limit("max_hw_sectors_kb").unwrap_or(128);
    // In the worst case every page is a segment, and the first and last are parts of pages.
    let segments = nodes.queue_limit("max_segments").unwrap_or(32).saturating_sub(1).max(1);
    let limits = [
        LARGEST_PIECE_BYTES,
        device,
        kibibytes << 10,
        segments * PAGE_BYTES,
        MOST_BLOCKS * u64::from(format.block_bytes),
    ];
    let most = limits.into_iter().min().unwrap_or(0);
    let piece = most.checked_ilog2().map_or(0, |log| 1u64 << log);
    match u32::try_from(piece) {
        Ok(piece) if piece >= unit => Ok(piece),
        _ => Err(Kind::Unsupported.error(format!(
            "{} takes {most} bytes at once, less than its blocks of {unit}: use driver io_uring",
            nodes.character().display()
        ))),
    }
}

/// A number that the kernel keeps in a file.
fn number_in(path: impl AsRef<Path>) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::is_before_exact;

    #[test]
    fn kernels_are_told_by_their_release() {
        for old in ["6.1.0-56-amd64", "5.19.2", "6.11.11"] {
            assert!(is_before_exact(old), "{old}");
        }
        for exact in ["6.12.3", "6.12-rc6", "7.0", "odd"] {
            assert!(!is_before_exact(exact), "{exact}");
        }
    }
}
