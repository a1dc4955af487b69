//! Who moves a device's blocks.

use std::fmt;
use std::path::Path;

use super::PciAddress;

/// A way to reach a device.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Driver {
    /// The fastest that works and needs no naming: VFIO for a PCI address, passthrough for a whole NVMe namespace where
    /// the kernel has it and rights allow it, and `io_uring` for everything else.
    #[default]
    Auto,
    /// A user-space driver on a PCI function that is bound to `vfio-pci`.
    Vfio,
    /// NVMe commands through the kernel's driver, past its block layer.
    Passthrough,
    /// Reads and writes of a file or block device.
    IoUring,
    /// A file of a tmpfs, read where it lies.
    Memory,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Vfio => "vfio",
            Self::Passthrough => "passthrough",
            Self::IoUring => "io_uring",
            Self::Memory => "memory",
        })
    }
}

/// A namespace behind a PCI function: `0000:5e:00.0`, or `0000:5e:00.0/2` for one of several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciName {
    /// The controller.
    pub address: PciAddress,
    /// NSID; `None` for the only one that there is.
    pub namespace: Option<u32>,
}

impl PciName {
    /// `None` for what is no PCI address, but a path.
    #[must_use]
    pub fn parse(path: &Path) -> Option<Self> {
        let text = path.to_str()?;
        let (address, namespace) = match text.split_once('/') {
            None => (text, None),
            Some((address, id)) => (address, Some(id.parse().ok().filter(|id| *id != 0)?)),
        };
        Some(Self { address: address.parse().ok()?, namespace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_names_are_told_from_paths() {
        let parse = |text: &str| {
            PciName::parse(Path::new(text)).map(|n| (n.address.to_string(), n.namespace))
        };
        assert_eq!(parse("0000:00:04.0"), Some(("0000:00:04.0".to_owned(), None)));
        assert_eq!(parse("0001:AF:1f.7/12"), Some(("0001:af:1f.7".to_owned(), Some(12))));
        assert_eq!(parse("5e:00.0"), Some(("0000:5e:00.0".to_owned(), None)));
        for path in
            ["/dev/nvme0n1", "0000:00:04", "0000:00:04.8", "0000:00:04.0/0", "0000:00:04.0/x", "a"]
        {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
