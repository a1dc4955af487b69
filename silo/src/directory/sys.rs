//! The system calls that the standard library has no words for.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;

/// Tries at a lookup that raced with a rename somewhere in the tree.
const LOOKUP_TRIES: u32 = 16;

/// Opens `path` under `root`, never leaving it: symbolic links are followed only as long as they
/// stay inside. Before Linux 5.6 none are followed at all.
pub(super) fn open_beneath(root: &File, path: &str, flags: i32) -> io::Result<File> {
    let c_path = c_string(path)?;
    for _ in 0..LOOKUP_TRIES {
        match open_at_2(root, &c_path, flags) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                return open_by_steps(root, path, flags);
            }
            opened => return opened,
        }
    }
    Err(io::Error::from_raw_os_error(libc::ESTALE))
}

fn open_at_2(root: &File, path: &CStr, flags: i32) -> io::Result<File> {
    // SAFETY: the structure is three integers, for which zero is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    if flags & libc::O_CREAT != 0 {
        how.mode = 0o644;
    }
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: both pointers are valid for the call, and the size is that of the structure.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    owned(i32::try_from(fd).unwrap_or(-1))
}

/// One component after the other, none of which may be a symbolic link.
fn open_by_steps(root: &File, path: &str, flags: i32) -> io::Result<File> {
    let mut at = root.try_clone()?;
    let mut rest = path;
    while let Some((directory, after)) = rest.split_once('/') {
        at = open_at(&at, directory, libc::O_PATH | libc::O_DIRECTORY)?;
        rest = after;
    }
    open_at(&at, rest, flags)
}

fn open_at(directory: &File, name: &str, flags: i32) -> io::Result<File> {
    let name = c_string(name)?;
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the name is valid for the call; the mode is used only with O_CREAT.
    owned(unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags, 0o644) })
}

/// Renames within a directory, with the flags of renameat2(2).
pub(super) fn rename(directory: &File, from: &str, to: &str, flags: u32) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let fd = directory.as_raw_fd();
    // SAFETY: both names are valid for the call.
    done(unsafe { libc::renameat2(fd, from.as_ptr(), fd, to.as_ptr(), flags) })
}

/// Gives a file a second name within its directory, unless that is taken.
pub(super) fn link(directory: &File, from: &str, to: &str) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let fd = directory.as_raw_fd();
    // SAFETY: both names are valid for the call.
    done(unsafe { libc::linkat(fd, from.as_ptr(), fd, to.as_ptr(), 0) })
}

/// Removes a name from a directory.
pub(super) fn unlink(directory: &File, name: &str) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: the name is valid for the call.
    done(unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) })
}

/// Makes a directory within a directory.
pub(super) fn make_directory(directory: &File, name: &str) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: the name is valid for the call.
    done(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), 0o777) })
}

/// Tells the page cache how a range will be used. It is advice: failure means nothing.
pub(super) fn advise(file: &File, offset: u64, length: u64, advice: i32) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
    // SAFETY: touches no memory.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, length, advice) };
}

/// Sets an extended attribute.
pub(super) fn set_attribute(file: &File, name: &CStr, value: &str) -> io::Result<()> {
    let (fd, name) = (file.as_raw_fd(), name.as_ptr());
    // SAFETY: name and value are valid for the call, and the length is that of the value.
    done(unsafe { libc::fsetxattr(fd, name, value.as_ptr().cast(), value.len(), 0) })
}

/// An extended attribute, if it is there and is short text.
pub(super) fn attribute(file: &File, name: &CStr) -> Option<String> {
    let mut value = [0u8; 128];
    let (fd, name) = (file.as_raw_fd(), name.as_ptr());
    // SAFETY: the buffer is valid for the call, and the length is its own.
    let read = unsafe { libc::fgetxattr(fd, name, value.as_mut_ptr().cast(), value.len()) };
    let value = value.get(..usize::try_from(read).ok()?)?;
    Some(std::str::from_utf8(value).ok()?.to_owned())
}

fn c_string(name: &str) -> io::Result<CString> {
    Ok(CString::new(OsStr::new(name).as_bytes())?)
}

fn done(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn owned(fd: i32) -> io::Result<File> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn stepping_follows_no_link_and_reaches_the_same_files() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(home.path().join("a/b")).expect("directories");
        std::fs::write(home.path().join("a/b/c"), b"x").expect("a file");
        symlink("b", home.path().join("a/inside")).expect("a link");
        symlink("/etc", home.path().join("a/outside")).expect("a link");
        let root = File::open(home.path()).expect("the directory");
        open_by_steps(&root, "a/b/c", libc::O_RDONLY).expect("a plain path");
        open_beneath(&root, "a/inside/c", libc::O_RDONLY).expect("a link that stays inside");
        for path in ["a/inside/c", "a/outside/passwd", "a/inside"] {
            open_by_steps(&root, path, libc::O_RDONLY).expect_err(path);
        }
        open_beneath(&root, "a/outside/passwd", libc::O_RDONLY).expect_err("leads outside");
    }

    #[test]
    fn linking_takes_no_name_that_is_taken() {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::write(home.path().join("a"), b"a").expect("a file");
        std::fs::write(home.path().join("b"), b"b").expect("a file");
        let root = File::open(home.path()).expect("the directory");
        let error = link(&root, "a", "b").expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        link(&root, "a", "c").expect("free");
        assert_eq!(std::fs::read(home.path().join("c")).expect("there"), b"a");
        assert_eq!(std::fs::read(home.path().join("b")).expect("there"), b"b");
    }
}
