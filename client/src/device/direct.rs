//! Device memory that the node writes to by itself: what is registered, and whether it was seen to work.

use std::ops::Range;
use std::sync::Arc;

use dma::DmaBuf;
use extent::{Error, Kind, Result};
use gds::{Allocation, Device, DeviceSpan, Ladder, Path, Policy, Verdict};

use super::driver::{self, Driver};
use crate::bugs::{self, Bug};
use crate::session::Session;

/// Allocations that one reader has registered at a time.
const MOST_REGISTRATIONS: usize = 64;
/// Bytes that are read both ways before the rest is believed.
const PROOF_BYTES: usize = 8192;
/// Proofs in a row that connections end over, each as often as it is repeated, before it is left alone.
const MOST_BROKEN: u32 = 2;
/// Device memory that is registered to see whether any is: as much as a GPU has in one of its pages.
const SCRATCH_BYTES: usize = 2 << 20;

/// What a reader did by GPUDirect RDMA, since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DirectStats {
    /// Allocations that are registered now.
    pub registered: usize,
    /// How often one was registered, without those that another connection needed.
    pub registrations: u64,
    /// How often what a node wrote was read back and compared.
    pub proofs: u64,
    /// Pieces of reads that went this way, and their bytes.
    pub reads: u64,
    /// Bytes of those.
    pub bytes: u64,
}

/// What the node may write to of a device's memory, over one session: for programs that drive a [`crate::Session`] by
/// themselves. A [`super::DeviceReader`] has one.
///
/// It is kept with its session: a registration is given back by [`Direct::end`], or when the session ends.
pub struct Direct {
    device: Device,
    /// The least recently used first.
    registrations: Vec<Registration>,
    /// Why nothing is believed that comes this way.
    refuted: Option<Error>,
    /// The connection that has no such way, and why.
    refused: Option<(u64, Error)>,
    /// Connections in a row that ended, one after the other, over a proof.
    broken: u32,
    stats: DirectStats,
}

struct Registration {
    allocation: Allocation,
    memory: Arc<DmaBuf>,
    /// Whether it ever was registered.
    is_known: bool,
    /// Over which connection it was seen to work.
    proven_on: Option<u64>,
}

/// Where a part of a read goes by itself.
pub struct Aim {
    /// What is registered, for [`crate::Session::submit_read_to_device`].
    pub memory: Arc<DmaBuf>,
    /// Which part, in bytes from the read's start.
    pub within: Range<usize>,
    /// Whether something was seen to arrive there; else the file has nothing there.
    pub is_proven: bool,
}

/// What is to be read: a file that is open, and where in it, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The node's number for it.
    pub handle: u64,
    /// In the file.
    pub offset: u64,
}

impl Direct {
    /// If all that can be told without a file speaks for it. The ladder has why not, or that it is to be tried.
    pub(super) fn begin(
        driver: &impl Driver,
        verifies: bool,
        device: &Device,
        policy: Policy,
        ladder: &mut Ladder,
    ) -> Option<Self> {
        if *ladder.verdict(Path::GpuDirect) != Verdict::Works {
            return None;
        }
        let this = Self {
            device: device.clone(),
            registrations: Vec::new(),
            refuted: None,
            refused: None,
            broken: 0,
            stats: DirectStats::default(),
        };
        let (why, this) = if verifies {
            let why = "the client compares checksums (Options::verify), and would see no byte";
            (why.to_owned(), None)
        } else if !policy.allows(Path::GpuDirect) {
            ("not tried: the policy does not allow it".to_owned(), None)
        } else {
            match this.try_scratch(driver) {
                Err(error) if error.kind() == Kind::Unsupported => (error.to_string(), None),
                // What else went wrong may pass.
                Ok(()) | Err(_) => ("the first read tries it".to_owned(), Some(this)),
            }
        };
        ladder.deny(Path::GpuDirect, why);
        this
    }

    /// Whether any memory of the device is exported, and registered.
    fn try_scratch(&self, driver: &impl Driver) -> Result<()> {
        self.device.flush_writes()?;
        let scratch = self.device.allocate(SCRATCH_BYTES)?;
        let memory = self.device.export(&scratch.all().allocation()?)?;
        let registered = register(driver, &memory);
        drop(memory);
        // Before the device gets its memory back.
        driver.with(Session::release_devices);
        registered
    }

