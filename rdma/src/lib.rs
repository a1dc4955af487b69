//! Fabrics: how requests reach a node and how bytes move between its memory and its clients'.

mod channel;
mod transport;

pub use channel::Channel;
pub use transport::{Event, Fabric, SessionId, Token, Transfer, Transport};
