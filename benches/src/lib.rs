//! Forebay against the tools that people use today.
//!
//! Every case of [`cases`] runs a real node and a real rival in turns on the same machine, the
//! same file system and the same sizes, and compares them pair by pair. The `compare` binary
//! drives them.

pub mod cable;
pub mod cases;
pub mod clock;
pub mod files;
pub mod http;
pub mod instructions;
mod marks;
pub mod node;
pub mod pairs;
pub mod process;
pub mod ram_disk;
pub mod raw;
pub mod rivals;
pub mod setup;
pub mod stream;
pub mod sys;
pub mod tier;
pub mod verdict;
