#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use extent::{Error, Kind, Result};
use parking_lot::Mutex;

use super::ffi::{
    self, DmaMap, DmaUnmap, GroupStatus, IommuInfo, argsz, ioctl_struct, ioctl_value,
};
use super::iova::IovaSpace;

/// What an IOMMU without a word about itself is taken to translate: 39 bits, below and above the
/// window that interrupts are written to.
const USUAL_RANGES: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];

/// An IO address space: what the functions in it can reach, and nothing else.
#[derive(Debug)]
pub(in crate::device) struct Container {
    file: File,
    /// Groups stay in their container for as long as they are open.
    groups: Mutex<Vec<(u32, File)>>,
    /// `None` until the first group is in, before which there is no IOMMU to ask.
    space: Mutex<Option<IovaSpace>>,
}

impl Container {
    /// An empty address space.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the kernel has no VFIO; [`Kind::Denied`] without the right to it.
    pub(in crate::device) fn new() -> Result<Self> {
        let path = "/dev/vfio/vfio";
        let file = File::options().read(true).write(true).open(path).map_err(|error| {
            match error.kind() {
                io::ErrorKind::NotFound => Kind::Unsupported.error(format!(
                    "there is no {path}: load the kernel's VFIO (modprobe vfio-pci)"
                )),
                io::ErrorKind::PermissionDenied => Kind::Denied
                    .error(format!("no right to {path}: run as root, or give this user the right")),
                _ => Kind::Io.error(format!("opening {path}")),
            }
            .caused_by(error)
        })?;
        let version = ioctl_value(file.as_fd(), ffi::GET_API_VERSION, 0).unwrap_or(-1);
        let has_type1 =
            ioctl_value(file.as_fd(), ffi::CHECK_EXTENSION, ffi::TYPE1V2_IOMMU).unwrap_or(0) > 0;
        if version != ffi::API_VERSION || !has_type1 {
            return Err(Kind::Unsupported.error(
                "the kernel's VFIO has no type 1 IOMMU: load it (modprobe vfio_iommu_type1), and \
                 turn the IOMMU on (intel_iommu=on or amd_iommu=on)",
            ));
        }
        Ok(Self { file, groups: Mutex::default(), space: Mutex::new(None) })
    }

