//! A client that does random things and checks what it gets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::{Completed, Connector, Dial, Memory, Options, Reconnect, Session, Ticket};
use dataplane::Stepped;
use extent::wire::OpenMode;
use extent::{FileName, Generation, Kind, Result};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rdma::Channel;

use crate::model::{Model, any_length, contents};
use crate::network::Network;
use crate::world::{EXTENT_BYTES, SHARDS};

/// Nothing waits in simulated time.
const AT_ONCE: Reconnect = Reconnect {
    first_pause: Duration::ZERO,
    longest_pause: Duration::ZERO,
    give_up_after: Duration::from_secs(45),
    repeats: 8,
};

/// One client, who alone writes the files named after it.
pub(crate) struct Player {
    number: u16,
    network: Network,
    model: Model,
    rng: SmallRng,
    node: Arc<Mutex<Stepped>>,
    session: Option<Session>,
    done: Vec<Completed>,
    /// Bytes compared.
    pub(crate) compared: u64,
}

impl Player {
    pub(crate) fn new(
        number: u16,
        network: Network,
        node: Arc<Mutex<Stepped>>,
        model: Model,
        seed: u64,
    ) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        let done = Vec::new();
        Self { number, network, model, rng, node, session: None, done, compared: 0 }
    }

    /// Does a number of things. Errors are legal, wrong bytes are not.
    pub(crate) async fn play(&mut self, rounds: u32) {
        for _ in 0..rounds {
            let result = match self.rng.random_range(0..10) {
                0..6 => self.read_something().await,
                6..9 => self.write_something().await,
                _ => self.hang_up().await,
            };
            if let Err(error) = result {
                let legal = [
                    Kind::Busy,
                    Kind::Corrupt,
                    Kind::Disconnected,
                    Kind::Io,
                    Kind::NoSpace,
                    Kind::NotFound,
                    Kind::Stale,
                ];
                assert!(legal.contains(&error.kind()), "a client got {error:?}");
                if error.kind() == Kind::Disconnected {
                    self.leave();
                }
            }
        }
        self.leave();
    }

    fn leave(&mut self) {
        self.session = None;
        self.done.clear();
    }

    /// Reads a file from end to end, and checks all of it.
    pub(crate) async fn read_whole(&mut self, name: &FileName) -> Result<()> {
        let floor = self.model.of(name).floor();
        let opened = self.call(|s| s.submit_open(name, OpenMode::Read(Generation(0)))).await?;
        let (handle, body) = opened.opened()?;
        let length = usize::try_from(body.length).expect("small files");
        let memory = self.session()?.allocate(length.max(1))?;
        let done = self.call(|s| Ok(s.submit_read(handle, 0, memory, 0..length)?)).await?;
        done.result?;
        assert_eq!(done.bytes, body.length, "all of {name}");
        let memory: Memory = done.memory.expect("it comes back from a read that succeeded");
        let right = self.model.of(name).allows(floor, 0, &memory.as_slice()[..length], body.length);
        assert!(right, "{name} is not what was committed");
        self.compared += body.length;
        self.call(|s| s.submit_close(handle)).await?.result
    }

    async fn read_something(&mut self) -> Result<()> {
        let names = self.model.names();
        let name = &names[self.rng.random_range(0..names.len())];
        let floor = self.model.of(name).floor();
        let opened = self.call(|s| s.submit_open(name, OpenMode::Read(Generation(0)))).await?;
        let (handle, body) = opened.opened()?;
        let history = self.model.of(name);
        let length = usize::try_from(body.length).expect("small files");
        let mut reads = Vec::new();
        for _ in 0..self.rng.random_range(1..6) {
            let offset = self.rng.random_range(0..=length);
            let wanted = any_length(&mut self.rng, EXTENT_BYTES).max(1);
            let memory = self.session()?.allocate(wanted)?;
            reads.push((
                self.submit(|s| Ok(s.submit_read(handle, offset as u64, memory, 0..wanted)?))
                    .await?,
                offset,
                wanted,
            ));
        }
        let mut outcome = Ok(());
        for (ticket, offset, wanted) in reads {
            let done = self.finish(ticket).await?;
            if let Err(error) = done.result {
                outcome = Err(error);
                continue;
            }
            let bytes = usize::try_from(done.bytes).expect("small reads");
            assert_eq!(bytes, wanted.min(length - offset), "a read ends only where the file does");
            let memory: Memory = done.memory.expect("it comes back from a read that succeeded");
            let right = history.allows(floor, offset, &memory.as_slice()[..bytes], body.length);
            assert!(
                right,
                "wrong bytes of {name} at {offset}, {bytes} of {length}, {:?} {:?}, floor {floor:?}: {:#?}",
                done.served,
                done.landing,
                history.differences(offset, &memory.as_slice()[..bytes]),
            );
            self.compared += bytes as u64;
        }
        self.call(|s| s.submit_close(handle)).await?.result?;
        outcome
    }

    async fn write_something(&mut self) -> Result<()> {
        let number = self.rng.random_range(0..4);
        let name = FileName::new("out", format!("client{}/{number}", self.number))?;
        let bytes = contents(self.rng.random(), any_length(&mut self.rng, EXTENT_BYTES));
        let announced = if self.rng.random() { bytes.len() as u64 } else { 0 };
        let opened = self.call(|s| s.submit_open(&name, OpenMode::Write(announced))).await?;
        let (handle, _) = opened.opened()?;
        self.write_in_pieces(handle, &bytes).await?;
        if self.rng.random_ratio(1, 5) {
            return self.call(|s| s.submit_close(handle)).await?.result;
        }
        let entry = self.model.sending(&name, &bytes);
        let committed = self.call(|s| s.submit_commit(handle, bytes.len() as u64)).await?;
        committed.result?;
        self.model.acknowledged(&name, entry);
        self.call(|s| s.submit_close(handle)).await?.result
    }

    /// Writes pieces of odd sizes, out of order, some of them twice.
    async fn write_in_pieces(&mut self, handle: u64, bytes: &Arc<[u8]>) -> Result<()> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let most = (bytes.len() - at).min(2 * EXTENT_BYTES);
            let size = if self.rng.random() { most } else { self.rng.random_range(1..=most) };
            pieces.push(at..at + size);
            if self.rng.random_ratio(1, 6) {
                let begin = self.rng.random_range(0..=at);
                pieces.push(begin..at + size);
            }
            at += size;
        }
        pieces.shuffle(&mut self.rng);
        let mut tickets = Vec::new();
        for piece in pieces {
            let mut memory = self.session()?.allocate(piece.len())?;
            memory.as_mut_slice().copy_from_slice(&bytes[piece.clone()]);
            let within = 0..piece.len();
            let ticket = self
                .submit(|s| Ok(s.submit_write(handle, piece.start as u64, memory, within)?))
                .await?;
            tickets.push(ticket);
        }
        let mut outcome = Ok(());
        for ticket in tickets {
            let done = self.finish(ticket).await?;
            outcome = outcome.and(done.result);
        }
        outcome
    }

    /// Leaves in the middle of something.
    async fn hang_up(&mut self) -> Result<()> {
        let names = self.model.names();
        let name = &names[self.rng.random_range(0..names.len())];
        let opened = self.call(|s| s.submit_open(name, OpenMode::Read(Generation(0)))).await?;
        let (handle, _) = opened.opened()?;
        let memory = self.session()?.allocate(EXTENT_BYTES)?;
        self.submit(|s| Ok(s.submit_read(handle, 0, memory, 0..EXTENT_BYTES)?)).await?;
        if self.rng.random() {
            let open = self.network.sessions();
            self.network.sever(self.rng.random_range(0..open.max(1)));
        }
        self.leave();
        Ok(())
    }

    async fn call(
        &mut self,
        submit: impl FnOnce(&mut Session) -> Result<Ticket>,
    ) -> Result<Completed> {
        let ticket = self.submit(submit).await?;
        self.finish(ticket).await
    }

    async fn submit(
        &mut self,
        submit: impl FnOnce(&mut Session) -> Result<Ticket>,
    ) -> Result<Ticket> {
        let session = self.session()?;
        let ticket = submit(session)?;
        session.kick();
        Ok(ticket)
    }

    async fn finish(&mut self, ticket: Ticket) -> Result<Completed> {
        // Virtual time: an hour means that an answer never comes.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(3600);
        loop {
            let at = self.done.iter().position(|done: &Completed| done.ticket == ticket);
            if let Some(at) = at {
                return Ok(self.done.swap_remove(at));
            }
            let session = self.session.as_mut().expect("an operation has a session");
            session.kick();
            session.poll(&mut self.done);
            assert!(!self.node.is_poisoned(), "the node panicked");
            assert!(
                tokio::time::Instant::now() < deadline,
                "client {} waits for ever",
                self.number
            );
            tokio::time::sleep(Duration::from_micros(3)).await;
        }
    }

    fn session(&mut self) -> Result<&mut Session> {
        if self.session.is_none() {
            let shard = self.rng.random_range(0..SHARDS);
            let mut wire =
                Wire { network: self.network.clone(), node: Arc::clone(&self.node), shard };
            let options = Options { reconnect: Some(AT_ONCE), ..Options::default() };
            let session = Session::connect(wire.channel()?, &options)?;
            // Half of the sessions end with their connections.
            let stays = self.rng.random();
            self.session =
                Some(if stays { session.reconnecting(Box::new(wire), 0) } else { session });
        }
        Ok(self.session.as_mut().expect("just connected"))
    }
}

/// Connects again, to another shard each time.
struct Wire {
    network: Network,
    node: Arc<Mutex<Stepped>>,
    shard: u16,
}

impl Wire {
    fn channel(&mut self) -> Result<Box<dyn Channel>> {
        self.shard = (self.shard + 1) % SHARDS;
        Ok(Box::new(self.network.connect(self.shard, &self.node)?))
    }
}

impl Connector for Wire {
    fn name(&self, _: usize) -> String {
        "the simulated fabric".to_owned()
    }

    fn dial(&mut self, _: usize) -> Dial {
        Dial::Done(self.channel())
    }
}
