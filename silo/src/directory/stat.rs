//! What a file looks like, and what that says about its version.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::{Duration, SystemTime};

use extent::{Attempt, Error, FileId, Kind, Result, SourceVersion};

use super::sys;
use crate::UploadTags;

const FILE: &std::ffi::CStr = c"user.forebay.file";
const ATTEMPT: &std::ffi::CStr = c"user.forebay.attempt";
const OVER: &std::ffi::CStr = c"user.forebay.over";
/// What the file looked like when all of it was written: attributes stay when others write to it.
const WRITTEN: &std::ffi::CStr = c"user.forebay.written";

/// A regular file at one moment.
#[derive(Clone, Debug)]
pub(super) struct Stat(Metadata);

impl Stat {
    /// Asks an open file. On a network file system, opening is what brings its attributes up to
    /// date: ask a file that was just opened.
    pub(super) fn of(file: &File, key: &str) -> Result<Self> {
        let stat = file.metadata().map_err(|e| failed(key, e))?;
        if stat.file_type().is_dir() {
            return Err(Kind::NotFound.error(format!("{key} is a directory")));
        }
        if stat.file_type().is_symlink() {
            return Err(Kind::Unsupported.error(format!(
                "{key} is a symbolic link, which is never replaced: write to what it points to"
            )));
        }
        if !stat.file_type().is_file() {
            let what = if stat.file_type().is_fifo() { "a pipe" } else { "no regular file" };
            return Err(Kind::Unsupported.error(format!("{key} is {what}")));
        }
        Ok(Self(stat))
    }

    pub(super) fn length(&self) -> u64 {
        self.0.len()
    }

    /// Whether it lost its last name since it was opened.
    pub(super) fn is_removed(&self) -> bool {
        self.0.nlink() == 0
    }

    pub(super) fn permissions(&self) -> std::fs::Permissions {
        self.0.permissions()
    }

    /// Size, time of modification, time of change, and inode.
    pub(super) fn version(&self) -> SourceVersion {
        let s = &self.0;
        let text = format!(
            "{}-{}.{:09}-{}.{:09}-{}",
            s.size(),
            s.mtime(),
            s.mtime_nsec(),
            s.ctime(),
            s.ctime_nsec(),
            s.ino()
        );
        SourceVersion::new(text).expect("six numbers are short")
    }

    /// What changes whenever the bytes do, but for names and attributes.
    fn bytes(&self) -> String {
        let s = &self.0;
        format!("{}-{}.{:09}-{}", s.size(), s.mtime(), s.mtime_nsec(), s.ino())
    }

    /// Whether nothing but names and attributes changed between the two: renaming a file moves
    /// its time of change, not that of its modification.
    pub(super) fn same_bytes(&self, other: &Self) -> bool {
        let key = |s: &Metadata| (s.dev(), s.ino(), s.size(), s.mtime(), s.mtime_nsec());
        key(&self.0) == key(&other.0)
    }

    pub(super) fn same_file(&self, other: &Self) -> bool {
        (self.0.dev(), self.0.ino()) == (other.0.dev(), other.0.ino())
    }

    pub(super) fn modified(&self) -> Option<SystemTime> {
        self.0.modified().ok()
    }

    /// When the file was last changed in any way. Unlike the time of modification, nobody can
    /// set it.
    pub(super) fn changed(&self) -> SystemTime {
        let seconds = u64::try_from(self.0.ctime()).unwrap_or(0);
        let nanos = u32::try_from(self.0.ctime_nsec()).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
    }
}

/// The tags that an upload of ours left on the file.
pub(super) fn tags(file: &File) -> Option<UploadTags> {
    let id = u128::from_str_radix(&sys::attribute(file, FILE)?, 16).ok()?;
    let attempt = sys::attribute(file, ATTEMPT)?.parse().ok()?;
    let over = u64::from_str_radix(&sys::attribute(file, OVER)?, 16).ok()?;
    Some(UploadTags { file: FileId(id), attempt: Attempt(attempt), over })
}

/// The same if nobody has written to the file since that upload was whole: else it is no upload of ours.
pub(super) fn tags_of_whole(file: &File, stat: &Stat) -> Option<UploadTags> {
    let is_untouched = sys::attribute(file, WRITTEN)? == stat.bytes();
    tags(file).filter(|_| is_untouched)
}

/// Puts tags on a file. A file system without user attributes keeps none, and an upload is then
/// not recognised as ours later.
pub(super) fn set_tags(file: &File, tags: UploadTags) -> io::Result<()> {
    let set = sys::set_attribute(file, FILE, &tags.file.to_string())
        .and_then(|()| sys::set_attribute(file, ATTEMPT, &tags.attempt.to_string()))
        .and_then(|()| sys::set_attribute(file, OVER, &format!("{:016x}", tags.over)));
    kept_or_not(set)
}

/// Takes note on a file that all of it is written, and of what it looks like then.
pub(super) fn set_written(file: &File, stat: &Stat) -> io::Result<()> {
    kept_or_not(sys::set_attribute(file, WRITTEN, &stat.bytes()))
}

fn kept_or_not(set: io::Result<()>) -> io::Result<()> {
    let unsupported = |e: &io::Error| {
        matches!(e.raw_os_error(), Some(libc::ENOTSUP | libc::ENOSYS | libc::EPERM | libc::EACCES))
    };
    match set {
        Err(e) if unsupported(&e) => {
            tracing::debug!(error = %e, "the file system keeps no user attributes");
            Ok(())
        }
        done => done,
    }
}

/// The error of a failed system call on the file of `key`.
pub(super) fn failed(key: &str, error: io::Error) -> Error {
    let (kind, advice) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => (Kind::NotFound, "there is no such file"),
        Some(libc::EXDEV | libc::ELOOP) => {
            (Kind::Denied, "it leads outside of the silo, or through symbolic links in a circle")
        }
        Some(libc::EACCES | libc::EPERM) => (Kind::Denied, "let the node's user have the file"),
        Some(libc::EROFS) => (Kind::Denied, "the file system is mounted read-only"),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
            (Kind::NoSpace, "the file system is full, or a quota or size limit is reached")
        }
        Some(libc::ENAMETOOLONG | libc::EINVAL) => {
            (Kind::Invalid, "the file system cannot hold such a name or file")
        }
        Some(libc::EISDIR) => (Kind::Invalid, "it is a directory"),
        _ => (Kind::Io, "look at the file system and its mount"),
    };
    kind.error(format!("{key}: {advice}")).caused_by(error)
}