    /// A function of an IOMMU group, as the file that VFIO drives it by. The group joins the
    /// address space if it is not in it.
    ///
    /// # Errors
    /// [`Kind::Busy`] if another process has it; [`Kind::Denied`] without the right; and
    /// [`Kind::Invalid`] if another function of the group is with a driver of the kernel.
    pub(super) fn open(&self, group: u32, name: &std::ffi::CStr) -> Result<File> {
        let mut groups = self.groups.lock();
        if !groups.iter().any(|(number, _)| *number == group) {
            groups.push((group, self.join(group)?));
        }
        let (_, file) = groups.iter().find(|(number, _)| *number == group).expect("just joined");
        // SAFETY: the request reads the name, which ends with a zero and outlives the call.
        let opened = ffi::check(unsafe {
            libc::ioctl(file.as_raw_fd(), ffi::GROUP_GET_DEVICE_FD, name.as_ptr())
        });
        let descriptor = opened.map_err(|e| {
            Error::io(format!("opening {} through VFIO", name.to_string_lossy()), e)
        })?;
        // SAFETY: the kernel has just made this descriptor, for nobody else.
        Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(descriptor) })
    }

    fn join(&self, number: u32) -> Result<File> {
        let path = format!("/dev/vfio/{number}");
        let group = File::options().read(true).write(true).open(&path).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EBUSY) => Kind::Busy
                    .error(format!("{path} is in use by another process: stop that first")),
                Some(libc::EACCES | libc::EPERM) => Kind::Denied.error(format!(
                    "no right to {path}: run as root, or bind it for this user (forebay device \
                     bind --user NAME)"
                )),
                Some(libc::ENOENT) => Kind::NotFound.error(format!(
                    "there is no {path}: bind the controller to vfio-pci (forebay device bind)"
                )),
                _ => Kind::Io.error(format!("opening {path}")),
            }
            .caused_by(error)
        })?;
        let mut status = GroupStatus { argsz: argsz::<GroupStatus>(), flags: 0 };
        // SAFETY: the request fills exactly this structure.
        let asked = unsafe { ioctl_struct(group.as_fd(), ffi::GROUP_GET_STATUS, &mut status) };
        asked.map_err(|e| Error::io(format!("asking {path} for its state"), e))?;
        if status.flags & ffi::GROUP_FLAGS_VIABLE == 0 {
            return Err(Kind::Invalid.error(format!(
                "IOMMU group {number} is shared with a device that a driver of the kernel has: bind \
                 all of the group to vfio-pci, or move the controller to another slot"
            )));
        }
        let mut container = self.file.as_raw_fd();
        // SAFETY: the request reads one descriptor from this variable.
        let set = unsafe { ioctl_struct(group.as_fd(), ffi::GROUP_SET_CONTAINER, &mut container) };
        let mut space = self.space.lock();
        set.map_err(|error| match (error.raw_os_error(), space.is_some()) {
            // The kernel has looked at what this group reserves itself.
            (Some(libc::EINVAL), true) => out_of_reach(number, None).caused_by(error),
            _ => Error::io(format!("giving {path} an IO address space"), error),
        })?;
        match space.as_mut() {
            None => {
                ioctl_value(self.file.as_fd(), ffi::SET_IOMMU, ffi::TYPE1V2_IOMMU)
                    .map_err(|e| Error::io("setting up the IOMMU", e))?;
                *space = Some(IovaSpace::new(&self.ranges()?));
            }
            // A group that does not stay leaves when its file is closed.
            Some(space) => {
                let ranges = self.ranges()?;
                space.restrict(&ranges).map_err(|lost| out_of_reach(number, Some(lost)))?;
            }
        }
        Ok(group)
    }

    /// What all groups in it can reach, as the kernel has it.
    fn ranges(&self) -> Result<Vec<(u64, u64)>> {
        let mut info = IommuInfo::empty();
        // SAFETY: the request fills no more of the structure than its `argsz` says.
        let asked = unsafe { ioctl_struct(self.file.as_fd(), ffi::IOMMU_GET_INFO, &mut info) };
        asked.map_err(|e| Error::io("asking the IOMMU for its addresses", e))?;
        let ranges = info.iova_ranges();
        Ok(if ranges.is_empty() { USUAL_RANGES.to_vec() } else { ranges })
    }

    /// Lets the functions in it reach whole pages of memory; at which address they see it.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] past the limit on locked memory, or without addresses; [`Kind::Io`].
    pub(in crate::device) fn map(&self, memory: NonNull<u8>, length: usize) -> Result<u64> {
        let vaddr = memory.addr().get() as u64;
        let size = length as u64;
        let mut space = self.space.lock();
        let space = space
            .as_mut()
            .ok_or_else(|| Kind::Invalid.error("no function is in this IO address space"))?;
        let iova = space.take(size, vaddr).ok_or_else(|| {
            Kind::NoSpace.error(format!(
                "no IO addresses for {length} bytes: the IOMMU translates too few bits for so much \
                 memory"
            ))
        })?;
        let mut map =
            DmaMap { argsz: argsz::<DmaMap>(), flags: ffi::MAP_READ_WRITE, vaddr, iova, size };
        // SAFETY: the kernel pins the pages of a mapping that is the caller's; what devices do
        // with them is up to whoever gives commands.
        let mapped = unsafe { ioctl_struct(self.file.as_fd(), ffi::IOMMU_MAP_DMA, &mut map) };
        if let Err(error) = mapped {
            space.give_back(iova, size);
            return Err(match error.raw_os_error() {
                Some(libc::ENOMEM) => Kind::NoSpace.error(format!(
                    "{length} bytes more are over the limit on locked memory: raise `ulimit -l` \
                     (LimitMEMLOCK= in a unit file)"
                )),
                Some(libc::ENOSPC) => Kind::NoSpace.error(
                    "the IOMMU has no room for another mapping: raise the vfio_iommu_type1 \
                     parameter dma_entry_limit, or use huge pages",
                ),
                _ => Kind::Io.error(format!("letting devices reach {length} bytes of memory")),
            }
            .caused_by(error));
        }
        Ok(iova)
    }

    /// Takes memory away from the functions again.
    pub(in crate::device) fn unmap(&self, iova: u64, length: usize) {
        let size = length as u64;
        let mut unmap = DmaUnmap { argsz: argsz::<DmaUnmap>(), flags: 0, iova, size };
        // SAFETY: the request takes away what `map` gave, of which nothing is in use any more.
        let done = unsafe { ioctl_struct(self.file.as_fd(), ffi::IOMMU_UNMAP_DMA, &mut unmap) };
        match done {
            Ok(_) => {
                if let Some(space) = self.space.lock().as_mut() {
                    space.give_back(iova, size);
                }
            }
            // The addresses are lost with it: nobody else may get them.
            Err(error) => tracing::error!(%error, "memory stays reachable for devices"),
        }
    }
}

/// A group that came later cannot reach what is in use already.
fn out_of_reach(group: u32, mapped: Option<(u64, u64)>) -> Error {
    let what = mapped.map_or_else(
        || "addresses that are in use already".to_owned(),
        |(first, last)| format!("addresses {first:x}h to {last:x}h, which are in use already"),
    );
    Kind::Invalid.error(format!(
        "IOMMU group {group} cannot reach {what}: use another driver for its controller, \
         or move it to another slot"
    ))
}
