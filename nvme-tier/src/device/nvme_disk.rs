//! A namespace that is driven from user space, by the PCI address of its controller.

use std::sync::{Arc, Weak};

use extent::{Kind, Result};

use super::nvme::{Health, IdentifyNamespace};
use super::polled::{Controller, ControllerOptions, PolledQueue, Regions};
use super::vfio::{Container, PciAddress, VfioFunction};
use super::{Geometry, MediaOptions, PciName, Timeouts};

/// What is reported as the most bytes for one command: beyond it nothing gets faster.
const MAX_TRANSFER_BYTES: u64 = 1 << 20;

/// The controllers that one tier drives, all in one IO address space: memory is locked and mapped
/// once for all of them.
#[derive(Debug, Default)]
pub(super) struct NvmeBus {
    container: Option<Arc<Container>>,
    regions: Arc<Regions>,
    controllers: Vec<(PciAddress, Timeouts, Arc<Controller>)>,
}

impl NvmeBus {
    /// Opens a namespace.
    ///
    /// # Errors
    /// As [`VfioFunction::open`] and [`Controller::open`]; [`Kind::Invalid`] if it is too small, or
    /// its controller is open already with other timeouts.
    pub(super) fn open(
        &mut self,
        name: PciName,
        timeouts: Timeouts,
        options: &MediaOptions,
    ) -> Result<NvmeDisk> {
        let known = self.controllers.iter().find(|(address, ..)| *address == name.address);
        let controller = match known {
            Some((_, others, controller)) if *others == timeouts => Arc::clone(controller),
            Some(_) => {
                return Err(Kind::Invalid.error(format!(
                    "the namespaces of {} have different timeouts: give all of them the same, since \
                     they share a controller",
                    name.address
                )));
            }
            None => self.start(name.address, timeouts)?,
        };
        NvmeDisk::new(controller, name, options)
    }

    fn start(&mut self, address: PciAddress, timeouts: Timeouts) -> Result<Arc<Controller>> {
        // Before there is a container, which would only say that there is no VFIO yet.
        VfioFunction::check(address)?;
        let container = match &self.container {
            Some(container) => Arc::clone(container),
            None => Arc::clone(self.container.insert(Arc::new(Container::new()?))),
        };
        let function = VfioFunction::open(container, address)?;
        let options = ControllerOptions::of(&timeouts);
        let controller = Controller::open(Arc::new(function), &self.regions, options)?;
        self.controllers.push((address, timeouts, Arc::clone(&controller)));
        Ok(controller)
    }
}

/// What a controller says of its health. It does not keep it.
#[derive(Clone, Debug)]
pub(super) struct DiskHealth(Weak<Controller>);

impl DiskHealth {
    /// What it last said; `None` if it does not say, or is closed.
    pub(super) fn now(&self) -> Option<Health> {
        self.0.upgrade()?.health()
    }
}

/// A namespace, with its controller.
#[derive(Clone, Debug)]
pub(super) struct NvmeDisk {
    controller: Arc<Controller>,
    nsid: u32,
    identity: IdentifyNamespace,
    geometry: Geometry,
    read_only: bool,
}

impl NvmeDisk {
    fn new(controller: Arc<Controller>, name: PciName, options: &MediaOptions) -> Result<Self> {
        let (nsid, identity) = controller.namespace(name.namespace)?;
        let unit = identity.unit_bytes();
        let capacity_bytes = identity.capacity_bytes() & !u64::from(unit - 1);
        if capacity_bytes < options.minimum_bytes.max(u64::from(unit)) {
            return Err(Kind::Invalid.error(format!(
                "namespace {nsid} of {} holds {} bytes, and a tier needs at least {}: name another",
                name.address,
                identity.capacity_bytes(),
                options.minimum_bytes
            )));
        }
        let most = controller.max_transfer_bytes().min(MAX_TRANSFER_BYTES);
        let geometry = Geometry {
            capacity_bytes,
            block_bytes: unit,
            max_transfer_bytes: u32::try_from(most).expect("at most 1 MiB").max(unit),
            volatile_cache: controller.has_volatile_cache()?,
            deallocation: controller.deallocator(&identity).map(|told| told.deallocation()),
        };
        Ok(Self { controller, nsid, identity, geometry, read_only: options.read_only })
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What tells of its health, for as long as it is open.
    pub(super) fn health_watch(&self) -> DiskHealth {
        DiskHealth(Arc::downgrade(&self.controller))
    }

    /// What drives it and how, for a person.
    pub(super) fn describe(&self) -> String {
        let (model, serial) = self.controller.model();
        let protected = if self.identity.protection.is_some() { ", T10 protection" } else { "" };
        format!("vfio ({model}, serial {serial}{protected})")
    }

    /// A queue of its own for one thread.
    ///
    /// # Errors
    /// As [`PolledQueue::new`].
    pub(super) fn queue(&self, depth: usize) -> Result<PolledQueue> {
        let namespace = (self.nsid, &self.identity);
        PolledQueue::new(&self.controller, namespace, self.geometry, self.read_only, depth)
    }
}
