//! Writing a file beside its place and moving it there in one step.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use extent::{Kind, Result};

use super::stat::{self, Stat, failed};
use super::{changed, meta, name, sys};
use crate::blocking::blocking;
use crate::limits::{Limits, Traffic};
use crate::{Condition, ObjectMeta, Upload, UploadTags};

/// How often a file is flushed that looks otherwise each time.
const SYNCS: usize = 3;

/// A file on its way.
pub(super) struct FileUpload {
    draft: Option<Draft>,
    length: u64,
    written: u64,
    limits: Arc<Limits>,
}

impl FileUpload {
    pub(super) fn start(
        root: &File,
        key: String,
        length: u64,
        condition: Condition,
        tags: UploadTags,
        limits: Arc<Limits>,
    ) -> Result<Self> {
        let draft = Draft::start(root, key, condition, tags)?;
        Ok(Self { draft: Some(draft), length, written: 0, limits })
    }

    fn draft(&self) -> &Draft {
        self.draft.as_ref().expect("the draft is there until the upload ends")
    }
}

#[async_trait]
impl Upload for FileUpload {
    async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        if length > self.length - self.written {
            return Err(Kind::Invalid.error(format!(
                "more than the {} bytes that were announced for {}",
                self.length,
                self.draft().key
            )));
        }
        let offset = self.written;
        let attempt = |permit| {
            let (file, key) = (Arc::clone(&self.draft().file), self.draft().key.clone());
            let bytes = bytes.clone();
            blocking(move || {
                let written = file.write_all_at(&bytes, offset).map_err(|e| failed(&key, e));
                drop(permit);
                written
            })
        };
        self.limits.run(Traffic::Write(length), attempt).await?;
        self.limits.counters().count_written(length);
        self.written += length;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectMeta> {
        if self.written != self.length {
            return Err(Kind::Invalid.error(format!(
                "{} bytes for {}, and {} were announced",
                self.written,
                self.draft().key,
                self.length
            )));
        }
        let draft = self.draft.take().expect("an upload ends once");
        let permit = self.limits.admit(Traffic::Metadata).await;
        // A flush that failed must not be tried again as if it had worked: no retries.
        blocking(move || {
            let published = draft.publish();
            drop(permit);
            published
        })
        .await
    }

    async fn abort(mut self: Box<Self>) {
        if let Some(draft) = self.draft.take() {
            blocking(move || drop(draft)).await;
        }
    }
}

/// The temporary file. Dropping it removes it.
struct Draft {
    directory: File,
    file: Arc<File>,
    part: String,
    target: String,
    key: String,
    condition: Condition,
    keep_part: bool,
}

impl Draft {
    fn start(root: &File, key: String, condition: Condition, tags: UploadTags) -> Result<Self> {
        let (parent, target) = name::split(&key);
        let directory = open_or_make(root, parent).map_err(|e| failed(&key, e))?;
        let part = name::part(tags);
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let file = sys::open_beneath(&directory, &part, flags).map_err(|e| failed(&key, e))?;
        let target = target.to_owned();
        let file = Arc::new(file);
        let draft = Self { directory, file, part, target, key, condition, keep_part: false };
        stat::set_tags(&draft.file, tags).map_err(|e| failed(&draft.key, e))?;
        Ok(draft)
    }

    /// Durable data, then the name in one step, then the directory.
    fn publish(mut self) -> Result<ObjectMeta> {
        match self.condition.clone() {
            Condition::Absent => {
                self.sync()?;
                self.publish_new()?;
            }
            Condition::Version(version) => {
                let before = self.check(|stat| stat.version() == version)?;
                let permissions = self.file.set_permissions(before.permissions());
                permissions.map_err(|e| failed(&self.key, e))?;
                self.sync()?;
                // The flush may have taken long: look again.
                self.check(|stat| stat.version() == version)?;
                self.replace(&before)?;
            }
        }
        // Removing the temporary name touches the time of change, so it comes before the version
        // is taken.
        self.remove_part();
        self.directory.sync_all().map_err(|e| failed(&self.key, e))?;
        let length = self.file.metadata().map_or(0, |stat| stat.len());
        sys::advise(&self.file, 0, length, libc::POSIX_FADV_DONTNEED);
        meta(&self.file, self.key.clone())
    }

    /// Makes it durable, and that it is whole.
    fn sync(&self) -> Result<()> {
        let failed = |e| failed(&self.key, e);
        let mut before = Stat::of(&self.file, &self.key)?;
        for _ in 0..SYNCS {
            stat::set_written(&self.file, &before).map_err(failed)?;
            self.file.sync_all().map_err(failed)?;
            // A network file system's server has the last word on when the file was modified.
            let after = Stat::of(&self.file, &self.key)?;
            if after.same_bytes(&before) {
                return Ok(());
            }
            before = after;
        }
        // Then this upload is not recognised as ours, should its answer get lost.
        Ok(())
    }

