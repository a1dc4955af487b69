//! The core: one session, one thread, no blocking but in [`Session::connect`] and [`Session::wait`].

mod completed;
mod devices;
mod engine;
mod files;
mod greeting;
mod probe;
mod recovery;
mod redial;
mod reopening;
mod slab;
mod submission;
mod transfer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use dma::Region;
use extent::wire::{self, HelloBody, Reply};
use extent::{Error, Kind, Result};
use rdma::{Channel, Fabric};

use crate::arena::Home;
use crate::{Memory, Options};
use devices::Devices;
use files::Files;
use probe::Probe;
use redial::Redial;
use slab::Slab;
use transfer::{Operation, Part, Transfer};

pub use completed::{Completed, Progress, Refused, Ticket};

/// Room for `silo/key`, and how many OPENs may be in flight.
const NAME_BYTES: usize = 2048;
const NAMES: usize = 8;

/// A client's connection to a node.
///
/// Operations are submitted, sent to the node by [`Session::kick`] as far as its credits allow,
/// and come back from [`Session::poll`] in any order, every one exactly once: if the session is
/// lost, they come back with that error. What is longer than the node's longest transfer is split
/// and joined again.
///
/// A session that is [`Session::reconnecting`] survives its connections: reads and other requests
/// that change nothing are sent again, files are opened again at the generations that they had. A
/// generation that was being written is gone with its connection, and its requests fail.
pub struct Session {
    channel: Option<Box<dyn Channel>>,
    fabric: Fabric,
    link: Link,
    /// How to get another channel, if there shall be one.
    redial: Option<Redial>,
    /// Why the last connection was lost.
    why: Option<Error>,
    up_since: Option<Instant>,
    stats: SessionStats,
    probe: Probe,
    files: Files,
    /// Files still to be opened again, and when to go on with that.
    reopening: VecDeque<u64>,
    resume_at: Option<Instant>,
    /// Transfers of the session's own: under way, and those of them still to be sent.
    own: usize,
    unsent_own: VecDeque<usize>,
    own_names: Vec<Memory>,
    /// Why there is no channel any more, and never will be.
    over: Option<Error>,
    home: Arc<Home>,
    devices: Devices,
    hello: HelloBody,
    options: Options,
    max_transfer_bytes: u64,
    credits: usize,
    requests: Slab<InFlight>,
    transfers: Slab<Transfer>,
    /// Transfers with parts still to be sent.
    unsent: VecDeque<usize>,
    next_ticket: u64,
    next_sequence: u16,
    completed: Vec<Completed>,
    replies: Vec<Reply>,
    names: Vec<Memory>,
}

/// What may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    /// Nothing: there is no channel.
    Away,
    /// The greeting, and no more before it is answered.
    Greeting { until: Instant },
    /// The OPENs of files that were open before.
    Reopening { until: Instant },
    /// Everything.
    Up,
}

/// What a session went through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SessionStats {
    /// Connections made, the first included.
    pub connections: u64,
    /// Requests sent again because a connection was lost.
    pub repeated: u64,
}

/// A request that the node has and has not answered.
struct InFlight {
    tag: u32,
    transfer: usize,
    part: Part,
}

impl Session {
    fn new(fabric: Fabric, options: &Options) -> Self {
        Self {
            fabric,
            channel: None,
            link: Link::Away,
            redial: None,
            why: None,
            up_since: None,
            stats: SessionStats::default(),
            probe: Probe::default(),
            files: Files::new(),
            reopening: VecDeque::new(),
            resume_at: None,
            own: 0,
            unsent_own: VecDeque::new(),
            own_names: Vec::with_capacity(NAMES),
            over: None,
            home: Arc::default(),
            devices: Devices::default(),
            hello: HelloBody {
                version: wire::VERSION,
                credits: 1,
                features: 0,
                max_transfer_bytes: 0,
                block_bytes: 0,
            },
            options: options.clone(),
            max_transfer_bytes: wire::MAX_TRANSFER_BYTES,
            credits: 1,
            requests: Slab::new(),
            transfers: Slab::new(),
            unsent: VecDeque::new(),
            next_ticket: 0,
            next_sequence: 0,
            completed: Vec::new(),
            replies: Vec::new(),
            names: Vec::with_capacity(NAMES),
        }
    }

    /// How the node is reached.
    #[must_use]
    pub fn fabric(&self) -> Fabric {
        self.fabric
    }

    /// What was agreed on.
    #[must_use]
    pub fn hello(&self) -> &HelloBody {
        &self.hello
    }

