//! Libraries of drivers, which may keep who opens them waiting for ever.

use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use extent::{Error, Result};

/// How long opening a driver may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Does something in a thread of its own, and waits no longer than [`PATIENCE`] for it: the thread is left alone
/// then, and `late` is the answer.
pub(crate) fn in_time<T: Send + 'static>(
    name: &str,
    late: impl FnOnce() -> Error,
    open: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (tell, told) = sync_channel(1);
    let opening = move || {
        let _ = tell.send(open());
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(opening)
        .map_err(|error| Error::io("starting a thread", error))?;
    told.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(late()))
}