    /// Never overwrites: neither way of naming the file works if the name is taken.
    fn publish_new(&mut self) -> Result<()> {
        let (directory, part) = (&self.directory, &self.part);
        let named = match sys::rename(directory, part, &self.target, libc::RENAME_NOREPLACE) {
            Ok(()) => {
                self.keep_part = true;
                Ok(())
            }
            Err(e) if unsupported(&e) => sys::link(directory, part, &self.target),
            Err(e) => Err(e),
        };
        named.map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST) => Kind::Stale
                .error(format!("somebody else wrote {} meanwhile: it is left as it is", self.key)),
            Some(libc::EPERM | libc::ENOTSUP | libc::ENOSYS) => Kind::Unsupported
                .error(format!(
                    "{}: the file system can neither link nor rename without overwriting",
                    self.key
                ))
                .caused_by(e),
            _ => failed(&self.key, e),
        })
    }

    /// Exchanges the two files, so that what was replaced can still be looked at, and exchanged
    /// back if it is not the version that was to be replaced. A file system that cannot exchange,
    /// NFS among them, leaves a window between the last look and the rename.
    fn replace(&mut self, before: &Stat) -> Result<()> {
        match sys::rename(&self.directory, &self.part, &self.target, libc::RENAME_EXCHANGE) {
            Ok(()) => {}
            Err(e) if unsupported(&e) => {
                sys::rename(&self.directory, &self.part, &self.target, 0)
                    .map_err(|e| failed(&self.key, e))?;
                self.keep_part = true;
                return Ok(());
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Err(changed(&self.key)),
            Err(e) => return Err(failed(&self.key, e)),
        }
        let replaced = self.stat_at(&self.part);
        if replaced.as_ref().is_ok_and(|replaced| replaced.same_bytes(before)) {
            return Ok(());
        }
        self.put_back()?;
        Err(changed(&self.key))
    }

    /// Undoes an exchange that took out somebody else's file. If a third file has taken the place
    /// of ours by then, that one is the newest and goes back where it was.
    fn put_back(&mut self) -> Result<()> {
        self.keep_part = true;
        let ours = Stat::of(&self.file, &self.key)?;
        for _ in 0..2 {
            sys::rename(&self.directory, &self.part, &self.target, libc::RENAME_EXCHANGE).map_err(
                |e| failed(&self.key, e).while_doing(format!("leaving a file in {}", self.part)),
            )?;
            if self.stat_at(&self.part)?.same_file(&ours) {
                self.keep_part = false;
                return Ok(());
            }
        }
        // The third file is in place; the one in the hidden name was replaced by its owner.
        self.keep_part = false;
        Ok(())
    }

    /// The file in the target's place, if it passes.
    fn check(&self, passes: impl FnOnce(&Stat) -> bool) -> Result<Stat> {
        match self.stat_at(&self.target) {
            Ok(stat) if passes(&stat) => Ok(stat),
            Ok(_) => Err(changed(&self.key)),
            Err(error) if error.kind() == Kind::NotFound => Err(changed(&self.key)),
            Err(error) => Err(error),
        }
    }

    fn stat_at(&self, name: &str) -> Result<Stat> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let file = sys::open_beneath(&self.directory, name, flags);
        Stat::of(&file.map_err(|e| failed(&self.key, e))?, &self.key)
    }

    fn remove_part(&mut self) {
        if !self.keep_part {
            self.keep_part = true;
            if let Err(error) = sys::unlink(&self.directory, &self.part) {
                tracing::warn!(%error, name = self.part, "a temporary file stays behind");
            }
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.remove_part();
    }
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::ENOTSUP))
}

/// The directory of a new file, made durable as far as it had to be made.
fn open_or_make(root: &File, path: &str) -> io::Result<File> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    if !path.is_empty() {
        match sys::open_beneath(root, path, flags) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
    }
    let mut at = sys::open_beneath(root, ".", flags)?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        match sys::make_directory(&at, part) {
            Ok(()) => at.sync_all()?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        at = sys::open_beneath(&at, part, flags)?;
    }
    Ok(at)
}

#[cfg(test)]
pub(super) fn draft(
    root: &File,
    key: &str,
    condition: Condition,
    tags: UploadTags,
    bytes: &[u8],
) -> Result<TestDraft> {
    let draft = Draft::start(root, key.to_owned(), condition, tags)?;
    draft.file.write_all_at(bytes, 0).map_err(|e| failed(key, e))?;
    Ok(TestDraft(draft))
}

/// The single steps of replacing a file, for tests that do something in between.
#[cfg(test)]
pub(super) struct TestDraft(Draft);

#[cfg(test)]
impl TestDraft {
    pub(super) fn look(&self) -> Result<Stat> {
        self.0.check(|_| true)
    }

    pub(super) fn exchange(&mut self, before: &Stat) -> Result<()> {
        self.0.replace(before)
    }
}