    /// Operations submitted and not yet handed out by [`Session::poll`].
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.transfers.len() - self.own + self.completed.len()
    }

    /// What it went through.
    #[must_use]
    pub fn stats(&self) -> SessionStats {
        self.stats
    }

    /// The way to the node that is in use, or tried: a number and a name. `None` if the session does
    /// not connect again.
    #[must_use]
    pub fn rail(&self) -> Option<(usize, String)> {
        self.redial.as_ref().map(Redial::rail)
    }

    /// Whether another connection follows one that is lost.
    #[must_use]
    pub fn connects_again(&self) -> bool {
        self.redial.is_some()
    }

    /// Whether its node knows this memory, or will: not that of a connection that was lost over shared
    /// memory, which is never used again.
    #[must_use]
    pub fn reaches(&self, memory: &Memory) -> bool {
        memory.lives_in(&self.home)
            && memory.region().is_some_and(|region| !self.home.is_retired(region))
    }

    /// Somebody wants something: if the node was given up, it is looked for again, and if nobody
    /// wanted anything meanwhile, as if the connection had been lost now. What submits an operation
    /// does this by itself; [`Session::allocate`] does not.
    pub fn wake(&mut self) {
        let Some(redial) = self.redial.as_mut().filter(|redial| redial.is_counting()) else {
            return;
        };
        // Nobody waits for a file to be closed.
        let mut waited_for = self.transfers.iter().map(|transfer| transfer.operation);
        let is_first = waited_for.all(|one| one.is_own() || matches!(one, Operation::Close { .. }));
        redial.wake(is_first);
    }

    /// Whether there is a connection, and everything that was open before is open again.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link == Link::Up
    }

    /// Requests that the node has right now; never more than its credits.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.requests.len()
    }

    /// How far the operations are that have not come back, for whoever has to know which of them stand still.
    pub fn progress(&self) -> impl Iterator<Item = Progress> {
        self.transfers.iter().filter(|one| !one.operation.is_own()).map(Transfer::progress)
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<&Error> {
        self.over.as_ref()
    }

    /// Memory that this session's node may use directly. New memory is registered with it before this returns,
    /// and over shared memory all of its pages are there then: a second for some GiB.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] without memory; [`Kind::Busy`] if the node maps no more of it, or while the
    /// session connects again; [`Kind::Disconnected`] if the session is over; [`Kind::Invalid`] for a
    /// length of zero.
    pub fn allocate(&mut self, length: usize) -> Result<Memory> {
        if length == 0 {
            return Err(Kind::Invalid.error("memory of zero bytes"));
        }
        self.release_unused();
        self.check_over()?;
        if let Some(memory) = self.home.carve(length) {
            return Ok(memory);
        }
        self.connected(|session| session.acquire(length))
    }

    /// Has this session's node use memory of the caller's, such as a [`Region::lent`], where it is: it
    /// is registered once, here and with each later connection, until nothing of it is used any more.
    /// The whole of it may be read into and written from, also in parts.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] over shared memory, where a node maps only what was made for it;
    /// [`Kind::Invalid`] if the session has it already; [`Kind::NoSpace`] over the limit on locked memory; else as [`Session::allocate`].
    pub fn register(&mut self, region: &Arc<Region>) -> Result<Memory> {
        self.release_unused();
        self.check_over()?;
        if self.home.holds(region) {
            return Err(Kind::Invalid.error("this memory is the session's already"));
        }
        self.connected(|session| {
            let Some(channel) = &mut session.channel else { return Err(session.no_channel()) };
            channel.register(region)?;
            Ok(session.home.admit(Arc::clone(region)))
        })
    }

    /// Takes memory back. When this returns, no device knows a region any more of which this was the
    /// last that was used.
    pub fn release(&mut self, memory: Memory) {
        drop(memory);
        self.release_unused();
    }

    /// Asks the channel for something.
    fn connected<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        // Only what was there before the node's greeting is told to it afterwards.
        if matches!(self.link, Link::Greeting { .. }) {
            return Err(connecting_again());
        }
        match act(self) {
            Err(error)
                if ends_channel(&error) && self.channel.is_some() && self.redial.is_some() =>
            {
                self.lose(&error);
                Err(connecting_again())
            }
            other => other,
        }
    }

    /// Memory that is free, or more of it from the channel.
    fn acquire(&mut self, length: usize) -> Result<Memory> {
        if let Some(memory) = self.home.carve(length) {
            return Ok(memory);
        }
        let Some(channel) = &mut self.channel else { return Err(self.no_channel()) };
        // Shared memory is filled with pages at once, until there are none left for anybody.
        if length > dma::machine_bytes() {
            return Err(Kind::NoSpace.error("this machine does not have so much memory"));
        }
        let wished = self.home.region_bytes(length);
        let region = match channel.allocate(wished) {
            Err(error) if error.kind() == Kind::NoSpace && wished > length => {
                channel.allocate(length)?
            }
            other => other?,
        };
        Ok(self.home.adopt(region, length))
    }

    fn no_channel(&self) -> Error {
        if !self.redial.as_ref().is_some_and(Redial::is_resting) {
            return connecting_again();
        }
        let why = self.why.as_ref().map_or_else(String::new, ToString::to_string);
        Kind::Disconnected.error(format!("the connection was lost, and not made again: {why}"))
    }

    fn check_over(&self) -> Result<()> {
        self.over.as_ref().map_or(Ok(()), |reason| {
            Err(Kind::Disconnected.error(format!("the session is over, connect again: {reason}")))
        })
    }

    fn release_unused(&mut self) {
        match &mut self.channel {
            // Before the greeting is answered, the channel knows no memory yet.
            Some(_) if matches!(self.link, Link::Greeting { .. }) => {}
            Some(channel) => {
                for region in self.home.take_unused() {
                    channel.release(&region);
                }
                self.devices.sweep(Some(&mut **channel));
            }
            None => {
                drop(self.home.take_unused());
                self.devices.sweep(None);
            }
        }
    }
}

/// Whether a channel that answers with this is over. Another answer concerns one request.
fn ends_channel(error: &Error) -> bool {
    matches!(error.kind(), Kind::Disconnected | Kind::Corrupt)
}

fn connecting_again() -> Error {
    Kind::Busy.error("the session is connecting again: poll first")
}

#[cfg(all(test, feature = "seeded-bugs"))]
pub(crate) use redial::tests as redial_tests;
#[cfg(all(test, feature = "seeded-bugs"))]
pub(crate) use tests::a_silo_that_hangs_holds_nobody_up_for_ever;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod twisted;
