//! A session's regions: memory that the client made and the node maps.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use dma::{Region, Window};
use extent::wire::Segment;
use extent::{Kind, Result};

use super::closer::close_elsewhere;
use super::sys;

const HUGE_PAGE_BYTES: u64 = 2 << 20;
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

/// The regions of one session, bounded in number and bytes. A region that was removed counts for
/// as long as an operation in flight keeps it mapped.
#[derive(Debug)]
pub(super) struct Regions {
    /// Few, so that a walk is faster than hashing.
    mapped: Vec<(u32, Arc<Region>)>,
    leaving: Vec<(Weak<Region>, u64)>,
    max_regions: usize,
    max_bytes: u64,
    may_be_huge: bool,
}

impl Regions {
    /// `may_be_huge` is for peers that could harm the node anyway: working on a file of huge pages
    /// holds locks that mapping it waits for, for as long as its maker likes.
    pub(super) fn new(max_regions: usize, max_bytes: u64, may_be_huge: bool) -> Self {
        Self { mapped: Vec::new(), leaving: Vec::new(), max_regions, max_bytes, may_be_huge }
    }

    /// Maps `length` bytes of a memory file.
    ///
    /// # Errors
    /// [`Kind::Denied`] if it is not such a file, sealed as it must be, or of huge pages from a stranger; [`Kind::Invalid`] if the key
    /// is in use or the file shorter; [`Kind::Busy`] if the session has too much already;
    /// [`Kind::NoSpace`] if the kernel does not map it.
    pub(super) fn register(
        &mut self,
        key: u32,
        length: u64,
        file: OwnedFd,
    ) -> Result<&Arc<Region>> {
        let seals = sys::seals(file.as_fd());
        if seals.is_none_or(|seals| seals & SEALS != SEALS) {
            if seals.is_none() {
                close_elsewhere(file);
            }
            return Err(Kind::Denied
                .error("a region must be a memfd sealed with F_SEAL_SHRINK and F_SEAL_GROW"));
        }
        if self.find(key).is_some() {
            return Err(Kind::Invalid.error(format!("key {key} is registered already")));
        }
        self.admit(length)?;
        let bytes = usize::try_from(length)
            .map_err(|e| Kind::Invalid.error(format!("a region of {length} bytes")).caused_by(e))?;
        let page_bytes = sys::huge_page_bytes(file.as_fd())?;
        if let Some(page_bytes) = page_bytes {
            self.admit_huge(length, page_bytes)?;
        }
        let region = Region::sealed_memfd(file.as_fd(), bytes)?;
        // A huge page that is not there cannot be had for certain, and touching it would kill the
        // node. Mapped first: afterwards nobody could.
        if page_bytes.is_some() {
            sys::keep_pages(file.as_fd(), length)?;
        }
        Ok(&self.mapped.push_mut((key, region)).1)
    }

    fn admit_huge(&self, length: u64, page_bytes: u64) -> Result<()> {
        if !self.may_be_huge {
            return Err(Kind::Denied
                .error("huge pages are for the node's own user and root: use ordinary pages"));
        }
        if page_bytes != HUGE_PAGE_BYTES || !length.is_multiple_of(HUGE_PAGE_BYTES) {
            return Err(Kind::Invalid.error(format!(
                "a region of {length} bytes of pages of {page_bytes}: huge pages have \
                 {HUGE_PAGE_BYTES} bytes, and come whole"
            )));
        }
        Ok(())
    }

    /// Forgets a region; it stays mapped until nothing in flight uses it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none of that key.
    pub(super) fn unregister(&mut self, key: u32) -> Result<Arc<Region>> {
        let unknown = || Kind::NotFound.error(format!("no region has key {key}"));
        let at = self.mapped.iter().position(|(k, _)| *k == key).ok_or_else(unknown)?;
        let (_, region) = self.mapped.swap_remove(at);
        self.leaving.push((Arc::downgrade(&region), region.length() as u64));
        Ok(region)
    }

    /// The memory behind a segment.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the segment is outside the client's regions.
    pub(super) fn window(&self, segment: Segment) -> Result<Window> {
        let Some(region) = self.find(segment.key) else {
            return Err(Kind::Invalid.error(format!(
                "a segment names key {}, and no region has it: register memory first",
                segment.key
            )));
        };
        Window::new(Arc::clone(region), segment.address, segment.length as usize)
    }

