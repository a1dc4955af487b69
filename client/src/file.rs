use std::ops::RangeBounds;
use std::sync::Arc;

use extent::wire::{Landing, OpenBody, Served};
use extent::{FileName, Generation, Result};

use crate::session::Completed;
use crate::{Client, Fetch, Memory, bounce};

/// An open file at one generation. Closed when the last user of it is gone.
pub struct File {
    handle: Arc<Handle>,
    name: FileName,
    body: OpenBody,
}

/// A handle of the node's, given back on drop.
pub(crate) struct Handle {
    pub(crate) client: Client,
    pub(crate) number: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.client.close(self.number);
    }
}

/// What a read did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Read {
    /// Bytes read: fewer than asked for only at the end of the file.
    pub bytes: u64,
    /// Where they came from.
    pub served: Served,
    /// How the node brought them.
    pub landing: Landing,
    /// Whether this client copied them once more, into memory that the node cannot reach.
    pub copied: bool,
    /// Time in the node, in microseconds; of several requests, the longest. 0 where a short reply over RDMA
    /// does not tell.
    pub service_us: u32,
}

impl Read {
    pub(crate) fn of(completed: &Completed) -> Self {
        Self {
            bytes: completed.bytes,
            served: completed.served,
            landing: completed.landing,
            copied: false,
            service_us: completed.service_us,
        }
    }
}

impl File {
    pub(crate) fn new(client: &Client, name: FileName, number: u64, body: OpenBody) -> Self {
        Self::with_handle(Handle { client: client.clone(), number }, name, body)
    }

    pub(crate) fn with_handle(handle: Handle, name: FileName, body: OpenBody) -> Self {
        Self { handle: Arc::new(handle), name, body }
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &FileName {
        &self.name
    }

    /// Bytes of this generation.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.body.length
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.body.length == 0
    }

    /// The generation that was opened.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.body.generation
    }

    /// What the node said when the file was opened.
    #[must_use]
    pub fn opened(&self) -> &OpenBody {
        &self.body
    }

    /// What the node says of it now, such as how much of it is resident.
    ///
    /// # Errors
    /// [`extent::Kind::Disconnected`] if the session is over.
    pub fn stat(&self) -> Result<OpenBody> {
        let client = &self.handle.client;
        Ok(client.call(|session| session.submit_stat(self.handle.number))?.opened()?.1)
    }

    /// Reads from `offset` into a range of the memory, and waits for it.
    ///
    /// # Errors
    /// What the node answers, in its words. [`extent::Kind::Corrupt`] if the bytes were damaged on the
    /// way. [`extent::Kind::Disconnected`] if the session is lost, or the read took longer than the
    /// options' timeout, which ends the session. Over shared memory the memory is then empty:
    /// the node's devices may still write to it.
    pub fn read_at(
        &self,
        offset: u64,
        memory: &mut Memory,
        within: impl RangeBounds<usize>,
    ) -> Result<Read> {
        let within = memory.resolve(&within)?;
        let number = self.handle.number;
        let lent = std::mem::take(memory);
        let outcome = self.handle.client.run(lent, |session, memory| {
            session.submit_read(number, offset, memory, within.clone())
        });
        match outcome {
            Ok(mut completed) => {
                *memory = completed.memory.take().unwrap_or_default();
                let read = Read::of(&completed);
                completed.result.map_err(|error| {
                    error.while_doing(format_args!("reading {} at {offset}", self.name))
                })?;
                Ok(read)
            }
            Err(refused) => {
                *memory = refused.memory;
                Err(refused.error)
            }
        }
    }

    /// Reads from `offset` into any memory. The node cannot reach that, so the bytes are copied
    /// once, and the result says so.
    ///
    /// # Errors
    /// As [`File::read_at`].
    pub fn read_into(&self, offset: u64, bytes: &mut [u8]) -> Result<Read> {
        bounce::read(&self.handle, offset, bytes)
            .map_err(|error| error.while_doing(format_args!("reading {} at {offset}", self.name)))
    }

    /// A read of all of `memory` from `offset`, to be started by [`Client::read_batch`].
    #[must_use]
    pub fn fetch(&self, offset: u64, memory: Memory) -> Fetch {
        Fetch::new(Arc::clone(&self.handle), offset, memory)
    }
}
