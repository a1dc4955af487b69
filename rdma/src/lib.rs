//! Fabrics: how requests reach a node and how bytes move between its memory and its clients'.
//!
//! A node has one [`Transport`] for each shard, a client one [`Channel`] for each session. The
//! fabrics behind them are RDMA verbs ([`verbs`]), shared memory ([`shm`]), TCP ([`tcp`]) and, for
//! tests, a simulated one ([`sim`]). [`Fabrics`] joins the real ones into one transport, and a [`Listener`] feeds it.

#[cfg(test)]
extern crate self as forebay_rdma;

mod channel;
mod fabrics;
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
pub use inbox::Inbox;
pub use listener::{Listener, ListenerOptions};
pub use shm::{PeerPolicy, ShmChannel, ShmConnection, ShmOptions, ShmTransport};
pub use sim::{SimChannel, SimFabric, SimTransport};
pub use tcp::{TcpChannel, TcpTransport};
pub use transport::{Event, Fabric, SessionId, Token, Transfer, Transport};
pub use verbs::{RdmaDevice, VerbsChannel, VerbsOptions, VerbsTransport};
