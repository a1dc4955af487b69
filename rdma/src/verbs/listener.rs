//! Where clients knock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use extent::wire::Refusal;
use extent::{Error, Kind, Proof, Result, TenantName};

use super::connection::{CmEventKind, CmId, EventChannel};
use super::events;
use super::greeting::{Hello, MAGIC};
use super::provider::{CmId as _, EventChannel as _, Provider};
use super::rdma_core::RdmaCore;

/// Requests that the kernel holds until they are looked at.
const BACKLOG: libc::c_int = 512;

/// The RNR retry count that means "as often as it takes".
const FOR_EVER: u8 = 7;

/// A client that asked to connect and said what a client says.
#[derive(Debug)]
#[expect(private_bounds, reason = "what it stands on is nobody's choice but this module's")]
pub(crate) struct Incoming<P: Provider = RdmaCore> {
    pub(super) id: P::CmId,
    /// RDMA READs that it answers at a time.
    pub(super) peer_reads: u8,
    /// What it showed.
    pub(crate) proof: Option<Proof>,
    /// On whose behalf it comes, once that was asked.
    pub(crate) tenant: TenantName,
    /// Whether it takes short replies.
    pub(super) short_replies: bool,
}

#[expect(private_bounds, reason = "as of the type")]
impl<P: Provider> Incoming<P> {
    /// Turns the client away.
    pub(crate) fn reject(&self, reason: &Error) {
        tracing::info!(%reason, peer = self.id.peer(), "an RDMA client was turned away");
        reject::<P>(&self.id, reason);
    }
}

/// Listens at addresses of RDMA devices.
#[derive(Debug)]
#[expect(private_bounds, reason = "what it stands on is nobody's choice but this module's")]
pub(crate) struct VerbsListener<P: Provider = RdmaCore> {
    channel: Arc<P::EventChannel>,
    /// The listening ids, and where they listen.
    listening: HashMap<usize, P::CmId>,
    addresses: Vec<SocketAddr>,
}

impl VerbsListener {
    /// Listens at all of the addresses; port 0 takes a free one.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] without RDMA; [`extent::Kind::Invalid`] for an address that no
    /// RDMA device has; [`extent::Kind::Busy`] for one in use.
    pub(crate) fn new(wanted: &[SocketAddr]) -> Result<Self> {
        let channel = EventChannel::new()?;
        let mut listening = HashMap::new();
        let mut addresses = Vec::new();
        for address in wanted {
            let id = CmId::new(&channel)?;
            let port = id
                .listen(*address, BACKLOG)
                .map_err(|error| error.while_doing(format_args!("at {address}")))?;
            // An address of all devices belongs to none yet.
            if let Ok(adapter) = id.adapter() {
                events::follow(adapter)?;
            }
            addresses.push(SocketAddr::new(address.ip(), port));
            listening.insert(id.number(), id);
        }
        Ok(Self { channel, listening, addresses })
    }
}

#[expect(private_bounds, reason = "as of the type")]
impl<P: Provider> VerbsListener<P> {
    /// Hears what comes on a channel to an id that listens already.
    pub(super) fn over(channel: Arc<P::EventChannel>, id: P::CmId) -> Self {
        let listening = HashMap::from([(id.number(), id)]);
        Self { channel, listening, addresses: Vec::new() }
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The next client, if one knocked: call it again while the descriptor is readable. Those that say
    /// nothing sensible are turned away here.
    pub(crate) fn accept(&self) -> Result<Option<Incoming<P>>> {
        let Some(event) = self.channel.next()? else { return Ok(None) };
        let (peer_reads, peer_patience) = (event.peer_reads, event.peer_patience);
        let Some(id) = event.request else {
            let known = self.listening.contains_key(&event.id);
            if event.kind == CmEventKind::DeviceRemoval && known {
                tracing::error!("an RDMA device that clients connect to was taken away");
            }
            return Ok(None);
        };
        let heard = Hello::parse(&event.private_data);
        match heard.and_then(|hello| check(peer_reads, peer_patience).map(|()| hello)) {
            Ok(Hello { proof, short_replies, .. }) => {
                let tenant = TenantName::DEFAULT;
                Ok(Some(Incoming { id, peer_reads, proof, tenant, short_replies }))
            }
            Err(error) => {
                tracing::info!(%error, peer = id.peer(), "an RDMA client was turned away");
                reject::<P>(&id, &error);
                Ok(None)
            }
        }
    }
}

impl AsFd for VerbsListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// Whether a client's side of the connection is one that a node can live with.
fn check(peer_reads: u8, peer_patience: u8) -> Result<()> {
    if peer_reads == 0 {
        return Err(Kind::Invalid.error("answer at least one RDMA READ (responder resources)"));
    }
    if peer_patience == FOR_EVER {
        return Err(Kind::Invalid
            .error("a node does not wait for receives for ever: an RNR retry count of 6 at most"));
    }
    Ok(())
}

/// Tells a client why it is turned away.
pub(super) fn reject<P: Provider>(id: &P::CmId, reason: &Error) {
    id.reject(&Refusal::encode(&MAGIC, reason));
}
