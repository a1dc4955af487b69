//! Closing descriptors that a client passed and that turned out to be no memory.
//!
//! Closing can block for as long as the file's owner likes (a FUSE file asks its server first), and
//! a shard must not. So one thread of the process does it; what it cannot keep up with is leaked.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

const WAITING: usize = 64;

/// Closes a file, not necessarily at once, without ever blocking the caller.
pub(super) fn close_elsewhere(file: OwnedFd) {
    static CLOSER: OnceLock<Option<SyncSender<OwnedFd>>> = OnceLock::new();
    let closer = CLOSER.get_or_init(|| {
        let (sender, receiver) = sync_channel::<OwnedFd>(WAITING);
        let work = move || receiver.into_iter().for_each(drop);
        match thread::Builder::new().name("shm-closer".into()).spawn(work) {
            Ok(_) => Some(sender),
            Err(error) => {
                tracing::warn!(%error, "no thread to close clients' descriptors: they are leaked");
                None
            }
        }
    });
    let leaked = match closer {
        Some(closer) => closer.try_send(file).err().map(|error| match error {
            std::sync::mpsc::TrySendError::Full(file)
            | std::sync::mpsc::TrySendError::Disconnected(file) => file,
        }),
        None => Some(file),
    };
    if let Some(file) = leaked {
        tracing::warn!("a client's descriptor does not close: it is leaked");
        std::mem::forget(file);
    }
}
