//! What a node says once it serves.

use std::path::PathBuf;

use extent::Result;
use nvme_tier::RecoveryReport;
use serde::Serialize;
use serde_json::json;

use crate::output::{Output, Tone};
use crate::units;

/// Damaged files that are named at the start; `forebay ls` shows all.
const NAMED: usize = 20;

/// Where a node is reached, and what it found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ready {
    pub(super) listen: String,
    pub(super) rdma: Vec<String>,
    /// Whether clients there show proofs: required or optional.
    pub(super) proofs: &'static str,
    pub(super) socket: PathBuf,
    pub(super) control: String,
    pub(super) metrics: Option<String>,
    pub(super) state_dir: PathBuf,
    pub(super) identity: String,
    pub(super) recovery: Recovery,
}

/// What was on the tier.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Recovery {
    pub(super) formatted: bool,
    pub(super) files: u64,
    pub(super) dirty_files: u64,
    pub(super) extents: u64,
    pub(super) bytes: u64,
    /// Files that were only here and are damaged.
    pub(super) quarantined: Vec<String>,
    pub(super) seconds: f64,
}

impl Recovery {
    pub(super) fn new(formatted: bool, report: &RecoveryReport) -> Self {
        Self {
            formatted,
            files: report.files,
            dirty_files: report.dirty_files,
            extents: report.extents,
            bytes: report.bytes,
            quarantined: report.quarantined.iter().map(ToString::to_string).collect(),
            seconds: report.elapsed.as_secs_f64(),
        }
    }
}

/// Prints it: one line for people, one object for programs.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn announce(ready: &Ready, output: Output) -> Result<()> {
    if output.is_json() {
        let mut value = json!(ready);
        value["ready"] = json!(true);
        return output.json(&value);
    }
    let found = if ready.recovery.formatted {
        "a new tier".to_owned()
    } else {
        format!(
            "{}, {} dirty",
            units::plural(ready.recovery.files, "file"),
            units::count(ready.recovery.dirty_files)
        )
    };
    let metrics = ready.metrics.as_ref();
    let metrics = metrics.map_or_else(String::new, |at| format!(", metrics http://{at}/metrics"));
    let rdma: String = ready.rdma.iter().map(|at| format!(", rdma {at}")).collect();
    output.line(format!(
        "{}  tcp {}{rdma} (proofs {}), shared memory {}, control {}{metrics}; {found}",
        output.paint(Tone::Good, "ready"),
        ready.listen,
        ready.proofs,
        ready.socket.display(),
        ready.control
    ))?;
    for name in ready.recovery.quarantined.iter().take(NAMED) {
        output.note(format!("damaged: {name} was only here; nothing of it is freed, reads fail"));
    }
    Ok(())
}
