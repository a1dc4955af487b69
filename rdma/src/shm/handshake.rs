//! How a session begins, seen from the node.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use dma::Region;
use extent::{Error, Kind, Result};

use super::control::{Grant, HELLO_BYTES, Hello, Note, VERSION};
use super::layout::{Layout, MAX_SLOTS};
use super::{message, sys};

/// Which local users may connect.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum PeerPolicy {
    /// The user that the node runs as, and root.
    #[default]
    SameUser,
    /// Those, and the users with these numbers.
    Users(Vec<u32>),
    /// Everyone who can reach the socket.
    Anyone,
}

impl PeerPolicy {
    fn admits(&self, user: u32, own: u32) -> bool {
        user == own
            || user == 0
            || match self {
                Self::SameUser => false,
                Self::Users(users) => users.contains(&user),
                Self::Anyone => true,
            }
    }
}

/// What clients on the same host may do.
#[derive(Clone, Debug)]
pub struct ShmOptions {
    /// Who may connect.
    pub peers: PeerPolicy,
    /// The most slots of a ring, that is, requests that a client may have outstanding. 32 to 1024.
    pub max_slots: u32,
    /// The most sessions of one transport; no more than 4096.
    pub max_sessions: usize,
    /// The most regions of a session.
    pub max_regions: u32,
    /// The most bytes in all regions of a session.
    pub max_region_bytes: u64,
    /// How long a client may take to say hello.
    pub timeout: Duration,
}

impl Default for ShmOptions {
    fn default() -> Self {
        Self {
            peers: PeerPolicy::default(),
            max_slots: MAX_SLOTS,
            max_sessions: 1024,
            max_regions: 64,
            max_region_bytes: 64 << 30,
            timeout: Duration::from_secs(2),
        }
    }
}

/// A client that shook hands, for [`super::ShmTransport::adopt`].
#[derive(Debug)]
pub struct ShmConnection {
    pub(super) socket: UnixStream,
    pub(super) doorbell: File,
    pub(super) link: Arc<Region>,
    pub(super) layout: Layout,
    pub(super) peer: String,
    /// Whether it is the node's own user, or root.
    pub(super) is_trusted: bool,
}

impl ShmConnection {
    /// Who it is, for logs: process and user.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }
}

/// Greets a client that connected, and makes the memory for its rings. Blocks for the options'
/// timeout at most: not for the thread that accepts.
///
/// # Errors
/// [`Kind::Denied`] if its user may not; [`Kind::Invalid`] or [`Kind::Unsupported`] if it does not
/// speak this protocol; [`Kind::Disconnected`] if it says nothing in time; [`Kind::NoSpace`] without
/// memory. The client has been told then.
pub fn handshake(socket: UnixStream, options: &ShmOptions) -> Result<ShmConnection> {
    let (pid, user) = sys::peer(socket.as_fd())?;
    let peer = format!("process {pid} of user {user}");
    welcome(socket, options, user, peer.clone())
        .map_err(|error| error.while_doing(format!("greeting {peer}")))
}

fn welcome(
    socket: UnixStream,
    options: &ShmOptions,
    user: u32,
    peer: String,
) -> Result<ShmConnection> {
    let timeout = Some(options.timeout.max(Duration::from_millis(1)));
    socket
        .set_nonblocking(false)
        .and_then(|()| socket.set_read_timeout(timeout))
        .and_then(|()| socket.set_write_timeout(timeout))
        .map_err(|e| Error::io("setting up a socket", e))?;
    match greet(&socket, options, user) {
        Ok((layout, link, doorbell)) => {
            let is_trusted = PeerPolicy::SameUser.admits(user, sys::own_user());
            Ok(ShmConnection { socket, doorbell, link, layout, peer, is_trusted })
        }
        Err(error) => {
            let note = Note::Welcome(Err(error.duplicate())).encode();
            // It may have gone already; this is a courtesy.
            let _ = message::send(socket.as_fd(), &note, &[], 0);
            Err(error)
        }
    }
}

fn greet(
    socket: &UnixStream,
    options: &ShmOptions,
    user: u32,
) -> Result<(Layout, Arc<Region>, File)> {
    let own = sys::own_user();
    if !options.peers.admits(user, own) {
        return Err(Kind::Denied.error(format!(
            "user {user} may not use shared memory: the node runs as user {own} and admits others only if configured to"
        )));
    }
    let hello = hello(socket)?;
    let layout = Layout::granted(hello.slots, options.max_slots);
    let (file, doorbell) = (sys::memory_file(layout.bytes())?, sys::doorbell()?);
    let link = Region::sealed_memfd(file.as_fd(), layout.bytes())?;
    let grant = Grant {
        version: VERSION,
        layout,
        max_regions: options.max_regions,
        max_region_bytes: options.max_region_bytes,
    };
    let note = Note::Welcome(Ok(grant)).encode();
    message::send(socket.as_fd(), &note, &[file.as_fd(), doorbell.as_fd()], 0)
        .map_err(|e| Kind::Disconnected.error("the client went away").caused_by(e))?;
    Ok((layout, link, doorbell))
}

/// A hello is written at once, so it comes at once; nobody may feed it byte by byte. Descriptors
/// that came along are thrown away by the kernel.
fn hello(socket: &UnixStream) -> Result<Hello> {
    let mut hello = [0; HELLO_BYTES];
    let received = message::receive(socket.as_fd(), &mut hello, 0, 0)
        .map_err(|e| Kind::Disconnected.error("no hello came").caused_by(e))?;
    match received.bytes {
        0 => Err(Kind::Disconnected.error("the client left without a hello")),
        HELLO_BYTES => Hello::parse(&hello),
        bytes => Err(Kind::Invalid.error(format!("a hello of {bytes} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_admitted_by_policy() {
        let of = |policy: &PeerPolicy| [0, 1000, 1001, 1002].map(|user| policy.admits(user, 1000));
        assert_eq!(of(&PeerPolicy::SameUser), [true, true, false, false]);
        assert_eq!(of(&PeerPolicy::Users(vec![1001])), [true, true, true, false]);
        assert_eq!(of(&PeerPolicy::Anyone), [true; 4]);
    }
}