    /// Takes all regions out, at the end of the session.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Arc<Region>> {
        self.mapped.drain(..).map(|(_, region)| region)
    }

    fn find(&self, key: u32) -> Option<&Arc<Region>> {
        self.mapped.iter().find(|(k, _)| *k == key).map(|(_, region)| region)
    }

    fn admit(&mut self, length: u64) -> Result<()> {
        self.leaving.retain(|(region, _)| region.strong_count() != 0);
        let count = self.mapped.len() + self.leaving.len();
        if count >= self.max_regions {
            return Err(Kind::Busy.error(format!(
                "the session has {count} regions and may have {}: release some",
                self.max_regions
            )));
        }
        let mapped = self.mapped.iter().map(|(_, region)| region.length() as u64);
        let bytes: u64 = mapped.chain(self.leaving.iter().map(|(_, bytes)| *bytes)).sum();
        if bytes.checked_add(length).is_none_or(|total| total > self.max_bytes) {
            return Err(Kind::Busy.error(format!(
                "{length} bytes on top of {bytes}, and a session may register {}: release some",
                self.max_bytes
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(address: u64, length: u32, key: u32) -> Segment {
        Segment { address, length, key }
    }

    #[test]
    fn regions_are_bounded_in_number_and_bytes() {
        let mut regions = Regions::new(2, 20_000, true);
        let file = || sys::memory_file(8192).expect("memory");
        regions.register(1, 8192, file()).expect("first");
        assert_eq!(regions.register(1, 8192, file()).expect_err("same").kind(), Kind::Invalid);
        assert_eq!(regions.register(2, 8193, file()).expect_err("longer").kind(), Kind::Invalid);
        assert_eq!(regions.register(2, 0, file()).expect_err("empty").kind(), Kind::Invalid);
        assert_eq!(regions.register(2, 12_000, file()).expect_err("bytes").kind(), Kind::Busy);
        assert_eq!(regions.register(2, u64::MAX, file()).expect_err("bytes").kind(), Kind::Busy);
        regions.register(2, 8000, file()).expect("second");
        assert_eq!(regions.register(3, 1, file()).expect_err("third").kind(), Kind::Busy);
    }

    #[test]
    fn a_region_in_flight_counts_until_it_is_let_go() {
        let mut regions = Regions::new(1, 1 << 20, true);
        let file = || sys::memory_file(4096).expect("memory");
        regions.register(1, 4096, file()).expect("first");
        let window = regions.window(segment(0, 10, 1)).expect("inside");
        regions.unregister(1).expect("registered");
        assert_eq!(regions.unregister(1).expect_err("gone").kind(), Kind::NotFound);
        assert_eq!(regions.window(segment(0, 10, 1)).expect_err("gone").kind(), Kind::Invalid);
        assert_eq!(regions.register(2, 4096, file()).expect_err("still").kind(), Kind::Busy);
        drop(window);
        regions.register(2, 4096, file()).expect("free again");
    }

    #[test]
    fn segments_stay_inside() {
        let mut regions = Regions::new(4, 1 << 20, true);
        regions.register(7, 4096, sys::memory_file(4096).expect("memory")).expect("mapped");
        assert_eq!(regions.window(segment(96, 4000, 7)).expect("inside").length(), 4000);
        for bad in [segment(97, 4000, 7), segment(u64::MAX, 2, 7), segment(0, 1, 8)] {
            assert_eq!(regions.window(bad).expect_err("outside").kind(), Kind::Invalid);
        }
    }

    #[test]
    fn memory_that_could_kill_the_node_is_refused() {
        let mut regions = Regions::new(4, 4 << 20, true);
        let plain = OwnedFd::from(std::fs::File::open("/proc/self/exe").expect("own binary"));
        let unsealed = sys::test_memory(4096, 0).expect("memory");
        let huge = sys::test_memory(2 << 20, libc::MFD_HUGETLB).expect("a kernel with huge pages");
        sys::test_seal(&huge, SEALS);
        let half_sealed = sys::test_memory(4096, 0).expect("memory");
        sys::test_seal(&half_sealed, libc::F_SEAL_GROW);
        for file in [plain, unsealed, half_sealed] {
            let error = regions.register(1, 4096, file).expect_err("unsafe");
            assert_eq!(error.kind(), Kind::Denied);
        }
        let mut strangers = Regions::new(4, 4 << 20, false);
        let error = strangers.register(1, 2 << 20, huge).expect_err("unsafe");
        assert_eq!(error.kind(), Kind::Denied);
    }

    #[test]
    fn huge_pages_stay_where_they_are_once_registered() {
        let file = match sys::huge_memory_file(4 << 20) {
            Ok(file) => file,
            // The lab has some.
            Err(error) => {
                let required = std::env::var_os("FOREBAY_REQUIRE_HUGE_PAGES").is_some();
                return assert!(!required, "{error}");
            }
        };
        let ours = file.try_clone().expect("a descriptor");
        let mut regions = Regions::new(4, 1 << 30, true);
        let odd = regions.register(1, 4096, file.try_clone().expect("a descriptor"));
        assert_eq!(odd.expect_err("part of a page").kind(), Kind::Invalid);
        sys::test_punch(&ours, 0, 2 << 20).expect("nobody else relies on it yet");
        regions.register(1, 4 << 20, file).expect("the hole was filled");
        let error = sys::test_punch(&ours, 0, 2 << 20).expect_err("the node relies on it");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        regions.unregister(1).expect("registered");
        drop(ours);

        let file = sys::huge_memory_file(4 << 20).expect("given back by the other");
        let ours = file.try_clone().expect("a descriptor");
        regions.register(2, 4 << 20, file).expect("whole");
        let error = sys::test_punch(&ours, 2 << 20, 2 << 20).expect_err("the node relies on it");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
