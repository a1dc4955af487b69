//! The C interface of Forebay's client, as `client/include/forebay.h` declares it.
//!
//! [`abi`] and [`calls`] are what C sees, and what the header is made of. A [`handle`] is what it holds:
//! it finds out whether a ring is one, and lets one thread in at a time. [`core`] is the ring, on top of
//! one `client::Session`. What goes wrong becomes a number, with words that the thread keeps
//! ([`failure`]).

pub mod abi;
mod arena;
#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
pub mod calls;
mod caps;
mod clock;
mod core;
mod failure;
mod fork;
mod handle;
mod opened;
mod options;
mod pool;
mod queues;
mod table;
#[cfg(test)]
mod tests;
mod transfer;

/// Whether this was built to make mistakes on purpose, for tests only.
pub const SEEDED_BUGS: bool = cfg!(feature = "seeded-bugs");

pub use handle::Ring;
