//! `forebay doctor`: what this machine offers, and what to do about what is missing.

mod hardware;
mod memory;
mod processor;
mod storage;

use std::path::Path;

use extent::Result;
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::config::default_state_dir;
use crate::output::{Output, Tone};

/// How something stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// There, and good.
    Ok,
    /// Works, but not as well as it could.
    Warn,
    /// Not there; what needs it falls back or does without.
    Missing,
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    /// What was found.
    pub(crate) found: String,
    /// What to do, where something should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), advice: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, state: State::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn missing(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, state: State::Missing, found: found.into(), advice: Some(advice.into()) }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    findings: &'a [Finding],
}

/// Looks at everything and prints it. Nothing missing is an error: a node runs without.
///
/// # Errors
/// If nobody reads the output.
pub(crate) fn run(args: &DoctorArgs, output: Output) -> Result<()> {
    let state_dir = args.state_dir.clone().unwrap_or_else(default_state_dir);
    let findings = findings(&state_dir);
    if output.is_json() {
        return output.json(&Report { version: env!("CARGO_PKG_VERSION"), findings: &findings });
    }
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    for finding in &findings {
        let (tone, word) = match finding.state {
            State::Ok => (Tone::Good, "ok     "),
            State::Warn => (Tone::Warn, "warn   "),
            State::Missing => (Tone::Faint, "missing"),
        };
        let word = output.paint(tone, word);
        output.line(format!("{word}  {:width$}  {}", finding.name, finding.found))?;
        if let Some(advice) = &finding.advice {
            let advice = output.paint(Tone::Faint, &format!("→ {advice}"));
            output.line(format!("{:1$}{advice}", "", 7 + 2 + width + 2))?;
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    output.line(format!(
        "\n{} ok, {} to look at, {} missing; a node runs here with what is there",
        count(State::Ok),
        count(State::Warn),
        count(State::Missing)
    ))
}

fn findings(state_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![
        processor::kernel(),
        processor::cores(),
        processor::checksums(),
        storage::io_uring(),
        storage::direct_io(state_dir),
        storage::nvme(),
        storage::passthrough(),
        memory::huge_pages(),
        memory::locked(),
        memory::open_files(),
        hardware::iommu(),
        hardware::rdma_devices(),
        hardware::rdma_libraries(),
    ];
    findings.extend(hardware::gpus());
    findings.push(hardware::loopback());
    findings
}

/// Names in a directory of the kernel's, sorted; none if it is not there.
fn names_in(directory: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}
