//! The node's core: shards that serve reads and writes, and the mover that fills and empties the
//! tier. The control plane sees only [`Handle`].

mod handle;

pub use handle::{
    Candidate, DeviceStatus, FileStatus, Handle, NodeStatus, Progress, PromoteOptions, Residency,
    SiloStatus,
};
