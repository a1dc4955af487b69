//! Extents whose checksums are not in memory: their descriptors have them.

use extent::{Kind, Result};

use crate::bugs::{self, Bug};
use crate::checksums::Vector;
use crate::codec::{Descriptor, Found};
use crate::device::Location;
use crate::{Extent, FileGeneration};

impl Extent {
    /// Where its descriptor stands and how many bytes that has, for those who need checksums that are
    /// not in memory. It is there for as long as the extent is held, once it was written.
    #[must_use]
    pub fn descriptor(&self) -> (Location, usize) {
        let stride = self.hold.shape().stride;
        (self.hold.descriptor_place().at, Descriptor::bytes(stride, self.blocks() as usize))
    }

    /// Keeps its checksums in memory for others, for as long as there is room.
    pub fn keep_checksums(&self) {
        if let Some(vector) = &self.vector {
            self.hold.keep(vector);
        }
    }

    /// Its checksums may go from now on: its generation is clean and its descriptor was written.
    pub(crate) fn offer_checksums(&self) {
        self.hold.offer();
    }
}

impl FileGeneration {
    /// The checksums of all its resident extents may go from now on.
    pub(crate) fn offer_checksums(&self) {
        self.table_locked().range(0..u32::MAX).for_each(|(_, hold)| hold.offer());
    }

    /// One of its extents again, with the checksums that its descriptor, as it was read from
    /// [`Extent::descriptor`], has.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] unless every page holds and is that of this extent in this use of its slot.
    pub fn believe(&self, extent: &Extent, bytes: &[u8]) -> Result<Extent> {
        let place = extent.hold.descriptor_place();
        let Found::Sound((descriptor, sums)) =
            Descriptor::decode(&place, extent.hold.shape().block_bytes, bytes)
        else {
            return Err(unbelievable(extent, "does not hold"));
        };
        let is_its = descriptor.file == self.file_id()
            && descriptor.generation == self.number()
            && descriptor.attempt == self.attempt()
            && descriptor.index == extent.index()
            && descriptor.length == extent.length();
        if !is_its && !bugs::is(Bug::VectorUnidentified) || sums.len() != extent.blocks() as usize {
            return Err(unbelievable(extent, "is that of something else"));
        }
        let memory = &extent.hold.holdings().checksums;
        let vector = Vector::new(memory, sums.iter().copied());
        Ok(extent.with_vector(vector))
    }
}

fn unbelievable(extent: &Extent, what: &str) -> extent::Error {
    let (at, _) = extent.descriptor();
    Kind::Corrupt.error(format!(
        "the descriptor of extent {} at {} of device {} {what}",
        extent.index(),
        at.offset,
        at.device.0
    ))
}
