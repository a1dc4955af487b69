//! Who moves a device's blocks.

use std::fmt;
use std::path::Path;

/// A way to reach a device.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Driver {
    /// The fastest that works: VFIO for a PCI address, passthrough for a whole NVMe namespace where
    /// kernel and rights allow it, and `io_uring` for everything else.
    #[default]
    Auto,
    /// A user-space driver on a PCI function that is bound to `vfio-pci`.
    Vfio,
    /// NVMe commands through the kernel's driver, past its block layer.
    Passthrough,
    /// Reads and writes of a file or block device.
    IoUring,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Vfio => "vfio",
            Self::Passthrough => "passthrough",
            Self::IoUring => "io_uring",
        })
    }
}

/// A namespace behind a PCI function, written as `0000:00:04.0` or, with a namespace id that is not
/// 1, `0000:00:04.0/2`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PciName {
    /// The function, as Linux writes it.
    pub address: String,
    /// NSID.
    pub namespace: u32,
}

impl PciName {
    /// `None` for what is no PCI address, but a path.
    #[must_use]
    pub fn parse(path: &Path) -> Option<Self> {
        let text = path.to_str()?;
        let (address, namespace) = match text.split_once('/') {
            None => (text, 1),
            Some((address, id)) => (address, id.parse().ok().filter(|id| *id != 0)?),
        };
        let form = "hhhh:hh:hh.o";
        let fits = address.len() == form.len()
            && address.chars().zip(form.chars()).all(|(c, form)| match form {
                'h' => c.is_ascii_hexdigit(),
                'o' => ('0'..='7').contains(&c),
                _ => c == form,
            });
        fits.then(|| Self { address: address.to_ascii_lowercase(), namespace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_names_are_told_from_paths() {
        let parse = |text: &str| PciName::parse(Path::new(text)).map(|n| (n.address, n.namespace));
        assert_eq!(parse("0000:00:04.0"), Some(("0000:00:04.0".to_owned(), 1)));
        assert_eq!(parse("0001:AF:1f.7/12"), Some(("0001:af:1f.7".to_owned(), 12)));
        for path in
            ["/dev/nvme0n1", "0000:00:04", "0000:00:04.8", "0000:00:04.0/0", "0000:00:04.0/x", "a"]
        {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
