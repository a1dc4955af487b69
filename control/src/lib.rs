//! The control plane of a node: the gRPC services of `forebay.v1`, jobs that promote, demote and
//! write back, pins, request ids and controller epochs. It reaches the node only through
//! [`dataplane::Handle`].

#[cfg(feature = "seeded-bugs")]
pub mod bugs;
#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
mod client;
mod clock;
mod control;
mod grants;
mod jobs;
mod kind;
mod options;
mod pins;
mod service;
mod store;

pub use client::{ControlClient, JobWatch};
pub use control::Control;
pub use grants::Grants;
pub use kind::{error_from_status, status_from_error};
pub use options::{Limits, Options};

/// The protocol's messages, clients and servers, generated from `proto/forebay/v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
pub mod proto {
    tonic::include_proto!("forebay.v1");

    /// The encoded `FileDescriptorSet` of the protocol, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/forebay_v1.bin"));
}
