//! RDMA CM: ids, and the events that tell of them.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use extent::{Kind, Result};
use libc::c_int;
use socket2::{SockAddr, SockAddrStorage};

use super::adapter::{Adapter, check, made, none};
use super::ffi;

/// The most private data that is kept of an event.
const PRIVATE_BYTES: usize = 256;
/// How often a packet that is not acknowledged is sent again: what the client says counts for both. Not
/// seven, which soft-RoCE takes for ever.
const RETRIES: u8 = 6;

/// Where events of connections come.
#[derive(Debug)]
pub(super) struct EventChannel {
    channel: NonNull<ffi::rdma_event_channel>,
}

// SAFETY: librdmacm may be called from any thread.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    /// # Errors
    /// [`Kind::Unsupported`] where there is no RDMA device or library.
    pub(super) fn new() -> Result<Arc<Self>> {
        // SAFETY: opens a descriptor.
        let channel = unsafe { (ffi::library()?.rdma_create_event_channel)() };
        let made = Self { channel: made(channel, "opening RDMA CM")? };
        // SAFETY: changes flags of a descriptor that is open.
        let failed = unsafe { libc::fcntl(made.raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        check(failed, "setting up RDMA CM")?;
        Ok(Arc::new(made))
    }

    fn raw_fd(&self) -> c_int {
        // SAFETY: the channel is open.
        unsafe { (*self.channel.as_ptr()).fd }
    }

    /// The next event, if there is one.
    ///
    /// # Errors
    /// [`Kind::Io`] if the channel is broken.
    pub(super) fn next(self: &Arc<Self>) -> Result<Option<CmEvent>> {
        let library = ffi::library()?;
        let mut event = none();
        // SAFETY: the channel is open; `event` is written to.
        let failed = unsafe { (library.rdma_get_cm_event)(self.channel.as_ptr(), &raw mut event) };
        if failed != 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(Kind::Io.error("hearing from RDMA CM").caused_by(error)),
            };
        }
        // SAFETY: an event was handed out.
        let told = unsafe { &*event };
        // SAFETY: it is not acknowledged yet.
        let heard = unsafe { self.copy(told) };
        // SAFETY: it is handed back once, and not used afterwards.
        unsafe { (library.rdma_ack_cm_event)(event) };
        Ok(Some(heard))
    }

    /// What there is to know of an event.
    ///
    /// # Safety
    /// It came from the library and was not acknowledged yet.
    unsafe fn copy(self: &Arc<Self>, event: &ffi::rdma_cm_event) -> CmEvent {
        let length = usize::from(event.conn.private_data_len).min(PRIVATE_BYTES);
        let data = event.conn.private_data.cast::<u8>();
        let private_data = if data.is_null() {
            Vec::new()
        } else {
            // SAFETY: the library keeps so many bytes until the event is acknowledged.
            unsafe { std::slice::from_raw_parts(data, length) }.to_vec()
        };
        let kind = CmEventKind::from(event.event);
        let request = NonNull::new(event.id).filter(|_| kind == CmEventKind::ConnectRequest);
        CmEvent {
            kind,
            id: event.id as usize,
            request: request.map(|id| CmId { id, channel: Arc::clone(self) }),
            status: event.status,
            private_data,
            peer_reads: event.conn.initiator_depth,
            peer_patience: event.conn.rnr_retry_count,
        }
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.raw_fd()) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        let Ok(library) = ffi::library() else { return };
        // SAFETY: ids hold an `Arc` of their channel, so there are none; events are acknowledged at
        // once.
        unsafe { (library.rdma_destroy_event_channel)(self.channel.as_ptr()) };
    }
}

/// What RDMA CM told.
#[derive(Debug)]
pub(super) struct CmEvent<C = CmId> {
    pub(super) kind: CmEventKind,
    /// [`CmId::number`] of the id it is about.
    pub(super) id: usize,
    /// The new connection of a request.
    pub(super) request: Option<C>,
    pub(super) status: i32,
    pub(super) private_data: Vec<u8>,
    /// RDMA READs that the other side is ready to answer at a time.
    pub(super) peer_reads: u8,
    /// How often this side is to send again what the other one has no receive for.
    pub(super) peer_patience: u8,
}

