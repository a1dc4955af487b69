//! Tiers of many extents to measure the index and recovery with, without a node.

pub mod content;
pub(crate) mod filled;
pub mod image;
pub mod lookups;
pub(crate) mod reads;
pub mod sectors;
pub mod start;
mod tables;
