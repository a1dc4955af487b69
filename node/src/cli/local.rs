//! Commands that act on this machine: serve, tier, bench, doctor, demo.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use client::device::Policy;
use extent::{FileName, TenantName};
use nvme_tier::device::PciAddress;

use crate::config::DriverName;
use crate::units::Bytes;

const SERVE_EXAMPLES: &str = "\
Examples:
  forebay serve                                   file-backed tier in the state directory
  forebay serve --silo data=/mnt/datasets         and a directory as a silo
  forebay serve --config /etc/forebay/forebay.toml
  forebay serve --config forebay.toml --check     validate and stop

The log goes to standard error; FOREBAY_LOG=debug or FOREBAY_LOG=info,forebay_rdma=trace says more.";

#[derive(Args, Clone, Debug, Default)]
#[command(after_help = SERVE_EXAMPLES)]
pub(crate) struct ServeArgs {
    /// The configuration; without one, everything has a sensible default
    #[arg(long, value_name = "FILE", env = "FOREBAY_CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// Validate the configuration, devices and silos, and stop
    #[arg(long)]
    pub(crate) check: bool,

    /// Where the node keeps its state
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Add a directory as a silo
    #[arg(long = "silo", value_name = "NAME=DIR", value_parser = named_directory)]
    pub(crate) silos: Vec<(String, PathBuf)>,

    /// Serve data to clients over TCP here; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,

    /// Serve data over RDMA here, an address of an RDMA device; may be given several times
    #[arg(long, value_name = "ADDR")]
    pub(crate) rdma: Vec<String>,

    /// Serve metrics over HTTP here; `off` for none
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<String>,

    /// Start without a device of the configuration that is lost; it may come back at a later start
    #[arg(long, value_name = "DEVICE")]
    pub(crate) without: Vec<PathBuf>,

    /// Size of the file-backed tier, if it has to be created
    #[arg(long, value_name = "SIZE")]
    pub(crate) tier_size: Option<Bytes>,

    /// Shard threads; half of the cores unless told
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<usize>,

    /// Listen beyond this machine although what passes there is in clear text
    #[arg(long)]
    pub(crate) insecure: bool,

    /// Log as JSON, one object a line
    #[arg(long)]
    pub(crate) log_json: bool,
}

fn named_directory(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        _ => Err("write NAME=DIR".to_owned()),
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum TierCommand {
    /// Write an empty tier; everything on the devices is lost
    Format(TierFormatArgs),
    /// Show what is on a tier, by reading its records
    Inspect(TierArgs),
    /// Verify every record, descriptor and data block of a tier
    Check(TierArgs),
}

#[derive(Args, Debug)]
pub(crate) struct TierArgs {
    /// The tier's files, devices or PCI addresses, in their order
    #[arg(required = true, value_name = "DEVICE")]
    pub(crate) devices: Vec<PathBuf>,

    /// How to reach them: the fastest way that works unless told
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) driver: DriverName,
}

#[derive(Args, Debug)]
pub(crate) struct TierFormatArgs {
    #[command(flatten)]
    pub(crate) tier: TierArgs,

    /// Create files of this size where a device does not exist
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<Bytes>,

    /// Bytes of an extent
    #[arg(long, value_name = "SIZE", default_value = "4MiB")]
    pub(crate) extent_bytes: Bytes,

    /// Bytes under one checksum: 4, 16 or 64 KiB
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    pub(crate) checksum_block_bytes: Bytes,

    /// Bytes of a slab; by the capacity unless told
    #[arg(long, value_name = "SIZE")]
    pub(crate) slab_bytes: Option<Bytes>,

    /// The smallest slot; 16KiB suits tiers of small files
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    pub(crate) min_class_bytes: Bytes,

    /// Do not tell the devices that nothing on them is needed
    #[arg(long)]
    pub(crate) no_discard: bool,

    /// Go ahead although there is a tier, or something else, on the devices
    #[arg(long)]
    pub(crate) force: bool,
}

const DEVICE_EXAMPLES: &str = "\
Examples:
  forebay device list                             NVMe controllers, who has them, what is on them
  forebay device bind 0000:5e:00.0                from the kernel to this node's own driver
  forebay device bind 5e:00.0 5f:00.0 --user forebay
  forebay device unbind 0000:5e:00.0              back to the kernel

A bound controller is named by its address in the configuration: [[device]] path = \"0000:5e:00.0\".
Binding lasts until the next boot: bind in a unit that runs before the node's.";

