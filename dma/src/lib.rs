//! Memory that devices and fabrics move data in and out of.
//!
//! A [`Region`] is a mapped area; a [`Pool`] cuts one into a bounded number of buffers of a few
//! sizes. [`Target`] and [`Source`] are what an operation in flight *owns* until it completes, so
//! that no memory can go back to its pool, or be unmapped, while hardware still uses it. A [`Run`]
//! is for the processor alone: tables too large for anything but huge pages.

mod arena;
mod bounds;
mod dma_buf;
mod heap;
mod memory;
mod pool;
mod prefetch;
mod region;
mod run;
mod verify;

pub use bounds::range_within;
pub use dma_buf::DmaBuf;
pub use heap::merge_heap;
pub use memory::{Frozen, Source, Span, Target, Window};
pub use pool::{Buffer, ClassUse, Pool, SizeClass};
pub use prefetch::prefetch;
pub use region::{HugePages, Region, RegionId, machine_bytes, page_bytes};
pub use run::Run;

/// Every buffer and every region begins at a multiple of this, and so may hold direct I/O.
pub const ALIGN_BYTES: usize = 4096;
