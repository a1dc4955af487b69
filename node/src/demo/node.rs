//! A node as a process of its own, so that a restart is a real one.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use extent::{Error, Kind, Result};
use serde::Deserialize;

use super::scratch::Scratch;
use crate::system;

/// What a node prints when it is ready.
#[derive(Deserialize, Clone, Debug)]
pub(super) struct Ready {
    pub(super) listen: String,
    pub(super) control: String,
    pub(super) socket: PathBuf,
}

/// How the demo's node is started, each time.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) source: PathBuf,
    pub(super) outbox: PathBuf,
    pub(super) state: PathBuf,
    pub(super) tier_bytes: u64,
}

/// Starts the node and waits until it serves. The process belongs to `scratch` from its first
/// moment.
///
/// # Errors
/// The end of the node's log, if it does not come up.
pub(super) fn start(recipe: &Recipe, scratch: &Scratch) -> Result<Ready> {
    let log_path = scratch.path().join("node.log");
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|e| Error::io("opening the node's log", e))?;
    let program = std::env::current_exe().map_err(|e| Error::io("finding this program", e))?;
    let mut command = Command::new(program);
    command
        .args(["serve", "--json", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"])
        .args(["--metrics", "off"])
        .arg(format!("--tier-size={}", recipe.tier_bytes))
        .arg("--state-dir")
        .arg(&recipe.state)
        .arg(named("--silo=source=", &recipe.source))
        .arg(named("--silo=outbox=", &recipe.outbox))
        .env_remove("FOREBAY_CONFIG")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // Ctrl-C is for the demo, which stops the node itself.
        .process_group(0);
    system::die_with_parent(&mut command);
    let stdout = scratch.spawn(command)?.expect("asked for a pipe");
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .map_err(|e| Error::io("waiting for the node", e))?;
    serde_json::from_str(&line).map_err(|_| {
        Kind::Disconnected.error(format!("the node did not come up: {}", tail(&log_path)))
    })
}

/// Asks the node to stop and waits until it has.
///
/// # Errors
/// [`Kind::Disconnected`] if it ended badly.
pub(super) fn stop(scratch: &Scratch) -> Result<()> {
    let status = match scratch.stop_node()? {
        None => return Ok(()),
        Some(status) if status.success() => return Ok(()),
        Some(status) => status,
    };
    Err(Kind::Disconnected
        .error(format!("the node ended with {status}: {}", tail(&scratch.path().join("node.log")))))
}

fn named(option: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(option);
    text.push(path);
    text
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    if lines.is_empty() {
        return "it said nothing".to_owned();
    }
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}
