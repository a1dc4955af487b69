//! Programs that are started, watched and ended.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use extent::{Error, Kind, Result};

use crate::verdict::Setback;
use crate::{clock, sys};

const POLL_EVERY: Duration = Duration::from_millis(5);
const TAIL_BYTES: u64 = 2000;

/// A child that is ended when this is dropped.
pub struct Running {
    child: Child,
    name: String,
    log: PathBuf,
    patience: Duration,
}

impl Running {
    /// Starts a program whose output goes into a file. On drop it is asked to end, and killed when
    /// it has not after `patience`.
    ///
    /// # Errors
    /// [`Kind::Io`] if it cannot be started.
    pub fn start(command: &mut Command, log: &Path, patience: Duration) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let doing = || format!("starting {name}");
        let out = File::create(log).map_err(|e| Error::io(doing(), e))?;
        let err = out.try_clone().map_err(|e| Error::io(doing(), e))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|e| Error::io(doing(), e))?;
        Ok(Self { child, name, log: log.to_owned(), patience })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready`, which is asked every few milliseconds.
    ///
    /// # Errors
    /// [`Kind::Io`] with the end of its log if it ends before, or is not ready in time.
    pub fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = clock::now() + limit;
        while !ready() {
            let status = self.child.try_wait().map_err(|e| Error::io("watching a child", e))?;
            if let Some(status) = status {
                return Err(self.complain(&format!("ended with {status}")));
            }
            if clock::now() >= deadline {
                return Err(self.complain(&format!("was not ready within {limit:?}")));
            }
            thread::sleep(POLL_EVERY);
        }
        Ok(())
    }

    /// Waits until something accepts connections at an address.
    ///
    /// # Errors
    /// As [`Running::wait_until`].
    pub fn wait_for_port(&mut self, address: SocketAddr, limit: Duration) -> Result<()> {
        self.wait_until(limit, || TcpStream::connect(address).is_ok())
    }

    /// Processor time used so far, in seconds, of all its threads.
    ///
    /// # Errors
    /// [`Kind::Io`] if it is gone.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.pid());
        let text =
            fs::read_to_string(&path).map_err(|e| Error::io(format!("reading {path}"), e))?;
        let ticks = cpu_ticks(&text)
            .ok_or_else(|| Kind::Corrupt.error(format!("{path} is not as proc(5) says")))?;
        #[expect(clippy::cast_precision_loss, reason = "ticks of minutes are far below 2^52")]
        Ok(ticks as f64 / sys::ticks_per_second() as f64)
    }

    /// Asks it to end, and waits for that.
    ///
    /// # Errors
    /// [`Kind::Io`] if it had to be killed, or ended with an error.
    pub fn stop(mut self) -> Result<()> {
        match self.end() {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.complain(&format!("ended with {status}"))),
            None => Err(self.complain("did not end when asked to, and was killed")),
        }
    }

    fn end(&mut self) -> Option<std::process::ExitStatus> {
        sys::terminate(self.pid());
        let deadline = clock::now() + self.patience;
        while clock::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(POLL_EVERY);
        }
        // A child that is gone already needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }

    fn complain(&self, what: &str) -> Error {
        Kind::Io.error(format!("{} {what}; its log ends with: {}", self.name, tail(&self.log)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// [`Kind::Io`] with what it said on standard error if it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output: Output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::io(format!("starting {name}"), e))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
    Err(Kind::Io.error(format!("{name} failed with {}: {said}", output.status)))
}

/// Where a program is.
///
/// # Errors
/// [`Setback::Skipped`] with how to install it.
pub fn find(program: &str, package: &str) -> Result<PathBuf, Setback> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(program)).find(|file| file.is_file()).ok_or_else(|| {
        Setback::Skipped(format!("{program} is not installed; on Debian: apt install {package}"))
    })
}

/// A program of ours, beside the one that runs.
///
/// # Errors
/// [`Setback::Skipped`] if it was not built.
pub fn beside(program: &str) -> Result<PathBuf, Setback> {
    let own = env::current_exe().map_err(|e| Error::io("looking for this program", e))?;
    let path = own.with_file_name(program);
    if path.is_file() {
        return Ok(path);
    }
    Err(Setback::Skipped(format!(
        "there is no {}: cargo build --release -p forebay-benches --bins",
        path.display()
    )))
}

/// An address on this machine that nobody listens at.
///
/// # Errors
/// [`Kind::Io`] if there is none.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0");
    listener.and_then(|l| l.local_addr()).map_err(|e| Error::io("looking for a free port", e))
}

/// Whether somebody listens at a TCP port of this machine, without connecting to it.
#[must_use]
pub fn is_listened_at(port: u16) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().any(|path| {
        fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| listens(line, port)))
    })
}

/// Whether a line of `/proc/net/tcp` (proc_net_tcp of the kernel's documentation) is of a socket that
/// listens at a port: the second field is the local address, the fourth the state, both hexadecimal.
fn listens(line: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().and_then(|address| address.rsplit_once(':'));
    let at = local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
    at == Some(port) && fields.nth(1) == Some(LISTEN)
}

/// A command of a program with its arguments.
pub fn command<S: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// User and system time in the text of `/proc/PID/stat`, the fields 14 and 15 of proc(5). The
/// second field is the program's name and may hold anything, so that counting begins behind it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn tail(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    read().map_or_else(
        |error| error.to_string(),
        |bytes| String::from_utf8_lossy(&bytes).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_strange_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 9 0 0 0 120 34 5 6 20 0 3 0 100 0 0";
        assert_eq!(cpu_ticks(stat), Some(154));
        assert_eq!(cpu_ticks("nonsense"), None);
    }

    #[test]
    fn listeners_are_seen_without_connecting() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        assert!(is_listened_at(port));
        drop(listener);
        assert!(!is_listened_at(port));
        let line = "   0: 0100007F:1F90 00000000:0000 01 00000000:00000000 00:00000000 00000000";
        assert!(!listens(line, 8080), "established");
        assert!(listens(&line.replace(" 01 ", " 0A "), 8080));
    }

    #[test]
    fn children_end_with_their_owner_and_failures_quote_their_log() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("log");
        let shell = |script: &str| command(Path::new("/bin/sh"), ["-c", script]);
        let start = |script| Running::start(&mut shell(script), &log, Duration::from_secs(20));
        let running = start("sleep 100").expect("started");
        let proc = PathBuf::from(format!("/proc/{}", running.pid()));
        assert!(proc.exists() && running.cpu_seconds().expect("alive") < 5.0);
        drop(running);
        assert!(!proc.exists());

        let mut failing = start("echo no such device; exit 3").expect("started");
        let error = failing.wait_until(Duration::from_secs(20), || false).expect_err("it ended");
        assert!(error.to_string().contains("no such device"), "{error}");
        let error = run(&mut shell("echo bad >&2; exit 1")).expect_err("it fails");
        assert!(error.to_string().ends_with("bad"), "{error}");
        assert!(matches!(find("no-such-program", "x"), Err(Setback::Skipped(_))));
    }
}
