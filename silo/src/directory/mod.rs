//! A directory, or a mounted file system: NFS, Lustre, a tape library's cache.
//!
//! Keys are paths relative to the root. Symbolic links are followed as long as they stay inside;
//! a file behind one is listed, a directory behind one is not walked.
//!
//! **Versions.** A file system has no versions, so size, times and inode stand in: they are
//! compared on the open file before and after every read, and bytes are only read once a file has
//! been quiet for [`Directory::QUIET`], because times are too coarse to show two changes at once.
//! A program that changes a file through a shared mapping, or sets the clock back, is not seen.
//!
//! **No cache of open files.** Opening is what makes a network file system look at its server
//! again, and costs little next to a read of megabytes.

mod leftovers;
mod listing;
mod name;
mod stat;
mod sys;
mod upload;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dma::Buffer;
use extent::{ByteRange, Error, Kind, Result, SourceVersion};
use tokio::sync::OwnedSemaphorePermit;

use crate::blocking::blocking;
use crate::limits::{Limits, Traffic};
use crate::settle::Settled;
use crate::{Capabilities, Condition, IsOurs, ObjectMeta, Page, Silo, Upload, UploadTags};
use listing::Walk;
use stat::{Stat, failed};
use upload::FileUpload;

/// A silo in a directory.
#[derive(Debug)]
pub struct Directory {
    root: Arc<File>,
    path: Arc<Path>,
    limits: Arc<Limits>,
    settled: Arc<Settled>,
    writable: bool,
}

impl Directory {
    /// How long a file must have been quiet before it is read. Two seconds is the coarsest clock
    /// of any file system in use.
    pub const QUIET: Duration = Duration::from_secs(2);

    /// Opens the directory at `root`, which stays the same one even if another is mounted over it: then what was
    /// adopted is read from it as before, and everything else is refused.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not there; [`Kind::Denied`] if it may not be read.
    pub fn open(root: &Path, limits: Arc<Limits>, writable: bool) -> Result<Self> {
        let shown = root.display().to_string();
        let opened = File::open(root).map_err(|e| failed(&shown, e))?;
        if !opened.metadata().map_err(|e| failed(&shown, e))?.is_dir() {
            return Err(Kind::Invalid.error(format!("{shown} is no directory")));
        }
        Ok(Self {
            root: Arc::new(opened),
            path: root.into(),
            limits,
            settled: Arc::new(Settled::new(Self::QUIET)),
            writable,
        })
    }

    /// The same with another quiet time. Less than a file system's clock ticks in risks that a
    /// change goes unnoticed.
    #[must_use]
    pub fn with_quiet(mut self, quiet: Duration) -> Self {
        self.settled = Arc::new(Settled::new(quiet));
        self
    }

    async fn sync_parent(&self, key: &str, permit: OwnedSemaphorePermit) -> Result<()> {
        let (root, key) = (Arc::clone(&self.root), key.to_owned());
        blocking(move || {
            let (parent, _) = name::split(&key);
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            let path = if parent.is_empty() { "." } else { parent };
            let directory = sys::open_beneath(&root, path, flags);
            let synced = directory.and_then(|directory| directory.sync_all());
            drop(permit);
            synced.map_err(|error| failed(&key, error))
        })
        .await
    }

    async fn try_head(&self, key: &str, permit: OwnedSemaphorePermit) -> Result<ObjectMeta> {
        let (root, path) = (Arc::clone(&self.root), Arc::clone(&self.path));
        let key = key.to_owned();
        blocking(move || {
            check_root(&root, &path)?;
            let file = open_file(&root, &key)?;
            let meta = meta(&file, key)?;
            drop(permit);
            Ok(meta)
        })
        .await
    }

    /// One attempt at a read, or how long to wait before one. The buffer stays with the thread
    /// until that is done with it, so an unresponsive file system cannot be timed out here: the
    /// concurrency cap bounds the harm.
    async fn try_read(
        &self,
        key: &str,
        version: &SourceVersion,
        range: ByteRange,
        mut buffer: Buffer,
    ) -> (Buffer, Result<Duration>) {
        let permit = self.limits.admit(Traffic::Read(range.length())).await;
        let (root, key, version) = (Arc::clone(&self.root), key.to_owned(), version.clone());
        let settled = Arc::clone(&self.settled);
        blocking(move || {
            let result = read(&root, &key, &version, range, &mut buffer, &settled);
            drop(permit);
            (buffer, result)
        })
        .await
    }
}

#[async_trait]
impl Silo for Directory {
    fn capabilities(&self) -> Capabilities {
        Capabilities { kind: "file", writable: self.writable, conditional: false }
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        name::check(key)?;
        self.limits.run(Traffic::Metadata, |permit| self.try_head(key, permit)).await
    }

