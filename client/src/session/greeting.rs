use std::time::Duration;

use extent::wire::{self, HelloBody};
use extent::{Error, Kind, Result};
use rdma::Channel;

use super::transfer::Operation;
use super::{Link, NAME_BYTES, NAMES, Session};
use crate::connector::Connector;
use crate::session::redial::Redial;
use crate::{Completed, Memory, Options, clock};

impl Session {
    /// Greets the node over a fresh channel and waits for its answer. The session ends with that
    /// channel; see [`Session::reconnecting`].
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the node speaks no version in common; [`Kind::Disconnected`] if it
    /// does not answer within the options' timeout; what the node answers.
    pub fn connect(channel: Box<dyn Channel>, options: &Options) -> Result<Self> {
        let mut session = Self::new(channel.fabric(), options);
        session.attach(channel, options.timeout);
        session.kick();
        let mut completed = Vec::new();
        loop {
            session.poll(&mut completed);
            match &session.over {
                Some(reason) => return Err(reason.duplicate()),
                None if session.link == Link::Up => return Ok(session),
                None => session.wait(options.timeout),
            }
        }
    }

    /// From now on a lost connection is followed by another one, if the options say so. `rail` is
    /// the connector's rail that is in use.
    #[must_use]
    pub fn reconnecting(mut self, connector: Box<dyn Connector>, rail: usize) -> Self {
        let connect_timeout = self.options.connect_timeout;
        self.redial = self
            .options
            .reconnect
            .map(|options| Redial::new(connector, options, connect_timeout, rail));
        self
    }

    /// Begins to use a channel.
    pub(super) fn attach(&mut self, channel: Box<dyn Channel>, patience: Duration) {
        self.fabric = channel.fabric();
        self.channel = Some(channel);
        self.credits = 1;
        self.link = Link::Greeting { until: clock::after(patience) };
        let credits = self.options.credits.clamp(1, wire::MAX_CREDITS);
        self.enqueue_own(Operation::Hello { credits }, Memory::default(), 0);
    }

    /// The node answered the greeting.
    pub(super) fn greeted(&mut self, answer: &Completed) -> Result<()> {
        if let Err(error) = &answer.result {
            let error = Error::new(error.kind(), error.to_string());
            return Err(error.while_doing("greeting the node"));
        }
        self.negotiate(&HelloBody::parse(&answer.body)?)?;
        drop(self.home.take_unused());
        self.announce_memory();
        if self.stats.connections == 0 {
            let mut names = self.acquire(2 * NAME_BYTES * NAMES)?;
            while names.len() > NAME_BYTES {
                let name = names.split_off(names.len() - NAME_BYTES);
                let list =
                    if self.names.len() < NAMES { &mut self.names } else { &mut self.own_names };
                list.push(name);
            }
            self.own_names.push(names);
        }
        self.stats.connections += 1;
        self.begin_to_reopen();
        Ok(())
    }

    /// Has the node know the memory that there is, or retires it.
    fn announce_memory(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        self.devices.sweep(None);
        self.devices.announce(&mut **channel);
        for region in self.home.regions() {
            if let Err(error) = channel.register(&region) {
                tracing::debug!(%error, "memory of before is replaced when it is used");
                self.home.retire(|other| other.id() == region.id());
            }
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
