use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dma::{Region, RegionId};
use extent::{Kind, Result};
use parking_lot::Mutex;

use super::Host;
use super::core::Core;
use super::memory::Mapping;
use super::tender::Tender;
use crate::device::Timeouts;
use crate::device::nvme::{Deallocator, Health, IdentifyNamespace};

/// How a controller is driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct ControllerOptions {
    /// The pace of its watch. The age of commands is measured in it.
    pub(in crate::device) tick: Duration,
    /// Ticks after which a command is aborted.
    pub(in crate::device) abort_ticks: u32,
    /// Ticks after which a command that is still not over has the controller reset.
    pub(in crate::device) reset_ticks: u32,
    /// One that is reset more often within a minute will not get better.
    pub(in crate::device) resets_per_minute: u32,
    /// How long it may take to become ready or to stop; `None` for what it asks for.
    pub(in crate::device) ready_limit: Option<Duration>,
    /// How long an admin command may take.
    pub(in crate::device) admin_limit: Duration,
    /// Whether to use shadow doorbells where the controller has them.
    pub(in crate::device) shadow_doorbells: bool,
    /// Whether to use SGL descriptors where the controller takes them.
    pub(in crate::device) sgl: bool,
}

impl ControllerOptions {
    /// Those for hardware, with these timeouts.
    pub(in crate::device) fn of(timeouts: &Timeouts) -> Self {
        let tick = Duration::from_millis(100);
        let ticks = |time: Duration| {
            u32::try_from(time.as_millis() / tick.as_millis()).unwrap_or(u32::MAX / 4)
        };
        Self {
            tick,
            abort_ticks: ticks(timeouts.command()),
            reset_ticks: ticks(timeouts.reset()),
            resets_per_minute: timeouts.resets_per_minute(),
            ready_limit: timeouts.ready,
            admin_limit: Duration::from_secs(10),
            shadow_doorbells: true,
            sgl: true,
        }
    }
}

/// An NVMe controller that is driven from here; disabled after a clean shutdown when the last
/// owner lets go.
pub(in crate::device) struct Controller {
    // In this order: the watch ends before the shutdown.
    tender: Option<Tender>,
    core: Arc<Core>,
    regions: Arc<Regions>,
}

/// The regions that are mapped in one IO address space: once for all controllers in it.
#[derive(Debug, Default)]
pub(in crate::device) struct Regions(Mutex<HashMap<RegionId, Weak<Mapping>>>);

impl Controller {
    /// Takes a controller over: resets, enables and identifies it.
    ///
    /// # Errors
    /// [`Kind::Io`] if it does not come up in the time that it asks for; [`Kind::Corrupt`] if it
    /// says what cannot be; [`Kind::Unsupported`]; [`Kind::NoSpace`].
    pub(in crate::device) fn open(
        host: Arc<dyn Host>,
        regions: &Arc<Regions>,
        options: ControllerOptions,
    ) -> Result<Arc<Self>> {
        let name = host.name();
        let core = Core::open(host, options)
            .map_err(|error| error.while_doing(format!("starting the NVMe controller {name}")))?;
        let identity = core.identity();
        tracing::info!(
            name,
            model = identity.model,
            firmware = identity.firmware,
            version = %format_args!("{}.{}", identity.version.0, identity.version.1),
            shadow_doorbells = core.shadows().is_some(),
            sgl = identity.has_sgl && options.sgl,
            "driving an NVMe controller"
        );
        let mut controller = Self { tender: None, core, regions: Arc::clone(regions) };
        controller.tender = Some(Tender::start(&controller.core)?);
        Ok(Arc::new(controller))
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// What one of its namespaces is like; the only one, if none is named.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, or not that one; [`Kind::Invalid`] if there are
    /// several; [`Kind::Corrupt`] or [`Kind::Unsupported`] for what it is like.
    pub(in crate::device) fn namespace(
        &self,
        nsid: Option<u32>,
    ) -> Result<(u32, IdentifyNamespace)> {
        let name = self.core.host.name();
        let nsid = match nsid {
            Some(nsid) => nsid,
            None => match self.core.namespaces()?.as_slice() {
                [] => {
                    return Err(Kind::NotFound.error(format!(
                        "the NVMe controller {name} has no active namespace: create one (nvme \
                         create-ns, nvme attach-ns)"
                    )));
                }
                [only] => *only,
                several => {
                    return Err(Kind::Invalid.error(format!(
                        "the NVMe controller {name} has the namespaces {several:?}: say which, as in \
                         {name}/{}",
                        several[0]
                    )));
                }
            },
        };
        let namespace = self.core.namespace(nsid).map_err(|e| e.while_doing(name))?;
        Ok((nsid, namespace))
    }

    /// Whether what is written may be lost in a power cut until it is flushed.
    ///
    /// # Errors
    /// [`Kind::Io`] if it does not say.
    pub(in crate::device) fn has_volatile_cache(&self) -> Result<bool> {
        self.core.write_cache_is_on()
    }

    /// The most bytes of one command.
    pub(in crate::device) fn max_transfer_bytes(&self) -> u64 {
        self.core.identity().max_transfer_bytes.unwrap_or(u64::MAX)
    }

    /// How one of its namespaces is told of blocks that nobody needs, if it takes that.
    pub(in crate::device) fn deallocator(
        &self,
        namespace: &IdentifyNamespace,
    ) -> Option<Deallocator> {
        self.core.deallocator(namespace)
    }

    /// Its model and serial number.
    pub(in crate::device) fn model(&self) -> (String, String) {
        let identity = self.core.identity();
        (identity.model, identity.serial)
    }

    /// What it last said of its health.
    pub(in crate::device) fn health(&self) -> Option<Health> {
        self.core.health()
    }

    /// A region as the controller reaches it: mapped once for all queues and neighbours.
    pub(super) fn map(&self, region: &Arc<Region>) -> Result<Arc<Mapping>> {
        let mut mapped = self.regions.0.lock();
        if let Some(known) = mapped.get(&region.id()).and_then(Weak::upgrade) {
            return Ok(known);
        }
        mapped.retain(|_, mapping| mapping.strong_count() > 0);
        let mapping = Arc::new(Mapping::new(&self.core.host, region, 0, region.length())?);
        mapped.insert(region.id(), Arc::downgrade(&mapping));
        Ok(mapping)
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Controller").field(&self.core.host.name()).finish()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.tender = None;
        self.core.shut_down();
    }
}
