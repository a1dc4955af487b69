//! Tells the service manager how the node is, by systemd's notification protocol
//! (`sd_notify(3)`): datagrams of `KEY=value` lines to the socket named by `NOTIFY_SOCKET`.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager, if one started us.
#[derive(Debug, Default)]
pub(crate) struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// The service manager of the environment. Without one, or one that cannot be reached, every
    /// notification is dropped: a node must not die of that.
    pub(crate) fn from_env() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        Self(Self::open(&name.to_string_lossy()).ok())
    }

    fn open(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok((socket, address))
    }

    /// The node serves.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The node is alive.
    pub(crate) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The node is on its way down.
    pub(crate) fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={status}"));
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.0 {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

/// How often to say [`Notifier::alive`]: half of what the service manager waits; `None` if it does
/// not watch this process.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    let mine = |pid: String| pid.parse() == Ok(std::process::id());
    if !env::var("WATCHDOG_PID").map_or(true, mine) {
        return None;
    }
    let micros: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (micros > 0).then(|| Duration::from_micros(micros / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_arrive_as_systemd_reads_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let opened = Notifier::open(path.to_str().expect("plain")).expect("reachable");
        let notifier = Notifier(Some(opened));
        notifier.ready("serving");
        let mut text = [0; 64];
        let length = manager.recv(&mut text).expect("a datagram");
        assert_eq!(&text[..length], b"READY=1\nSTATUS=serving");
        drop(manager);
        notifier.alive();
    }
}
