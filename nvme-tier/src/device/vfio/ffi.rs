//! The kernel's interface: `uapi/linux/vfio.h`. Constants and layouts as there.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IO(';', 100 + number)`.
const fn request(number: libc::Ioctl) -> libc::Ioctl {
    0x3b64 + number
}

pub(super) const GET_API_VERSION: libc::Ioctl = request(0);
pub(super) const CHECK_EXTENSION: libc::Ioctl = request(1);
pub(super) const SET_IOMMU: libc::Ioctl = request(2);
pub(super) const GROUP_GET_STATUS: libc::Ioctl = request(3);
pub(super) const GROUP_SET_CONTAINER: libc::Ioctl = request(4);
pub(super) const GROUP_GET_DEVICE_FD: libc::Ioctl = request(6);
pub(super) const DEVICE_GET_REGION_INFO: libc::Ioctl = request(8);
pub(super) const DEVICE_SET_IRQS: libc::Ioctl = request(10);
pub(super) const DEVICE_RESET: libc::Ioctl = request(11);
pub(super) const IOMMU_GET_INFO: libc::Ioctl = request(12);
pub(super) const IOMMU_MAP_DMA: libc::Ioctl = request(13);
pub(super) const IOMMU_UNMAP_DMA: libc::Ioctl = request(14);

pub(super) const API_VERSION: c_int = 0;
pub(super) const TYPE1V2_IOMMU: c_int = 3;
pub(super) const GROUP_FLAGS_VIABLE: u32 = 1;
pub(super) const REGION_INFO_FLAG_MMAP: u32 = 4;
pub(super) const BAR0_REGION: u32 = 0;
pub(super) const CONFIG_REGION: u32 = 7;
/// The kernel asks for the device back on this interrupt's event.
pub(super) const REQUEST_IRQ: u32 = 4;
pub(super) const IRQ_SET_DATA_EVENTFD: u32 = 1 << 2;
pub(super) const IRQ_SET_ACTION_TRIGGER: u32 = 1 << 5;
pub(super) const MAP_READ_WRITE: u32 = 0b11;
pub(super) const IOMMU_INFO_CAPS: u32 = 0b10;
pub(super) const CAP_IOVA_RANGE: u16 = 1;

/// `struct vfio_group_status`.
#[repr(C)]
#[derive(Default)]
pub(super) struct GroupStatus {
    pub(super) argsz: u32,
    pub(super) flags: u32,
}

/// `struct vfio_region_info`.
#[repr(C)]
#[derive(Default)]
pub(super) struct RegionInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) cap_offset: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
}

/// `struct vfio_irq_set` with one eventfd behind it.
#[repr(C)]
pub(super) struct IrqSet {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) start: u32,
    pub(super) count: u32,
    pub(super) eventfd: c_int,
}

/// `struct vfio_iommu_type1_info`, with room for the capabilities behind it.
#[repr(C)]
pub(super) struct IommuInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) page_sizes: u64,
    pub(super) cap_offset: u32,
    pub(super) padding: u32,
    pub(super) capabilities: [u8; 4096 - 24],
}

impl IommuInfo {
    pub(super) fn empty() -> Self {
        Self {
            argsz: 4096,
            flags: 0,
            page_sizes: 0,
            cap_offset: 0,
            padding: 0,
            capabilities: [0; 4096 - 24],
        }
    }

    /// The ranges of addresses that the IOMMU translates, both ends included; empty if the kernel
    /// does not say.
    pub(super) fn iova_ranges(&self) -> Vec<(u64, u64)> {
        const HEADER: usize = 24;
        let word =
            |at: usize| self.capabilities.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let long =
            |at: usize| self.capabilities.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        let mut ranges = Vec::new();
        let mut next = if self.flags & IOMMU_INFO_CAPS == 0 { 0 } else { self.cap_offset as usize };
        // Offsets count from the start of the whole structure. A chain only ever goes forward.
        while let Some(at) = next.checked_sub(HEADER) {
            let (Some(id), Some(after)) = (word(at), word(at + 4)) else { break };
            if (id & 0xffff) as u16 == CAP_IOVA_RANGE {
                let count = word(at + 8).unwrap_or(0) as usize;
                let range =
                    |index| Some((long(at + 16 + 16 * index)?, long(at + 24 + 16 * index)?));
                ranges.extend((0..count.min(256)).filter_map(range));
            }
            if after as usize <= next {
                break;
            }
            next = after as usize;
        }
        ranges
    }
}

/// `struct vfio_iommu_type1_dma_map`.
#[repr(C)]
pub(super) struct DmaMap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) vaddr: u64,
    pub(super) iova: u64,
    pub(super) size: u64,
}

/// `struct vfio_iommu_type1_dma_unmap`.
#[repr(C)]
pub(super) struct DmaUnmap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) iova: u64,
    pub(super) size: u64,
}

/// Bytes of a structure, as its `argsz` has them.
#[expect(clippy::cast_possible_truncation, reason = "structures of the kernel's, all small")]
pub(super) const fn argsz<T>() -> u32 {
    size_of::<T>() as u32
}

/// A request whose argument is a number.
pub(super) fn ioctl_value(
    file: BorrowedFd<'_>,
    request: libc::Ioctl,
    value: c_int,
) -> io::Result<c_int> {
    // SAFETY: the requests that take a number read no memory of this process.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, value) })
}

/// A request whose argument is a structure.
///
/// # Safety
/// `argument` has the layout that the request is about, and what it points at, if anything, is
/// valid for what the request does.
pub(super) unsafe fn ioctl_struct<T>(
    file: BorrowedFd<'_>,
    request: libc::Ioctl,
    argument: &mut T,
) -> io::Result<c_int> {
    // SAFETY: the caller vouches for the structure, which lives for the length of the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(GROUP_GET_DEVICE_FD, 0x3b6a);
        assert_eq!(argsz::<RegionInfo>(), 32);
        assert_eq!(argsz::<DmaMap>(), 32);
        assert_eq!(argsz::<DmaUnmap>(), 24);
        assert_eq!(argsz::<IommuInfo>(), 4096);
        assert_eq!(argsz::<IrqSet>(), 24);
    }

    #[test]
    fn the_chain_of_capabilities_is_followed_and_bounded() {
        let mut info = IommuInfo { flags: IOMMU_INFO_CAPS, cap_offset: 24, ..IommuInfo::empty() };
        info.capabilities[0] = 7;
        info.capabilities[4..8].copy_from_slice(&40u32.to_ne_bytes());
        info.capabilities[16] = 1;
        info.capabilities[24..28].copy_from_slice(&1u32.to_ne_bytes());
        info.capabilities[40..48].copy_from_slice(&0xfffu64.to_ne_bytes());
        assert_eq!(info.iova_ranges(), [(0, 0xfff)]);
        // One that points back at itself.
        info.capabilities[20..24].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(info.iova_ranges(), [(0, 0xfff)]);
    }
}
