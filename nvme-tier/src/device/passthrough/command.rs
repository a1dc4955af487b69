//! Commands as the kernel takes them: `linux/nvme_ioctl.h`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::ptr;

use extent::{Error, Kind, Result};
use io_uring::squeue::Entry128;
use io_uring::{opcode, types};

use super::Namespace;
use crate::device::nvme::{PAGE_BYTES, Status, SubmissionEntry, io as op};

/// `NVME_IOCTL_ID`: which namespace a device node is for.
const NVME_IOCTL_ID: libc::Ioctl = 0x4e40;
/// `NVME_IOCTL_ADMIN_CMD`.
const NVME_IOCTL_ADMIN_CMD: libc::Ioctl = 0xc048_4e41_u32 as libc::Ioctl;
/// `NVME_URING_CMD_IO`.
const NVME_URING_CMD_IO: u32 = 0xc048_4e80;

/// `struct nvme_passthru_cmd`, and `struct nvme_uring_cmd`, whose last field is reserved.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(in crate::device) struct PassthroughCommand {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

/// Bytes of the command in an entry of io_uring's.
const COMMAND_BYTES: usize = 80;

impl PassthroughCommand {
    fn new(entry: SubmissionEntry) -> Self {
        let SubmissionEntry { nsid, cdw10, cdw11, cdw12, cdw13, cdw14, cdw15, .. } = entry;
        let cdw10 = [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15];
        Self { opcode: entry.opcode(), nsid, cdw10, ..Self::default() }
    }

    /// As what io_uring carries.
    fn bytes(&self) -> [u8; COMMAND_BYTES] {
        let mut bytes = [0; COMMAND_BYTES];
        const { assert!(mem::size_of::<PassthroughCommand>() == 72) };
        // SAFETY: the struct is 72 bytes without padding, and the array has room for them.
        unsafe {
            ptr::copy_nonoverlapping(
                ptr::from_ref(self).cast::<u8>(),
                bytes.as_mut_ptr(),
                mem::size_of::<Self>(),
            );
        }
        bytes
    }
}

/// A piece of a read or write, and where its data and protection information lie.
#[derive(Clone, Copy, Debug)]
pub(in crate::device) struct Io {
    pub(in crate::device) is_write: bool,
    /// Bytes from the namespace's start.
    pub(in crate::device) offset: u64,
    pub(in crate::device) memory: *mut u8,
    pub(in crate::device) length: u32,
    /// The place of registered memory in which the data lies.
    pub(in crate::device) place: Option<u16>,
    /// As many bytes as [`crate::device::nvme::Protection::bytes_for`] says; null if there is none.
    pub(in crate::device) metadata: *mut u8,
}

impl Namespace {
    /// The entry for a piece of a read or write.
    pub(in crate::device) fn entry(&self, file: types::Fixed, io: &Io) -> Entry128 {
        let command = transfer(self.id, &self.format, io);
        command_entry(file, &command, io.place)
    }

    /// The entry for a deallocation; `page` begins with its range, if it has one.
    pub(in crate::device) fn deallocation_entry(
        &self,
        file: types::Fixed,
        (offset, bytes): (u64, u64),
        page: Option<*mut u8>,
    ) -> Entry128 {
        let deallocator = self.deallocator().expect("admitted only where there is one");
        let entry = deallocator.entry((0, self.id), offset, bytes, 0);
        let mut command = PassthroughCommand::new(entry);
        if let Some(page) = page {
            command.addr = page.expose_provenance() as u64;
            command.data_len = u32::try_from(PAGE_BYTES).expect("a page");
        }
        command_entry(file, &command, None)
    }

    /// The entry for a flush.
    pub(in crate::device) fn flush_entry(&self, file: types::Fixed) -> Entry128 {
        let command = PassthroughCommand::new(SubmissionEntry::new(op::FLUSH, 0, self.id));
        command_entry(file, &command, None)
    }
}

/// The command for a read or write.
pub(super) fn transfer(
    id: u32,
    format: &crate::device::nvme::IdentifyNamespace,
    io: &Io,
) -> PassthroughCommand {
    let shift = format.block_bytes.trailing_zeros();
    let (lba, blocks) = (io.offset >> shift, io.length >> shift);
    let code = if io.is_write { op::WRITE } else { op::READ };
    let mut entry = SubmissionEntry::new(code, 0, id).with_blocks(lba, blocks);
    let mut metadata_len = 0;
    if let Some(protection) = format.protection {
        entry = entry.with_protection(protection, lba, 0);
        let bytes = protection.bytes_for(io.length as usize);
        metadata_len = u32::try_from(bytes).expect("less than the data");
    }
    PassthroughCommand {
        addr: io.memory.expose_provenance() as u64,
        data_len: io.length,
        metadata: io.metadata.expose_provenance() as u64,
        metadata_len,
        ..PassthroughCommand::new(entry)
    }
}