    /// Why nothing goes this way over a connection; `None` if something may.
    #[must_use]
    pub fn obstacle(&self, connection: u64) -> Option<&Error> {
        let refused = self.refused.as_ref().filter(|(of, _)| *of == connection);
        self.refuted.as_ref().or(refused.map(|(_, error)| error))
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> DirectStats {
        DirectStats { registered: self.registrations.len(), ..self.stats }
    }

    /// A piece of so many bytes has arrived.
    pub fn count(&mut self, bytes: u64) {
        self.stats.reads += 1;
        self.stats.bytes += bytes;
    }

    /// Where the node may write a read's bytes by itself, if that was seen to work over this connection already; `None` if
    /// [`Direct::aim`] has to find out. Never waits.
    ///
    /// # Errors
    /// Why they must go another way.
    pub fn known(&mut self, connection: u64, into: &DeviceSpan) -> Result<Option<Aim>> {
        self.check(connection, into)?;
        let allocation = into.allocation()?;
        let within = whole_pages(&allocation, into)?;
        let Some(index) = self.find(&allocation) else { return Ok(None) };
        let one = &self.registrations[index];
        let memory = Arc::clone(&one.memory);
        let is_proven = one.proven_on == Some(connection);
        Ok(is_proven.then_some(Aim { memory, within, is_proven }))
    }

    /// Where the node may write a read's bytes by itself, seen to work over this connection. To see that, some of the
    /// bytes of `todo`, which is in order, are read twice: the first, since a file that has none there has none behind.
    ///
    /// Blocks meanwhile. What is in the memory is then anything. What the device was to do with the memory before must be
    /// done.
    ///
    /// # Errors
    /// Why they must go another way.
    pub fn aim(
        &mut self,
        driver: &impl Driver,
        connection: u64,
        origin: Origin,
        into: &DeviceSpan,
        todo: &[Range<usize>],
    ) -> Result<Aim> {
        self.check(connection, into)?;
        let allocation = into.allocation()?;
        let within = whole_pages(&allocation, into)?;
        let index = self.registration(&allocation)?;
        self.check_registered(driver, connection, index)?;
        let clip = |part: &Range<usize>| part.start.max(within.start)..part.end.min(within.end);
        let first = todo.iter().map(clip).find(|part| !part.is_empty());
        let is_proven = self.registrations[index].proven_on == Some(connection)
            || bugs::is(Bug::DirectUnproven)
            || match first {
                Some(Range { start, end }) => {
                    self.prove(driver, index, origin, into, start..end.min(start + PROOF_BYTES))?
                }
                None => false,
            };
        if is_proven {
            self.registrations[index].proven_on = Some(connection);
        }
        let memory = Arc::clone(&self.registrations[index].memory);
        Ok(Aim { memory, within, is_proven })
    }

    /// Whether anything may go this way there.
    fn check(&self, connection: u64, into: &DeviceSpan) -> Result<()> {
        if let Some(error) = self.obstacle(connection) {
            return Err(error.duplicate());
        }
        // Devices may count alike: the same address is other memory there.
        if !into.device().is(&self.device) {
            return Err(Kind::Invalid.error("the memory is another device's than the reader"));
        }
        Ok(())
    }

    /// An allocation's place in the list, where it is the last then: it was used just now.
    fn find(&mut self, allocation: &Allocation) -> Option<usize> {
        let is_it = |one: &Registration| {
            one.allocation == *allocation
                || (bugs::is(Bug::DirectByAddress) && one.allocation.range() == allocation.range())
        };
        let index = self.registrations.iter().position(is_it)?;
        let found = self.registrations.remove(index);
        self.registrations.push(found);
        Some(self.registrations.len() - 1)
    }

    /// The same, also of one that was not in it.
    fn registration(&mut self, allocation: &Allocation) -> Result<usize> {
        if let Some(index) = self.find(allocation) {
            return Ok(index);
        }
        // What was freed meanwhile is not kept from its device any longer.
        let device = &self.device;
        self.registrations.retain(|one| device.has(&one.allocation));
        self.make_room()?;
        let memory = self.device.export(allocation)?;
        let allocation = allocation.clone();
        self.registrations.push(Registration {
            allocation,
            memory,
            is_known: false,
            proven_on: None,
        });
        Ok(self.registrations.len() - 1)
    }

    /// Whether the node may write there by this connection: another one registered it again, or refused to.
    fn check_registered(
        &mut self,
        driver: &impl Driver,
        connection: u64,
        index: usize,
    ) -> Result<()> {
        if self.registrations[index].proven_on == Some(connection) {
            return Ok(());
        }
        let Err(error) = register(driver, &self.registrations[index].memory) else {
            let was_known = std::mem::replace(&mut self.registrations[index].is_known, true);
            self.stats.registrations += u64::from(!was_known);
            return Ok(());
        };
        self.registrations.remove(index);
        if error.kind() == Kind::Unsupported {
            self.refused = Some((connection, error.duplicate()));
        }
        Err(error)
    }

    fn make_room(&mut self) -> Result<()> {
        if self.registrations.len() < MOST_REGISTRATIONS {
            return Ok(());
        }
        // This list has one, the session another: what more there are are reads'.
        let is_idle = |one: &Registration| Arc::strong_count(&one.memory) <= 2;
        let index = self.registrations.iter().position(is_idle).ok_or_else(|| {
            Kind::Busy.error(format!("{MOST_REGISTRATIONS} allocations are being read into"))
        })?;
        self.registrations.remove(index);
        Ok(())
    }

    /// Has the node write some of a file over what is nowhere like it, and looks whether it is there then. Whether the
    /// file has anything there.
    fn prove(
        &mut self,
        driver: &impl Driver,
        index: usize,
        origin: Origin,
        into: &DeviceSpan,
        range: Range<usize>,
    ) -> Result<bool> {
        let Origin { handle, offset } = origin;
        let offset = offset
            .checked_add(range.start as u64)
            .ok_or_else(|| Kind::Invalid.error("the range ends beyond 64 bits"))?;
        let expected = read_by_host(driver, handle, offset, range.len())?;
        if expected.is_empty() {
            return Ok(false);
        }
        self.stats.proofs += 1;
        let span = into.part(range.start..range.start + expected.len())?;
        span.fill(&expected.iter().map(|byte| !byte).collect::<Vec<u8>>())?;
        let memory = Arc::clone(&self.registrations[index].memory);
        let submit =
            |session: &mut Session| session.submit_read_to_device(handle, offset, &memory, &span);
        let done =
            driver::call(driver, submit).map_err(|error| self.on_failed_proof(driver, error))?;
        self.broken = 0;
        if !bugs::is(Bug::DirectUnflushed) {
            self.device.flush_writes()?;
        }
        if done.bytes != expected.len() as u64 || span.to_vec()? != expected {
            let error = Kind::Unsupported.error(
                "what the node wrote into the device's memory is not there: look at the GPU, the RDMA device and \
                 what is between them (an IOMMU, ACS)",
            );
            self.refute(driver, error.duplicate());
            return Err(error);
        }
        Ok(true)
    }

    /// A connection that ends over this is none's fault for once.
    fn on_failed_proof(&mut self, driver: &impl Driver, error: Error) -> Error {
        if error.kind() == Kind::Disconnected {
            self.broken += 1;
        }
        if self.broken >= MOST_BROKEN {
            let sentence = "connections end when the node writes into the device's memory: look at the RDMA device's and \
                            the GPU's driver, and at what is between them";
            self.refute(driver, Kind::Unsupported.error(sentence));
        }
        error
    }

    /// Nothing goes this way any more, and what is registered is of no use.
    fn refute(&mut self, driver: &impl Driver, why: Error) {
        self.refuted = Some(why);
        self.end(driver);
    }

    /// Has the session forget what is registered, as far as no read is under way there.
    pub fn end(&mut self, driver: &impl Driver) {
        self.registrations.clear();
        driver.with(Session::release_devices);
    }
}

fn register(driver: &impl Driver, memory: &Arc<DmaBuf>) -> Result<()> {
    driver.when_connected(|session| session.register_device(memory))
}

fn read_by_host(driver: &impl Driver, handle: u64, offset: u64, length: usize) -> Result<Vec<u8>> {
    let memory = driver.when_connected(|session| session.allocate(length))?;
    let submit =
        |session: &mut Session, memory| session.submit_read(handle, offset, memory, 0..length);
    let done = driver.run(memory, submit)?;
    done.result?;
    let memory = done.memory.filter(|memory| !memory.is_empty());
    let memory = memory.ok_or_else(|| Kind::Disconnected.error("the memory of a read was lost"))?;
    let bytes = usize::try_from(done.bytes).expect("no more than the memory");
    Ok(memory.as_slice()[..bytes].to_vec())
}

/// The part of a span that whole pages of its allocation hold.
fn whole_pages(allocation: &Allocation, span: &DeviceSpan) -> Result<Range<usize>> {
    let (base, pages) = (span.pointer().0, allocation.pages());
    let from = |address: u64| usize::try_from(address.saturating_sub(base)).unwrap_or(usize::MAX);
    let range = from(pages.start)..from(pages.end).min(span.len());
    if range.is_empty() {
        let sentence = format!("no whole page of the host's is in {span:?}");
        return Err(Kind::Unsupported.error(sentence));
    }
    Ok(range)
}
