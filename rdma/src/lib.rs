//! Fabrics: how requests reach a node and how bytes move between its memory and its clients'.
//!
//! A node has one [`Transport`] for each shard, a client one [`Channel`] for each session. The
//! fabrics behind them are RDMA verbs ([`verbs`]), shared memory ([`shm`]), TCP ([`tcp`]) and, for
//! tests, a simulated one ([`sim`]). [`Fabrics`] joins the real ones into one transport, and a [`Listener`] feeds it.

#[cfg(test)]
extern crate self as forebay_rdma;

#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
mod channel;
mod fabrics;
mod gate;
mod inbox;
mod listener;
pub mod shm;
pub mod sim;
mod slots;
mod socket_file;
mod sys;
pub mod tcp;
mod transport;
pub mod verbs;

pub use channel::Channel;
pub use fabrics::Fabrics;
pub use gate::{Gate, OpenGate};
pub use inbox::Inbox;
pub use listener::{Listener, ListenerOptions};
pub use shm::{PeerPolicy, ShmChannel, ShmConnection, ShmOptions, ShmTransport};
pub use sim::{SimChannel, SimFabric, SimTransport};
pub use tcp::{TcpChannel, TcpTransport};
pub use transport::{Event, Fabric, SessionId, Token, Transfer, Transport};
pub use verbs::sim::{
    SimVerbs, SimVerbsChannel, SimVerbsConnecting, SimVerbsOptions, SimVerbsTransport,
    SimVerbsUsage,
};
pub use verbs::{RdmaDevice, VerbsChannel, VerbsOptions, VerbsTransport};

/// Whether this build can make mistakes on purpose: never one that serves anybody.
pub const SEEDED_BUGS: bool = cfg!(feature = "seeded-bugs");
