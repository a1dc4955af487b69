use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use extent::{Error, Kind, Result};

/// A UNIX socket that listens, and its file. The file is removed on drop, unless somebody else has
/// put another in its place, and before the socket is closed: nobody ever finds it dead.
#[derive(Debug)]
pub(crate) struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    identity: Identity,
}

/// What tells a file from one that was put in its place: inodes alone are used again at once.
type Identity = (u64, u64, i64, i64);

impl SocketFile {
    /// Binds a nonblocking listener to `path`. A socket that nobody listens on any more is
    /// replaced.
    ///
    /// # Errors
    /// [`Kind::Busy`] if a living process listens there; [`Kind::Invalid`] if something else than a
    /// socket is there, or the path is too long; [`Kind::Denied`] without the rights; [`Kind::Io`]
    /// otherwise.
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            other => other,
        };
        let prepare = |listener: UnixListener| {
            listener.set_nonblocking(true)?;
            Ok(Self { listener, path: path.into(), identity: identity(path)? })
        };
        listener.and_then(prepare).map_err(|error| refused(path, error))
    }

    /// The socket.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a socket file is left behind");
        }
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.file_type().is_socket() {
        return Err(ErrorKind::InvalidInput.into());
    }
    Ok((metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

fn remove_stale(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path).map_err(|error| refused(path, error))?;
    if !metadata.file_type().is_socket() {
        return Err(Kind::Invalid
            .error(format!("{} exists and is no socket: use another path", path.display())));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| refused(path, error))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(refused(path, error)),
        // Whatever else it says, somebody is there to say it.
        _ => Err(Kind::Busy.error(format!(
            "a living process listens on {}: stop it, or use another path",
            path.display()
        ))),
    }
}

fn refused(path: &Path, error: io::Error) -> Error {
    let doing = format!("listening on {}", path.display());
    match error.kind() {
        ErrorKind::PermissionDenied => {
            Kind::Denied.error(format!("{doing}: no rights to that directory")).caused_by(error)
        }
        ErrorKind::NotFound => {
            Kind::Invalid.error(format!("{doing}: make its directory first")).caused_by(error)
        }
        ErrorKind::InvalidInput => {
            Kind::Invalid.error(format!("{doing}: 107 bytes are the longest path")).caused_by(error)
        }
        _ => Error::io(doing, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_living_process_is_respected_and_a_dead_ones_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.sock");
        let alive = UnixListener::bind(&path).expect("free");
        assert_eq!(SocketFile::bind(&path).expect_err("alive").kind(), Kind::Busy);
        // What a process that was killed leaves behind.
        drop(alive);
        assert!(path.exists());
        let socket = SocketFile::bind(&path).expect("stale");
        UnixStream::connect(&path).expect("listening");
        assert_eq!(SocketFile::bind(&path).expect_err("alive").kind(), Kind::Busy);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn what_somebody_else_put_there_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.sock");
        let socket = SocketFile::bind(&path).expect("free");
        fs::remove_file(&path).expect("there");
        fs::write(&path, "precious").expect("written");
        drop(socket);
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }

    #[test]
    fn paths_that_cannot_be_used_are_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let kind = |path: &Path| SocketFile::bind(path).expect_err("refused").kind();
        let file = directory.path().join("file");
        fs::write(&file, "precious").expect("written");
        assert_eq!(kind(&file), Kind::Invalid);
        assert_eq!(fs::read(&file).expect("still there"), b"precious");
        assert_eq!(kind(&directory.path().join("none/node.sock")), Kind::Invalid);
        assert_eq!(kind(&directory.path().join("x".repeat(120))), Kind::Invalid);
    }
}
