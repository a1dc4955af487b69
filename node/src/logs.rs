//! Where the log goes.

use std::io::{self, IsTerminal};

use extent::{Kind, Result};
use tracing_subscriber::EnvFilter;

/// The variable that says what to log, such as `debug` or `info,forebay_rdma=trace`.
const FILTER: &str = "FOREBAY_LOG";

/// Logs to standard error from now on.
///
/// # Errors
/// [`Kind::Invalid`] if the filter of the environment is none.
pub(crate) fn start(verbose: u8, quiet: &str, json: bool) -> Result<()> {
    let level = match verbose {
        0 => quiet,
        1 => "info,forebay=debug",
        _ => "debug",
    };
    let text = std::env::var(FILTER).ok().filter(|text| !text.is_empty());
    let filter = EnvFilter::try_new(text.as_deref().unwrap_or(level))
        .map_err(|e| Kind::Invalid.error(format!("{FILTER} is not a log filter")).caused_by(e))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose > 0);
    let started = if json { builder.json().try_init() } else { builder.compact().try_init() };
    started.map_err(|e| Kind::Invalid.error("starting the log").caused_by(e))
}
