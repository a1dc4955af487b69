//! The client's side of shared memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dma::{ALIGN_BYTES, Region};
use extent::wire::{Downstream, LONG_REQUEST_BYTES, MAX_BODY_BYTES, REPLY_BYTES, Reply, Request};
use extent::{Error, Kind, Result};
use socket2::{Domain, SockAddr, Socket, Type};

use super::control::{Grant, Hello, NOTE_BYTES, Note, Order, VERSION};
use super::layout::{CLIENT_WAKE_AT, NODE_WAKE_AT, REPLY_WORDS, REQUEST_WORDS};
use super::ring::{Receiver, Sender};
use super::wake::{self, Awaits, WakeWord};
use super::{message, sys};
use crate::{Channel, Fabric};

/// The most and the fewest looks at the ring before [`Channel::wait`] sleeps. The most take some 20
/// microseconds, about what sleeping and waking costs.
const MOST_SPINS: u32 = 500;
const FEWEST_SPINS: u32 = 8;
/// So often it tries the most, in case the node has become faster.
const WAITS_PER_TRIAL: u32 = 64;
/// How long it takes at most to notice that the node died without a word.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// From this size on, memory is made of huge pages if there are any: a device then needs few
/// descriptors for a large read.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Empty polls between two looks at the socket, which cost a system call.
const POLLS_PER_LOOK: u32 = 256;

/// A session with a node on the same host.
#[derive(Debug)]
pub struct ShmChannel {
    socket: UnixStream,
    doorbell: File,
    requests: Sender<REQUEST_WORDS>,
    replies: Receiver<REPLY_WORDS>,
    node_wake: WakeWord,
    own_wake: WakeWord,
    /// Requests that may be outstanding, so that every reply has room.
    most_outstanding: u32,
    outstanding: u32,
    timeout: Duration,
    regions: Vec<Arc<Region>>,
    note: [u8; NOTE_BYTES],
    note_filled: usize,
    /// The node's answer to the one order under way.
    answer: Option<Note>,
    empty_polls: u32,
    /// Looks before the next sleep, and waits so far.
    spins: u32,
    waits: u32,
    /// Why there is no session any more.
    over: Option<Error>,
}

