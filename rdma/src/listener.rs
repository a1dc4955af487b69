use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use extent::{Error, Kind, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::inbox::{Inbox, Incoming};
use crate::shm::{self, ShmOptions};
use crate::socket_file::SocketFile;
use crate::sys::{Epoll, EventFd, Ready};
use crate::verbs::{self, VerbsListener};
use crate::{Gate, OpenGate};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;
/// Clients greeted at once; each has a thread for as long.
const MAX_GREETINGS: usize = 32;
/// How long nothing is accepted after the process ran out of descriptors or memory.
const PAUSE_MS: i32 = 100;
/// What the epoll instance calls the stop signal; other numbers are doors.
const STOP: u64 = u64::MAX;

/// Where clients may connect.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    /// TCP addresses; port 0 takes a free one.
    pub tcp: Vec<SocketAddr>,
    /// The path of a UNIX socket, for shared memory.
    pub unix: Option<PathBuf>,
    /// Addresses of RDMA devices; port 0 takes a free one.
    pub rdma: Vec<SocketAddr>,
    /// The most sessions of all shards together.
    pub max_sessions: usize,
    /// What local clients may do.
    pub shm: ShmOptions,
    /// Who may come in over TCP and RDMA.
    pub gate: Arc<dyn Gate>,
}

impl Default for ListenerOptions {
    /// Nowhere, for up to 4096 sessions of whoever comes.
    fn default() -> Self {
        Self {
            tcp: Vec::new(),
            unix: None,
            rdma: Vec::new(),
            max_sessions: 4096,
            shm: ShmOptions::default(),
            gate: Arc::new(OpenGate),
        }
    }
}

/// Accepts clients and hands each to the shard with the fewest sessions, until dropped.
#[derive(Debug)]
pub struct Listener {
    addresses: Vec<SocketAddr>,
    rdma_addresses: Vec<SocketAddr>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Opens all addresses, then accepts in a thread of its own. `inboxes` are the shards'.
    ///
    /// # Errors
    /// [`Kind::Busy`] if an address or the path is in use by somebody alive; [`Kind::Denied`] if
    /// this process may not use it; [`Kind::Invalid`] if the path is something else than a socket,
    /// or there is no inbox; [`Kind::Io`] otherwise.
    pub fn start(options: ListenerOptions, inboxes: Vec<Inbox>) -> Result<Self> {
        if inboxes.is_empty() {
            return Err(Kind::Invalid.error("a listener needs at least one shard"));
        }
        let tcp: Vec<TcpListener> =
            options.tcp.iter().map(|address| open_tcp(*address)).collect::<Result<_>>()?;
        let addresses = tcp
            .iter()
            .map(TcpListener::local_addr)
            .collect::<io::Result<Vec<_>>>()
            .map_err(|e| Error::io("asking for the port", e))?;
        let mut doors: Vec<Door> = tcp.into_iter().map(Door::Tcp).collect();
        if let Some(path) = &options.unix {
            doors.push(Door::Unix(SocketFile::bind(path)?));
        }
        let mut rdma_addresses = Vec::new();
        if !options.rdma.is_empty() {
            let listener = VerbsListener::new(&options.rdma)?;
            rdma_addresses.extend_from_slice(listener.addresses());
            doors.push(Door::Verbs(listener));
        }
        let stop = EventFd::new().map_err(|e| Error::io("making an eventfd", e))?;
        let epoll = watch(&doors, &stop).map_err(|e| Error::io("watching the listeners", e))?;
        let stop = Arc::new(stop);
        let shards = Shards { inboxes, max_sessions: options.max_sessions };
        let porter = Porter {
            doors,
            epoll,
            stop: Arc::clone(&stop),
            shards: Arc::new(shards),
            shm: Arc::new(options.shm),
            gate: options.gate,
            greetings: Arc::new(AtomicUsize::new(0)),
        };
        let thread = thread::Builder::new()
            .name("forebay-accept".into())
            .spawn(move || porter.run())
            .map_err(|e| Error::io("starting the accepting thread", e))?;
        Ok(Self { addresses, rdma_addresses, stop, thread: Some(thread) })
    }

    /// The first TCP address, with its real port.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.addresses.first().copied()
    }

    /// All TCP addresses, with their real ports.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// All RDMA addresses, with their real ports.
    #[must_use]
    pub fn rdma_addrs(&self) -> &[SocketAddr] {
        &self.rdma_addresses
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.signal();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the accepting thread panicked");
        }
    }
}

/// One place where clients knock.
#[derive(Debug)]
enum Door {
    Tcp(TcpListener),
    Unix(SocketFile),
    Verbs(VerbsListener),
}

/// The accepting thread.
struct Porter {
    doors: Vec<Door>,
    epoll: Epoll,
    stop: Arc<EventFd>,
    shards: Arc<Shards>,
    shm: Arc<ShmOptions>,
    gate: Arc<dyn Gate>,
    greetings: Arc<AtomicUsize>,
}

