//! Walking a tree in the byte order of keys, from a place onwards.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use extent::Result;

use super::stat::{Stat, failed};
use super::{name, sys};
use crate::{ObjectMeta, Page};

/// What a page is made of.
pub(super) struct Walk<'a> {
    root: &'a File,
    prefix: &'a str,
    after: &'a str,
    limit: usize,
    found: Vec<ObjectMeta>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(root: &'a File, prefix: &'a str, after: &'a str, limit: usize) -> Self {
        Self { root, prefix, after, limit: limit.max(1), found: Vec::new() }
    }

    /// The page: one object more than asked for tells whether there is another.
    pub(super) fn page(mut self) -> Result<Page> {
        let start = self.prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
        let start = if start.is_empty() { String::new() } else { format!("{start}/") };
        if start.is_empty() || name::check(start.trim_end_matches('/')).is_ok() {
            self.directory(&start)?;
        }
        let more = self.found.len() > self.limit;
        self.found.truncate(self.limit);
        let next = self.found.last().filter(|_| more).map(|last| last.key.clone());
        Ok(Page { objects: self.found, next })
    }

    /// Walks what lies under `path`, which is empty or ends in a slash.
    fn directory(&mut self, path: &str) -> Result<()> {
        for name in self.names(path)? {
            if self.found.len() > self.limit {
                break;
            }
            let key = format!("{path}{name}");
            if key.ends_with('/') {
                self.directory(&key)?;
            } else {
                self.file(key)?;
            }
        }
        Ok(())
    }

    /// The names in a directory that the page may need, sorted. Those of directories end in a
    /// slash, and sort as the keys beneath them do.
    fn names(&self, path: &str) -> Result<Vec<String>> {
        let beneath = if path.is_empty() { "." } else { path.trim_end_matches('/') };
        let directory = match sys::open_beneath(self.root, beneath, libc::O_DIRECTORY) {
            Ok(directory) => directory,
            Err(e) if gone(&e) => return Ok(Vec::new()),
            Err(e) => return Err(failed(beneath, e)),
        };
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))
            .map_err(|e| failed(beneath, e))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| failed(beneath, e))?;
            let Ok(mut name) = entry.file_name().into_string() else {
                tracing::warn!(directory = beneath, name = ?entry.file_name(), "not UTF-8: left out");
                continue;
            };
            let kind = entry.file_type().map_err(|e| failed(beneath, e))?;
            if kind.is_dir() {
                name.push('/');
            } else if name::is_part(&name) || !(kind.is_file() || kind.is_symlink()) {
                continue;
            }
            let key = format!("{path}{name}");
            if !name::usable(&key) {
                tracing::warn!(key = ?key, "too long or with control characters: left out");
            } else if self.wants(&key) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Whether a key, or anything beneath it if it ends in a slash, can be in the page.
    fn wants(&self, key: &str) -> bool {
        if key.ends_with('/') {
            let in_prefix = key.starts_with(self.prefix) || self.prefix.starts_with(key);
            in_prefix && (key > self.after || self.after.starts_with(key))
        } else {
            key.starts_with(self.prefix) && key > self.after
        }
    }

    fn file(&mut self, key: String) -> Result<()> {
        let file = match sys::open_beneath(self.root, &key, libc::O_PATH) {
            Ok(file) => file,
            Err(e) if gone(&e) => return Ok(()),
            Err(e) => return Err(failed(&key, e)),
        };
        // Links to directories and to devices are no files; a file may be gone by now.
        if let Ok(stat) = Stat::of(&file, &key) {
            self.found.push(ObjectMeta {
                key,
                length: stat.length(),
                version: stat.version(),
                modified: stat.modified(),
                tags: None,
            });
        }
        Ok(())
    }
}

/// Whether there is nothing to be listed: removed since, or a link that leads outside.
pub(super) fn gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::EXDEV | libc::ELOOP | libc::EACCES)
    )
}
