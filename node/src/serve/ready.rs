//! What a node says once it serves.

use std::path::PathBuf;

use extent::Result;
use nvme_tier::RecoveryReport;
use serde::Serialize;
use serde_json::json;

use crate::output::{Output, Tone};
use crate::units;

/// Where a node is reached, and what it found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ready {
    pub(super) listen: String,
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
    pub(super) quarantined_files: u64,
}

impl Recovery {
    pub(super) fn new(formatted: bool, report: &RecoveryReport) -> Self {
        Self {
            formatted,
            files: report.files,
            dirty_files: report.dirty_files,
            extents: report.extents,
            quarantined_files: report.quarantined_files,
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
    output.line(format!(
        "{}  tcp {}, shared memory {}, control {}{metrics}; {found}",
        output.paint(Tone::Good, "ready"),
        ready.listen,
        ready.socket.display(),
        ready.control
    ))?;
    if ready.recovery.quarantined_files > 0 {
        output.note(format!(
            "{} damaged and set aside: see `forebay ls` for what is quarantined",
            units::plural(ready.recovery.quarantined_files, "file")
        ));
    }
    Ok(())
}
