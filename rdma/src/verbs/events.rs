//! What devices tell unasked (`ibv_get_async_event`): of a queue pair, a completion queue, a shared
//! receive queue, a port, or all of a device. `transport/unasked.rs` has what follows from each.
//!
//! A process has one such queue for each device, whichever shard a queue pair belongs to. Whoever reads
//! it first acknowledges at once (a queue pair that has an event out cannot be destroyed), logs what
//! concerns all, and puts a copy into the mailbox of every [`Watch`] of that device.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use extent::{Error, Result};

use crate::sys::{Epoll, EventFd};

use super::adapter::{Adapter, check};
use super::ffi;

/// Events that wait in a mailbox. Who does not look loses the oldest: each is counted and logged by then.
const MAILBOX: usize = 1024;

/// Kinds of events (`enum ibv_event_type`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum EventKind {
    CompletionQueueError,
    QueuePairFatal,
    QueuePairRequestError,
    QueuePairAccessError,
    Established,
    SendsDrained,
    PathMigrated,
    PathMigrationFailed,
    DeviceFatal,
    PortActive,
    PortError,
    LidChange,
    PartitionKeyChange,
    SubnetManagerChange,
    ReceivesError,
    ReceivesLow,
    LastReceive,
    ClientReregister,
    GidChange,
    WorkQueueFatal,
    Unknown,
}

/// How much an event matters to whoever reads a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Weight {
    Error,
    Warning,
    Notice,
    Trifle,
}

use EventKind as K;
use Weight as W;

/// In the order of their numbers: each with its name, for counters, and what it means and asks for.
const KINDS: [(EventKind, Weight, &str, &str); 21] = [
    (
        K::CompletionQueueError,
        W::Error,
        "cq_error",
        "a completion queue overflowed or failed, and its sessions end: please report it",
    ),
    (
        K::QueuePairFatal,
        W::Warning,
        "qp_fatal",
        "the device gave up a connection: look at the kernel's log",
    ),
    (
        K::QueuePairRequestError,
        W::Warning,
        "qp_request_error",
        "the peer sent what a connection has no place for: is it a Forebay client?",
    ),
    (
        K::QueuePairAccessError,
        W::Warning,
        "qp_access_error",
        "the peer reached for memory that it has no right to, and was refused",
    ),
    (
        K::Established,
        W::Trifle,
        "established",
        "a connection's first message came before the word that it stands",
    ),
    (K::SendsDrained, W::Trifle, "sends_drained", "a queue pair has nothing more to send"),
    (
        K::PathMigrated,
        W::Notice,
        "path_migrated",
        "a connection took its other path: look at the first one's port",
    ),
    (
        K::PathMigrationFailed,
        W::Warning,
        "path_migration_failed",
        "a connection could not take its other path: look at both ports",
    ),
    (
        K::DeviceFatal,
        W::Error,
        "device_fatal",
        "the device failed, and its sessions end: look at the kernel's log, reset it, and restart the node",
    ),
    (K::PortActive, W::Notice, "port_active", "a port is up"),
    (
        K::PortError,
        W::Warning,
        "port_error",
        "a port is down: look at its cable and its switch; sessions last as long as their retries do",
    ),
    (
        K::LidChange,
        W::Notice,
        "lid_change",
        "the subnet manager gave a port another address: clients whose sessions end connect again",
    ),
    (
        K::PartitionKeyChange,
        W::Notice,
        "pkey_change",
        "the partitions of a port changed: clients of others cannot connect any more",
    ),
    (K::SubnetManagerChange, W::Notice, "sm_change", "another subnet manager took over"),
    (
        K::ReceivesError,
        W::Error,
        "srq_error",
        "a shared receive queue failed, and its sessions end: look at the kernel's log",
    ),
    (
        K::ReceivesLow,
        W::Warning,
        "srq_limit_reached",
        "places for requests run low: clients send faster than a shard looks, so use more shards",
    ),
    (K::LastReceive, W::Trifle, "last_receive", "a queue pair that ended takes no more receives"),
    (
        K::ClientReregister,
        W::Notice,
        "client_reregister",
        "the subnet manager asks for registrations again",
    ),
    (
        K::GidChange,
        W::Notice,
        "gid_change",
        "a port's addresses changed: `forebay doctor` lists them; clients of an old one connect again",
    ),
    (
        K::WorkQueueFatal,
        W::Warning,
        "wq_fatal",
        "a work queue failed, and nothing here makes any: please report it",
    ),
    (
        K::Unknown,
        W::Warning,
        "unknown",
        "an event that is newer than this version: see the manual of ibv_get_async_event",
    ),
];

impl EventKind {
    fn from(number: u32) -> Self {
        let known = usize::try_from(number).ok().and_then(|index| KINDS.get(index));
        known.map_or(Self::Unknown, |(kind, ..)| *kind)
    }

