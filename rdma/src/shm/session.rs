//! One client, seen from the node.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use extent::wire::{LONG_REQUEST_BYTES, MAX_BODY_BYTES, REPLY_BYTES, REQUEST_BYTES};
use extent::wire::{Reply, Request};
use extent::{Error, Kind, Result};

use super::closer::close_elsewhere;
use super::control::{Note, ORDER_BYTES, Order};
use super::handshake::{ShmConnection, ShmOptions};
use super::layout::{CLIENT_WAKE_AT, NODE_WAKE_AT, REPLY_WORDS, REQUEST_WORDS};
use super::message;
use super::regions::Regions;
use super::ring::{Receiver, Sender};
use super::wake::{self, Awaits, WakeWord};
use crate::{Event, SessionId};

/// Requests taken from one client before the next one has its turn.
const BATCH: u32 = 32;
/// Messages read from one control socket before other work has its turn.
const ORDERS: usize = 8;

pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) regions: Regions,
    /// Polls in a row that found nothing.
    pub(super) idle_polls: u32,
    /// Whether its ring is polled; else it is armed, and the doorbell tells.
    pub(super) hot: bool,
    /// Whether replies were written and not yet published.
    pub(super) dirty: bool,
    requests: Receiver<REQUEST_WORDS>,
    replies: Sender<REPLY_WORDS>,
    /// Requests taken and not yet replied to. Each has a reply slot kept free for it.
    unanswered: u32,
    own_wake: WakeWord,
    client_wake: WakeWord,
    socket: UnixStream,
    doorbell: File,
    order: [u8; ORDER_BYTES],
    order_filled: usize,
    order_file: Option<OwnedFd>,
}

