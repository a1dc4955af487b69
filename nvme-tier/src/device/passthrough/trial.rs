//! One read, to see whether the kernel takes commands at all.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

use dma::{HugePages, Pool, SizeClass};
use extent::{Kind, Result};
use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, types};

use super::Namespace;
use super::command::{Io, command_entry, not_allowed, transfer};
use crate::device::medium::LARGEST_BLOCK_BYTES;
use crate::device::nvme::IdentifyNamespace;

type Ring = IoUring<Entry128, cqueue::Entry32>;

/// Reads the first block. Whatever the *device* says of it is no matter here.
pub(super) fn read_a_block(namespace: &Namespace, path: &Path) -> Result<()> {
    read(&namespace.character, namespace.id, &namespace.format, path)
}

/// The same of a namespace that is not claimed.
pub(super) fn read(file: &File, id: u32, format: &IdentifyNamespace, path: &Path) -> Result<()> {
    let doing = format!("trying a read of {}", path.display());
    let mut ring = Ring::builder().build(1).map_err(|e| not_allowed(&doing, e))?;
    // The block, and in the second half its protection information.
    let class = SizeClass { bytes: 2 * LARGEST_BLOCK_BYTES as usize, count: 1 };
    let pool = Pool::new(&[class], HugePages::Never)?;
    let mut buffer = pool.take(1).expect("a fresh pool has its one buffer");
    let (data, rest) = buffer.as_mut_slice().split_at_mut(LARGEST_BLOCK_BYTES as usize);
    let (memory, tuples) = (data.as_mut_ptr(), rest.as_mut_ptr());
    let io = Io {
        is_write: false,
        offset: 0,
        memory,
        length: format.block_bytes,
        place: None,
        metadata: if format.protection.is_some() { tuples } else { ptr::null_mut() },
    };
    let registered = ring.submitter().register_files(&[file.as_raw_fd()]);
    registered.map_err(|e| not_allowed(&doing, e))?;
    let entry = command_entry(types::Fixed(0), &transfer(id, format, &io), io.place);
    // SAFETY: the buffer is kept below until the read has completed, or for ever.
    let pushed = unsafe { ring.submission().push(&entry) };
    pushed.expect("a fresh ring has room");
    match complete(&mut ring) {
        Ok(result) if result >= 0 => Ok(()),
        Ok(result) => Err(not_allowed(&doing, io::Error::from_raw_os_error(-result))),
        Err(error) => {
            std::mem::forget((buffer, ring));
            Err(Kind::Io.error(doing).caused_by(error))
        }
    }
}

fn complete(ring: &mut Ring) -> io::Result<i32> {
    loop {
        match ring.submit_and_wait(1) {
            Err(error) if error.raw_os_error() != Some(libc::EINTR) => return Err(error),
            _ => {}
        }
        if let Some(completion) = ring.completion().next() {
            return Ok(completion.result());
        }
    }
}