impl<C> CmEvent<C> {
    /// librdmacm's name for the event.
    pub(super) fn name(&self) -> String {
        let Ok(library) = ffi::library() else { return String::new() };
        // SAFETY: any number will do.
        let name = unsafe { (library.rdma_event_str)(self.kind.number()) };
        // SAFETY: it is a C string that lives forever.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}

/// Kinds of events (`enum rdma_cm_event_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CmEventKind {
    AddressResolved,
    RouteResolved,
    ConnectRequest,
    Established,
    Rejected,
    Disconnected,
    DeviceRemoval,
    /// Nothing to do for: everybody has let go of a connection.
    TimewaitExit,
    /// Whatever else; for a connection that is being made, a failure.
    Other(u32),
}

impl CmEventKind {
    const KNOWN: [(u32, Self); 8] = [
        (0, Self::AddressResolved),
        (2, Self::RouteResolved),
        (4, Self::ConnectRequest),
        (8, Self::Rejected),
        (9, Self::Established),
        (10, Self::Disconnected),
        (11, Self::DeviceRemoval),
        (15, Self::TimewaitExit),
    ];

    fn from(number: u32) -> Self {
        let known = Self::KNOWN.iter().find(|(known, _)| *known == number);
        known.map_or(Self::Other(number), |(_, kind)| *kind)
    }

    fn number(self) -> u32 {
        match self {
            Self::Other(number) => number,
            kind => Self::KNOWN.iter().find(|(_, known)| *known == kind).map_or(0, |(n, _)| *n),
        }
    }

    /// What to look at, where it is the end of an attempt to connect.
    pub(super) fn advice(self) -> &'static str {
        match self.number() {
            1 => {
                "no RDMA device here reaches that address: `forebay doctor` lists devices and theirs"
            }
            3 => "the address is known and no path to it is: look at the routes and at the switch",
            6 => "the two ends do not suit each other: compare their MTUs and RoCE versions",
            7 => "nobody answered: is the node up, and does UDP port 4791 get through?",
            8 => "nobody listens there, or no Forebay node",
            11 => "the RDMA device was taken away: `rdma link` lists those there are",
            14 => "the address moved to another device: connect again",
            _ => "is the node up, and is the address one of an RDMA device that reaches it?",
        }
    }
}

/// One end of a connection, or a listener.
#[derive(Debug)]
pub(super) struct CmId {
    id: NonNull<ffi::rdma_cm_id>,
    channel: Arc<EventChannel>,
}

// SAFETY: librdmacm may be called from any thread.
unsafe impl Send for CmId {}
// SAFETY: as above.
unsafe impl Sync for CmId {}

/// How connections are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionParameters<'a> {
    pub(super) private_data: &'a [u8],
    /// RDMA READs from the other side that this one answers at a time.
    pub(super) reads_in: u8,
    /// RDMA READs that this one has under way at a time.
    pub(super) reads_out: u8,
    /// How often the *other* side sends a message again for which this one has no receive: 0 to 6, or
    /// 7 for as often as it takes.
    pub(super) peer_patience: u8,
}

impl ConnectionParameters<'_> {
    fn raw(&self) -> ffi::rdma_conn_param {
        ffi::rdma_conn_param {
            private_data: self.private_data.as_ptr().cast(),
            private_data_len: u8::try_from(self.private_data.len()).expect("a short greeting"),
            responder_resources: self.reads_in,
            initiator_depth: self.reads_out,
            flow_control: 1,
            retry_count: RETRIES,
            rnr_retry_count: self.peer_patience,
            srq: 0,
            qp_num: 0,
        }
    }
}

