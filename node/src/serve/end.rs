//! How a node ends: in order at the first signal, at once at the second.

use std::sync::Arc;
use std::time::Duration;

use dataplane::{DrainReport, Progress};
use extent::{Error, Result};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::Serving;
use crate::output::Output;

/// How long jobs get to come to a point from which they can go on after the next start.
const JOBS_PATIENCE: Duration = Duration::from_secs(10);
/// Dirty files that are named; the rest is counted.
const NAMED: usize = 20;
/// What a shell shows for a process that a signal ended.
const INTERRUPTED: i32 = 130;

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them from now on.
    ///
    /// # Errors
    /// [`extent::Kind::Io`] if the system refuses.
    pub(super) fn new() -> Result<Self> {
        let catch = |kind| signal(kind).map_err(|e| Error::io("catching signals", e));
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
        })
    }

    /// Waits for the first, and from then on ends the process at once at the second.
    pub(super) async fn first(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            tracing::warn!("a second signal: ending at once");
            std::process::exit(INTERRUPTED);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Stops taking requests, finishes what runs, says what only this node has, and stops.
///
/// # Errors
/// [`extent::Kind::Io`] if something could not be made durable.
pub(super) async fn stop(serving: Serving, output: Output) -> Result<()> {
    let Serving { node, handle, listener, control, control_task, stop_control, leftovers } =
        serving;
    tracing::info!("draining; a second signal ends at once");
    drop((listener, leftovers));
    drop(handle);
    // Gone already if its server failed.
    let _ = stop_control.send(());
    match control_task.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the control plane's server failed"),
        Err(error) => tracing::error!(%error, "the control plane's server broke"),
    }
    if let Ok(control) = Arc::try_unwrap(control)
        && timeout(JOBS_PATIENCE, control.stop()).await.is_err()
    {
        tracing::warn!("jobs did not stop in time; they begin again at the next start");
    }
    let drained = node.drain(&Progress::new()).await;
    tokio::task::block_in_place(|| node.stop());
    report(&drained?, output)
}

fn report(drained: &DrainReport, output: Output) -> Result<()> {
    let names: Vec<String> = drained.dirty.iter().map(ToString::to_string).collect();
    if output.is_json() {
        return output.json(&json!({ "stopped": true, "dirty": names }));
    }
    if let Some(line) = left_dirty(&names) {
        output.line(line)?;
    }
    output.line("stopped")
}

fn left_dirty(names: &[String]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = &names[..names.len().min(NAMED)];
    Some(format!("left dirty: {}{more}, durable on the tier", named.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_files_are_named_up_to_a_bound() {
        assert_eq!(left_dirty(&[]), None);
        let names: Vec<String> = (0..22).map(|n| format!("a/{n}")).collect();
        let line = left_dirty(&names[..2]).expect("dirty");
        assert_eq!(line, "left dirty: a/0, a/1, durable on the tier");
        assert!(left_dirty(&names).expect("dirty").contains("a/19 and 2 more, durable"));
    }
}
