//! The data path's messages, version 1. `docs/protocol.md` draws them byte by byte.
//!
//! A client sends *request capsules* of 64 bytes (one segment) or 128 bytes (up to four). The node
//! moves the data itself, between its own memory and the segments that the request names, and
//! answers with a *reply* of 32 bytes and, for some, a body. All fields are little-endian; every
//! capsule ends with a CRC32C of what is before it.

mod body;
mod greeting;
mod reply;
mod request;

pub use body::{HelloBody, OpenBody};
pub use greeting::{PROOF_MAGIC, REFUSAL_MAGIC, Refusal, STREAM_MAGIC, StreamHello};
pub use reply::{DataHeader, Downstream, Landing, Reply, Served};
pub use request::{Command, Open, OpenMode, Request, Segment, Segments};

/// The protocol version that this crate speaks.
pub const VERSION: u16 = 1;
/// A request with at most one segment.
pub const REQUEST_BYTES: usize = 64;
/// A request with two to four segments.
pub const LONG_REQUEST_BYTES: usize = 128;
/// A reply without its body, and a data header.
pub const REPLY_BYTES: usize = 32;
/// The longest reply body, its checksum included.
pub const MAX_BODY_BYTES: usize = 224;
/// The most segments a request may name.
pub const MAX_SEGMENTS: usize = 4;
/// The most bytes one READ or WRITE may move: 16 MiB. Clients split what is longer.
pub const MAX_TRANSFER_BYTES: u64 = 16 << 20;
/// The most requests a session may have outstanding, whatever it asks for.
pub const MAX_CREDITS: u16 = 1024;
