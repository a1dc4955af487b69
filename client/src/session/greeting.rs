use extent::wire::{self, Command, HelloBody};
use extent::{Error, Kind, Result};
use rdma::Channel;

use super::transfer::Operation;
use super::{NAME_BYTES, NAMES, Session};
use crate::{Memory, Options, clock};

impl Session {
    /// Greets the node over a fresh channel and waits for its answer.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the node speaks no version in common; [`Kind::Disconnected`] if it
    /// does not answer within the options' timeout; what the node answers.
    pub fn connect(channel: Box<dyn Channel>, options: &Options) -> Result<Self> {
        let mut session = Self::new(channel, options);
        let hello = Command::Hello {
            versions: (wire::VERSION, wire::VERSION),
            credits: options.credits.clamp(1, wire::MAX_CREDITS),
            features: 0,
        };
        session.enqueue(Operation::Plain(hello), Memory::default(), 0..0).map_err(Error::from)?;
        session.kick();
        let answer = session.await_hello()?;
        session.negotiate(&answer)?;
        let mut names = session.allocate(NAME_BYTES * NAMES)?;
        while names.len() > NAME_BYTES {
            session.names.push(names.split_off(names.len() - NAME_BYTES));
        }
        session.names.push(names);
        Ok(session)
    }

    fn await_hello(&mut self) -> Result<HelloBody> {
        let deadline = clock::now() + self.options.timeout;
        let mut completed = Vec::new();
        loop {
            self.poll(&mut completed);
            if let Some(answer) = completed.pop() {
                answer.result.map_err(|error| error.while_doing("greeting the node"))?;
                return HelloBody::parse(&answer.body);
            }
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                return Err(Kind::Disconnected.error(format!(
                    "the node did not answer the greeting within {:?}",
                    self.options.timeout
                )));
            }
            self.wait(left);
        }
    }

    fn negotiate(&mut self, hello: &HelloBody) -> Result<()> {
        if hello.version != wire::VERSION {
            return Err(Kind::Unsupported.error(format!(
                "the node chose protocol version {}, and this client speaks {}",
                hello.version,
                wire::VERSION
            )));
        }
        if hello.credits == 0 || hello.max_transfer_bytes == 0 {
            return Err(Kind::Corrupt.error("the node granted no credits or no bytes"));
        }
        self.hello = *hello;
        self.credits = usize::from(hello.credits.min(wire::MAX_CREDITS));
        self.max_transfer_bytes = hello.max_transfer_bytes.min(wire::MAX_TRANSFER_BYTES);
        Ok(())
    }
}
