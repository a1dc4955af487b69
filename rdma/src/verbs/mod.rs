//! Forebay over RDMA verbs: reliable connections (RC) set up through RDMA CM.
//!
//! Requests are SENDs of 64 or 128 bytes into receives that a tenant's sessions of a shard share; the node
//! moves data by RDMA WRITE and RDMA READ, and SENDs the reply behind them on the same queue pair, which
//! keeps their order, or has the last RDMA WRITE tell. No memory of a node is ever registered with remote rights, and its queue pairs
//! take none from RDMA CM: a client can name its own memory only.
//!
//! rdma-core's libraries are opened at run time. Where they, or a device, are missing,
//! [`VerbsTransport::new`] and [`VerbsChannel::connect`] say so.

mod adapter;
mod channel;
mod completion;
mod connection;
mod device_region;
mod devices;
mod events;
mod ffi;
mod greeting;
#[cfg(test)]
mod hostile;
mod listener;
mod memory;
mod nursery;
mod options;
mod provider;
mod queue_pair;
mod rdma_core;
mod receive;
mod send_queue;
mod session;
pub(crate) mod sim;
mod tenant;
mod tenants;
mod transport;
mod turns;

pub use channel::VerbsChannel;
pub use devices::{Gid, RdmaDevice, RdmaPort};
pub use events::{DeviceReport, device_reports};
pub(crate) use listener::{Incoming, VerbsListener};
pub use options::VerbsOptions;
pub use transport::VerbsTransport;
