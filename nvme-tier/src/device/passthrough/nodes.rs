//! The device nodes of a namespace.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::number_in;

/// The two nodes of a whole NVMe namespace, of which the operator named one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::device) struct Nodes {
    character: PathBuf,
    block: PathBuf,
    /// The kernel's name of the block device.
    name: String,
}

impl Nodes {
    /// `None` if `path` is neither node of a namespace: a file, a partition, another kind of disk.
    pub(in crate::device) fn find(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let is_block = metadata.file_type().is_block_device();
        let (prefix, folder) = if is_block {
            ("nvme", "block")
        } else if metadata.file_type().is_char_device() {
            ("ng", "char")
        } else {
            return None;
        };
        let known = fs::read_link(format!("/sys/dev/{folder}/{}", number(&metadata))).ok()?;
        let id = known.file_name()?.to_str()?.strip_prefix(prefix)?;
        if !is_namespace(id) {
            return None;
        }
        let (character, block) = (format!("/dev/ng{id}"), format!("/dev/nvme{id}"));
        let nodes = if is_block {
            Self { character: character.into(), block: path.to_owned(), name: format!("nvme{id}") }
        } else {
            Self { character: path.to_owned(), block: block.into(), name: format!("nvme{id}") }
        };
        nodes.belong_together(id).then_some(nodes)
    }

    /// `/dev/ngXnY`, or what it was named by.
    pub(in crate::device) fn character(&self) -> &Path {
        &self.character
    }

    /// `/dev/nvmeXnY`, or what it was named by.
    pub(in crate::device) fn block(&self) -> &Path {
        &self.block
    }

    /// A limit of the block device's queue, by its name in sysfs.
    pub(super) fn queue_limit(&self, name: &str) -> Option<u64> {
        number_in(format!("/sys/class/block/{}/queue/{name}", self.name))
    }

    /// Where its controller is on the PCI bus.
    pub(in crate::device) fn pci_address(&self) -> Option<String> {
        let device = fs::canonicalize(format!("/sys/class/block/{}/device/device", self.name));
        Some(device.ok()?.file_name()?.to_str()?.to_owned())
    }

    /// Whether the node that was not named is what its name says: a node that is missing is, and
    /// opening it will tell.
    fn belong_together(&self, id: &str) -> bool {
        let is = |path: &Path, class: &str| match fs::metadata(path) {
            Err(_) => true,
            Ok(metadata) => {
                let known = fs::read_to_string(format!("/sys/class/{class}/dev"));
                known.is_ok_and(|known| known.trim() == number(&metadata))
            }
        };
        is(&self.character, &format!("nvme-generic/ng{id}"))
            && is(&self.block, &format!("block/nvme{id}"))
    }
}

/// A device's number, as sysfs writes it.
fn number(metadata: &Metadata) -> String {
    format!("{}:{}", libc::major(metadata.rdev()), libc::minor(metadata.rdev()))
}

/// Whether it is `XnY`: a namespace of a controller or subsystem, and no partition or path of one.
fn is_namespace(id: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    id.split_once('n').is_some_and(|(controller, id)| is_number(controller) && is_number(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_from_what_else_has_such_names() {
        assert!(is_namespace("0n1") && is_namespace("12n345"));
        for other in ["0", "0n1p1", "0c0n1", "n1", "0n", ""] {
            assert!(!is_namespace(other), "{other}");
        }
        assert_eq!(Nodes::find(Path::new("/dev/null")), None);
        assert_eq!(Nodes::find(Path::new("/")), None);
    }
}
