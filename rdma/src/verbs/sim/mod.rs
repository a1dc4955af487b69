//! The verbs state machine on simulated devices, for tests: the code of a node and of a client is
//! the one that rdma-core runs under.
//!
//! What a device does is what the InfiniBand specification lets it do, in an order that a seed says:
//!
//! - Work requests of a queue pair are worked on and acknowledged in order; queue pairs overtake each
//!   other. A message, or memory that is written from, is read some time after it was posted;
//!   memory that is read into is written any time before the completion.
//! - One that fails ends its queue pair: every one behind it is flushed, in order, asked for or not.
//!   Where the other side has no receive it is sent again, as often as that side asked for. Messages that
//!   wait for receives which queue pairs share get them in the order in which they came.
//! - Queue pairs and ids get the numbers of those that went just before.
//! - What a queue pair that is destroyed has told stays in the completion queue or goes, with the
//!   receives that it used.
//!
//! A completion queue that might overflow, or a queue that gets more than it has places for, fails the
//! test. Time is counted in looks at completion queues.

mod connection;
mod device_region;
mod fabric;
mod handles;
mod options;
mod pair;
mod queue;
mod receives;
mod transport;
mod world;

pub use fabric::{SimVerbs, SimVerbsUsage};
use handles::Simulated;
pub use options::SimVerbsOptions;
pub use transport::{SimVerbsConnecting, SimVerbsTransport};

use extent::Result;
use extent::wire::Segment;

use super::channel::VerbsChannel;

/// A client's session over simulated devices.
pub type SimVerbsChannel = VerbsChannel<Simulated>;

impl SimVerbsChannel {
    /// The most bytes of a message.
    pub const MESSAGE_BYTES: usize = super::send_queue::MESSAGE_BYTES;

    /// Queues any bytes as a message, as a client may that knows no better.
    ///
    /// # Errors
    /// [`extent::Kind::Busy`] if the send queue is full.
    ///
    /// # Panics
    /// If there are more than [`Self::MESSAGE_BYTES`].
    pub fn send_bytes(&mut self, message: &[u8]) -> Result<()> {
        self.check_room()?;
        self.push(message);
        Ok(())
    }

    /// A part of memory that was allocated here, as a request on the wire names it.
    ///
    /// # Errors
    /// [`extent::Kind::Invalid`] if it is none.
    pub fn on_the_wire(&self, segment: Segment) -> Result<Segment> {
        self.remote(segment)
    }
}
