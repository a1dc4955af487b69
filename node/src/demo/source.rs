//! Real files to show things with.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use extent::{Error, FileName, Kind, Result};

use crate::units;

/// More than this many files make the demo long without showing more.
const MAX_FILES: usize = 4000;
const MAX_DEPTH: usize = 12;

/// Some files of a directory that is only read.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) directory: PathBuf,
    pub(super) files: Vec<SourceFile>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SourceFile {
    /// Its path below the directory, which is its key in the silo.
    pub(super) key: String,
    /// Its bytes when it was looked at.
    pub(super) length: u64,
}

impl Source {
    /// The files of `directory`, or of the first place that has some on any machine that has just
    /// built this, up to `limit` bytes.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there are none.
    pub(super) fn choose(directory: Option<&Path>, limit: u64) -> Result<Self> {
        if let Some(directory) = directory {
            let source = Self::collect(directory, limit)?;
            if source.files.is_empty() {
                return Err(Kind::NotFound.error(format!(
                    "{} holds no files that can be read, with bytes in them, of at most {}",
                    directory.display(),
                    units::bytes(limit)
                )));
            }
            return Ok(source);
        }
        for directory in usual_places() {
            match Self::collect(&directory, limit) {
                Ok(source) if !source.files.is_empty() => return Ok(source),
                Ok(_) | Err(_) => {}
            }
        }
        Err(Kind::NotFound.error(
            "found neither cargo's registry nor Rust's libraries to show things with: give a \
             directory of files, as in `forebay demo DIR`",
        ))
    }

    /// Bytes in all.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.length).sum()
    }

    fn collect(directory: &Path, limit: u64) -> Result<Self> {
        let directory = fs::canonicalize(directory)
            .map_err(|e| Error::io(format!("looking into {}", directory.display()), e))?;
        let mut found = Vec::new();
        walk(&directory, "", 0, &mut found)?;
        // The largest first: they show speed. The small ones that still fit show the rest.
        found.sort_by(|a, b| b.length.cmp(&a.length).then_with(|| a.key.cmp(&b.key)));
        let mut room = limit;
        let mut files = Vec::new();
        for file in found {
            if file.length <= room && files.len() < MAX_FILES {
                room -= file.length;
                files.push(file);
            }
        }
        Ok(Self { directory, files })
    }
}

/// Where files lie on a machine that builds Rust programs.
fn usual_places() -> Vec<PathBuf> {
    let from = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cargo = from("CARGO_HOME").or_else(|| from("HOME").map(|home| home.join(".cargo")));
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(cargo) = cargo {
        places.extend([cargo.join("registry/cache"), cargo.join("registry/src")]);
    }
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    if let Ok(printed) = sysroot {
        let root = String::from_utf8_lossy(&printed.stdout);
        places.push(Path::new(root.trim()).join("lib/rustlib"));
    }
    places.retain(|place| place.is_dir());
    places
}

/// Every plain file below `directory` that this user may read and a silo can name. Links are not
/// followed: they might lead out.
fn walk(directory: &Path, prefix: &str, depth: usize, found: &mut Vec<SourceFile>) -> Result<()> {
    let context = || format!("listing {}", directory.display());
    for entry in fs::read_dir(directory).map_err(|e| Error::io(context(), e))? {
        let entry = entry.map_err(|e| Error::io(context(), e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        let key = format!("{prefix}{name}");
        if metadata.is_dir() && depth < MAX_DEPTH {
            // A directory that may not be read holds nothing to show.
            let _ = walk(&entry.path(), &format!("{key}/"), depth + 1, found);
        } else if metadata.is_file()
            && metadata.len() > 0
            && FileName::new("x", key.as_str()).is_ok()
            && fs::File::open(entry.path()).is_ok()
        {
            found.push(SourceFile { key, length: metadata.len() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_bounded_and_largest_first() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("sub")).expect("made");
        for (name, length) in [("a", 10), ("sub/b", 30), ("c", 100), ("empty", 0)] {
            fs::write(directory.path().join(name), vec![1; length]).expect("written");
        }
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link")).expect("linked");
        let keys = |limit| {
            let source = Source::choose(Some(directory.path()), limit).expect("files");
            source.files.into_iter().map(|file| file.key).collect::<Vec<_>>()
        };
        assert_eq!(keys(1000), ["c", "sub/b", "a"]);
        assert_eq!(keys(50), ["sub/b", "a"], "what is too large is left out");
        let error = Source::choose(Some(directory.path()), 5).expect_err("nothing fits");
        assert_eq!(error.kind(), Kind::NotFound);
    }
}
