//! What the control plane answers, as JSON objects and as lines.

mod files;
mod jobs;
mod node;
mod silos;

pub(crate) use files::{file_json, files_table};
pub(crate) use jobs::{
    job_details, job_json, job_line, jobs_table, scrub_json, scrub_line, targets, unix_seconds,
};
pub(crate) use node::{status_json, status_text};
pub(crate) use silos::{silo_json, silos_table};

/// A name of the protocol in lower case, without what all of its kind begin with.
fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase()
}