    fn place(self) -> usize {
        KINDS.iter().position(|(kind, ..)| *kind == self).expect("all are listed")
    }

    fn weight(self) -> Weight {
        KINDS[self.place()].1
    }

    fn name(self) -> &'static str {
        KINDS[self.place()].2
    }

    /// What it means, and what to do.
    pub(super) fn meaning(self) -> &'static str {
        KINDS[self.place()].3
    }

    fn concerns(self) -> Concern {
        match self {
            Self::CompletionQueueError => Concern::CompletionQueue,
            Self::QueuePairFatal
            | Self::QueuePairRequestError
            | Self::QueuePairAccessError
            | Self::Established
            | Self::SendsDrained
            | Self::PathMigrated
            | Self::PathMigrationFailed
            | Self::LastReceive => Concern::QueuePair,
            Self::ReceivesError | Self::ReceivesLow => Concern::Receives,
            Self::PortActive
            | Self::PortError
            | Self::LidChange
            | Self::PartitionKeyChange
            | Self::SubnetManagerChange
            | Self::ClientReregister
            | Self::GidChange => Concern::Port,
            Self::DeviceFatal | Self::WorkQueueFatal | Self::Unknown => Concern::Device,
        }
    }
}

/// Which member of C's union an event has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Concern {
    CompletionQueue,
    QueuePair,
    Receives,
    Port,
    Device,
}

/// What an event is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Subject {
    /// The address of the completion queue.
    CompletionQueue(usize),
    /// The queue pair's number.
    QueuePair(u32),
    /// The address of the shared receive queue.
    Receives(usize),
    /// The port's number.
    Port(i32),
    Device,
}

/// What a device told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DeviceEvent {
    pub(super) kind: EventKind,
    pub(super) subject: Subject,
}

/// A device that this process uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceReport {
    /// The kernel's name for it.
    pub device: String,
    /// The numbers of its ports, and whether each is up.
    pub ports: Vec<(u8, bool)>,
    /// What it told of unasked, such as `port_error`, and how often since the process began.
    pub events: Vec<(&'static str, u64)>,
}

/// All devices that this process uses, as of now.
#[must_use]
pub fn device_reports() -> Vec<DeviceReport> {
    let adapters: Vec<Adapter> = devices().iter().map(|told| told.adapter).collect();
    adapters.into_iter().for_each(hear);
    let report = |told: &Told| {
        let counted = KINDS.iter().zip(&told.counts).filter(|(_, count)| **count > 0);
        DeviceReport {
            device: told.adapter.name(),
            ports: told.adapter.ports(),
            events: counted.map(|((_, _, event, _), count)| (*event, *count)).collect(),
        }
    };
    devices().iter().map(report).collect()
}

/// Has a device be among those that reports tell of.
///
/// # Errors
/// [`extent::Kind::Io`] if its events cannot be read without waiting for them.
pub(super) fn follow(adapter: Adapter) -> Result<()> {
    let fd = adapter.event_descriptor();
    // SAFETY: changes flags of a descriptor that stays open with its device.
    let changed = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
    check(changed, "setting up an RDMA device's events")?;
    let mut devices = devices();
    if !devices.iter().any(|told| told.adapter == adapter) {
        devices.push(Told { adapter, counts: [0; KINDS.len()], mailboxes: Vec::new() });
    }
    Ok(())
}

/// Takes what a device has told, counts and logs it, and puts it into all mailboxes.
fn hear(adapter: Adapter) {
    // Whoever comes next finds in the mailboxes what was taken before.
    let mut devices = devices();
    while let Some(event) = next(adapter) {
        log(adapter, event);
        for told in devices.iter_mut().filter(|told| told.adapter == adapter) {
            told.counts[event.kind.place()] += 1;
            told.mailboxes.iter().filter_map(Weak::upgrade).for_each(|mailbox| mailbox.put(event));
        }
    }
}

fn log(adapter: Adapter, event: DeviceEvent) {
    let (device, subject) = (adapter.name(), event.subject);
    let (name, meaning) = (event.kind.name(), event.kind.meaning());
    match event.kind.weight() {
        W::Error => tracing::error!(device, ?subject, "RDMA event {name}: {meaning}"),
        W::Warning => tracing::warn!(device, ?subject, "RDMA event {name}: {meaning}"),
        W::Notice => tracing::info!(device, ?subject, "RDMA event {name}: {meaning}"),
        W::Trifle => tracing::debug!(device, ?subject, "RDMA event {name}: {meaning}"),
    }
}

/// A device, how often it told what, and who listens.
struct Told {
    adapter: Adapter,
    counts: [u64; KINDS.len()],
    mailboxes: Vec<Weak<Mailbox>>,
}