impl ShmChannel {
    /// Connects to the node that listens at `path`. `timeout` is for each of its answers on the
    /// control socket; `slots` is how many requests should be possible at a time, 32 to 1024.
    ///
    /// # Errors
    /// [`Kind::Disconnected`] if nobody listens or answers; [`Kind::Denied`] if this user may not;
    /// [`Kind::Busy`] if the node has too many sessions; [`Kind::Unsupported`] if the two have no
    /// version in common.
    pub fn connect(path: &Path, timeout: Duration, slots: u32) -> Result<Self> {
        let open = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // Connecting waits while the listener's queue is full.
            socket.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
            socket.connect(&SockAddr::unix(path)?)?;
            Ok(socket)
        };
        let socket = open().map_err(|e: io::Error| {
            let sentence = format!("connecting to {}: does a node listen there?", path.display());
            Kind::Disconnected.error(sentence).caused_by(e)
        })?;
        Self::over_stream(UnixStream::from(std::os::fd::OwnedFd::from(socket)), timeout, slots)
    }

    /// Opens a session over a socket that is connected to a node.
    ///
    /// # Errors
    /// As [`ShmChannel::connect`].
    pub fn over_stream(socket: UnixStream, timeout: Duration, slots: u32) -> Result<Self> {
        let timeout = timeout.max(Duration::from_millis(1));
        let lost = |e: io::Error| Kind::Disconnected.error("greeting the node").caused_by(e);
        socket.set_nonblocking(false).map_err(lost)?;
        socket.set_read_timeout(Some(timeout)).map_err(lost)?;
        socket.set_write_timeout(Some(timeout)).map_err(lost)?;
        let hello = Hello { versions: (VERSION, VERSION), slots: (slots, slots) };
        // A node that refuses may have hung up already; its note says more than a broken pipe.
        let sent = message::send(socket.as_fd(), &hello.encode(), &[], 0);
        let mut note = [0; NOTE_BYTES];
        let received = message::receive(socket.as_fd(), &mut note, 2, 0).map_err(lost)?;
        if received.bytes != NOTE_BYTES {
            sent.map_err(lost)?;
            return Err(Kind::Disconnected.error("the node hung up without a welcome"));
        }
        let Note::Welcome(welcome) = Note::parse(&note)? else {
            return Err(Kind::Corrupt.error("the node's first note is no welcome"));
        };
        let Grant { version, layout, .. } = welcome?;
        let [Some(memory), Some(doorbell)] = received.files else {
            return Err(Kind::Corrupt.error("the node's welcome came without its descriptors"));
        };
        if version != VERSION {
            return Err(Kind::Unsupported.error(format!("the node speaks version {version}")));
        }
        let link = Region::sealed_memfd(memory.as_fd(), layout.bytes())?;
        Ok(Self {
            socket,
            doorbell: File::from(doorbell),
            requests: Sender::new(Arc::clone(&link), layout.requests()),
            replies: Receiver::new(Arc::clone(&link), layout.replies()),
            node_wake: WakeWord::new(Arc::clone(&link), NODE_WAKE_AT),
            own_wake: WakeWord::new(link, CLIENT_WAKE_AT),
            most_outstanding: layout.slots().1,
            outstanding: 0,
            timeout,
            regions: Vec::new(),
            note,
            note_filled: 0,
            answer: None,
            empty_polls: 0,
            spins: MOST_SPINS,
            waits: 0,
            over: None,
        })
    }

    fn alive(&self) -> Result<()> {
        self.over.as_ref().map_or(Ok(()), |error| Err(error.duplicate()))
    }

    /// Remembers why the session is over; the first reason stays.
    fn end(&mut self, reason: Error) -> Error {
        let told = reason.duplicate();
        self.over.get_or_insert(reason);
        told
    }

    fn ring(&self) {
        // It fails only when the counter is full, and then the node has been rung.
        let _ = (&self.doorbell).write(&1u64.to_ne_bytes());
    }

    /// Copies replies out of the ring; how many.
    fn take_replies(&mut self, replies: &mut Vec<Reply>) -> Result<u32> {
        let count = self.replies.pending()?;
        if count == 0 {
            return Ok(0);
        }
        for ahead in 0..count {
            replies.push(self.read_reply(ahead)?);
        }
        self.replies.release(count);
        self.outstanding = self.outstanding.saturating_sub(count);
        wake::published();
        if self.node_wake.take(Awaits::Room) {
            self.ring();
        }
        Ok(count)
    }

    /// Looks at the ring for as long as that has paid lately. Whether there is a reply.
    fn spin(&mut self) -> Result<bool> {
        self.waits = self.waits.wrapping_add(1);
        let is_trial = self.waits.is_multiple_of(WAITS_PER_TRIAL);
        let spins = if is_trial { MOST_SPINS } else { self.spins };
        for _ in 0..spins {
            if self.replies.pending().map_err(|e| self.end(e))? != 0 {
                self.spins = (self.spins * 2).min(MOST_SPINS);
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        self.spins = (self.spins / 2).max(FEWEST_SPINS);
        Ok(false)
    }

    fn read_reply(&self, ahead: u32) -> Result<Reply> {
        let mut header = [0; REPLY_BYTES];
        self.replies.read(ahead, 0, &mut header);
        match Downstream::parse(&header)? {
            Downstream::Reply(reply, length) => {
                let mut body = [0; MAX_BODY_BYTES];
                let whole = &mut body[..length.next_multiple_of(8)];
                self.replies.read(ahead, REPLY_BYTES / 8, whole);
                Downstream::attach(reply, &body[..length])
            }
            Downstream::Data(_) => Err(Kind::Corrupt.error("data in a ring of replies")),
        }
    }

    /// Reads what the node has sent over the socket, without waiting.
    fn look(&mut self) -> Result<()> {
        loop {
            let room = &mut self.note[self.note_filled..];
            let received = match message::receive(self.socket.as_fd(), room, 0, libc::MSG_DONTWAIT)
            {
                Ok(received) => received.bytes,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(Kind::Disconnected.error("the node went away").caused_by(e)),
            };
            if received == 0 {
                return Err(Kind::Disconnected.error("the node went away: connect again"));
            }
            self.note_filled += received;
            if self.note_filled == NOTE_BYTES {
                self.note_filled = 0;
                match Note::parse(&self.note)? {
                    Note::Closed(reason) => {
                        return Err(Kind::Disconnected
                            .error(format!("the node closed the session: {reason}")));
                    }
                    answer => self.answer = Some(answer),
                }
            }
        }
    }

    /// Maps a file, and has the node map it too.
    fn share(&mut self, file: &OwnedFd, rounded: usize) -> Result<Arc<Region>> {
        let region = Region::sealed_memfd(file.as_fd(), rounded)?;
        // The node pins all of it, in a thread that others wait for, too: it shall not clear the pages.
        region.populate();
        let key = region.id().0;
        let order = Order::Register { key, length: rounded as u64 };
        match self.order(order, Some(file.as_fd()))? {
            Note::Registered(answered, result) if answered == key => result?,
            other => {
                let wrong = format!("the node answered {other:?} to a registration");
                return Err(self.end(Kind::Corrupt.error(wrong)));
            }
        }
        self.regions.push(Arc::clone(&region));
        Ok(region)
    }

    /// Sends an order and waits for its answer.
    fn order(&mut self, order: Order, file: Option<std::os::fd::BorrowedFd<'_>>) -> Result<Note> {
        self.alive()?;
        self.answer = None;
        let bytes = order.encode();
        let sent = message::send(self.socket.as_fd(), &bytes, file.as_slice(), 0);
        if !matches!(sent, Ok(length) if length == bytes.len()) {
            // Half an order, or none: the node's last note may say why.
            let why = self.look().err();
            let unsaid = || Kind::Disconnected.error("the node does not take orders any more");
            return Err(self.end(why.unwrap_or_else(unsaid)));
        }
        loop {
            if let Err(error) = self.look() {
                return Err(self.end(error));
            }
            if let Some(answer) = self.answer.take() {
                return Ok(answer);
            }
            match sys::wait_readable(self.socket.as_fd(), self.timeout) {
                Ok(true) => {}
                // Its answer could come at any time: nothing is certain on this session any more.
                Ok(false) => {
                    let late = format!("the node did not answer within {:?}", self.timeout);
                    return Err(self.end(Kind::Disconnected.error(late)));
                }
                Err(e) => return Err(self.end(Error::io("waiting for the node", e))),
            }
        }
    }
}

impl Channel for ShmChannel {
    fn fabric(&self) -> Fabric {
        Fabric::SharedMemory
    }

    fn allocate(&mut self, length: usize) -> Result<Arc<Region>> {
        if let Some((file, rounded)) = huge_memory(length) {
            match self.share(&file, rounded) {
                // A node may refuse huge pages, and ordinary ones may be short enough for its limits.
                Err(_) if self.over.is_none() => {}
                other => return other,
            }
        }
        let rounded = length.max(1).checked_next_multiple_of(ALIGN_BYTES).ok_or_else(|| {
            Kind::NoSpace.error(format!("{length} bytes are more than there can be"))
        })?;
        self.share(&sys::memory_file(rounded)?, rounded)
    }

    /// Never: a device of the node that had it may still write to it, and memory of huge pages was
    /// sealed by that node.
    fn register(&mut self, _: &Arc<Region>) -> Result<()> {
        Err(Kind::Unsupported.error("a node maps memory made for it alone: allocate it afresh"))
    }

    fn release(&mut self, region: &Arc<Region>) {
        let key = region.id().0;
        let Some(at) = self.regions.iter().position(|known| known.id() == region.id()) else {
            return;
        };
        self.regions.swap_remove(at);
        match self.order(Order::Unregister { key }, None) {
            Ok(Note::Unregistered(answered, Ok(()))) if answered == key => {}
            // A session that is over has released everything.
            Err(_) => {}
            Ok(other) => {
                self.end(Kind::Corrupt.error(format!("the node answered {other:?} to a release")));
            }
        }
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        self.alive()?;
        if self.outstanding >= self.most_outstanding || self.requests.room(1)? == 0 {
            return Err(Kind::Busy.error(format!(
                "{} requests are outstanding, and the rings hold {}: poll first",
                self.outstanding, self.most_outstanding
            )));
        }
        let mut capsule = [0; LONG_REQUEST_BYTES];
        let length = request.encode(&mut capsule);
        self.requests.push(&capsule[..length]);
        self.outstanding += 1;
        Ok(())
    }

    fn kick(&mut self) -> Result<()> {
        self.alive()?;
        if self.requests.publish() {
            wake::published();
            if self.node_wake.take(Awaits::Entries) {
                self.ring();
            }
        }
        Ok(())
    }

    fn poll(&mut self, replies: &mut Vec<Reply>) -> Result<()> {
        let mut count = self.take_replies(replies).map_err(|e| self.end(e))?;
        if count == 0 && self.over.is_none() {
            self.empty_polls += 1;
            if self.empty_polls < POLLS_PER_LOOK {
                return Ok(());
            }
            self.empty_polls = 0;
            if let Err(error) = self.look() {
                self.end(error);
                // The node publishes its last replies before it hangs up.
                count = self.take_replies(replies).map_err(|e| self.end(e))?;
            }
        }
        // Replies first; the next poll says that there will be no more.
        if count == 0 { self.alive() } else { Ok(()) }
    }

    /// May return early, for nothing.
    fn wait(&mut self, timeout: Duration) -> Result<()> {
        self.kick()?;
        if self.spin()? {
            return Ok(());
        }
        self.own_wake.arm(Awaits::Entries);
        if self.replies.pending().map_err(|e| self.end(e))? == 0 {
            self.own_wake.sleep(timeout.min(LONGEST_SLEEP));
        }
        self.own_wake.disarm();
        // Neither time nor a wake-up without a reply says that the node is still there.
        if self.replies.pending().map_err(|e| self.end(e))? == 0
            && let Err(error) = self.look()
        {
            let error = self.end(error);
            if self.replies.pending().map_err(|e| self.end(e))? == 0 {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// A file of huge pages for a region of at least `length` bytes, and its length; `None` if that would
/// waste most of a page, or there are none.
fn huge_memory(length: usize) -> Option<(OwnedFd, usize)> {
    if length < HUGE_PAGE_BYTES {
        return None;
    }
    let rounded = length.checked_next_multiple_of(HUGE_PAGE_BYTES)?;
    Some((sys::huge_memory_file(rounded).ok()?, rounded))
}