#[derive(Subcommand, Debug)]
#[command(after_help = DEVICE_EXAMPLES)]
pub(crate) enum DeviceCommand {
    /// Show the NVMe controllers of this machine
    List,
    /// Take controllers from the kernel, for a node to drive them itself (VFIO); needs root
    ///
    /// Refuses a controller with a namespace that is mounted or otherwise in use, one whose IOMMU
    /// group is shared with a device of the kernel's, and one without an IOMMU.
    Bind(DeviceBindArgs),
    /// Give controllers back to the kernel; needs root
    Unbind {
        /// PCI addresses, as `forebay device list` shows them
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<PciAddress>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct DeviceBindArgs {
    /// PCI addresses, as `forebay device list` shows them
    #[arg(required = true, value_name = "ADDRESS")]
    pub(crate) addresses: Vec<PciAddress>,

    /// Whom to give the right to drive them: the node's user, by name or number
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
}

/// How to reach the node's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum FabricChoice {
    /// Shared memory, on the node's own machine.
    Shm,
    /// TCP.
    Tcp,
    /// RDMA.
    Rdma,
}

/// Where reads go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Pattern {
    /// Anywhere.
    Random,
    /// One after the other.
    Sequential,
}

const BENCH_EXAMPLES: &str = "\
Examples:
  forebay bench --prefix data/train/ --block-size 4k --depth 32
  forebay bench --file data/big.tar --fabric tcp --block-size 1m --pattern sequential
  forebay bench --fabric rdma --data 10.0.0.7:7443 --block-size 1m --depth 16
  forebay bench --fabric rdma --data 10.0.0.7:7443 --write data/scratch --working-set 256m --block-size 1m";

#[derive(Args, Debug)]
#[command(after_help = BENCH_EXAMPLES)]
pub(crate) struct BenchArgs {
    /// Read this file, which must be on the node; may be given several times
    #[arg(long = "file", value_name = "NAME")]
    pub(crate) files: Vec<FileName>,

    /// Read the files on the node whose silo/key begins with this
    #[arg(long, value_name = "PREFIX", default_value = "", conflicts_with = "files")]
    pub(crate) prefix: String,

    /// How to reach the node
    #[arg(long, value_enum, default_value = "shm")]
    pub(crate) fabric: FabricChoice,

    /// The node's data address, for TCP or RDMA; or several, separated by commas
    #[arg(long, value_name = "ADDR", default_value = crate::config::DEFAULT_LISTEN)]
    pub(crate) data: String,

    /// The node's socket, for shared memory; in the default state directory unless told
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// On whose behalf to connect over TCP or RDMA, unless FOREBAY_PROOF holds a proof to show
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) tenant: TenantName,

    /// Bytes of one read or write
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    pub(crate) block_size: Bytes,

    /// Reads or writes in flight at once, per session
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) depth: u32,

    /// Sessions
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) sessions: u32,

    /// Threads that drive them, 0 for one each: looking at many sessions in turn takes less of this machine than
    /// waking a thread for each answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: u32,

    /// Where reads go
    #[arg(long, value_enum, default_value = "random")]
    pub(crate) pattern: Pattern,

    /// How long to measure
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub(crate) seconds: u64,

    /// Read only this much of the files; or, of a write, bytes of a generation
    #[arg(long, value_name = "SIZE")]
    pub(crate) working_set: Option<Bytes>,

    /// Instead of reading, write new generations of the files NAME.0, NAME.1 …, one for each session, again
    /// and again
    #[arg(long, value_name = "NAME", conflicts_with_all = ["files", "prefix"])]
    pub(crate) write: Option<FileName>,

    /// Have the checksum of every payload sent along and compared
    #[arg(long)]
    pub(crate) verify: bool,

    /// How long a session looks for replies before it sleeps, in microseconds
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub(crate) spin_us: u64,

    /// Read into the memory of this GPU, by its number in CUDA's order: in batches of --depth reads, awaited together
    #[arg(long, value_name = "N", conflicts_with_all = ["write", "threads"])]
    pub(crate) gpu: Option<usize>,

    /// Which ways into the GPU's memory are good enough: auto, gpudirect, staged, host, or such as staged-or-better
    #[arg(long, value_name = "POLICY", default_value = "auto", requires = "gpu")]
    pub(crate) gpu_policy: Policy,

    /// Over RDMA, the address that connections leave from, and so the device
    #[arg(long, value_name = "IP")]
    pub(crate) source: Option<IpAddr>,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Whose file system to look at; the default state directory unless told
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// A directory of real files, which is only read; cargo's registry, or Rust's libraries, unless told
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,

    /// Take no more than this much of it
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) limit: Bytes,

    /// Bytes of the checkpoint that is written, demoted and compared
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub(crate) checkpoint: Bytes,

    /// Where the demo keeps its temporary tier; the system's temporary directory unless told
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
}