fn devices() -> MutexGuard<'static, Vec<Told>> {
    static DEVICES: Mutex<Vec<Told>> = Mutex::new(Vec::new());
    DEVICES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Mailbox {
    events: Mutex<VecDeque<DeviceEvent>>,
    wake: EventFd,
}

impl Mailbox {
    fn put(&self, event: DeviceEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == MAILBOX {
            events.pop_front();
        }
        events.push_back(event);
        self.wake.signal();
    }
}

/// Somebody who hears what a device tells.
#[derive(Debug)]
pub(super) struct Watch {
    adapter: Adapter,
    mailbox: Arc<Mailbox>,
    /// The device's descriptor and the mailbox's.
    epoll: Epoll,
}

impl Watch {
    pub(super) fn new(adapter: Adapter) -> Result<Self> {
        let failed = |e| Error::io("watching an RDMA device", e);
        follow(adapter)?;
        let wake = EventFd::new().map_err(failed)?;
        let epoll = Epoll::new().map_err(failed)?;
        // SAFETY: devices stay open as long as the process runs.
        let device = unsafe { BorrowedFd::borrow_raw(adapter.event_descriptor()) };
        epoll.add(device, libc::EPOLLIN, 0).map_err(failed)?;
        epoll.add(wake.as_fd(), libc::EPOLLIN, 0).map_err(failed)?;
        let mailbox = Arc::new(Mailbox { events: Mutex::new(VecDeque::new()), wake });
        for told in devices().iter_mut().filter(|told| told.adapter == adapter) {
            told.mailboxes.retain(|mailbox| mailbox.strong_count() > 0);
            told.mailboxes.push(Arc::downgrade(&mailbox));
        }
        Ok(Self { adapter, mailbox, epoll })
    }

    /// What was told since, of this device.
    pub(super) fn take(&self, out: &mut Vec<DeviceEvent>) {
        hear(self.adapter);
        let mut events = self.mailbox.events.lock().unwrap_or_else(PoisonError::into_inner);
        if !events.is_empty() {
            self.mailbox.wake.clear();
            out.extend(events.drain(..));
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// The next event of a device, acknowledged.
fn next(adapter: Adapter) -> Option<DeviceEvent> {
    let library = ffi::library().ok()?;
    let mut event = MaybeUninit::<ffi::ibv_async_event>::zeroed();
    // SAFETY: the device is open, and the place is written to; it does not block.
    let failed = unsafe { (library.ibv_get_async_event)(adapter.context(), event.as_mut_ptr()) };
    if failed != 0 {
        return None;
    }
    // SAFETY: it was filled, and zeroes would do as well.
    let mut event = unsafe { event.assume_init() };
    let kind = EventKind::from(event.event_type);
    let subject = match kind.concerns() {
        Concern::CompletionQueue => Subject::CompletionQueue(event.element.addr()),
        Concern::QueuePair => {
            // SAFETY: a queue pair is not destroyed while an event of it is not acknowledged.
            Subject::QueuePair(unsafe { (*event.element.cast::<ffi::ibv_qp>()).qp_num })
        }
        Concern::Receives => Subject::Receives(event.element.addr()),
        Concern::Port => {
            let low = event.element.addr() & 0xFF;
            Subject::Port(i32::try_from(low).expect("a byte"))
        }
        Concern::Device => Subject::Device,
    };
    // SAFETY: it came from the library, is handed back once, and what it names is not used afterwards.
    unsafe { (library.ibv_ack_async_event)(&raw mut event) };
    Some(DeviceEvent { kind, subject })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_a_name_and_a_meaning_of_its_own() {
        for (number, (kind, _, name, meaning)) in (0..).zip(&KINDS) {
            assert_eq!(EventKind::from(number), *kind);
            assert_eq!((kind.name(), kind.meaning()), (*name, *meaning));
            let same = |(_, _, other, also): &&(_, _, &str, &str)| other == name || also == meaning;
            assert_eq!(KINDS.iter().filter(same).count(), 1, "{name}");
        }
        assert_eq!(EventKind::from(20), EventKind::Unknown);
        assert_eq!(EventKind::from(u32::MAX), EventKind::Unknown);
        assert_eq!(EventKind::Unknown.concerns(), Concern::Device, "its union is not looked at");
    }

    #[test]
    fn a_mailbox_that_nobody_empties_keeps_the_latest() {
        let mailbox =
            Mailbox { events: Mutex::default(), wake: EventFd::new().expect("an eventfd") };
        let event = |port| DeviceEvent { kind: K::PortError, subject: Subject::Port(port) };
        (0..2000).for_each(|port| mailbox.put(event(port)));
        let events = mailbox.events.lock().expect("nobody panicked");
        assert_eq!((events.len(), events.back()), (MAILBOX, Some(&event(1999))));
    }
}
