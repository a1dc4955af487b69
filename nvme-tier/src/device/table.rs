//! Which memory is registered with a ring, and where.

use std::io;
use std::sync::Arc;

use dma::{Region, RegionId};

/// How memory is registered: in pieces of so many bytes, each at a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) places: u16,
    /// A power of two.
    pub(super) piece_bytes: usize,
}

impl Shape {
    /// The kernel registers at most 1 GiB at one place; a larger region takes several.
    pub(super) const LARGE: Self = Self { places: 1024, piece_bytes: 1 << 30 };

    /// For NVMe commands of at most so many bytes. The kernel has no more places than this.
    pub(super) fn commands(bytes: usize) -> Self {
        Self { places: 1 << 14, piece_bytes: bytes }
    }

    /// For NVMe commands, a page at each place. Before Linux 6.12 a command on registered memory is
    /// taken for all pages from its first one to the end of its place: it is refused if those are more
    /// segments than the device takes, and goes the long way through the NVMe driver if they are more
    /// than one. A command of one page in a place of its own goes the short way; one of several is
    /// better off when the kernel pins its pages, which it then sees as few segments.
    ///
    /// Half of the kernel's places: such a kernel takes longer the more places it has.
    pub(super) const PAGES: Self = Self { places: 1 << 13, piece_bytes: 4096 };
}

/// Which places of the kernel's table hold which region.
pub(super) struct Table {
    /// Sorted by region.
    entries: Vec<Entry>,
    taken: Vec<bool>,
    piece_bytes: usize,
}

pub(super) struct Entry {
    region: Arc<Region>,
    pub(super) first: u16,
    pub(super) places: u16,
}

impl Table {
    /// An empty one; without places, if the kernel has no such table.
    pub(super) fn new(usable: bool, shape: Shape) -> Self {
        let places = if usable { usize::from(shape.places) } else { 0 };
        let taken = vec![false; places];
        Self { entries: Vec::new(), taken, piece_bytes: shape.piece_bytes }
    }

    /// Places in a row for all of a region; `None` if it has them already.
    pub(super) fn claim(&mut self, region: &Arc<Region>) -> io::Result<Option<u16>> {
        let Err(at) = self.entries.binary_search_by_key(&region.id().0, |e| e.region.id().0) else {
            return Ok(None);
        };
        let wanted = region.length().div_ceil(self.piece_bytes);
        let first = self.taken.windows(wanted).position(|places| places.iter().all(|t| !t));
        let fits =
            first.and_then(|first| Some((u16::try_from(first).ok()?, u16::try_from(wanted).ok()?)));
        let Some((first, places)) = fits else {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        };
        let entry = Entry { region: Arc::clone(region), first, places };
        self.mark(&entry, true);
        self.entries.insert(at, entry);
        Ok(Some(first))
    }

    pub(super) fn release(&mut self, region: RegionId) -> Option<Entry> {
        let at = self.entries.binary_search_by_key(&region.0, |e| e.region.id().0).ok()?;
        let entry = self.entries.remove(at);
        self.mark(&entry, false);
        Some(entry)
    }

    pub(super) fn regions(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.entries.iter().map(|entry| &entry.region)
    }

    fn mark(&mut self, entry: &Entry, taken: bool) {
        let first = usize::from(entry.first);
        self.taken[first..first + usize::from(entry.places)].fill(taken);
    }

    /// A region in the pieces that go to one place each.
    pub(super) fn pieces(&self, region: &Region) -> Vec<libc::iovec> {
        let starts = (0..region.length()).step_by(self.piece_bytes);
        let piece = |start: usize| {
            let iov_len = self.piece_bytes.min(region.length() - start);
            libc::iovec { iov_base: region.at(start, iov_len).as_ptr().cast(), iov_len }
        };
        starts.map(piece).collect()
    }

    pub(super) fn place(&self, region: RegionId, offset: usize, length: usize) -> Option<u16> {
        let at = self.entries.binary_search_by_key(&region.0, |e| e.region.id().0).ok()?;
        let entry = &self.entries[at];
        // A range over the edge of two pieces belongs to neither.
        let within = offset % self.piece_bytes + length <= self.piece_bytes;
        let piece = u16::try_from(offset / self.piece_bytes).ok()?;
        (within && piece < entry.places).then(|| entry.first + piece)
    }
}

#[cfg(test)]
mod tests {
    use dma::HugePages;

    use super::*;

    #[test]
    fn places_are_found_given_back_and_bounded() {
        let regions = [0; 3].map(|_| Region::anonymous(8192, HugePages::Never).expect("memory"));
        let mut table = Table::new(true, Shape::LARGE);
        table.taken.truncate(2);
        assert_eq!(table.claim(&regions[1]).expect("room"), Some(0));
        assert_eq!(table.claim(&regions[0]).expect("room"), Some(1));
        assert_eq!(table.claim(&regions[0]).expect("known"), None);
        let full = table.claim(&regions[2]).expect_err("full");
        assert_eq!(full.raw_os_error(), Some(libc::ENOBUFS));
        assert_eq!(table.place(regions[0].id(), 4096, 4096), Some(1));
        assert_eq!(table.place(regions[2].id(), 0, 1), None);
        assert!(table.release(regions[1].id()).is_some());
        assert_eq!(table.claim(&regions[2]).expect("room again"), Some(0));
        assert_eq!(table.place(regions[1].id(), 0, 1), None);
    }

    #[test]
    fn with_a_place_for_each_page_only_commands_of_one_have_a_place() {
        let small = Region::anonymous(4 * 4096, HugePages::Never).expect("memory");
        let large = Region::anonymous((32 << 20) + 4096, HugePages::Never).expect("memory");
        let mut table = Table::new(true, Shape::PAGES);
        assert_eq!(table.claim(&small).expect("room"), Some(0));
        assert!(table.pieces(&small).iter().all(|piece| piece.iov_len == 4096));
        assert_eq!(table.place(small.id(), 3 * 4096, 4096), Some(3));
        assert_eq!(table.place(small.id(), 2 * 4096 + 512, 512), Some(2));
        assert_eq!(table.place(small.id(), 4096, 8192), None);
        assert_eq!(table.place(small.id(), 512, 4096), None);
        assert!(table.claim(&large).is_err(), "more pages than places");
    }

    #[test]
    fn a_large_region_takes_several_places_and_its_edges_belong_to_none() {
        // Reserved address space only: no page is ever touched.
        let region = Region::anonymous((2 << 30) + 4096, HugePages::Never).expect("memory");
        let mut table = Table::new(true, Shape::LARGE);
        assert_eq!(table.claim(&region).expect("room"), Some(0));
        let lengths: Vec<_> = table.pieces(&region).iter().map(|piece| piece.iov_len).collect();
        assert_eq!(lengths, [1 << 30, 1 << 30, 4096]);
        assert_eq!(table.place(region.id(), (1 << 30) - 4096, 4096), Some(0));
        assert_eq!(table.place(region.id(), (1 << 30) - 4096, 8192), None);
        assert_eq!(table.place(region.id(), 2 << 30, 4096), Some(2));
    }
}
