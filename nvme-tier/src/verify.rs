//! Looking at the metadata of a tier that runs: what stands on the devices is compared with what is
//! known in memory, and what does not hold is written again.

use std::ops::Range;
use std::sync::Arc;

use extent::ExtentIndex;

use crate::device::DeviceIndex;
use crate::operation::{Operation, RecordOperation};
use crate::{Done, Extent, File, FileGeneration, Tier};

/// What to look at.
#[derive(Debug)]
pub(crate) enum Look {
    /// The superblocks of a device, and the headers of some of its slabs.
    Device { device: DeviceIndex, first_slab: u32 },
    /// The records of a file.
    Records { file: Arc<File> },
    /// The descriptors of resident extents.
    Descriptors { generation: Arc<FileGeneration>, indexes: Range<u32> },
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Looked {
    /// Superblocks, headers, records or descriptors looked at.
    pub entries: u64,
    /// Bytes read for that.
    pub bytes: u64,
    /// How many do not hold.
    pub damaged: u64,
    /// How many of those the device could not read.
    pub unreadable: u64,
    /// Extents whose descriptors do not hold.
    pub extents: Vec<ExtentIndex>,
    /// Extents whose second copy's descriptors do not hold.
    pub copies: Vec<ExtentIndex>,
    /// The slab to go on with, where there are more of the device.
    pub next_slab: Option<u32>,
}

impl Tier {
    /// How many devices there are.
    #[must_use]
    pub fn device_count(&self) -> u16 {
        u16::try_from(self.counters.devices.len()).expect("64 devices at most")
    }

    /// Looks at the superblocks of a device, if `first_slab` is zero, and at the headers of the slabs
    /// from there on. What does not hold is written again at once; it is durable when a later
    /// [`Tier::flush`] is done.
    ///
    /// Fails with [`extent::Kind::Busy`] if too much waits for the ledger.
    pub fn look_at_device(&self, device: DeviceIndex, first_slab: u32, done: Done<Looked>) {
        self.push_limited(Operation::Look(Look::Device { device, first_slab }, done));
    }

    /// Looks at every copy of a file's record.
    ///
    /// Fails with [`extent::Kind::Busy`] if too much waits for the ledger.
    pub fn look_at_records(&self, file: &Arc<File>, done: Done<Looked>) {
        self.push_limited(Operation::Look(Look::Records { file: Arc::clone(file) }, done));
    }

    /// Looks at the descriptors of a generation's resident extents, and of their second copies.
    ///
    /// Fails with [`extent::Kind::Busy`] if too much waits for the ledger.
    pub fn look_at_descriptors(
        &self,
        generation: &Arc<FileGeneration>,
        indexes: Range<u32>,
        done: Done<Looked>,
    ) {
        let generation = Arc::clone(generation);
        self.push_limited(Operation::Look(Look::Descriptors { generation, indexes }, done));
    }

    /// Writes a file's record again, to a fresh place, since a copy of it does not hold. Durable
    /// when done.
    ///
    /// Fails as [`Tier::mark`] does.
    pub fn rewrite_record(&self, file: &File, done: Done<()>) {
        self.push_limited(Operation::Record(file.id(), RecordOperation::Refresh(done)));
    }

    /// Writes an extent's descriptor again where it stands, since what stands there does not hold.
    /// It is durable when a later [`Tier::flush`] is done. Nothing happens if the extent is gone.
    ///
    /// Fails with [`extent::Kind::Io`] if it could not be written; [`extent::Kind::Corrupt`] if the
    /// checksums are not in memory: then they are lost, and the extent is to be fetched again.
    pub fn rewrite_descriptor(
        &self,
        generation: &Arc<FileGeneration>,
        extent: &Extent,
        done: Done<()>,
    ) {
        if !extent.has_checksums() {
            return done.call(Err(extent::Kind::Corrupt.error(format!(
                "the descriptor of extent {} is damaged, and its checksums are nowhere else",
                extent.index()
            ))));
        }
        let (extent, generation) = (extent.clone(), Arc::clone(generation));
        self.push_limited(Operation::Describe { extent, generation, done });
    }

    /// The second copies of a generation's extents whose indexes are in a range.
    #[must_use]
    pub fn copies(&self, generation: &FileGeneration, indexes: Range<u32>) -> Vec<Extent> {
        generation.copies(indexes)
    }

    /// The resident extents of a generation whose indexes are in a range, without counting a use.
    #[must_use]
    pub fn residents(&self, generation: &FileGeneration, indexes: Range<u32>) -> Vec<Extent> {
        generation.extents(indexes)
    }
}
