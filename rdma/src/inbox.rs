use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use extent::{Error, Kind, Result};

use crate::Gate;
use crate::shm::ShmConnection;
use crate::sys::EventFd;
use crate::verbs;

/// Connections that a shard has not taken yet. More are refused.
const CAPACITY: usize = 256;

/// Where a [`crate::Listener`] puts connections for one shard's [`crate::Fabrics`]. Clones are the
/// same inbox.
#[derive(Clone, Debug)]
pub struct Inbox(Arc<Shared>);

/// A connection for a shard.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A stream, who is at its other end, and whom to ask about what it will show.
    Tcp(TcpStream, String, Arc<dyn Gate>),
    /// A client that shook hands.
    Shm(ShmConnection),
    /// One that asks for an RDMA connection.
    Verbs(verbs::Incoming),
}

#[derive(Debug)]
struct Shared {
    queue: ArrayQueue<Incoming>,
    /// Readable while the shard should look.
    wake: EventFd,
    /// Whether `wake` was signalled since the shard looked last: a busy shard looks here only, and
    /// makes no system call.
    has_news: AtomicBool,
    /// Sessions that the shard has.
    open: AtomicUsize,
}

impl Inbox {
    pub(crate) fn new() -> Result<Self> {
        let wake = EventFd::new().map_err(|e| Error::io("making an eventfd", e))?;
        Ok(Self(Arc::new(Shared {
            queue: ArrayQueue::new(CAPACITY),
            wake,
            has_news: AtomicBool::new(false),
            open: AtomicUsize::new(0),
        })))
    }

    /// Sessions that the shard has or is about to have.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.0.open.load(Ordering::Relaxed) + self.0.queue.len()
    }

    /// Hands a connection to the shard and wakes it.
    ///
    /// # Errors
    /// [`Kind::Busy`] if the shard takes none.
    pub(crate) fn push(&self, connection: Incoming) -> Result<()> {
        self.0.queue.push(connection).map_err(|refused| {
            let error = format!("{CAPACITY} connections wait for a shard that takes none");
            let error = Kind::Busy.error(error);
            if let Incoming::Verbs(client) = &refused {
                client.reject(&error);
            }
            error
        })?;
        self.announce();
        Ok(())
    }

    /// Whoever sets the flag signals; if it was set, the shard has yet to look, and will see what is there.
    fn announce(&self) {
        if !self.0.has_news.swap(true, Ordering::AcqRel) {
            self.0.wake.signal();
        }
    }

    /// Whether there is something to take.
    pub(crate) fn has_news(&self) -> bool {
        self.0.has_news.load(Ordering::Acquire)
    }

    /// Takes out what has waited for longest, at most so many. Call it when there is news; if there is more,
    /// there still is.
    pub(crate) fn take(&self, most: usize, mut with: impl FnMut(Incoming)) {
        // In this order: what is pushed after the flag fell is signalled again, and what was
        // pushed before is in the queue. A signal lost in between has its flag still set.
        self.0.has_news.swap(false, Ordering::AcqRel);
        self.0.wake.clear();
        std::iter::from_fn(|| self.0.queue.pop()).take(most).for_each(&mut with);
        if !self.0.queue.is_empty() {
            self.announce();
        }
    }

    pub(crate) fn set_open(&self, sessions: usize) {
        self.0.open.store(sessions, Ordering::Relaxed);
    }

    pub(crate) fn wake(&self) -> &EventFd {
        &self.0.wake
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::OpenGate;

    #[test]
    fn an_inbox_is_bounded_and_says_when_it_has_news() {
        let inbox = Inbox::new().expect("an eventfd");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let push = || {
            let stream = stream.try_clone().expect("a descriptor");
            inbox.push(Incoming::Tcp(stream, String::new(), Arc::new(OpenGate)))
        };
        assert!(!inbox.has_news());
        (0..CAPACITY).for_each(|_| push().expect("room"));
        assert_eq!(push().expect_err("full").kind(), Kind::Busy);
        assert!(inbox.has_news());
        assert_eq!(inbox.sessions(), CAPACITY);
        let mut taken = 0;
        inbox.take(3, |_| taken += 1);
        assert_eq!((taken, inbox.sessions(), inbox.has_news()), (3, CAPACITY - 3, true));
        inbox.take(CAPACITY, |_| taken += 1);
        assert_eq!((taken, inbox.sessions(), inbox.has_news()), (CAPACITY, 0, false));
        push().expect("room");
        assert!(inbox.has_news());
    }
}
