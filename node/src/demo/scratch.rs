//! What the demo makes on this machine, and its end: a temporary directory and a node's process,
//! both gone afterwards, however the demo ends.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use extent::{Error, Kind, Result};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::clock;
use crate::system;

/// How long a node may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PAUSE: Duration = Duration::from_millis(10);

/// A place for the demo. Clones share it; whoever holds a [`Guard`] takes everything away.
#[derive(Clone, Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    inner: Arc<Mutex<Inner>>,
}

/// Takes everything away at its end, also if that is a panic.
pub(super) struct Guard<'a>(pub(super) &'a Scratch);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().clear();
    }
}

#[derive(Debug)]
struct Inner {
    /// `None` once everything was taken away: nothing new begins then.
    directory: Option<TempDir>,
    node: Option<Child>,
    interrupted: bool,
}

impl Inner {
    fn clear(&mut self) {
        self.end_node();
        self.directory.take();
    }

    fn end_node(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

impl Scratch {
    /// A fresh directory below `parent`, or below the system's temporary directory.
    ///
    /// # Errors
    /// [`Kind::Io`] if it cannot be made.
    pub(super) fn new(parent: Option<&Path>) -> Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let directory = tempfile::Builder::new()
            .prefix("forebay-demo-")
            .tempdir_in(&parent)
            .map_err(|e| Error::io(format!("making a directory in {}", parent.display()), e))?;
        let path = directory.path().to_owned();
        let inner = Inner { directory: Some(directory), node: None, interrupted: false };
        Ok(Self { path, inner: Arc::new(Mutex::new(inner)) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a node's process, which ends with this, and returns its standard output.
    ///
    /// # Errors
    /// [`Kind::Fenced`] if everything was taken away; [`Kind::Io`] if it does not start.
    pub(super) fn spawn(&self, mut command: Command) -> Result<Option<ChildStdout>> {
        // The lock is held so that a signal's handler finds the process, or keeps it from starting.
        let mut inner = self.inner.lock();
        if inner.directory.is_none() {
            return Err(Kind::Fenced.error("the demo is being stopped"));
        }
        let mut child = command.spawn().map_err(|e| Error::io("starting the node", e))?;
        let stdout = child.stdout.take();
        inner.node = Some(child);
        Ok(stdout)
    }

    /// Asks the node's process to stop and waits until it has; `None` if there is none.
    ///
    /// # Errors
    /// [`Kind::Disconnected`] if it had to be killed.
    pub(super) fn stop_node(&self) -> Result<Option<ExitStatus>> {
        let begin = clock::now();
        let mut asked = false;
        loop {
            let mut inner = self.inner.lock();
            let Some(node) = inner.node.as_mut() else { return Ok(None) };
            if !asked {
                system::terminate(node.id());
                asked = true;
            }
            let ended = node.try_wait().map_err(|e| Error::io("waiting for the node's end", e))?;
            if let Some(status) = ended {
                inner.node = None;
                return Ok(Some(status));
            }
            if begin.elapsed() > STOP_PATIENCE {
                inner.end_node();
                return Err(Kind::Disconnected.error("the node did not stop and was killed"));
            }
            drop(inner);
            thread::sleep(STOP_PAUSE);
        }
    }

    /// Takes everything away now; for a signal's handler thread, which then ends the process.
    pub(super) fn interrupt(&self) {
        let mut inner = self.inner.lock();
        inner.interrupted = true;
        inner.clear();
    }

    /// Never returns if a signal has come: its handler ends the process, and what fails because
    /// everything is gone is not worth telling.
    pub(super) fn yield_to_interrupt(&self) {
        if self.inner.lock().interrupted {
            loop {
                thread::park();
            }
        }
    }

    /// Takes everything away now, and says if something would not go.
    ///
    /// # Errors
    /// [`Kind::Io`] if the directory could not be removed.
    pub(super) fn close(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.end_node();
        match inner.directory.take() {
            Some(directory) => directory
                .close()
                .map_err(|e| Error::io(format!("removing {}", self.path.display()), e)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_behind() {
        let scratch = Scratch::new(None).expect("a place");
        let path = scratch.path().to_owned();
        std::fs::write(path.join("file"), b"x").expect("written");
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("600");
            command
        };
        scratch.spawn(sleep()).expect("started");
        let pid = scratch.inner.lock().node.as_ref().expect("kept").id();
        scratch.clone().interrupt();
        assert!(!path.exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "killed and waited for");
        assert_eq!(scratch.spawn(sleep()).expect_err("over").kind(), Kind::Fenced);
        assert_eq!(scratch.stop_node().expect("nothing to do"), None);
    }

    #[test]
    fn a_guard_takes_everything_away() {
        let scratch = Scratch::new(None).expect("a place");
        let path = scratch.path().to_owned();
        drop(Guard(&scratch));
        assert!(!path.exists());
    }
}
