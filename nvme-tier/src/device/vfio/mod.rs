//! PCI functions driven from user space through the kernel's VFIO (its `uapi/linux/vfio.h`): their
//! registers mapped here, their DMA confined by the IOMMU to memory that was handed to them.

mod address;
mod container;
mod ffi;
mod function;
mod iova;
mod sysfs;

pub use address::PciAddress;
pub(super) use container::Container;
pub(super) use function::VfioFunction;
pub use sysfs::{NvmeFunction, NvmeNamespace};
