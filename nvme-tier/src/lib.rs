//! The NVMe tier.

pub mod device;
