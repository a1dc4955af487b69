//! Memory of devices that the node writes to by itself.

use std::sync::Arc;

use dma::DmaBuf;
use extent::wire::Segment;
use extent::{ByteRange, Error, Kind, Result};
use gds::DeviceSpan;
use rdma::Channel;

use super::transfer::Operation;
use super::{Session, Ticket};
use crate::Memory;
use crate::bugs::{self, Bug};

/// What is registered, or was until the last connection was lost.
#[derive(Default)]
pub(super) struct Devices {
    known: Vec<Known>,
}

struct Known {
    memory: Arc<DmaBuf>,
    /// Why the present connection does not reach it.
    refused: Option<Error>,
}

impl Devices {
    /// Has a new connection's channel know all of it, as far as it will.
    pub(super) fn announce(&mut self, channel: &mut dyn Channel) {
        if bugs::is(Bug::DevicesForgotten) {
            return;
        }
        for known in &mut self.known {
            known.refused = channel.register_device(&known.memory).err();
            if let Some(error) = &known.refused {
                tracing::debug!(%error, "device memory that this connection does not reach");
            }
        }
    }

    /// Forgets what nobody else has any more: no request under way, and nobody who could make one.
    pub(super) fn sweep(&mut self, mut channel: Option<&mut dyn Channel>) {
        self.known.retain(|known| {
            let is_wanted = Arc::strong_count(&known.memory) > 1 || bugs::is(Bug::DevicesKept);
            if !is_wanted
                && known.refused.is_none()
                && let Some(channel) = &mut channel
            {
                channel.release_device(&known.memory);
            }
            is_wanted
        });
    }

    /// # Errors
    /// Why the node cannot write there.
    pub(super) fn check(&self, memory: &Arc<DmaBuf>) -> Result<()> {
        match self.known.iter().find(|known| Arc::ptr_eq(&known.memory, memory)) {
            Some(known) => known.refused.as_ref().map_or(Ok(()), |error| Err(error.duplicate())),
            None => {
                Err(Kind::Invalid.error("the device memory is not registered: register it first"))
            }
        }
    }
}

/// Device memory that a READ brings bytes to. It stays there until no node writes to it.
pub(super) struct DeviceTarget {
    pub(super) memory: Arc<DmaBuf>,
    /// Where it begins in what is registered, in bytes.
    offset: u64,
    _span: DeviceSpan,
}

impl DeviceTarget {
    fn new(memory: &Arc<DmaBuf>, span: &DeviceSpan) -> Result<Self> {
        let offset = span.pointer().0.checked_sub(memory.address());
        let is_inside = |offset: &u64| {
            offset.checked_add(span.len() as u64).is_some_and(|end| end <= memory.length() as u64)
        };
        let offset = offset.filter(is_inside).ok_or_else(|| {
            Kind::Invalid.error(format!("{span:?} is not inside of what is registered"))
        })?;
        Ok(Self { memory: Arc::clone(memory), offset, _span: span.clone() })
    }

    /// A part of it, as a request names it.
    pub(super) fn segment(&self, at: u64, length: u32) -> Segment {
        Segment { address: self.offset + at, length, key: self.memory.id().0 }
    }
}

impl Session {
    /// Has the node write to memory of a device by itself, from this connection on. It stays registered as long as anybody
    /// keeps it, with other connections, too, as far as they reach it.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the node is not reached over RDMA, or the RDMA device takes no memory of others;
    /// [`Kind::NoSpace`] if there is no room for it; [`Kind::Busy`] while the session connects again;
    /// [`Kind::Disconnected`] if it is over.
    pub fn register_device(&mut self, memory: &Arc<DmaBuf>) -> Result<()> {
        self.check_over()?;
        self.release_unused();
        if self.devices.known.iter().any(|known| Arc::ptr_eq(&known.memory, memory)) {
            return self.devices.check(memory);
        }
        self.connected(|session| {
            let Some(channel) = &mut session.channel else { return Err(session.no_channel()) };
            channel.register_device(memory)?;
            session.devices.known.push(Known { memory: Arc::clone(memory), refused: None });
            Ok(())
        })
    }

    /// Unregisters what nobody keeps any more; polling does it, too.
    pub fn release_devices(&mut self) {
        self.release_unused();
    }

    /// Reads from `offset` of an open file into device memory: all of `into`, which is inside of what was
    /// registered, and of the same device, or as much as there is. No byte comes into the host's memory, and none is compared here. Without
    /// an error, the bytes are in the device's memory when this has completed; before they are read there,
    /// [`gds::Device::flush_writes`].
    ///
    /// # Errors
    /// [`Kind::Busy`] if too much is outstanding: poll first; [`Kind::Invalid`] if the memory is not registered, or `into`
    /// not inside of it; [`Kind::Disconnected`] if the session is over.
    pub fn submit_read_to_device(
        &mut self,
        handle: u64,
        offset: u64,
        memory: &Arc<DmaBuf>,
        into: &DeviceSpan,
    ) -> Result<Ticket> {
        ByteRange::new(offset, into.len() as u64)?;
        let target = DeviceTarget::new(memory, into)?;
        self.devices.check(memory)?;
        self.admit()?;
        let operation = Operation::Read { handle, offset };
        let (ticket, index) = self.insert(operation, Memory::default(), 0..into.len());
        self.transfers.get_mut(index).expect("just put there").device = Some(target);
        self.unsent.push_back(index);
        Ok(ticket)
    }
}
