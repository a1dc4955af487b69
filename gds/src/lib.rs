//! Memory of GPUs, and how a file's bytes get there.
//!
//! A [`Device`] has memory ([`DeviceMemory`], of which [`DeviceSpan`]s are parts) and does copies one
//! after the other in a [`Stream`]. A [`Ring`] is a bounded number of pieces of host memory that both a
//! node and the device reach: a node writes into one while the device copies others away. [`Ladder`]
//! says which ways into device memory there are here, and why not the others; [`Policy`] which may be taken.
//!
//! Devices are [`Device::cuda`], NVIDIA's, whose driver is opened when the first is asked for: a build
//! needs nothing of it, and a machine without one answers why not; and [`Device::software`], a
//! [`SoftwareDevice`], for tests of everything above without a GPU.
//!
//! A [`LocalFile`] is one of this machine's own, which [`CuFile`] reads into device memory: nothing of it is opened
//! before a program asks for that.

mod api;
mod bounce;
#[cfg(not(feature = "seeded-bugs"))]
mod bugs;
#[cfg(feature = "seeded-bugs")]
pub mod bugs;
mod clock;
mod cuda;
mod cufile;
mod device;
mod export;
mod ladder;
mod memory;
mod opening;
mod pin;
mod ring;
mod software;

/// Whether this was built to make mistakes on purpose, for tests only.
pub const SEEDED_BUGS: bool = cfg!(feature = "seeded-bugs");

pub use api::{DeviceInfo, DevicePointer};
pub use cuda::{CudaDriver, CudaState};
pub use cufile::{CuFile, CuFileInfo, LocalFile, LocalRead, Registration, Transfer};
pub use device::{Device, Mark, Stream};
pub use export::Allocation;
pub use ladder::{Ladder, Path, Policy, Verdict, Wire};
pub use memory::{DeviceMemory, DeviceSpan};
pub use ring::{Begun, Copied, CopyId, HostMemory, Lent, Pinning, Ring, RingStats};
pub use software::{CopyStep, SoftwareDevice};
