//! Mapped areas of memory.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use extent::{Error, Kind, Result};

use crate::ALIGN_BYTES;

/// A region's number, unique in this process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RegionId(pub u32);

impl RegionId {
    /// One that nothing else has.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Whether a region should be made of huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HugePages {
    /// Ordinary pages; the kernel may still merge them.
    #[default]
    Never,
    /// Ordinary pages that the kernel is asked to merge into huge ones.
    Merged,
    /// Huge pages (2 MiB) if enough are set aside, else merged ones.
    Try,
    /// Huge pages or an error.
    Require,
}

/// An area of memory: mapped here, page-aligned, and unmapped when the last owner lets go, or
/// somebody else's.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    length: usize,
    id: RegionId,
    huge: bool,
    shared: bool,
    /// Whether it is somebody else's memory, which they unmap.
    lent: bool,
}

// SAFETY: a region is an address and a length; whoever reads or writes through it upholds
// exclusivity (`Buffer`) or treats the bytes as another process's (`Window`).
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` alone gives no access to the bytes.
unsafe impl Sync for Region {}

pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

impl Region {
    /// Private, zeroed memory of at least `length` bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a length of zero; [`Kind::NoSpace`] if the memory, or the huge pages
    /// required, are not there.
    pub fn anonymous(length: usize, huge: HugePages) -> Result<Arc<Self>> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        if matches!(huge, HugePages::Try | HugePages::Require) {
            let rounded = length.next_multiple_of(HUGE_PAGE_BYTES);
            match map(rounded, flags | libc::MAP_HUGETLB | libc::MAP_POPULATE, -1) {
                Ok(base) => return Ok(Self::new(base, rounded, true, false)),
                Err(error) if huge == HugePages::Require => {
                    return Err(Kind::NoSpace
                        .error(format!(
                            "no {} MiB of huge pages: write {} to /proc/sys/vm/nr_hugepages",
                            rounded >> 20,
                            rounded / HUGE_PAGE_BYTES
                        ))
                        .caused_by(error));
                }
                Err(_) => {}
            }
        }
        let rounded = length.next_multiple_of(ALIGN_BYTES);
        let base = map(rounded, flags, -1).map_err(|error| out_of_memory(rounded, error))?;
        let region = Self::new(base, rounded, false, false);
        if huge != HugePages::Never {
            // SAFETY: it advises on a mapping that is ours. A kernel that declines changes nothing.
            unsafe { libc::madvise(base.as_ptr().cast(), rounded, libc::MADV_HUGEPAGE) };
        }
        Ok(region)
    }

    /// Maps the first `length` bytes of a memory file that another process also maps.
    ///
    /// # Errors
    /// [`Kind::Denied`] if the file is not sealed against shrinking (its owner could kill this
    /// process by truncating it); [`Kind::Invalid`] if it is shorter than `length`.
    pub fn sealed_memfd(file: BorrowedFd<'_>, length: usize) -> Result<Arc<Self>> {
        // SAFETY: F_GET_SEALS reads a property of an open descriptor.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return Err(Kind::Denied
                .error("shared memory must be a memfd sealed against shrinking (F_SEAL_SHRINK)"));
        }
        let size = file_bytes(file)?;
        if length == 0 || size < length as u64 {
            return Err(Kind::Invalid
                .error(format!("shared memory of {size} bytes where {length} were announced")));
        }
        let base = map(length, libc::MAP_SHARED, file.as_raw_fd())
            .map_err(|error| out_of_memory(length, error))?;
        Ok(Self::new(base, length, false, true))
    }

    /// Memory of somebody else's, which may begin anywhere.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a length of zero.
    ///
    /// # Safety
    /// It stays mapped, writable and nobody else's to use for as long as the region lives.
    pub unsafe fn lent(base: NonNull<u8>, length: usize) -> Result<Arc<Self>> {
        if length == 0 {
            return Err(Kind::Invalid.error("memory of zero bytes"));
        }
        Ok(Arc::new(Self {
            base,
            length,
            id: RegionId::next(),
            huge: false,
            shared: false,
            lent: true,
        }))
    }

    /// Zeroed memory of at least `length` bytes in a file of its own, sealed against shrinking, and that file: whoever
    /// is given it can map the same memory by [`Region::sealed_memfd`].
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if there is not so much memory.
    pub fn shareable(length: usize) -> Result<(Arc<Self>, OwnedFd)> {
        let rounded = length.next_multiple_of(page_bytes());
        let file = memory_file(rounded).map_err(|error| out_of_memory(rounded, error))?;
        Ok((Self::sealed_memfd(file.as_fd(), rounded)?, file))
    }

    fn new(base: NonNull<u8>, length: usize, huge: bool, shared: bool) -> Arc<Self> {
        Arc::new(Self { base, length, id: RegionId::next(), huge, shared, lent: false })
    }

    /// The region's number.
    #[inline]
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// Bytes mapped.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether it is made of huge pages.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// Whether another process maps it too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// The address of its first byte, for registration with a device or fabric.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Has the kernel find, clear and map all its pages now, in the calling thread, instead of one by one when
    /// they are first used, by whoever that is: in the time that this takes, a second for some GiB. What is there
    /// already keeps its bytes. As far as there is memory, and not before Linux 5.14.
    pub fn populate(&self) {
        // SAFETY: it advises on memory that stays mapped as long as the region lives, by it or by who lent it,
        // and changes none of its bytes.
        let _refused = unsafe {
            libc::madvise(self.base.as_ptr().cast(), self.length, libc::MADV_POPULATE_WRITE)
        };
    }

    /// The address of byte `offset`.
    ///
    /// # Panics
    /// If `offset .. offset + length` is not inside the region.
    #[must_use]
    pub fn at(&self, offset: usize, length: usize) -> NonNull<u8> {
        let end = offset.checked_add(length).expect("offsets in a region do not overflow");
        assert!(end <= self.length, "{offset} + {length} is outside a region of {}", self.length);
        // SAFETY: the assertion keeps the address inside the mapping or one past its end.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.lent {
            return;
        }
        // SAFETY: `new` took over exactly this mapping, and operations in flight own an `Arc`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

fn map(length: usize, flags: libc::c_int, file: libc::c_int) -> io::Result<NonNull<u8>> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, file, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))
}

fn memory_file(length: usize) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let file = unsafe { libc::memfd_create(c"forebay".as_ptr(), flags) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else knows it.
    let file = unsafe { OwnedFd::from_raw_fd(file) };
    let length = libc::off_t::try_from(length).map_err(io::Error::other)?;
    // SAFETY: it sets the length of a file that is ours.
    if unsafe { libc::ftruncate(file.as_raw_fd(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it sets a property of a file that is ours.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn file_bytes(file: BorrowedFd<'_>) -> Result<u64> {
    let file = file.try_clone_to_owned().map_err(|e| Error::io("duplicating a descriptor", e))?;
    let metadata = std::fs::File::from(file).metadata();
    Ok(metadata.map_err(|e| Error::io("asking shared memory for its size", e))?.len())
}

fn out_of_memory(length: usize, error: io::Error) -> Error {
    Kind::NoSpace
        .error(format!("mapping {length} bytes of memory: give the node less or the machine more"))
        .caused_by(error)
}

/// Bytes of memory that this machine has.
#[must_use]
pub fn machine_bytes() -> usize {
    let [pages, bytes] = [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| {
        // SAFETY: it reads a number.
        let number = unsafe { libc::sysconf(name) };
        usize::try_from(number).unwrap_or(0)
    });
    pages.saturating_mul(bytes)
}

/// Bytes of a page of this machine's memory.
#[must_use]
pub fn page_bytes() -> usize {
    // SAFETY: it reads a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(ALIGN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_rounded_and_aligned() {
        let region = Region::anonymous(5000, HugePages::Try).expect("memory");
        assert!(region.length() >= 8192);
        assert!(region.base().addr().get().is_multiple_of(ALIGN_BYTES));
        assert_eq!(
            Region::anonymous(0, HugePages::Never).expect_err("empty").kind(),
            Kind::NoSpace
        );
    }

    #[test]
    fn lent_memory_is_left_to_its_owner() {
        let mut owner = [7_u8; 100];
        let base = NonNull::from(&mut owner[3]);
        // SAFETY: the array outlives the region, and is not looked at meanwhile.
        let region = unsafe { Region::lent(base, 90) }.expect("memory");
        assert_eq!((region.base(), region.length()), (base, 90));
        // SAFETY: it is inside, and nobody else uses it.
        unsafe { region.at(89, 1).write(8) };
        drop(region);
        assert_eq!((owner[92], owner[93]), (8, 7));
        // SAFETY: there is nothing to use.
        assert_eq!(unsafe { Region::lent(base, 0) }.expect_err("none").kind(), Kind::Invalid);
    }

    #[test]
    fn memory_in_a_file_is_the_same_for_all_who_map_it() {
        use crate::Window;
        let (mine, file) = Region::shareable(5000).expect("memory");
        assert!(mine.length() >= 5000 && mine.length().is_multiple_of(page_bytes()));
        let theirs = Region::sealed_memfd(file.as_fd(), mine.length()).expect("sealed");
        assert_ne!(mine.id(), theirs.id());
        Window::new(theirs, 4990, 5).expect("inside").copy_in(b"hello");
        let mut found = [0; 7];
        Window::new(mine, 4989, 7).expect("inside").copy_out(&mut found);
        assert_eq!(&found, b"\0hello\0");
    }

    #[test]
    fn populated_memory_is_there_and_keeps_what_it_held() {
        use crate::Window;
        const BYTES: usize = 1 << 20;
        let (region, _file) = Region::shareable(BYTES).expect("memory");
        let window = Window::new(Arc::clone(&region), 5000, 5).expect("inside");
        window.copy_in(b"hello");
        let resident = || {
            let mut pages = vec![0u8; BYTES / page_bytes()];
            // SAFETY: it writes a byte for each page of the mapping.
            let told =
                unsafe { libc::mincore(region.base().as_ptr().cast(), BYTES, pages.as_mut_ptr()) };
            assert_eq!(told, 0);
            pages.iter().filter(|page| **page & 1 != 0).count()
        };
        assert!(resident() < BYTES / page_bytes());
        region.populate();
        // SAFETY: it advises on none of the mapping's bytes.
        let known =
            unsafe { libc::madvise(region.base().as_ptr().cast(), 0, libc::MADV_POPULATE_WRITE) };
        if known == 0 {
            assert_eq!(resident(), BYTES / page_bytes());
        }
        let mut found = [0; 5];
        window.copy_out(&mut found);
        assert_eq!(&found, b"hello");
    }

    #[test]
    fn unsealed_memory_is_refused() {
        use std::os::fd::AsFd;
        let file = std::fs::File::open("/proc/self/exe").expect("own binary");
        let error = Region::sealed_memfd(file.as_fd(), 4096).expect_err("not a memfd");
        assert_eq!(error.kind(), Kind::Denied);
    }
}