impl Session {
    pub(super) fn new(id: SessionId, connection: ShmConnection, options: &ShmOptions) -> Self {
        let ShmConnection { socket, doorbell, link, layout, peer: _, is_trusted } = connection;
        let max_regions = usize::try_from(options.max_regions).unwrap_or(usize::MAX);
        Self {
            id,
            regions: Regions::new(max_regions, options.max_region_bytes, is_trusted),
            idle_polls: 0,
            hot: true,
            dirty: false,
            requests: Receiver::new(link.clone(), layout.requests()),
            replies: Sender::new(link.clone(), layout.replies()),
            unanswered: 0,
            own_wake: WakeWord::new(link.clone(), NODE_WAKE_AT),
            client_wake: WakeWord::new(link, CLIENT_WAKE_AT),
            socket,
            doorbell,
            order: [0; ORDER_BYTES],
            order_filled: 0,
            order_file: None,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    /// Appends requests that wait and whose replies will find room; how many.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the client broke the protocol: end the session.
    pub(super) fn take_requests(&mut self, events: &mut Vec<Event>) -> Result<u32> {
        let count = self.takeable()?;
        if count == 0 {
            return Ok(0);
        }
        for ahead in 0..count {
            let mut capsule = [0; LONG_REQUEST_BYTES];
            self.requests.read(ahead, 0, &mut capsule[..REQUEST_BYTES]);
            // The copy says how long it is: whatever the client writes now changes nothing.
            let length = Request::capsule_bytes([capsule[0], capsule[1]]);
            self.requests.read(ahead, REQUEST_BYTES / 8, &mut capsule[REQUEST_BYTES..length]);
            events.push(Event::Request { session: self.id, capsule, length });
        }
        self.requests.release(count);
        self.unanswered += count;
        Ok(count)
    }

    fn takeable(&mut self) -> Result<u32> {
        let wanted = self.requests.pending()?.min(BATCH);
        if wanted == 0 {
            return Ok(0);
        }
        let room = self.replies.room(wanted + self.unanswered)?;
        Ok(wanted.min(room.saturating_sub(self.unanswered)))
    }

    /// Has the client ring from now on; `false` if there is something to do first. A client that
    /// sent requests, but leaves no room for replies, rings when it takes some.
    ///
    /// # Errors
    /// As [`Session::take_requests`].
    pub(super) fn cool(&mut self) -> Result<bool> {
        let stalled = self.requests.pending()? != 0;
        self.own_wake.arm(if stalled { Awaits::Room } else { Awaits::Entries });
        // The second look. Where it finds requests without room for replies that came since the
        // first, the word says too little: stay hot, and say more the next time.
        let asleep = self.takeable()? == 0 && (stalled || self.requests.pending()? == 0);
        if !asleep {
            self.own_wake.disarm();
        }
        Ok(asleep)
    }

    /// The ring is polled again: the client need not ring.
    pub(super) fn warm(&mut self) {
        self.stay_warm();
        self.idle_polls = 0;
    }

    /// The ring is polled again, but its patience goes on running out.
    pub(super) fn stay_warm(&mut self) {
        self.own_wake.disarm();
    }

    /// Writes a reply, for [`Session::publish`].
    ///
    /// # Errors
    /// [`Kind::Invalid`] if no request is unanswered, which only a broken node does.
    pub(super) fn reply(&mut self, reply: &Reply) -> Result<()> {
        let Some(unanswered) = self.unanswered.checked_sub(1) else {
            return Err(Kind::Invalid.error("the node replied more often than it was asked"));
        };
        self.unanswered = unanswered;
        let mut bytes = [0; REPLY_BYTES + MAX_BODY_BYTES];
        let length = reply.encode(&mut bytes);
        // There is room, because the request was taken only once there was.
        self.replies.push(&bytes[..length.next_multiple_of(8)]);
        self.dirty = true;
        Ok(())
    }

    /// Shows the client its replies. Fence, then [`Session::wake_client`].
    pub(super) fn publish(&mut self) {
        self.replies.publish();
    }

    /// Wakes the client if it sleeps; after publishing and a fence.
    pub(super) fn wake_client(&mut self) {
        self.dirty = false;
        if self.client_wake.take(Awaits::Entries) {
            self.client_wake.wake();
        }
    }

    /// Tells the client why its session ends, if it still listens, and wakes it.
    pub(super) fn say_closed(&mut self, reason: &Error) {
        let _ = self.send(&Note::Closed(reason.duplicate()));
        wake::published();
        self.wake_client();
    }

    /// Does what the client asks on the control socket.
    ///
    /// # Errors
    /// [`Kind::Disconnected`] if the client went; [`Kind::Corrupt`] if it broke the protocol. End
    /// the session.
    pub(super) fn on_control(&mut self, events: &mut Vec<Event>) -> Result<()> {
        for _ in 0..ORDERS {
            if !self.receive()? {
                return Ok(());
            }
            if self.order_filled == ORDER_BYTES {
                self.order_filled = 0;
                self.on_order(events)?;
            }
        }
        Ok(())
    }

    /// Whether there was anything.
    fn receive(&mut self) -> Result<bool> {
        let room = &mut self.order[self.order_filled..];
        let received = match message::receive(self.socket.as_fd(), room, 1, libc::MSG_DONTWAIT) {
            Ok(received) => received,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(Kind::Disconnected.error("the client went away").caused_by(e)),
        };
        let [file, _] = received.files;
        let has_file = file.is_some();
        if let Some(extra) = file.and_then(|file| self.order_file.replace(file)) {
            close_elsewhere(extra);
            return Err(Kind::Corrupt.error("two descriptors came with one order"));
        }
        // Without a descriptor, it is this process that has no room for it, and the order fails.
        if received.truncated && has_file {
            return Err(Kind::Corrupt.error("several descriptors came with one order"));
        }
        if received.bytes == 0 {
            return Err(Kind::Disconnected.error("the client hung up"));
        }
        self.order_filled += received.bytes;
        Ok(true)
    }

    fn on_order(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let session = self.id;
        let note = match (Order::parse(&self.order)?, self.order_file.take()) {
            (Order::Register { key, length }, Some(file)) => {
                let result = self.regions.register(key, length, file).map(|region| {
                    events.push(Event::Mapped { session, region: region.clone() });
                });
                Note::Registered(key, result)
            }
            (Order::Register { key, .. }, None) => Note::Registered(
                key,
                Err(Kind::NoSpace.error(
                    "no descriptor came with the region: it was not sent, or the node's limit on open files is reached",
                )),
            ),
            (Order::Unregister { key }, None) => {
                let result = self.regions.unregister(key).map(|region| {
                    events.push(Event::Unmapped { region: region.id() });
                });
                Note::Unregistered(key, result)
            }
            (Order::Unregister { .. }, Some(file)) => {
                close_elsewhere(file);
                return Err(Kind::Corrupt.error("a descriptor came with an order that takes none"));
            }
        };
        if !self.send(&note)? {
            return Err(Kind::Disconnected.error("the client does not read its control socket"));
        }
        Ok(())
    }

    /// Whether there was room in the socket.
    fn send(&self, note: &Note) -> Result<bool> {
        let bytes = note.encode();
        match message::send(self.socket.as_fd(), &bytes, &[], libc::MSG_DONTWAIT) {
            Ok(sent) if sent == bytes.len() => Ok(true),
            Ok(_) => Err(Kind::Disconnected.error("half a note went to the client")),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(Kind::Disconnected.error("the client went away").caused_by(e)),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(file) = self.order_file.take() {
            close_elsewhere(file);
        }
    }
}
