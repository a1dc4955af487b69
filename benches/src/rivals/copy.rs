//! `cp -r` and `sync -f`: how people bring a directory near today.

use std::fs;
use std::path::{Path, PathBuf};

use extent::{Error, Result};

use crate::verdict::Setback;
use crate::{clock, process};

/// cp and sync on a machine.
#[derive(Clone, Debug)]
pub struct Copy {
    cp: PathBuf,
    sync: PathBuf,
}

impl Copy {
    /// Both programs.
    ///
    /// # Errors
    /// [`Setback::Skipped`] if they are not there.
    pub fn find() -> Result<Self, Setback> {
        Ok(Self {
            cp: process::find("cp", "coreutils")?,
            sync: process::find("sync", "coreutils")?,
        })
    }

    /// Copies a tree, durably, and returns the seconds that took. The copy is removed afterwards.
    ///
    /// # Errors
    /// [`extent::Kind::Io`] if it fails.
    pub fn copy(&self, from: &Path, to: &Path) -> Result<f64> {
        remove(to)?;
        let begin = clock::now();
        process::run(&mut process::command(&self.cp, [Path::new("-r"), from, to]))?;
        process::run(&mut process::command(&self.sync, [Path::new("-f"), to]))?;
        let seconds = begin.elapsed().as_secs_f64();
        remove(to)?;
        Ok(seconds)
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
