//! The NVMe tier: extents of files on local devices, found in memory, described durably on the
//! devices themselves, and recovered by one sequential scan.
//!
//! [`format()`] lays devices out, [`recover`] reads them back into a [`Tier`], which all threads share,
//! and the one [`Ledger`] that writes metadata. [`layout`] says where things lie, [`codec`] what
//! they look like, and the `ledger` module what holds when the power goes.

mod absent;
#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
mod check;
mod checksums;
mod clock;
pub mod codec;
pub mod device;
mod done;
mod eviction;
mod file;
mod format;
mod generation;
mod hash;
mod holdings;
mod id_table;
mod ids;
mod index;
mod inspect;
pub mod layout;
mod ledger;
mod lookup;
mod missing;
mod operation;
mod options;
mod reader;
mod recovery;
mod reservation;
mod resident;
mod scan;
mod shelf;
mod space;
mod table;
mod tier;
mod usage;
mod verify;

/// Whether this was built to make mistakes on purpose, for tests only.
pub const SEEDED_BUGS: bool = cfg!(feature = "seeded-bugs");

pub use check::{BadExtent, CheckReport, check};
pub use codec::{Mark, TierId};
pub use done::Done;
pub use file::File;
pub use format::{FormatReport, format};
pub use generation::{FileGeneration, State};
pub use inspect::{InspectedDevice, InspectedFile, Inspection, inspect};
pub use ledger::Ledger;
pub use options::{Copies, Discard, FormatOptions, TierOptions};
pub use recovery::{Recovered, RecoveryReport, recover, recover_without};
pub use reservation::{Draft, Reservation};
pub use resident::Extent;
pub use scan::Findings;
pub use tier::Tier;
pub use usage::{DeviceUsage, TierUsage};
pub use verify::Looked;
