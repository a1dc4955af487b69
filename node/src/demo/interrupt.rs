//! Ctrl-C.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use extent::{Error, Kind, Result};
use parking_lot::Mutex;

use super::scratch::Scratch;
use crate::commands::block_on;

/// What a shell shows for a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Takes everything away at Ctrl-C and its like, and ends the process.
///
/// # Errors
/// [`Kind::Io`] if signals cannot be caught.
pub(super) fn clear_on_signals(place: Arc<Mutex<Option<Scratch>>>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (ready, caught) = sync_channel(1);
    let wait = async move {
        let catch = |kind| signal(kind).map_err(|e| Error::io("catching signals", e));
        let mut interrupt = catch(SignalKind::interrupt())?;
        let mut terminate = catch(SignalKind::terminate())?;
        let mut hangup = catch(SignalKind::hangup())?;
        // The other end waits for it.
        let _ = ready.send(());
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        Ok(())
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if block_on(wait).is_ok() {
                if let Some(scratch) = place.lock().as_ref() {
                    scratch.interrupt();
                }
                std::process::exit(INTERRUPTED);
            }
        })
        .map_err(|e| Error::io("starting a thread", e))?;
    caught.recv().map_err(|e| Kind::Io.error("catching signals").caused_by(e))
}