    async fn persist(&self, key: &str) -> Result<()> {
        name::check(key)?;
        self.limits.run(Traffic::Metadata, |permit| self.sync_parent(key, permit)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        let attempt = |permit| {
            let (root, path) = (Arc::clone(&self.root), Arc::clone(&self.path));
            let (prefix, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
            blocking(move || {
                let page = check_root(&root, &path)
                    .and_then(|()| Walk::new(&root, &prefix, &after, limit).page());
                drop(permit);
                page
            })
        };
        self.limits.run(Traffic::Metadata, attempt).await
    }

    async fn read(
        &self,
        key: &str,
        version: &SourceVersion,
        range: ByteRange,
        mut buffer: Buffer,
    ) -> (Buffer, Result<()>) {
        let mut attempts = self.limits.attempts();
        if let Err(error) = name::check(key) {
            return (buffer, Err(error));
        }
        loop {
            let result;
            (buffer, result) = self.try_read(key, version, range, buffer).await;
            match result {
                Ok(Duration::ZERO) => {
                    self.limits.counters().count_read(range.length());
                    return (buffer, Ok(()));
                }
                Ok(left) => self.settled.wait(version, left).await,
                Err(error) => {
                    if let Err(error) = attempts.again(error).await {
                        return (buffer, Err(error));
                    }
                }
            }
        }
    }

    async fn upload(
        &self,
        key: &str,
        length: u64,
        condition: Condition,
        tags: UploadTags,
    ) -> Result<Box<dyn Upload>> {
        name::check(key)?;
        if !self.writable {
            return Err(Kind::Unsupported.error("the silo is read-only"));
        }
        let attempt = |permit| {
            let (root, path) = (Arc::clone(&self.root), Arc::clone(&self.path));
            let (key, limits) = (key.to_owned(), Arc::clone(&self.limits));
            let condition = condition.clone();
            blocking(move || {
                let upload = check_root(&root, &path)
                    .and_then(|()| FileUpload::start(&root, key, length, condition, tags, limits));
                drop(permit);
                upload
            })
        };
        let upload = self.limits.run(Traffic::Metadata, attempt).await?;
        Ok(Box::new(upload))
    }

    /// A hidden file that is not clearly ours, as on a file system without user attributes, is
    /// left and reported.
    async fn remove_leftovers(&self, is_ours: IsOurs) -> Result<u64> {
        leftovers::remove(Arc::clone(&self.root), is_ours).await
    }
}

/// Whether the silo's directory is still the one that was opened: what is written to one that is mounted nowhere any
/// more, or was removed, nobody finds again.
fn check_root(root: &File, path: &Path) -> Result<()> {
    let key = |stat: std::fs::Metadata| (stat.dev(), stat.ino());
    let shown = path.display();
    let opened = root.metadata().map(key).map_err(|e| failed(&shown.to_string(), e))?;
    let now = std::fs::metadata(path).map(key);
    if now.as_ref().is_ok_and(|now| *now == opened) {
        return Ok(());
    }
    // Not that it is not found: files of a silo that is away are not gone.
    let error = Kind::Denied.error(format!(
        "{shown} is not the directory that it was when the node started, as after a mount came or went: bring that \
         back, or restart the node"
    ));
    Err(match now {
        Ok(_) => error,
        Err(cause) => error.caused_by(cause),
    })
}

/// Opens a file for reading. Without `O_NONBLOCK` a pipe in its place would block for ever.
fn open_file(root: &File, key: &str) -> Result<File> {
    sys::open_beneath(root, key, libc::O_RDONLY | libc::O_NONBLOCK).map_err(|e| failed(key, e))
}

fn meta(file: &File, key: String) -> Result<ObjectMeta> {
    let stat = Stat::of(file, &key)?;
    Ok(ObjectMeta {
        key,
        length: stat.length(),
        version: stat.version(),
        modified: stat.modified(),
        tags: stat::tags_of_whole(file, &stat),
    })
}

fn changed(key: &str) -> Error {
    Kind::Stale.error(format!("{key} was changed: register it again to get its new version"))
}

/// Reads a range, unless the file has to be left alone for a while first: then returns how long.
fn read(
    root: &File,
    key: &str,
    version: &SourceVersion,
    range: ByteRange,
    buffer: &mut Buffer,
    settled: &Settled,
) -> Result<Duration> {
    let file = open_file(root, key)?;
    let room = usize::try_from(range.length()).ok();
    let Some(target) = room.and_then(|length| buffer.as_mut_slice().get_mut(..length)) else {
        return Err(Kind::Invalid.error(format!("{range} of {key} does not fit the buffer")));
    };
    let before = Stat::of(&file, key)?;
    if before.version() != *version {
        return Err(changed(key));
    }
    let left = settled.left(version, before.changed());
    if left.is_zero() {
        read_version(&file, key, version, range.offset(), target, || ())?;
    }
    Ok(left)
}

/// Reads all of `target` if the file is at `version` before and after. `midway` runs after the
/// bytes are read and before they are believed.
fn read_version(
    file: &File,
    key: &str,
    version: &SourceVersion,
    offset: u64,
    target: &mut [u8],
    midway: impl FnOnce(),
) -> Result<()> {
    let before = Stat::of(file, key)?;
    if before.version() != *version {
        return Err(changed(key));
    }
    let length = target.len() as u64;
    if offset.checked_add(length).is_none_or(|end| end > before.length()) {
        return Err(Kind::Invalid.error(format!(
            "{length} bytes at {offset} reach past the {} of {key}",
            before.length()
        )));
    }
    sys::advise(file, offset, length, libc::POSIX_FADV_SEQUENTIAL);
    let bytes = file.read_exact_at(target, offset);
    midway();
    let after = Stat::of(file, key)?;
    if after.version() != *version || after.is_removed() {
        return Err(changed(key));
    }
    // The tier is the cache: a file that is promoted must not push others out of memory.
    sys::advise(file, offset, length, libc::POSIX_FADV_DONTNEED);
    bytes.map_err(|e| failed(key, e))
}

#[cfg(test)]
mod tests;
