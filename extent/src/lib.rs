//! The words every other crate speaks: ids, byte ranges, error kinds, checksums and the wire codec.
//!
//! Everything here is pure: no I/O, no clock, no threads, no `unsafe`.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod codec;
mod error;
mod id;
mod mistakes;
mod numbers;
mod proof;
mod range;
mod tenant;
mod version;
pub mod wire;

pub use error::{Error, Kind, Result};
pub use id::{Attempt, Epoch, ExtentIndex, FileId, FileName, Generation};
pub use numbers::{NumberHasher, NumberMap};
pub use proof::Proof;
pub use range::{ByteRange, Piece};
pub use tenant::TenantName;
pub use version::SourceVersion;
