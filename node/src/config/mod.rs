//! The configuration file, and what follows from it and the command line.

mod devices;
mod explain;
mod memory;
mod proofs;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
pub(crate) use devices::is_there;
use extent::{Error, Result};
use nvme_tier::Discard;
use nvme_tier::device::Driver;
pub(crate) use proofs::ProofPolicy;
use serde::Deserialize;
pub(crate) use settings::{Settings, default_socket, default_state_dir};

use crate::units::Bytes;

/// Where clients over TCP find the node's data.
pub(crate) const DEFAULT_LISTEN: &str = client::Endpoint::DEFAULT_TCP;
/// Where the control plane is served.
pub(crate) const DEFAULT_CONTROL: &str = "127.0.0.1:7441";
/// Where metrics are served.
pub(crate) const DEFAULT_METRICS: &str = "127.0.0.1:7442";

/// The configuration file as written. Everything has a default.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) node: NodeSection,
    pub(crate) device: Vec<DeviceSection>,
    pub(crate) tier: TierSection,
    pub(crate) rdma: RdmaSection,
    pub(crate) sessions: SessionsSection,
    pub(crate) silo: BTreeMap<String, silo::SiloConfig>,
}

/// `[node]`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NodeSection {
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) shards: Option<usize>,
    pub(crate) listen: Option<String>,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) peers: Option<Peers>,
    pub(crate) control: Option<String>,
    pub(crate) metrics: Option<String>,
    pub(crate) insecure: bool,
    pub(crate) spin_us: Option<u64>,
    pub(crate) buffers_bytes: Option<Bytes>,
    pub(crate) credits: Option<u16>,
}

/// `[rdma]`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RdmaSection {
    pub(crate) listen: Vec<String>,
    pub(crate) acknowledge_timeout: Option<u8>,
}

/// `[sessions]`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SessionsSection {
    pub(crate) proof: Option<ProofPolicy>,
}

/// Which local users may use shared memory.
#[derive(Deserialize, Clone, Debug)]
#[serde(untagged)]
pub(crate) enum Peers {
    /// `same-user` or `anyone`.
    Word(String),
    /// Users' numbers, beside the node's own and root.
    Users(Vec<u32>),
}

/// `[[device]]`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceSection {
    pub(crate) path: PathBuf,
    pub(crate) size: Option<Bytes>,
    #[serde(default)]
    pub(crate) driver: DriverName,
    pub(crate) command_timeout: Option<String>,
    pub(crate) reset_timeout: Option<String>,
    pub(crate) ready_timeout: Option<String>,
    pub(crate) resets_per_minute: Option<u32>,
}

/// `driver` of a device, and `--driver`.
#[derive(Deserialize, ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum DriverName {
    /// The fastest that works and needs no naming.
    #[default]
    Auto,
    /// In user space, on a PCI function bound to vfio-pci.
    Vfio,
    /// NVMe commands through the kernel's driver.
    Passthrough,
    /// Reads and writes of a file or block device.
    IoUring,
    /// A file of a tmpfs, read where it lies.
    Memory,
}

impl From<DriverName> for Driver {
    fn from(name: DriverName) -> Self {
        match name {
            DriverName::Auto => Self::Auto,
            DriverName::Vfio => Self::Vfio,
            DriverName::Passthrough => Self::Passthrough,
            DriverName::IoUring => Self::IoUring,
            DriverName::Memory => Self::Memory,
        }
    }
}

/// `discard` of the tier.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DiscardName {
    /// Nothing.
    Off,
    /// Slabs in which nothing is left.
    #[default]
    Slabs,
    /// Every slot.
    Slots,
}

impl From<DiscardName> for Discard {
    fn from(name: DiscardName) -> Self {
        match name {
            DiscardName::Off => Self::Off,
            DiscardName::Slabs => Self::Slabs,
            DiscardName::Slots => Self::Slots,
        }
    }
}

