//! What all cases share: where, how long, how large.

use std::path::{Path, PathBuf};

use extent::{Error, Result};

use crate::files;

/// How a comparison is run.
pub struct Setup {
    /// Where files go: rivals and we use the same file system.
    pub directory: PathBuf,
    /// The `forebay` binary; `None` when only rivals run.
    pub forebay: Option<PathBuf>,
    /// Seconds of each measured run.
    pub seconds: u64,
    /// Bytes of the file that is read, or of the tree that is promoted.
    pub size_bytes: u64,
    /// A tree to promote instead of a generated one.
    pub tree: Option<PathBuf>,
    /// Pairs.
    pub pairs: usize,
    /// Requests in flight instead of each case's own.
    pub depth: Option<usize>,
    /// Shards of the node instead of its own choice.
    pub shards: Option<usize>,
}

impl Setup {
    /// The silo's directory.
    #[must_use]
    pub fn silo(&self) -> PathBuf {
        self.directory.join("silo")
    }

    /// The file that reads go to, made on the first call, cold.
    ///
    /// # Errors
    /// [`extent::Kind::Io`], [`extent::Kind::NoSpace`].
    pub fn data_file(&self) -> Result<PathBuf> {
        let path = self.silo().join(Self::DATA_KEY);
        make_directory(&self.silo())?;
        let there = path.metadata().is_ok_and(|metadata| metadata.len() == self.size_bytes);
        if !there {
            files::write_random(&path, self.size_bytes, 7)?;
        }
        files::make_cold(&path)?;
        Ok(path)
    }

    /// The key of [`Setup::data_file`] in the silo.
    pub const DATA_KEY: &'static str = "data.bin";
}

/// Makes a directory and those above it.
///
/// # Errors
/// [`extent::Kind::Io`].
pub fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| Error::io(format!("making {}", path.display()), e))
}
