//! Removing the temporary files of uploads that never ended.
//!
//! Other nodes may be writing to the same directory, and so may this process. Removed is only what
//! an earlier process of this node left: the tags on the file are those in its name, the caller
//! knows them as its own, and the name was not made by this process. A file whose tags are not
//! those in its name may hold what an exchange took out: it is somebody's.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use extent::Result;

use super::listing::gone;
use super::stat::{self, Stat, failed};
use super::{name, sys};
use crate::blocking::blocking;
use crate::{IsOurs, clock};

/// What others left is reported once nobody changed it for this long. Nothing is removed for its
/// age.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Walks the whole tree and returns how many files were removed. The walk ends soon after the
/// caller gives up.
///
/// # Errors
/// What the file system says, except about what cannot be reached or is gone meanwhile.
pub(super) async fn remove(root: Arc<File>, is_ours: IsOurs) -> Result<u64> {
    let given_up = GivenUp(Arc::default());
    let mut sweep = Sweep { root, is_ours, given_up: Arc::clone(&given_up.0), removed: 0 };
    blocking(move || sweep.directory("").map(|()| sweep.removed)).await
}

/// Tells the walk when nobody waits for it any more.
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Sweep {
    root: Arc<File>,
    is_ours: IsOurs,
    given_up: Arc<AtomicBool>,
    removed: u64,
}

impl Sweep {
    fn directory(&mut self, path: &str) -> Result<()> {
        let shown = if path.is_empty() { "." } else { path };
        let directory = match sys::open_beneath(&self.root, shown, libc::O_DIRECTORY) {
            Err(e) if gone(&e) && !path.is_empty() => return Ok(()),
            opened => opened.map_err(|e| failed(shown, e))?,
        };
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))
            .map_err(|e| failed(shown, e))?;
        for entry in entries {
            if self.given_up.load(Ordering::Relaxed) {
                break;
            }
            let entry = entry.map_err(|e| failed(shown, e))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let below = if path.is_empty() { name } else { format!("{path}/{name}") };
                self.directory(&below)?;
            } else if name::is_part(&name) {
                self.part(&directory, shown, &name)?;
            }
        }
        Ok(())
    }

    /// Removes one temporary file, if it is clearly ours and of the past.
    fn part(&mut self, directory: &File, shown: &str, name: &str) -> Result<()> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let file = match sys::open_beneath(directory, name, flags) {
            Err(e) if gone(&e) => return Ok(()),
            opened => opened.map_err(|e| failed(name, e))?,
        };
        match stat::tags(&file).filter(|tags| name.starts_with(&name::part_stem(*tags))) {
            Some(tags) if name::is_of_this_process(name, tags) => {}
            Some(tags) if (self.is_ours)(tags) => match sys::unlink(directory, name) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(name, e)),
                _ => {
                    tracing::debug!(directory = shown, name, "removed an unfinished upload");
                    self.removed += 1;
                }
            },
            _ if is_abandoned(&file, name) => {
                tracing::warn!(
                    directory = shown,
                    name,
                    "not clearly ours, and unchanged for a day: if no node is writing it, look \
                     whether it holds anything of worth, and remove it by hand"
                );
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_abandoned(file: &File, name: &str) -> bool {
    let age = |stat: Stat| clock::now().duration_since(stat.changed()).unwrap_or_default();
    Stat::of(file, name).is_ok_and(|stat| age(stat) > ABANDONED)
}
