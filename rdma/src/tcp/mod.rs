//! Forebay over TCP: requests and the bytes they move share one stream in each direction.
//!
//! `docs/protocol.md` draws the stream byte by byte. The node's side is [`TcpTransport`], one for
//! each shard; the client's is [`TcpChannel`].

mod channel;
mod greet;
mod greeters;
mod input;
mod output;
mod payload;
mod session;
mod transport;

pub use channel::TcpChannel;
pub use transport::TcpTransport;
