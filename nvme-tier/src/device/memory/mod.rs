//! Files in memory (tmpfs): read where they lie, without a system call.
//!
//! What must hold:
//! 1. A block is written by one `pwrite(2)`, never through the mapping: a process that is killed leaves each
//!    page old or new, as every device does, and a file system without room answers instead of raising SIGBUS.
//! 2. All of the file has its pages before the first command, and they stay in memory as far as limits allow: a
//!    read waits for nothing.
//! 3. Memory that a command owns is touched while the queue is polled only, and for so many bytes a poll.

mod file;
mod queue;

pub(super) use file::{MemoryFile, elsewhere, is_in_memory};
pub(super) use queue::MemoryQueue;

#[cfg(test)]
mod tests;