/// `[tier]`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TierSection {
    pub(crate) high_watermark: Option<f64>,
    pub(crate) low_watermark: Option<f64>,
    pub(crate) scrub_rate: Option<Bytes>,
    pub(crate) scrub_every: Option<String>,
    pub(crate) checksum_memory: Option<memory::Amount>,
    pub(crate) dirty_copies: Option<u32>,
    pub(crate) discard: DiscardName,
    pub(crate) extent_bytes: Option<Bytes>,
    pub(crate) checksum_block_bytes: Option<Bytes>,
    pub(crate) slab_bytes: Option<Bytes>,
    pub(crate) min_class_bytes: Option<Bytes>,
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`extent::Kind::Io`] if it cannot be read; [`extent::Kind::Invalid`] with the line and, for
    /// a key that does not exist, the nearest one that does.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(format!("reading the configuration {}", path.display()), e))?;
        Self::parse(&text, &path.display().to_string())
    }

    fn parse(text: &str, name: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| explain::invalid(name, text, &error))
    }
}

#[cfg(test)]
mod tests {
    use extent::Kind;

    use super::*;

    fn message(text: &str) -> String {
        let error = Config::parse(text, "forebay.toml").expect_err("refused");
        assert_eq!(error.kind(), Kind::Invalid);
        error.to_string()
    }

    #[test]
    fn an_empty_file_is_a_configuration() {
        let config = Config::parse("", "x").expect("empty");
        assert!(config.device.is_empty() && config.silo.is_empty());
    }

    #[test]
    fn the_example_is_a_configuration() {
        let example = include_str!("../../../deploy/forebay.toml");
        Config::parse(example, "example").expect("the example as it ships");
        // With every commented key in force, it must still be one.
        let all: String = example
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = Config::parse(&all, "example").expect("the example with every key");
        assert!(config.node.credits.is_some() && config.tier.slab_bytes.is_some());
        assert_eq!(config.node.listen.as_deref(), Some(DEFAULT_LISTEN), "as documented");
        assert_eq!(config.node.control.as_deref(), Some(DEFAULT_CONTROL), "as documented");
        assert_eq!(config.node.metrics.as_deref(), Some(DEFAULT_METRICS), "as documented");
        assert_eq!(config.sessions.proof, Some(ProofPolicy::Required));
        assert_eq!(config.tier.scrub_every.as_deref(), Some("7d"), "as documented");
        assert!(config.silo.len() >= 2 && config.device.len() >= 2);
    }

    #[test]
    fn unknown_keys_name_their_line_and_neighbour() {
        let text = "[node]\nshards = 2\nstatedir = \"/x\"\n";
        assert_eq!(
            message(text),
            "forebay.toml:3: unknown key \"statedir\"; did you mean \"state_dir\"?"
        );
        assert!(message("[tire]\n").contains("did you mean \"tier\"?"));
        let far = message("[node]\ncolour = 1\n");
        assert!(far.contains("forebay.toml:2") && far.contains("one of"), "{far}");
    }

    #[test]
    fn bad_values_name_their_line() {
        let size = message("[tier]\n\nextent_bytes = \"4 parsecs\"\n");
        assert!(size.starts_with("forebay.toml:3:") && size.contains("is not a size"), "{size}");
        let driver = message("[[device]]\npath = \"x\"\ndriver = \"passthru\"\n");
        assert!(driver.contains("did you mean \"passthrough\"?"), "{driver}");
        let discard = message("[tier]\ndiscard = \"slab\"\n");
        assert!(discard.contains("did you mean \"slabs\"?"), "{discard}");
        let kind = message("[node]\nshards = \"two\"\n");
        assert!(kind.starts_with("forebay.toml:2:"), "{kind}");
        let syntax = message("[node\n");
        assert!(syntax.starts_with("forebay.toml:1:"), "{syntax}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/no/such.toml")).expect_err("not there");
        assert!(error.to_string().contains("/no/such.toml"));
    }
}
