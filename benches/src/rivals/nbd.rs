//! NBD servers, which export a file as a block device over TCP.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use extent::Result;

use crate::process::{self, Running};
use crate::verdict::Setback;

/// A way to serve a file over NBD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Server {
    /// nbdkit's file plugin. Told not to keep what it read in the page cache, since the others
    /// read from the device too.
    Nbdkit,
    /// qemu-nbd with direct I/O, by io_uring.
    QemuUring,
    /// qemu-nbd with direct I/O, by Linux' native asynchronous I/O.
    QemuNative,
}

impl Server {
    /// Every server.
    pub const ALL: [Self; 3] = [Self::Nbdkit, Self::QemuUring, Self::QemuNative];

    /// What a report calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit file cache=none",
            Self::QemuUring => "qemu-nbd cache=none aio=io_uring",
            Self::QemuNative => "qemu-nbd cache=none aio=native",
        }
    }

    /// Where it is.
    ///
    /// # Errors
    /// [`Setback::Skipped`] if it is not installed.
    pub fn find(self) -> Result<PathBuf, Setback> {
        match self {
            Self::Nbdkit => process::find("nbdkit", "nbdkit"),
            Self::QemuUring | Self::QemuNative => process::find("qemu-nbd", "qemu-utils"),
        }
    }

    /// Serves a file, read-only, until the result is dropped.
    ///
    /// # Errors
    /// [`extent::Kind::Io`] if it does not start.
    pub fn serve(self, program: &Path, file: &Path, directory: &Path) -> Result<Export> {
        let address = process::free_address()?;
        let mut command = process::command(program, self.arguments(file, address));
        let log = directory.join("nbd.log");
        let mut running = Running::start(&mut command, &log, Duration::from_secs(5))?;
        running.wait_for_port(address, Duration::from_secs(10))?;
        Ok(Export { server: self, uri: format!("nbd://{address}"), _running: running })
    }

    fn arguments(self, file: &Path, address: SocketAddr) -> Vec<String> {
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let file = file.display().to_string();
        let words: Vec<&str> = match self {
            Self::Nbdkit => vec!["--foreground", "--readonly", "--ipaddr", &host, "--port", &port],
            Self::QemuUring | Self::QemuNative => vec![
                "--read-only",
                "--persistent",
                "--format=raw",
                "--cache=none",
                "--bind",
                &host,
                "--port",
                &port,
            ],
        };
        let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        match self {
            Self::Nbdkit => words.extend([
                "file".to_owned(),
                format!("file={file}"),
                "cache=none".to_owned(),
                "fadvise=random".to_owned(),
            ]),
            Self::QemuUring => words.extend(["--aio=io_uring".to_owned(), file]),
            Self::QemuNative => words.extend(["--aio=native".to_owned(), file]),
        }
        words
    }
}

/// A file that is being served.
pub struct Export {
    /// By whom.
    pub server: Server,
    /// Where.
    pub uri: String,
    _running: Running,
}
