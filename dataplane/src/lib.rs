//! The node's core: shards that serve reads and writes, and the mover that fills and empties the
//! tier. The control plane sees only [`Handle`].
#![forbid(unsafe_code)]

#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
mod clock;
mod handle;
mod inbox;
mod ledger;
mod looks;
mod mover;
mod node;
mod scrub;
mod shard;
mod slots;
mod stats;
mod surface;

pub use handle::{
    Candidate, DeviceStatus, FileStatus, Handle, Keep, NodeStatus, Progress, PromoteOptions,
    RdmaStatus, Residency, SiloStatus,
};
pub use mover::remove_leftovers;
pub use node::{DrainReport, Node, NodeOptions, Parts, ShardParts, Stepped};
pub use nvme_tier::device::Health as DeviceHealth;
pub use scrub::{ScrubOptions, ScrubReport, ScrubStatus};
