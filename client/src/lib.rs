//! The client of a Forebay node.
//!
//! [`Client`] is what most programs want: files opened by name and read into memory that the node
//! writes itself. [`Session`] is the core below it, for one thread that keeps many requests in
//! flight and never blocks. [`load`] measures a node with it.
//!
//! ```no_run
//! # fn main() -> extent::Result<()> {
//! use forebay_client::{Client, Options};
//!
//! let client = Client::connect(&"auto".parse()?, &Options::default())?;
//! let file = client.open(&"weights/model.safetensors".parse()?)?;
//! let mut memory = client.alloc(1 << 20)?;
//! let read = file.read_at(0, &mut memory, ..)?;
//! println!("{} bytes, {:?}, {:?}", read.bytes, read.served, read.landing);
//! # Ok(())
//! # }
//! ```

mod arena;
mod batch;
mod bounce;
#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
mod client;
mod clock;
mod connector;
pub mod device;
mod endpoint;
#[cfg(test)]
mod fake;
mod file;
pub mod load;
#[cfg(test)]
mod losses;
mod memory;
mod options;
mod proof;
mod session;
mod state;
#[cfg(test)]
mod tests;
mod writer;

/// Whether this was built to make mistakes on purpose, for tests only.
pub const SEEDED_BUGS: bool = cfg!(feature = "seeded-bugs") || gds::SEEDED_BUGS;

pub use batch::{Batch, Fetch, Fetched};
pub use client::{Client, ClientStats};
pub use connector::{Connector, Dial};
pub use endpoint::Endpoint;
pub use file::{File, Read};
pub use memory::Memory;
pub use options::{Options, Reconnect};
pub use proof::ProofSource;
pub use rdma::VerbsOptions;
pub use session::{Completed, Progress, Refused, Session, SessionStats, Ticket};
pub use writer::Writer;