impl Porter {
    fn run(self) {
        let mut ready = Ready::with_room(self.doors.len() + 1);
        loop {
            if let Err(error) = self.epoll.wait(&mut ready, -1) {
                tracing::error!(%error, "no client is accepted any more: restart the node");
                return;
            }
            for (data, _) in ready.iter() {
                if data == STOP {
                    return;
                }
                let door = usize::try_from(data).ok().and_then(|index| self.doors.get(index));
                if let Some(Err(error)) = door.map(|door| self.accept(door)) {
                    tracing::warn!(%error, "accepting failed: raise the limit of open files?");
                    self.pause();
                }
            }
        }
    }

    /// Accepts one client; level-triggered epoll brings the next.
    fn accept(&self, door: &Door) -> io::Result<()> {
        let accepted = match door {
            Door::Tcp(listener) => listener.accept().map(|(stream, peer)| {
                let gate = Arc::clone(&self.gate);
                self.shards.hand_over(Incoming::Tcp(stream, peer.to_string(), gate));
            }),
            Door::Unix(socket) => socket.listener().accept().and_then(|(s, _)| self.greet(s)),
            Door::Verbs(listener) => listener
                .accept()
                .map(|incoming| incoming.into_iter().for_each(|client| self.admit(client)))
                .map_err(io::Error::other),
        };
        match accepted {
            Err(error) if is_fleeting(&error) => Ok(()),
            other => other,
        }
    }

    /// Asks the gate before anything is made for an RDMA client. A node without room for it does not
    /// use its proof up.
    fn admit(&self, mut client: verbs::Incoming) {
        if self.shards.are_full() {
            return client.reject(&no_room());
        }
        match self.gate.admit(client.proof.take().as_ref()) {
            Ok(tenant) => client.tenant = tenant,
            Err(reason) => return client.reject(&reason),
        }
        self.shards.hand_over(Incoming::Verbs(client));
    }

    /// Shakes hands on a thread of its own, so that a slow client keeps nobody waiting.
    fn greet(&self, stream: UnixStream) -> io::Result<()> {
        if self.shards.are_full() || self.greetings.load(Ordering::Acquire) >= MAX_GREETINGS {
            tracing::warn!("too many local clients at once: one was turned away");
            return Ok(());
        }
        let greeting = Greeting::begin(&self.greetings);
        let (shards, options) = (Arc::clone(&self.shards), Arc::clone(&self.shm));
        let greet = move || {
            match shm::handshake(stream, &options) {
                Ok(connection) => shards.hand_over(Incoming::Shm(connection)),
                Err(error) => tracing::info!(%error, "a local client was turned away"),
            }
            drop(greeting);
        };
        thread::Builder::new().name("forebay-greet".into()).spawn(greet).map(drop)
    }

    /// The client that could not be accepted is still there, and epoll would not sleep.
    fn pause(&self) {
        let only_stop = Epoll::new().and_then(|epoll| {
            epoll.add(self.stop.as_fd(), libc::EPOLLIN, STOP)?;
            epoll.wait(&mut Ready::with_room(1), PAUSE_MS)
        });
        if only_stop.is_err() {
            thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// Counts a client being greeted.
struct Greeting(Arc<AtomicUsize>);

impl Greeting {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct Shards {
    inboxes: Vec<Inbox>,
    max_sessions: usize,
}

impl Shards {
    fn are_full(&self) -> bool {
        self.inboxes.iter().map(Inbox::sessions).sum::<usize>() >= self.max_sessions
    }

    /// Gives a client to the shard with the fewest, or hangs up.
    fn hand_over(&self, connection: Incoming) {
        if self.are_full() {
            tracing::warn!(limit = self.max_sessions, "too many sessions: one was turned away");
            if let Incoming::Verbs(incoming) = &connection {
                incoming.reject(&no_room());
            }
            return;
        }
        let shard = self.inboxes.iter().min_by_key(|inbox| inbox.sessions());
        if let Some(Err(error)) = shard.map(|inbox| inbox.push(connection)) {
            tracing::warn!(%error, "a client was turned away");
        }
    }
}

fn no_room() -> Error {
    Kind::Busy.error("the node takes no more sessions")
}

fn open_tcp(address: SocketAddr) -> Result<TcpListener> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|error: io::Error| {
        let (kind, advice) = match error.kind() {
            io::ErrorKind::AddrInUse => (Kind::Busy, "stop what listens there, or use another"),
            io::ErrorKind::AddrNotAvailable => (Kind::Invalid, "this host has no such address"),
            io::ErrorKind::PermissionDenied => (Kind::Denied, "ports below 1024 need privileges"),
            _ => (Kind::Io, "the address cannot be used"),
        };
        kind.error(format!("listening on {address}: {advice}")).caused_by(error)
    })
}

fn watch(doors: &[Door], stop: &EventFd) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    epoll.add(stop.as_fd(), libc::EPOLLIN, STOP)?;
    for (door, index) in doors.iter().zip(0..) {
        let fd = match door {
            Door::Tcp(listener) => listener.as_fd(),
            Door::Unix(socket) => socket.listener().as_fd(),
            Door::Verbs(listener) => listener.as_fd(),
        };
        epoll.add(fd, libc::EPOLLIN, index)?;
    }
    Ok(epoll)
}

/// Whether only this client is concerned: it has gone again, or another was first.
fn is_fleeting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
    )
}
