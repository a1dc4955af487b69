#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use extent::{Error, Kind, Result};
use parking_lot::Mutex;

use super::ffi::{self, IrqSet, RegionInfo, argsz, ioctl_struct, ioctl_value};
use super::{Container, PciAddress, sysfs};
use crate::device::polled::{Host, Registers};

/// The command register of configuration space (PCI Local Bus 3.0, 6.2.2).
const COMMAND: u64 = 0x04;
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
/// Nobody hears interrupts of a controller that is polled.
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// A PCI function that is ours: its registers are mapped, and it reaches what its container maps.
#[derive(Debug)]
pub(in crate::device) struct VfioFunction {
    address: PciAddress,
    registers: Registers,
    /// `None` once the function was given back.
    open: Mutex<Option<Open>>,
    container: Arc<Container>,
}

#[derive(Debug)]
struct Open {
    device: File,
    config: u64,
    /// Rung when the kernel wants the function back.
    wanted_back: Option<File>,
}

impl VfioFunction {
    /// Whether a function can be taken over, as far as the kernel says beforehand.
    ///
    /// # Errors
    /// As [`VfioFunction::open`].
    pub(in crate::device) fn check(address: PciAddress) -> Result<()> {
        sysfs::group_for_vfio(address).map(drop)
    }

    /// Takes a function over.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Busy`], [`Kind::Denied`], [`Kind::Unsupported`] (no IOMMU) or
    /// [`Kind::Invalid`] (not bound to `vfio-pci`, a shared group): each says what to do.
    pub(in crate::device) fn open(container: Arc<Container>, address: PciAddress) -> Result<Self> {
        let group = sysfs::group_for_vfio(address)?;
        let name = CString::new(address.to_string()).expect("addresses hold no zero");
        let device = container.open(group, &name)?;
        let config = region(&device, ffi::CONFIG_REGION, address)?.offset;
        let bar = region(&device, ffi::BAR0_REGION, address)?;
        let length = usize::try_from(bar.size).unwrap_or(0);
        if length < 0x2000 || bar.flags & ffi::REGION_INFO_FLAG_MMAP == 0 {
            return Err(Kind::Unsupported.error(format!(
                "the registers of {address} ({length} bytes) cannot be mapped: is it an NVMe \
                 controller?"
            )));
        }
        let registers = map_registers(&device, &bar, length)
            .map_err(|e| Error::io(format!("mapping the registers of {address}"), e))?;
        let wanted_back = listen(&device)
            .inspect_err(|error| tracing::debug!(%error, %address, "removal is not announced"))
            .ok();
        let open = Mutex::new(Some(Open { device, config, wanted_back }));
        let function = Self { address, registers, open, container };
        function.set_bus_master(true)?;
        Ok(function)
    }
}

fn region(device: &File, index: u32, address: PciAddress) -> Result<RegionInfo> {
    let mut info = RegionInfo { argsz: argsz::<RegionInfo>(), index, ..RegionInfo::default() };
    // SAFETY: the request fills no more of the structure than its `argsz` says.
    let asked = unsafe { ioctl_struct(device.as_fd(), ffi::DEVICE_GET_REGION_INFO, &mut info) };
    asked.map_err(|e| Error::io(format!("asking {address} for its registers"), e))?;
    Ok(info)
}

fn map_registers(device: &File, bar: &RegionInfo, length: usize) -> io::Result<Registers> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let offset = libc::off_t::try_from(bar.offset).map_err(io::Error::other)?;
    // SAFETY: a mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            access,
            libc::MAP_SHARED,
            device.as_raw_fd(),
            offset,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
    // SAFETY: the mapping stays until `VfioFunction` is dropped, which every user of its
    // registers keeps alive.
    Ok(unsafe { Registers::new(base, length) })
}

/// An event that the kernel rings when it wants the function back.
fn listen(device: &File) -> io::Result<File> {
    // SAFETY: making a descriptor touches no memory.
    let descriptor =
        ffi::check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel has just made this descriptor, for nobody else.
    let event = unsafe { File::from_raw_fd(descriptor) };
    let mut set = IrqSet {
        argsz: argsz::<IrqSet>(),
        flags: ffi::IRQ_SET_DATA_EVENTFD | ffi::IRQ_SET_ACTION_TRIGGER,
        index: ffi::REQUEST_IRQ,
        start: 0,
        count: 1,
        eventfd: event.as_raw_fd(),
    };
    // SAFETY: the structure holds the one descriptor that its count announces.
    unsafe { ioctl_struct(device.as_fd(), ffi::DEVICE_SET_IRQS, &mut set)? };
    Ok(event)
}

impl Host for VfioFunction {
    fn name(&self) -> String {
        self.address.to_string()
    }

    fn registers(&self) -> Registers {
        self.registers
    }

    fn map(&self, memory: NonNull<u8>, length: usize) -> Result<u64> {
        self.container.map(memory, length)
    }

    fn unmap(&self, iova: u64, length: usize) {
        self.container.unmap(iova, length);
    }

    fn set_bus_master(&self, on: bool) -> Result<()> {
        let open = self.open.lock();
        let Some(open) = open.as_ref() else { return Ok(()) };
        let failed = |e| Error::io(format!("setting up {} on its bus", self.address), e);
        let mut word = [0; 2];
        open.device.read_exact_at(&mut word, open.config + COMMAND).map_err(failed)?;
        let before = u16::from_le_bytes(word) | MEMORY_SPACE | INTERRUPT_DISABLE;
        let after = if on { before | BUS_MASTER } else { before & !BUS_MASTER };
        open.device.write_all_at(&after.to_le_bytes(), open.config + COMMAND).map_err(failed)
    }

    fn reset(&self) -> Result<()> {
        let open = self.open.lock();
        let Some(open) = open.as_ref() else { return Ok(()) };
        ioctl_value(open.device.as_fd(), ffi::DEVICE_RESET, 0)
            .map(|_| ())
            .map_err(|e| Error::io(format!("resetting the function {}", self.address), e))
    }

    fn is_wanted_back(&self) -> bool {
        let open = self.open.lock();
        let event = open.as_ref().and_then(|open| open.wanted_back.as_ref());
        // An eventfd that was not rung would block, and so is an error.
        event.is_some_and(|mut event| event.read(&mut [0; 8]).is_ok())
    }

    /// Gives the function back to the kernel, which resets it. Reads of its registers return ones
    /// from then on, and writes go nowhere, whoever comes too late to know.
    fn release(&self) {
        let Some(open) = self.open.lock().take() else { return };
        let (base, length) = self.registers.extent();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: exactly the mapping made by `map_registers` is replaced, at once, by memory.
        let replaced = unsafe { libc::mmap(base.as_ptr().cast(), length, access, flags, -1, 0) };
        if replaced == libc::MAP_FAILED {
            // Then the function must stay ours, or late accesses would kill the process.
            tracing::error!(address = %self.address, "cannot give the function back");
            std::mem::forget(open);
            return;
        }
        // SAFETY: it has just become plain memory of that length; others at most read numbers in it.
        unsafe { std::ptr::write_bytes(base.as_ptr(), 0xff, length) };
        tracing::warn!(address = %self.address, "gave the function back to the kernel");
    }
}

impl Drop for VfioFunction {
    fn drop(&mut self) {
        let (base, length) = self.registers.extent();
        // SAFETY: `map_registers` made this mapping, and nobody has the registers any more.
        unsafe { libc::munmap(base.as_ptr().cast(), length) };
    }
}