impl CmId {
    pub(super) fn new(channel: &Arc<EventChannel>) -> Result<Self> {
        let mut id = none();
        // SAFETY: the channel is open; `id` is written to.
        let failed = unsafe {
            (ffi::library()?.rdma_create_id)(
                channel.channel.as_ptr(),
                &raw mut id,
                none(),
                ffi::RDMA_PS_TCP,
            )
        };
        check(failed, "making an RDMA connection")?;
        Ok(Self { id: made(id, "making an RDMA connection")?, channel: Arc::clone(channel) })
    }

    /// What events call it.
    pub(super) fn number(&self) -> usize {
        self.id.as_ptr() as usize
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::rdma_cm_id {
        self.id.as_ptr()
    }

    /// The device that it is bound to.
    pub(super) fn adapter(&self) -> Result<Adapter> {
        // SAFETY: the id is live.
        let context = unsafe { (*self.as_ptr()).verbs };
        // SAFETY: it is librdmacm's.
        unsafe { Adapter::of(context) }
    }

    /// The address of the other end.
    pub(super) fn peer(&self) -> String {
        // SAFETY: the id is live, and its address does not change once it is connected.
        let raw = unsafe { (*self.as_ptr()).route.addr.dst };
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: it is large enough for every kind of address, and so is this one.
        *unsafe { storage.view_as::<libc::sockaddr_storage>() } = raw;
        let length = storage.size_of();
        // SAFETY: librdmacm fills in a whole address of the family that it says.
        let address = unsafe { SockAddr::new(storage, length) };
        address.as_socket().map_or_else(|| "an unknown address".into(), |a| a.to_string())
    }

    /// Takes an address, and with it a device.
    pub(super) fn bind(&self, address: SocketAddr) -> Result<()> {
        let name = SockAddr::from(address);
        // SAFETY: the id is live; the address is only read, during the call.
        let failed = unsafe {
            let bind = ffi::library()?.rdma_bind_addr;
            bind(self.as_ptr(), name.as_ptr().cast_mut().cast())
        };
        check(failed, "taking an address for RDMA")
    }

    /// Waits for connections at an address, and says which port it got.
    pub(super) fn listen(&self, address: SocketAddr, backlog: c_int) -> Result<u16> {
        let library = ffi::library()?;
        self.bind(address)?;
        // SAFETY: the id is live.
        check(unsafe { (library.rdma_listen)(self.as_ptr(), backlog) }, "listening for RDMA")?;
        // SAFETY: the id is live and bound.
        Ok(u16::from_be(unsafe { (library.rdma_get_src_port)(self.as_ptr()) }))
    }

    /// Begins to look for a way to an address, from one of this machine if it is given:
    /// [`CmEventKind::AddressResolved`] follows.
    pub(super) fn resolve_address(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
        timeout_ms: c_int,
    ) -> Result<()> {
        let resolve = ffi::library()?.rdma_resolve_addr;
        let from = from.map(|address| SockAddr::from(SocketAddr::new(address, 0)));
        let from = from.as_ref().map_or(none(), |from| from.as_ptr().cast_mut().cast());
        let to = SockAddr::from(to);
        let to = to.as_ptr().cast_mut().cast();
        // SAFETY: the id is live; the addresses are only read, during the call.
        let failed = unsafe { resolve(self.as_ptr(), from, to, timeout_ms) };
        check(failed, "looking for an RDMA device that reaches the node")
    }

    /// The next step: [`CmEventKind::RouteResolved`] follows.
    pub(super) fn resolve_route(&self, timeout_ms: c_int) -> Result<()> {
        // SAFETY: the id is live.
        let failed = unsafe { (ffi::library()?.rdma_resolve_route)(self.as_ptr(), timeout_ms) };
        check(failed, "looking for an RDMA route to the node")
    }

    /// Asks the other side, once there is a queue pair.
    pub(super) fn connect(&self, parameters: ConnectionParameters<'_>) -> Result<()> {
        let mut raw = parameters.raw();
        // SAFETY: the id is live; the parameters are copied during the call.
        let failed = unsafe { (ffi::library()?.rdma_connect)(self.as_ptr(), &raw mut raw) };
        check(failed, "connecting by RDMA")
    }

    /// Answers a request, once there is a queue pair.
    pub(super) fn accept(&self, parameters: ConnectionParameters<'_>) -> Result<()> {
        let mut raw = parameters.raw();
        // SAFETY: as in `connect`.
        let failed = unsafe { (ffi::library()?.rdma_accept)(self.as_ptr(), &raw mut raw) };
        check(failed, "accepting an RDMA connection").map_err(|error| {
            let advice =
                "the two ends do not suit each other: compare their MTUs and RoCE versions";
            Kind::Invalid.error(advice).caused_by(error)
        })
    }

    /// Turns a request down, with a reason.
    pub(super) fn reject(&self, private_data: &[u8]) {
        let Ok(library) = ffi::library() else { return };
        let length = u8::try_from(private_data.len()).expect("a short sentence");
        // SAFETY: the id is live; the data is copied during the call.
        let failed =
            unsafe { (library.rdma_reject)(self.as_ptr(), private_data.as_ptr().cast(), length) };
        if let Err(error) = check(failed, "turning down an RDMA connection") {
            tracing::debug!(%error, "the peer will notice by itself");
        }
    }

    /// Tells RDMA CM that the connection stands, since a message came over it. The event follows.
    pub(super) fn stands(&self) {
        let Ok(library) = ffi::library() else { return };
        // SAFETY: the id is live. It fails if RDMA CM knows already.
        unsafe { (library.rdma_notify)(self.as_ptr(), ffi::IBV_EVENT_COMM_EST) };
    }

    /// Ends the connection: what is posted is flushed.
    pub(super) fn disconnect(&self) {
        let Ok(library) = ffi::library() else { return };
        // SAFETY: the id is live. It fails if the connection is over already.
        unsafe { (library.rdma_disconnect)(self.as_ptr()) };
    }

    /// Has its events come elsewhere from now on. Those that came before must have been taken.
    pub(super) fn migrate(&mut self, channel: &Arc<EventChannel>) -> Result<()> {
        // SAFETY: id and channel are live.
        let failed =
            unsafe { (ffi::library()?.rdma_migrate_id)(self.as_ptr(), channel.channel.as_ptr()) };
        check(failed, "handing an RDMA connection to a shard")?;
        self.channel = Arc::clone(channel);
        Ok(())
    }

    /// How long the device waits for an acknowledgement before it sends again: 4.096 µs times two to
    /// this power.
    pub(super) fn set_acknowledge_timeout(&self, exponent: u8) {
        self.set_option(ffi::RDMA_OPTION_ID_ACK_TIMEOUT, exponent, "the acknowledge timeout");
    }

    /// The traffic class (DSCP and ECN bits) of its packets.
    pub(super) fn set_traffic_class(&self, class: u8) {
        self.set_option(ffi::RDMA_OPTION_ID_TOS, class, "the traffic class");
    }

    fn set_option(&self, option: c_int, mut value: u8, what: &str) {
        let Ok(library) = ffi::library() else { return };
        let place = (&raw mut value).cast();
        // SAFETY: the id is live; one byte is read during the call.
        let failed = unsafe {
            (library.rdma_set_option)(self.as_ptr(), ffi::RDMA_OPTION_ID, option, place, 1)
        };
        if let Err(error) = check(failed, "setting an option") {
            tracing::warn!(%error, "RDMA CM does not take {what}: it stays at its default");
        }
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        let Ok(library) = ffi::library() else { return };
        // SAFETY: its queue pair, if it had one, is destroyed first (see `QueuePair`), and every
        // event of it was acknowledged when it was taken.
        let failed = unsafe { (library.rdma_destroy_id)(self.id.as_ptr()) };
        if let Err(error) = check(failed, "letting go of an RDMA connection") {
            tracing::warn!(%error, "an RDMA connection is leaked");
        }
    }
}
