//! Commands for a running node, and for a tier without one.

mod device;
mod files;
mod jobs;
mod node;
mod scrub;
mod session;
mod tier;
mod tier_report;

pub(crate) use device::device;
use extent::{Error, Result};
pub(crate) use files::{
    demote, list, pin, promote, register, release, resolve, stat, unpin, writeback,
};
pub(crate) use jobs::{follow, jobs, watch};
pub(crate) use node::{silo, status};
pub(crate) use scrub::scrub;
pub(crate) use session::session;
pub(crate) use tier::tier;

/// Runs something asynchronous to its end, on this thread.
///
/// # Errors
/// [`extent::Kind::Io`] if the system gives no event loop.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting the event loop", e))?
        .block_on(future)
}