/// A command as an entry of io_uring's.
pub(super) fn command_entry(
    file: types::Fixed,
    command: &PassthroughCommand,
    place: Option<u16>,
) -> Entry128 {
    opcode::UringCmd80::new(file, NVME_URING_CMD_IO).cmd(command.bytes()).buf_index(place).build()
}

/// Which namespace a node is for.
pub(super) fn namespace_id(node: &File) -> io::Result<u32> {
    // SAFETY: this request takes no argument.
    let id = unsafe { libc::ioctl(node.as_raw_fd(), NVME_IOCTL_ID) };
    match u32::try_from(id) {
        Ok(id) if id != 0 => Ok(id),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs an admin command that reads a page, and returns the first dword of its completion.
pub(super) fn admin(
    node: &File,
    entry: SubmissionEntry,
    page: &mut [u8],
    doing: &dyn Fn() -> String,
) -> Result<u32> {
    let mut command = PassthroughCommand {
        addr: if page.is_empty() { 0 } else { page.as_mut_ptr().expose_provenance() as u64 },
        data_len: u32::try_from(page.len()).expect("a page"),
        ..PassthroughCommand::new(entry)
    };
    // SAFETY: the kernel reads and writes this struct, and fills at most `data_len` bytes of the
    // page; both are borrowed for the length of the call.
    let status = unsafe { libc::ioctl(node.as_raw_fd(), NVME_IOCTL_ADMIN_CMD, &raw mut command) };
    match status {
        0 => Ok(command.result),
        1.. => {
            let field = u16::try_from(status).unwrap_or(u16::MAX);
            Err(Status::from_field(field).error(doing()))
        }
        _ => Err(not_allowed(&doing(), io::Error::last_os_error())),
    }
}

/// What an operator can do about a refusal of the kernel's.
pub(super) fn not_allowed(doing: &str, error: io::Error) -> Error {
    let (kind, advice) = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => (
            Kind::Denied,
            "the kernel lets only root send NVMe commands (before Linux 6.2 nobody else at all): \
             run as root or with CAP_SYS_ADMIN, or use driver io_uring",
        ),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS) => (
            Kind::Unsupported,
            "this kernel has no NVMe passthrough by io_uring: it needs Linux 6.1 or later; use \
             driver io_uring",
        ),
        _ => return Error::io(doing.to_owned(), error),
    };
    kind.error(format!("{doing}: {advice}")).caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::device::nvme::{IdentifyNamespace, Protection, ProtectionType};

    #[test]
    fn commands_lie_as_the_kernel_has_them() {
        assert_eq!(offset_of!(PassthroughCommand, metadata), 16);
        assert_eq!(offset_of!(PassthroughCommand, addr), 24);
        assert_eq!(offset_of!(PassthroughCommand, data_len), 36);
        assert_eq!(offset_of!(PassthroughCommand, cdw10), 40);
        assert_eq!(offset_of!(PassthroughCommand, timeout_ms), 64);
        let command =
            PassthroughCommand { opcode: 2, nsid: 7, timeout_ms: 9, ..Default::default() };
        let bytes = command.bytes();
        assert_eq!((bytes[0], bytes[4], bytes[64]), (2, 7, 9));
        assert_eq!(bytes[72..], [0; 8]);
    }

    #[test]
    fn a_protected_read_names_its_blocks_data_and_tuples() {
        let protection = Protection { kind: ProtectionType::One, block_bytes: 512 };
        let format = IdentifyNamespace {
            blocks: 1 << 40,
            block_bytes: 512,
            protection: Some(protection),
            atomic_bytes: 512,
            preferred_write_bytes: 512,
            boundary_bytes: 0,
            deallocate_bytes: 512,
            zeroes_deallocate: false,
        };
        let (data, tuples) = (ptr::without_provenance_mut(4096), ptr::without_provenance_mut(512));
        let io = Io {
            is_write: false,
            offset: (1 << 41) + 1024,
            memory: data,
            length: 4096,
            place: None,
            metadata: tuples,
        };
        let command = transfer(3, &format, &io);
        assert_eq!((command.opcode, command.nsid), (op::READ, 3));
        assert_eq!((command.addr, command.data_len), (4096, 4096));
        assert_eq!((command.metadata, command.metadata_len), (512, 64));
        assert_eq!(command.cdw10[..2], [2, 1]);
        assert_eq!(command.cdw10[2], 7 | 0b101 << 26, "eight blocks, guard and reference checked");
        assert_eq!(command.cdw10[4], 2, "the expected reference tag");
    }
}
